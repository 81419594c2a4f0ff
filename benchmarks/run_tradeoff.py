"""
Quality against speed on a CPU: trained YANs and trained BART-shaped models (a deep encoder with one decoder layer among
them), each in the runtimes that somebody would deploy, scored and timed on the same sources in one run. Writes JSON and
a picture beside it, and prints a table.

    OMP_NUM_THREADS=1 python benchmarks/run_tradeoff.py --task e2e_nlg --dataset_name ../shared/data/e2e_nlg \
        --models examples/models/yan-e2e --baselines outputs/bart-e2e outputs/deep-e2e \
        --output benchmarks/results/tradeoff_e2e.json

All write greedily, as long an answer as they find right, on as many threads: YAN in one step as graphs in ONNX Runtime,
the others in CTranslate2, all in float32 and in int8. A float32 runtime that does not write what torch writes is an
error. A call is charged with everything, from the text of the source to the text of the answer.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForSeq2SeqLM, BartForConditionalGeneration
from transformers.utils import logging

from modeling_yan import YanForConditionalGeneration
from modeling_yan.common.arguments import check_positive, run_script
from modeling_yan.common.help import ScriptHelp
from modeling_yan.common.hub import read_model, read_tokenizer
from modeling_yan.common.reports import machine, read_report, write_report
from modeling_yan.data.loading import first_rows
from modeling_yan.data.tasks import Task, load_rows
from modeling_yan.evaluation.metrics import score_texts
from modeling_yan.evaluation.plots import plot_tradeoff
from modeling_yan.evaluation.report import METRICS, SCORES
from modeling_yan.evaluation.text_writers import (
    Writer,
    check_same,
    ctranslate2_writers,
    in_batches,
    sequence_writer,
    time_batches,
    time_calls,
    yan_writer,
)
from modeling_yan.serving.graph_writers import yan_graph_writers

# Sources whose answers in a runtime are compared with torch's.
COMPARED = 50
# What of a training report is kept.
TRAINING = ("train_flops", "total_train_flops", "train_minutes", "total_train_minutes", "updates", "train_rows", "seed")


def describe_shape(model) -> str:
    """Layers of a model's parts, in words."""
    config = model.config
    if config.model_type == "yan":
        layers = f"{config.encoder_layers} encoder, {config.flow_layers} flow, {config.decoder_layers} decoder layers"
        return f"{layers}, {config.canvas_ratio:g} positions per token"
    return f"{config.encoder_layers} encoder, {config.decoder_layers} decoder layers"


def yan_systems(folder: str, longest: int, sources: Sequence[str]) -> tuple[YanForConditionalGeneration, dict]:
    """The model, and what writes for it by its name in tables."""
    tokenizer, model = read_tokenizer(folder), read_model(YanForConditionalGeneration, folder, dtype=torch.float32)
    writers = yan_graph_writers(model, tokenizer, longest)
    torch_writer = yan_writer(model, tokenizer, longest, num_inference_steps=1)
    check_same(torch_writer, writers["ONNX Runtime float32"], sources, folder)
    return model, writers


def baseline_systems(folder: str, longest: int, sources: Sequence[str]) -> tuple[BartForConditionalGeneration, dict]:
    """The same of a BART-shaped model."""
    tokenizer, model = read_tokenizer(folder), read_model(AutoModelForSeq2SeqLM, folder, dtype=torch.float32)
    longest = min(longest, model.config.max_position_embeddings)
    writers = ctranslate2_writers(model, tokenizer, longest)
    check_same(sequence_writer(model, tokenizer, longest), writers["CTranslate2 float32"], sources, folder)
    return model, writers


def build_systems(
    arguments: argparse.Namespace, longest: int, sources: Sequence[str]
) -> tuple[dict[str, Writer], dict[str, dict]]:
    """
    What writes, and what is known of it, by names in tables.

    Raises:
        ValueError: for a runtime that does not write what torch writes.
    """
    writers: dict[str, Writer] = {}
    facts: dict[str, dict] = {}
    builders = [(folder, yan_systems) for folder in arguments.models]
    builders += [(folder, baseline_systems) for folder in arguments.baselines]
    for folder, build in builders:
        model, own = build(folder, longest, sources)
        training = read_report(folder) or {}
        for runtime, writer in own.items():
            name = f"{Path(folder).name}, {runtime}"
            writers[name] = writer
            facts[name] = {
                "system": name,
                "model": Path(folder).name,
                "runtime": runtime,
                "kind": "YAN" if build is yan_systems else "left to right",
                "shape": describe_shape(model),
                "parameters": model.num_parameters(),
                **{key: training[key] for key in TRAINING if key in training},
            }
    return writers, facts


def score(writers: dict[str, Writer], rows: Dataset, batch_size: int, num_bootstrap: int) -> dict[str, dict]:
    """Scores of every system's answers to these rows, by name."""
    scores = {}
    for name, writer in writers.items():
        texts = in_batches(writer, rows["source"][:], batch_size)
        scores[name] = score_texts(texts, rows["references"][:], num_bootstrap=num_bootstrap)
        scores[name]["mean_words"] = sum(len(text.split()) for text in texts) / len(texts)
    return scores


def check_names(folders: Sequence[str]) -> None:
    """
    Raises:
        ValueError: for folders of one name, which a table could not tell apart.
    """
    names = [Path(folder).name for folder in folders]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"--models and --baselines have several folders of the names {repeated}; rename all but one")


def make_table(cells: list[dict], metric: str, batch_sizes: list[int]) -> Table:
    columns = (f"{METRICS[metric]} [95 % interval]", "ms a call")
    table = Table("system", *columns, *(f"texts/s, {size}" for size in batch_sizes))
    for cell in cells:
        low, high = cell["scores"][f"{SCORES[metric]}_interval"]
        quality = f"{cell['scores'][SCORES[metric]]:.1f} [{low:.1f}, {high:.1f}]"
        rates = (f"{cell['texts_per_second'][str(size)]:,.0f}" for size in batch_sizes)
        table.add_row(cell["system"], quality, f"{cell['ms']:.1f}", *rates)
    return table


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ScriptHelp)
    add = parser.add_argument
    add("--models", nargs="+", required=True, help="YAN folders")
    add("--baselines", nargs="*", default=[], help="folders of run_baseline.py --architecture bart")
    add("--task", required=True, help="name in configuration/tasks, or a YAML file; its first metric is shown")
    add("--dataset_name", required=True, help="Hub name, local folder, or a CSV, JSON or Parquet file")
    add("--split", default="test", help="whose sources are answered; choose a model on validation rows")
    add("--max_rows", type=int, help="answer the first sources only")
    add("--timed", type=int, default=128, help="of these, sources whose calls are timed")
    add("--batch_sizes", type=int, nargs="*", default=[8, 32, 128], help="batches whose throughput is timed")
    add("--rounds", type=int, default=3, help="how often each system has its turn")
    add("--num_bootstrap", type=int, default=1000, help="resamplings behind the intervals")
    add("--output", type=Path, required=True, help="JSON; the picture is written beside it as PNG")
    arguments = parser.parse_args()
    check_positive(arguments, "max_rows", "timed", "batch_sizes", "rounds", "num_bootstrap")
    if max(arguments.batch_sizes, default=0) > arguments.timed:
        raise ValueError(
            f"--batch_sizes {arguments.batch_sizes} has batches of more than --timed {arguments.timed} sources, which "
            "would never be full; raise --timed"
        )
    return arguments


def main() -> None:
    arguments = parse()
    check_names([*arguments.models, *arguments.baselines])
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    task = Task.load(arguments.task)
    mask_token = read_tokenizer(arguments.models[0]).mask_token
    rows = load_rows(arguments.dataset_name, task, arguments.split, mask_token=mask_token, max_rows=arguments.max_rows)
    sources = first_rows(rows, arguments.timed)["source"][:]
    longest = max(task.max_source_length, task.max_target_length)
    writers, facts = build_systems(arguments, longest, sources[:COMPARED])
    scores = score(writers, rows, 32, arguments.num_bootstrap)
    milliseconds = time_calls(writers, sources, arguments.rounds)
    rates = {size: time_batches(writers, sources, size, arguments.rounds) for size in arguments.batch_sizes}
    cells = [
        {
            **facts[name],
            "scores": scores[name],
            "ms": milliseconds[name],
            "texts_per_second": {str(size): own[name] for size, own in rates.items()},
        }
        for name in writers
    ]
    settings = {"task": arguments.task, "split": arguments.split, "rows": len(rows), "timed": len(sources)}
    report = {**machine(torch.device("cpu")), **settings, "metric": task.metric, "cells": cells}
    write_report(report, arguments.output)
    shown = ("model", "runtime", "kind")
    points = [(c["ms"], c["scores"][SCORES[task.metric]], *(c[name] for name in shown)) for c in cells]
    plot_tradeoff(points, METRICS[task.metric], arguments.output.with_suffix(".png"))
    Console(width=120).print(make_table(cells, task.metric, arguments.batch_sizes))


if __name__ == "__main__":
    run_script(main)
