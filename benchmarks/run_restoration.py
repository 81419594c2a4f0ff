"""
How well texts are restored, and how fast, by a YAN and by what somebody would use instead, all in one run: JSON and
tables. Every system is scored on the same texts with the same errors.

    python benchmarks/run_restoration.py --model outputs/yan-restore --dataset_name outputs/clean \
        --unseen ../shared/data/rocstories --baselines outputs/bart-restore outputs/shallow-restore \
        --tagger outputs/tagger-restore --output benchmarks/results/restoration.json

YAN runs as torch and as graphs in ONNX Runtime, BART-shaped baselines in CTranslate2 (float32 and int8, greedy, up to
the end of the text); float32 texts are compared with transformers' own `generate()` first. A deep encoder with one
decoder layer and random weights is timed, too. Where the YAN has a lexicon, it is scored alone and in front of the
baselines.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForSeq2SeqLM, AutoModelForTokenClassification

from modeling_yan import YanForConditionalGeneration
from modeling_yan.common.arguments import check_positive, run_script
from modeling_yan.common.help import ScriptHelp
from modeling_yan.common.hub import read_model, read_tokenizer
from modeling_yan.common.reports import machine, read_report, write_report
from modeling_yan.data.loading import first_rows, load_data, select_split
from modeling_yan.data.tasks import Task
from modeling_yan.evaluation.restoration import score_restoration
from modeling_yan.evaluation.restoration_systems import (
    checked_restorer,
    lexicon_restorer,
    tagger_restorer,
    untrained_restorers,
)
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
from modeling_yan.lexicon_yan import Lexicon
from modeling_yan.serving.graph_writers import yan_graphs

SHOWN = {
    "word error rate": "word_error_rate",
    "cut by": "word_error_reduction",
    "character error rate": "character_error_rate",
    "exact": "exact_match",
    "period": "period_f1",
    "comma": "comma_f1",
    "question": "question_mark_f1",
    "capitals": "capital_f1",
    "corrected": "spelling_recall",
    "harmed": "harmed",
    "protected harmed": "protected_harmed",
}
# Texts that a runtime's are compared with transformers' on.
COMPARED = 50


def test_rows(dataset_name: str, task: Task, count: int) -> Dataset:
    """The first test rows of a data set of clean texts, with errors."""
    rows = select_split(load_data(dataset_name), "test", dataset_name)
    return task.build(first_rows(rows, count))


def yan_systems(folder: str, longest: int, lexicon: Lexicon | None) -> dict[str, Writer]:
    """A YAN as torch and as graphs of one step, by `generate()` and by `restore()`, and its lexicon alone."""
    tokenizer, model = read_tokenizer(folder), read_model(YanForConditionalGeneration, folder, dtype=torch.float32)
    options = {"num_inference_steps": 1}
    own = {} if lexicon is None else {"lexicon": lexicon}
    graphs = yan_graphs(model, [1])
    systems = {}
    for name, runtime in {"": model, **{f", ONNX Runtime {kind}": graph for kind, graph in graphs.items()}}.items():
        systems[f"YAN{name}"] = yan_writer(runtime, tokenizer, longest, **options)
        systems[f"YAN, restore(){name}"] = checked_restorer(runtime, tokenizer, **own, **options)
    if lexicon is not None:
        systems["YAN, restore(lexicon=None)"] = checked_restorer(model, tokenizer, lexicon=None, **options)
        systems["lexicon"] = lexicon_restorer(lexicon)
    return systems


def baseline_systems(folder: str, longest: int, texts: list[str]) -> dict[str, Writer]:
    """
    A BART-shaped baseline in CTranslate2, in float32 and in int8.

    Raises:
        ValueError: where its float32 texts are not those of transformers.
    """
    tokenizer, model = read_tokenizer(folder), read_model(AutoModelForSeq2SeqLM, folder, dtype=torch.float32)
    name = f"{Path(folder).name} ({model.config.encoder_layers}+{model.config.decoder_layers})"
    writers = ctranslate2_writers(model, tokenizer, longest)
    systems = {f"{name}, {runtime}": writer for runtime, writer in writers.items()}
    check_same(sequence_writer(model, tokenizer, longest), writers["CTranslate2 float32"], texts, folder)
    return systems


def build_systems(arguments: argparse.Namespace, longest: int, texts: list[str]) -> dict[str, Writer]:
    lexicon = Lexicon.from_pretrained(arguments.model)
    peers: dict[str, Writer] = {}
    for folder in arguments.baselines:
        peers |= baseline_systems(folder, longest, texts)
    if arguments.tagger:
        tokenizer = read_tokenizer(arguments.tagger)
        model = read_model(AutoModelForTokenClassification, arguments.tagger, dtype=torch.float32)
        peers["tagger"] = tagger_restorer(model, tokenizer, longest)
    systems = yan_systems(arguments.model, longest, lexicon) | peers
    if lexicon is not None:
        systems |= {f"lexicon, then {name}": lexicon_restorer(lexicon, writer) for name, writer in peers.items()}
    return systems


def untrained_systems(folder: str, longest: int) -> dict[str, Writer]:
    """The fastest shape that writes from left to right, for speed alone."""
    model = read_model(YanForConditionalGeneration, folder, dtype=torch.float32)
    return untrained_restorers(model, read_tokenizer(folder), longest)


def measure_speed(systems: dict[str, Writer], texts: list[str], batch_size: int) -> dict[str, dict[str, float]]:
    """Name -> `ms` of a call for one text, and `texts_per_second` in batches."""
    calls, batches = time_calls(systems, texts), time_batches(systems, texts, batch_size)
    return {name: {"ms": calls[name], "texts_per_second": batches[name]} for name in systems}


def tell(title: str, scores: dict[str, dict]) -> None:
    table = Table(title=title)
    for column in ("system", *SHOWN):
        table.add_column(column)
    for name, own in scores.items():
        table.add_row(name, *("–" if own.get(s) is None else f"{own[s]:.1f}" for s in SHOWN.values()))
    Console(width=200).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument("--model", required=True, help="YAN folder")
    parser.add_argument("--baselines", nargs="*", default=[], help="folders of run_baseline.py --architecture bart")
    parser.add_argument("--tagger", help="folder of run_tagger_baseline.py")
    parser.add_argument("--task", default="restore", help="name in configuration/tasks, or a YAML file")
    parser.add_argument("--dataset_name", required=True, help="clean texts; the test split is scored")
    parser.add_argument("--unseen", help="clean texts from where no training row came; the test split is scored")
    parser.add_argument("--rows", type=int, default=1000, help="texts of each set")
    parser.add_argument("--timed", type=int, default=100, help="of these, texts whose calls are timed")
    parser.add_argument("--batch_size", type=int, default=32, help="of scoring and of timed batches")
    parser.add_argument("--num_bootstrap", type=int, default=1000, help="resamplings behind the intervals")
    parser.add_argument("--output", type=Path, required=True, help="JSON to be written")
    arguments = parser.parse_args()
    check_positive(arguments, "rows", "timed", "batch_size")
    task = Task.load(arguments.task)
    sets = {"test": test_rows(arguments.dataset_name, task, arguments.rows)}
    if arguments.unseen:
        sets["unseen"] = test_rows(arguments.unseen, task, arguments.rows)
    systems = build_systems(arguments, task.max_source_length, sets["test"]["source"][:COMPARED])
    report: dict = {"training": training_of(arguments), "scores": {}}
    for split, rows in sets.items():
        sources, references = rows["source"][:], rows["target"][:]
        written = {"unchanged": sources}
        written |= {name: in_batches(s, sources, arguments.batch_size) for name, s in systems.items()}
        bootstrap = {"num_bootstrap": arguments.num_bootstrap, "seed": 0}
        report["scores"][split] = {
            name: score_restoration(sources, texts, references, **bootstrap) for name, texts in written.items()
        }
        tell(f"{split}, {len(rows)} texts", report["scores"][split])
    report["speed"] = measure_speed(
        systems | untrained_systems(arguments.model, task.max_source_length),
        sets["test"]["source"][: arguments.timed],
        arguments.batch_size,
    )
    for name, own in report["speed"].items():
        print(f"{name}: {own['ms']} ms a text, {own['texts_per_second']} texts a second in batches")
    report |= {"batch_size": arguments.batch_size, "timed_texts": arguments.timed, **machine(torch.device("cpu"))}
    write_report(report, arguments.output)


def training_of(arguments: argparse.Namespace) -> dict[str, dict]:
    """What the training of each model cost, as its own report says."""
    folders = [arguments.model, *arguments.baselines, arguments.tagger]
    kept = ("parameters", "updates", "batch_size", "train_flops", "train_minutes", "threads", "train_rows", "seed")
    # Of models that were trained in several stages, all of these.
    kept += ("total_train_flops", "total_train_minutes")
    reports = {Path(folder).name: read_report(folder) or {} for folder in folders if folder}
    return {name: {key: own[key] for key in kept if key in own} for name, own in reports.items()}


if __name__ == "__main__":
    run_script(main)
