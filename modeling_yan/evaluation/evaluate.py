"""
Quality and speed of a YAN on a task: steps, length modes and numbers of candidates, the autoencoder's ceiling, other
ways to sample, and baselines beside it.
"""

import argparse
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from modeling_yan.common.arguments import check_positive
from modeling_yan.common.help import ScriptHelp
from modeling_yan.common.hub import read_config, read_tokenizer
from modeling_yan.common.reports import machine, read_report, write_report
from modeling_yan.data.loading import first_rows, read_file
from modeling_yan.data.tasks import Task, group_references, load_rows
from modeling_yan.data.tokenization import end_token_id, model_end_id, set_truncation_side, target_ids
from modeling_yan.evaluation.encoder_metrics import FEWEST_MAUVE_TEXTS, bert_f1, mauve_score, text_features
from modeling_yan.evaluation.metrics import diversity, score_texts
from modeling_yan.evaluation.quality import length_errors, longest_sources, parse_variant, reconstruct
from modeling_yan.evaluation.speed import System, default_device, measure_side_by_side
from modeling_yan.evaluation.text_generation import (
    count_tokens,
    generate_texts,
    is_seq2seq,
    load_text_model,
    reader_config,
)

COLUMNS = "system|BLEU-4|ROUGE-L|EM|F1|self-BLEU|words|seconds"
# Characters of a line, where the output is no terminal that is wider.
TABLE_WIDTH = 100
# Columns that are there where an encoder was named.
ENCODER_SCORES = {"bert_f1": "BERTScore", "mauve": "MAUVE"}


@dataclass
class Evaluation:
    """
    A model, the rows that it answers, and what was measured so far.

    Args:
        rows: columns `source`, `target` and `references`.
        results: a row for each system and setting.
    """

    arguments: argparse.Namespace
    task: Task
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    rows: Dataset
    results: list[dict] = field(default_factory=list)

    @property
    def fixed_canvas(self) -> bool:
        """A model of fixed canvases needs no length, and to give it one would give short answers away."""
        return self.model.generation_config.length_mode == "canvas"

    @property
    def longest(self) -> int:
        """Tokens that an answer of the model may have."""
        return self.model.generation_config.max_new_tokens if self.fixed_canvas else self.task.max_target_length

    @functools.cached_property
    def oracle_lengths(self) -> list[int]:
        """Tokens of each row's first reference, EOS included."""
        end_id = model_end_id(self.model.config, self.tokenizer)
        targets = target_ids(self.tokenizer, self.rows["target"], end_id, self.task.max_target_length)
        return [len(ids) for ids in targets]

    def answers(self, model: PreTrainedModel, rows: Dataset | None = None, **options) -> list[str]:
        """What a model writes for the rows."""
        return generate_texts(
            model,
            self.tokenizer,
            (self.rows if rows is None else rows)["source"],
            batch_size=self.arguments.batch_size,
            max_source_length=self.task.max_source_length,
            **options,
        )

    def load_baseline(self, folder: str) -> PreTrainedModel:
        """A baseline, on the model's device."""
        trust_remote_code = self.arguments.trust_remote_code
        return load_text_model(folder, trust_remote_code=trust_remote_code).to(self.model.device)

    def bert_score(self, texts: list[str], references: list[list[str]]) -> dict[str, float]:
        """`bert_f1`, where an encoder for it was named."""
        if not self.arguments.bertscore_model:
            return {}
        names = (self.arguments.bertscore_model, self.arguments.bertscore_layer)
        return {"bert_f1": bert_f1(texts, references, *names)}

    @functools.cached_property
    def reference_features(self) -> np.ndarray:
        """What MAUVE compares texts with: the first reference of each row, as points (rows, hidden size)."""
        arguments = self.arguments
        return text_features(list(self.rows["target"]), arguments.mauve_model, batch_size=arguments.batch_size)

    def mauve(self, texts: list[str]) -> dict[str, float]:
        """`mauve`, where an encoder for it was named."""
        if not self.arguments.mauve_model:
            return {}
        options = {"model": self.arguments.mauve_model, "batch_size": self.arguments.batch_size}
        return {"mauve": mauve_score(texts, self.reference_features, **options)}

    def record(self, system: str, write: Callable[[], list[str]], **setting) -> None:
        """Times what a system writes for all rows, and scores it."""
        start = time.perf_counter()
        texts = write()
        seconds = time.perf_counter() - start
        references = self.rows["references"]
        self.results.append(
            {
                "system": system,
                **setting,
                **score_texts(texts, references, num_bootstrap=self.arguments.bootstrap),
                **diversity(texts),
                **self.bert_score(texts, references),
                **self.mauve(texts),
                "mean_words": sum(len(text.split()) for text in texts) / len(texts),
                "seconds": round(seconds, 2),
            }
        )

    def try_everything(self, variants: dict[str, dict]) -> None:
        """Answers one row in every way, so that what is refused is not found out after everything else was measured."""
        first = self.rows.select([0])
        self.bert_score(first["target"], first["references"])
        self.mauve(list(self.rows["target"])[:FEWEST_MAUVE_TEXTS])
        for options in variants.values():
            self.answers(self.model, first, max_new_tokens=self.longest, **options)

    def measure_reconstruction(self) -> None:
        """The autoencoder alone: what it loses, no flow can write."""
        sizes = {"max_length": self.task.max_target_length, "batch_size": self.arguments.batch_size}
        write = lambda: reconstruct(self.model, self.tokenizer, self.rows["target"], **sizes)  # noqa: E731
        self.record("autoencoder of the first reference", write)

    def measure_baseline(self, folder: str) -> None:
        """A baseline; masked diffusion at the few evaluations that YAN takes, and at as many as tokens."""
        baseline, longest = self.load_baseline(folder), self.task.max_target_length
        options = {"max_new_tokens": longest, "eos_token_id": end_token_id(self.tokenizer)}
        steps: list[dict] = [{}]
        if getattr(baseline.config, "masked_diffusion", False):
            steps = [{"num_inference_steps": n} for n in (*self.arguments.diffusion_steps, longest)]
        for step in steps:
            write = lambda step=step: self.answers(baseline, **options, **step)  # noqa: E731
            self.record(Path(folder).name, write, parameters=baseline.num_parameters(), **step)

    def settings(self, variants: dict[str, dict]) -> list[dict]:
        """What the model is measured at: every combination of steps, lengths and candidates, and the variants."""
        arguments = self.arguments
        found = [
            {"length": length, "num_inference_steps": steps, "num_candidates": priors, "num_length_candidates": lengths}
            for length in (("canvas",) if self.fixed_canvas else ("predicted", "oracle"))
            for priors in arguments.candidates
            for lengths in (arguments.length_candidates if length == "predicted" else [1])
            for steps in arguments.steps
        ]
        usual = {
            "length": "canvas" if self.fixed_canvas else "predicted",
            "num_inference_steps": 3,
            "num_candidates": arguments.candidates[0],
            "num_length_candidates": arguments.length_candidates[0],
        }
        return found + [{**usual, **options, "variant": text} for text, options in variants.items()]

    def measure_model(self, setting: dict) -> None:
        """The model at one setting of `settings`."""
        options = {name: value for name, value in setting.items() if name not in ("length", "variant")}

        def write() -> list[str]:
            return self.answers(
                self.model,
                max_new_tokens=self.longest,
                target_lengths=self.oracle_lengths if setting["length"] == "oracle" else None,
                generator=torch.Generator().manual_seed(self.arguments.seed),
                **options,
            )

        self.record("YAN", write, **setting)

    def measure_speed(self) -> dict[str, dict]:
        """
        Latency at batch size 1, every system writing its own greedy answer; nothing where no rows are to be timed.
        """
        arguments, tokenizer, model = self.arguments, self.tokenizer, self.model
        if not arguments.speed_rows:
            return {}
        cut = {"truncation": True, "max_length": self.task.max_source_length, "return_tensors": "pt"}
        sources = self.rows["source"][: arguments.speed_rows]
        inputs = [tokenizer(source, **cut).to(model.device) for source in sources]

        def timed(model: PreTrainedModel, options: dict) -> Callable[[dict], int]:
            def write(item: dict) -> int:
                ids = model.generate(**item, max_new_tokens=self.longest, **options)
                # What an answer begins with is not written: the prompt, or the token that starts a decoder.
                start = int(model.config.is_encoder_decoder) if is_seq2seq(model) else item["input_ids"].shape[1]
                return count_tokens(ids[:, start:], tokenizer.pad_token_id, end_token_id(tokenizer))

            return write

        systems = []
        for priors in sorted({1, max(arguments.candidates)}):
            for lengths in sorted({1} if self.fixed_canvas else {1, max(arguments.length_candidates)}):
                options = {"num_candidates": priors, "num_length_candidates": lengths}
                options["generator"] = torch.Generator().manual_seed(0)
                systems.append(System(f"YAN {priors} x {lengths}", timed(model, options), inputs))
        for folder in arguments.baselines:
            baseline = self.load_baseline(folder)
            systems.append(System(Path(folder).name, timed(baseline, {"do_sample": False}), inputs))
        return measure_side_by_side(systems)

    def report(self, speed: dict[str, dict]) -> dict:
        """All that was measured, and how."""
        arguments = self.arguments
        sizes = {"batch_size": arguments.batch_size, "max_source_length": self.task.max_source_length}
        folders = (arguments.model, *arguments.baselines)
        return {
            "training": {Path(folder).name: read_report(folder) for folder in folders},
            "length_head": length_errors(self.model, self.tokenizer, self.rows["source"], self.oracle_lengths, **sizes),
            "task": self.task.name,
            "metric": self.task.metric,
            "split": arguments.test_file or arguments.split,
            "rows": len(self.rows),
            "longest_rows": arguments.longest_rows,
            "seed": arguments.seed,
            "parameters": self.model.num_parameters(),
            **machine(self.model.device),
            "dtype": str(self.model.dtype),
            "batch_size": arguments.batch_size,
            "quality": self.results,
            "speed_batch_1": speed,
        }


def check_baselines(folders: list[str], tokenizer: PreTrainedTokenizerBase, trust_remote_code: bool) -> None:
    """
    Raises:
        ValueError: for a baseline whose vocabulary is not the tokenizer's.
    """
    for folder in folders:
        vocabulary = reader_config(read_config(folder, trust_remote_code=trust_remote_code)).vocab_size
        if vocabulary != len(tokenizer):
            raise ValueError(
                f"--baselines {folder} has {vocabulary} token ids, the model's tokenizer {len(tokenizer)}: it was "
                "trained with another tokenizer"
            )


def find_task(arguments: argparse.Namespace) -> Task:
    """
    The task that was named, or the one that training left beside the model.

    Raises:
        ValueError: if there is neither.
    """
    beside = Path(arguments.model) / "task.yaml"
    if arguments.task is None and not beside.is_file():
        raise ValueError(f"--task is needed: there is no {beside}, which run_flow.py writes")
    return Task.load(arguments.task or str(beside))


def read_rows(arguments: argparse.Namespace, task: Task, mask_token: str | None) -> Dataset:
    """
    Sources with all their references, of a file or of a data set's split.

    Raises:
        ValueError: if none or both are given, cannot be read, or do not fit the task.
    """
    if bool(arguments.test_file) == bool(arguments.dataset_name):
        raise ValueError("give --test_file (CSV, JSON, JSON lines, Parquet) or --dataset_name (Hub name, folder, file)")
    sizes = {"mask_token": mask_token, "max_rows": arguments.max_rows}
    if arguments.dataset_name:
        return load_rows(arguments.dataset_name, task, arguments.split, **sizes)
    rows = task.build(read_file(arguments.test_file, "test_file"), mask_token)
    return first_rows(group_references(rows), arguments.max_rows)


def prepare(arguments: argparse.Namespace) -> Evaluation:
    """Loads what is measured, and what it is measured on."""
    task = find_task(arguments).with_lengths(arguments.max_source_length, arguments.max_target_length)
    trust = {"trust_remote_code": arguments.trust_remote_code}
    tokenizer = read_tokenizer(arguments.model, **trust)
    check_baselines(arguments.baselines, tokenizer, **trust)
    set_truncation_side(tokenizer, task.truncation_side)
    rows = read_rows(arguments, task, tokenizer.mask_token)
    if arguments.longest_rows is not None:
        rows = longest_sources(rows, tokenizer, arguments.longest_rows)
    model = load_text_model(arguments.model, dtype=torch.float32, **trust).to(default_device())
    return Evaluation(arguments, task, model, tokenizer, rows)


def describe_setting(row: dict) -> str:
    """What a result was measured with, in words: `YAN, 3 steps, best of 5 lengths, of 8 priors`."""
    words, lengths, priors = [row["system"]], row.get("num_length_candidates", 1), row.get("num_candidates", 1)
    if "num_inference_steps" in row:
        words.append(f"{row['num_inference_steps']} step{'s' * (row['num_inference_steps'] > 1)}")
    if lengths > 1:
        words.append(f"best of {lengths} lengths")
    elif "length" in row:
        words.append({"canvas": "fixed canvas"}.get(row["length"], f"{row['length']} length"))
    if priors > 1:
        words.append(f"{'of' if lengths > 1 else 'best of'} {priors} priors")
    return ", ".join([*words, *([row["variant"]] if "variant" in row else [])])


def make_table(results: list[dict]) -> Table:
    scored = {name: label for name, label in ENCODER_SCORES.items() if name in results[0]}
    table = Table(*COLUMNS.split("|"), *scored.values())
    for row in results:
        table.add_row(
            describe_setting(row),
            *(f"{row[name]:.1f}" for name in ("bleu", "rougeL", "exact_match", "f1", "self_bleu")),
            f"{row['mean_words']:.1f}",
            f"{row['seconds']:.1f}",
            *(f"{row[name]:.1f}" for name in scored),
        )
    return table


def make_speed_table(speed: dict[str, dict]) -> Table:
    table = Table("system, batch size 1", "median ms", "tokens per second")
    for name, summary in speed.items():
        table.add_row(name, f"{summary['latency_ms']['median']:.1f}", f"{summary['tokens_per_second']:.0f}")
    return table


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ScriptHelp)
    add = parser.add_argument
    add("--model", required=True, help="folder or Hub name of a YAN, or of an adapter of one")
    add("--task", help="name in configuration/tasks, or a YAML file; the model's task.yaml by default")
    add("--test_file", help="rows to score: CSV, JSON, JSON lines or Parquet")
    add("--dataset_name", help="instead of --test_file: Hub name, local folder or file")
    add("--split", default="test", help="of --dataset_name")
    add("--steps", type=int, nargs="+", default=[1, 2, 3, 5, 8], help="numbers of solver steps")
    add("--candidates", type=int, nargs="+", default=[1, 8], help="numbers of priors")
    add("--length_candidates", type=int, nargs="+", default=[1, 5], help="numbers of lengths")
    add("--baselines", nargs="*", default=[], help="folders or Hub names of models with the same tokenizer")
    add("--max_source_length", type=int, help="tokens of a source, instead of the task's")
    add("--max_target_length", type=int, help="tokens of an answer, instead of the task's")
    add("--max_rows", type=int, help="the first rows only")
    add("--longest_rows", type=int, help="score only so many sources, those with the most tokens")
    add("--batch_size", type=int, default=32, help="rows that are answered at once")
    add("--seed", type=int, default=0, help="of the noise")
    add("--speed_rows", type=int, default=30, help="rows to time each system on, one by one; 0 for none")
    add("--diffusion_steps", type=int, nargs="*", default=[3], help="of masked diffusion; length is added")
    add(
        "--variants",
        nargs="*",
        default=[],
        help="other options of generate(), such as time_shift=2,expert_selection=argmax",
    )
    add("--trust_remote_code", action="store_true", help="run code that comes with a tokenizer or a baseline")
    add("--bertscore_model", help="encoder for BERTScore, Hub name or folder; left out by default")
    add("--bertscore_layer", type=int, help="for an encoder that bert-score does not know")
    add("--mauve_model", help="encoder for MAUVE, Hub name or folder; left out by default")
    add("--bootstrap", type=int, default=1000, help="resamplings behind the 95 %% intervals")
    add("--output", type=Path, help="JSON file for everything that was measured; the tables are printed anyway")
    arguments = parser.parse_args()
    numbers = ("steps", "candidates", "length_candidates", "max_source_length", "max_target_length", "max_rows")
    check_positive(arguments, *numbers, "batch_size", "diffusion_steps")
    return arguments


def main() -> None:
    """`examples/run_evaluation.py` and `yan evaluate`."""
    arguments = parse()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    variants = {text: parse_variant(text) for text in arguments.variants}
    evaluation = prepare(arguments)
    evaluation.try_everything(variants)
    evaluation.measure_reconstruction()
    for folder in arguments.baselines:
        evaluation.measure_baseline(folder)
    for setting in evaluation.settings(variants):
        evaluation.measure_model(setting)
    speed = evaluation.measure_speed()
    if arguments.output:
        write_report(evaluation.report(speed), arguments.output)
    console = Console()
    console.width = max(console.width, TABLE_WIDTH)
    console.print(make_table(evaluation.results))
    if speed:
        console.print(make_speed_table(speed))
