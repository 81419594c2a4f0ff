"""
A tour in under four minutes on two cores (or on a GPU, if there is one), offline: YAN writes, is timed, is scored, and
learns a new task.

    python examples/quickstart.py
    python examples/quickstart.py "name[The Vaults], eatType[pub], food[Japanese], area[riverside]"
"""

import argparse
import dataclasses
import time
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from peft import PeftModel, get_peft_model
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from transformers import (
    AutoModelForSeq2SeqLM,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    set_seed,
)
from transformers.utils import logging

from modeling_yan.common.arguments import check_positive, run_script
from modeling_yan.common.hub import read_model, read_tokenizer
from modeling_yan.common.reports import device_name
from modeling_yan.data.loading import first_rows
from modeling_yan.data.tasks import Task, load_rows, load_splits
from modeling_yan.data.tokenization import tokenize_pairs
from modeling_yan.evaluation.baselines import gpt2_baseline
from modeling_yan.evaluation.metrics import score_texts
from modeling_yan.evaluation.speed import System, count_tokens, default_device, measure_side_by_side
from modeling_yan.evaluation.text_generation import generate_texts
from modeling_yan.training.adapters import lora_config
from modeling_yan.training.trainer import YanSeq2SeqTrainer

HERE = Path(__file__).resolve().parent
# Sources whose drafts are shown.
SHOWN = 10
SINGLE = {"num_candidates": 1, "num_length_candidates": 1}
GPT2 = "GPT-2-shaped"
console = Console(width=120)


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


class StopAfter(TrainerCallback):
    """Ends training after so many seconds and shows a bar meanwhile."""

    def __init__(self, seconds: float, progress: Progress):
        self.seconds, self.progress = seconds, progress
        self.bar = progress.add_task("LoRA", total=seconds)

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        elapsed = time.perf_counter() - self.start
        self.progress.update(self.bar, completed=min(elapsed, self.seconds))
        control.should_training_stop = elapsed >= self.seconds


def seeded() -> torch.Generator:
    """What decides everything random in an answer."""
    return torch.Generator().manual_seed(0)


def show_drafts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, reference: str | None = None
) -> None:
    """The draft after each step, and the text."""
    streamer = DraftRecorder(tokenizer)
    inputs = tokenizer(source, return_tensors="pt", truncation=True).to(model.device)
    model.generate(**inputs, streamer=streamer, generator=seeded(), **SINGLE)
    table = Table(show_header=False, width=120)
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


def systems_to_time(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, gpt2: PreTrainedModel, sources: list[str]
) -> list[System]:
    """YAN as it is shipped and with a single candidate, and GPT-2, which writes as many tokens as YAN did."""
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id

    def yan(item: dict, **options) -> int:
        return count_tokens(model.generate(**item["source"], generator=seeded(), **options), pad, eos)

    def baseline(item: dict) -> int:
        length = {"min_new_tokens": item["length"], "max_new_tokens": item["length"]}
        ids = gpt2.generate(**item["source"], **length, do_sample=False, eos_token_id=None)
        return ids.shape[1] - item["source"]["input_ids"].shape[1]

    inputs = [{"source": tokenizer(text, return_tensors="pt").to(model.device)} for text in sources]
    for item in inputs:
        item["length"] = yan(item)
    options = model.generation_config
    systems = [System("YAN, 1 prior x 1 length", lambda item: yan(item, **SINGLE), inputs)]
    if options.num_candidates * options.num_length_candidates > 1:
        name = f"YAN, {options.num_candidates} priors x {options.num_length_candidates} lengths"
        systems.insert(0, System(name, yan, inputs))
    return [*systems, System(GPT2, baseline, inputs)]


def show_speed(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset, calls: int) -> None:
    console.rule("2. Speed, batch size 1, against a GPT-2-shaped model of equal size with its KV cache")
    gpt2 = gpt2_baseline(model).model
    systems = systems_to_time(model, tokenizer, gpt2, rows["source"][:calls])
    first = systems[0].inputs[0]["source"]
    options = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": None}
    cached, plain = (gpt2.generate(**first, use_cache=cache, **options) for cache in (True, False))
    results = measure_side_by_side(systems)
    table = Table("system", "parameters", "median latency", "tokens per second", "ratio", width=120)
    for name, summary in results.items():
        parameters = (gpt2 if name == GPT2 else model).num_parameters()
        rate = summary["tokens_per_second"]
        latency = f"{summary['latency_ms']['median']:.1f} ms"
        ratio = f"{rate / results[GPT2]['tokens_per_second']:.1f} x"
        table.add_row(name, f"{parameters:,}", latency, f"{rate:,.0f}", ratio)
    console.print(table)
    where = f"{torch.get_num_threads()} threads" if model.device.type == "cpu" else device_name(model.device)
    console.print(
        f"{len(systems[0].inputs)} inputs, 3 rounds, systems alternating, {where}, {model.dtype}. GPT-2 with random "
        "weights writes as many tokens as YAN did; its tokens with and without cache are "
        f"{'equal' if torch.equal(cached, plain) else 'DIFFERENT'}."
    )


def show_quality(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> None:
    console.rule(f"3. Quality on {len(rows)} held-out inputs, length predicted")
    table = Table("steps", "BLEU-4", "ROUGE-L", "distinct bigrams", width=120)
    for steps in (1, 2, 3):
        texts = generate_texts(model, tokenizer, rows["source"], generator=seeded(), num_inference_steps=steps)
        scores = score_texts(texts, rows["references"])
        table.add_row(str(steps), f"{scores['bleu']:.1f}", f"{scores['rougeL']:.1f}", f"{scores['distinct_2']:.1f} %")
    console.print(table)


def train_adapter(
    adapter: PeftModel, tokenizer: PreTrainedTokenizerBase, train: Dataset, seconds: float
) -> YanSeq2SeqTrainer:
    """Trains for so many seconds."""
    with Progress(console=console) as progress:
        trainer = YanSeq2SeqTrainer(
            model=adapter,
            args=Seq2SeqTrainingArguments(
                output_dir="outputs/quickstart",
                per_device_train_batch_size=32,
                learning_rate=1e-3,
                lr_scheduler_type="constant_with_warmup",
                warmup_steps=10,
                max_steps=100_000,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=not torch.cuda.is_available(),
            ),
            train_dataset=train,
            data_collator=DataCollatorForSeq2Seq(tokenizer),
            callbacks=[StopAfter(seconds, progress)],
        )
        trainer.train()
    return trainer


def show_finetuning(name: str, tokenizer: PreTrainedTokenizerBase, seconds: float, num_rows: int) -> None:
    console.rule(f"4. A new task in {seconds:.0f} seconds: what is this article about? DBpedia, with a LoRA adapter")
    # The tokens of a label have their places, and one unrolled step makes an update cheap. Eager attention is faster to
    # differentiate than fused attention at these lengths on a CPU.
    changed = {"canvas_ratio": 1.0, "training_config": {"unroll_steps": 1}, "attn_implementation": "eager"}
    model = AutoModelForSeq2SeqLM.from_pretrained(name, dtype=torch.float32, **changed)
    adapter = get_peft_model(model.to(default_device()), lora_config(model, 32))
    # The method's layout without its heading, and cut short: the tokenizer knows restaurants, other words fall to
    # pieces.
    task = dataclasses.replace(Task.load("dbpedia_14"), source="{title} {content}", max_source_length=48)
    splits = load_splits(str(HERE / "data" / "dbpedia_14"), task, tokenizer.mask_token)
    train = tokenize_pairs(splits["train"], tokenizer, task.max_source_length, task.max_target_length)
    test = first_rows(splits["test"], num_rows)

    def answers() -> list[str]:
        cut = {"max_source_length": task.max_source_length}
        return generate_texts(adapter, tokenizer, test["source"], generator=seeded(), **cut)

    before = score_texts(answers(), test["references"])["exact_match"]
    trainer = train_adapter(adapter, tokenizer, train, seconds)
    texts = answers()
    table = Table("", "before", "after", width=120)
    after = score_texts(texts, test["references"])["exact_match"]
    table.add_row(f"exact match on {len(test)} test articles", f"{before:.1f} %", f"{after:.1f} %")
    console.print(table)
    trained = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
    console.print(
        f"{trainer.state.global_step} updates of {trained:,} adapter weights. “{escape(test['source'][0][:60])}…” → "
        f"“{escape(texts[0])}” (expected “{escape(test['target'][0])}”)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", help="a source of your own, answered first")
    parser.add_argument("--model", default=str(HERE / "models" / "yan-e2e"))
    parser.add_argument("--finetuning_seconds", type=float, default=60)
    parser.add_argument("--rows", type=int, default=200, help="held-out inputs")
    parser.add_argument("--speed_calls", type=int, default=20, help="inputs that are timed")
    arguments = parser.parse_args()
    check_positive(arguments, "finetuning_seconds", "rows", "speed_calls")
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
    show_finetuning(arguments.model, tokenizer, arguments.finetuning_seconds, arguments.rows)
    console.print(f"\nDone in {time.perf_counter() - start:.0f} seconds.")


if __name__ == "__main__":
    run_script(main)
