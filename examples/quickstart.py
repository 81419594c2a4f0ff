"""
A tour in under four minutes on two cores (or on a GPU, if there is one), offline: YAN writes, is timed, is scored, and learns a new task.

    python examples/quickstart.py
"""

import argparse
import dataclasses
import time
from pathlib import Path

import torch
from datasets import load_dataset
from peft import get_peft_model
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from run_flow import lora_config
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    set_seed,
)
from transformers.utils import logging

from modeling_yan.evaluation.metrics import score_texts
from modeling_yan.evaluation.peers import gpt2_peer
from modeling_yan.evaluation.speed import (
    System,
    count_tokens,
    default_device,
    device_name,
    measure_side_by_side,
)
from modeling_yan.evaluation.text_generation import generate_texts
from modeling_yan.training.tasks import Task, group_references
from modeling_yan.training.tokenization import tokenize_pairs
from modeling_yan.training.trainer import YanSeq2SeqTrainer

HERE = Path(__file__).resolve().parent
console = Console(width=130)


class DraftRecorder:
    """A streamer that keeps each step's draft."""

    def __init__(self, tokenizer):
        self.tokenizer, self.drafts = tokenizer, []

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


def show_writing(model, tokenizer, rows) -> None:
    console.rule("1. Three steps from noise to text, on inputs it never saw")
    for row in rows.select(range(0, len(rows), max(len(rows) // 10, 1))).select(range(10)):
        streamer = DraftRecorder(tokenizer)
        source = tokenizer(row["source"], return_tensors="pt").to(model.device)
        model.generate(
            **source,
            streamer=streamer,
            generator=torch.Generator().manual_seed(0),
            num_candidates=1,
            num_length_candidates=1,
        )
        table = Table(show_header=False, width=130)
        table.add_row("source", escape(row["source"]))
        for step, draft in enumerate(streamer.drafts, 1):
            table.add_row(f"draft after step {step}", f"[dim]{escape(draft)}[/dim]")
        table.add_row("text", f"[bold]{escape(streamer.text)}[/bold]")
        table.add_row("a reference", f"[green]{escape(row['references'][0])}[/green]")
        console.print(table)


def show_speed(model, tokenizer, rows, calls: int) -> None:
    console.rule("2. Speed, batch 1, against a GPT-2-shaped model of equal size with its KV cache")
    peer = gpt2_peer(model).model
    sources = [tokenizer(text, return_tensors="pt").to(model.device) for text in rows["source"][:calls]]
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    inputs = []
    for source in sources:
        ids = model.generate(**source, generator=torch.Generator().manual_seed(0))
        inputs.append({"source": source, "length": count_tokens(ids, pad, eos)})

    def yan(item: dict) -> int:
        ids = model.generate(**item["source"], generator=torch.Generator().manual_seed(0))
        return count_tokens(ids, pad, eos)

    def yan_single(item: dict) -> int:
        ids = model.generate(
            **item["source"], generator=torch.Generator().manual_seed(0), num_candidates=1, num_length_candidates=1
        )
        return count_tokens(ids, pad, eos)

    def gpt2(item: dict) -> int:
        length = item["length"]
        ids = peer.generate(
            **item["source"], min_new_tokens=length, max_new_tokens=length, do_sample=False, eos_token_id=None
        )
        return ids.shape[1] - item["source"]["input_ids"].shape[1]

    first = inputs[0]["source"]
    cached, plain = (
        peer.generate(**first, max_new_tokens=16, do_sample=False, use_cache=cache, eos_token_id=None)
        for cache in (True, False)
    )
    assert_equal = "equal" if torch.equal(cached, plain) else "DIFFERENT"
    config = model.generation_config
    name = f"YAN, {config.num_candidates} prior x {config.num_length_candidates} lengths"
    systems = [
        System(name, yan, inputs),
        System("YAN, 1 prior x 1 length", yan_single, inputs),
        System("GPT-2-shaped", gpt2, inputs),
    ]
    if config.num_candidates * config.num_length_candidates == 1:
        del systems[0]
    results = measure_side_by_side(systems)
    table = Table("system", "parameters", "median latency", "tokens per second", "ratio", width=130)
    slowest = results["GPT-2-shaped"]["tokens_per_second"]
    for system, summary in results.items():
        parameters = peer.num_parameters() if system == "GPT-2-shaped" else model.num_parameters()
        rate = summary["tokens_per_second"]
        table.add_row(
            system,
            f"{parameters:,}",
            f"{summary['latency_ms']['median']:.1f} ms",
            f"{rate:,.0f}",
            f"{rate / slowest:.1f} x",
        )
    console.print(table)
    where = f"{torch.get_num_threads()} threads" if model.device.type == "cpu" else device_name(model.device)
    console.print(
        f"{calls} inputs, 3 rounds, systems alternating, {where}, {model.dtype}. GPT-2 with random weights "
        f"writes as many tokens as YAN did; its tokens with and without cache are {assert_equal}."
    )


def show_quality(model, tokenizer, rows) -> None:
    console.rule(f"3. Quality on {len(rows)} held-out inputs, length predicted")
    table = Table("steps", "BLEU-4", "ROUGE-L", "distinct bigrams", width=130)
    for steps in (1, 2, 3):
        texts = generate_texts(
            model, tokenizer, rows["source"], generator=torch.Generator().manual_seed(0), num_inference_steps=steps
        )
        scores = score_texts(texts, rows["references"])
        table.add_row(str(steps), f"{scores['bleu']:.1f}", f"{scores['rougeL']:.1f}", f"{scores['distinct_2']:.1f} %")
    console.print(table)


def show_finetuning(model, tokenizer, seconds: float, rows: int) -> None:
    console.rule(f"4. A new task in {seconds:.0f} seconds: what is this article about? DBpedia, with a LoRA adapter")
    # The method's layout without its heading, and cut short: the tokenizer knows restaurants, other words fall to pieces.
    task = dataclasses.replace(Task.load("dbpedia_14"), source="{title} {content}", max_source_length=48)
    data = load_dataset(str(HERE / "data" / "dbpedia_14"))
    train = tokenize_pairs(
        task.build(data["train"], tokenizer.mask_token), tokenizer, task.max_source_length, task.max_target_length
    )
    test = task.build(data["test"].select(range(min(rows, len(data["test"])))), tokenizer.mask_token)
    # The tokens of a label have their places, and one unrolled step makes an update cheap.
    model.config.canvas_ratio, model.config.unroll_steps = 1.0, 1
    # Faster to differentiate than fused attention at these lengths on a CPU.
    model.set_attn_implementation("eager")
    adapter = get_peft_model(model, lora_config(32))

    def exact_match() -> float:
        texts = generate_texts(
            adapter,
            tokenizer,
            test["source"],
            generator=torch.Generator().manual_seed(0),
            max_source_length=task.max_source_length,
        )
        return score_texts(texts, test["references"])["exact_match"]

    before = exact_match()
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
    after = exact_match()
    trained = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
    row = next(iter(test))
    answer = generate_texts(adapter, tokenizer, [row["source"]], generator=torch.Generator().manual_seed(0))[0]
    table = Table("", "before", "after", width=130)
    table.add_row(f"exact match on {len(test)} test articles", f"{before:.1f} %", f"{after:.1f} %")
    console.print(table)
    console.print(
        f"{trainer.state.global_step} updates of {trained:,} adapter weights. “{escape(row['source'][:60])}…” → “{answer}” (expected “{row['target']}”)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(HERE / "models" / "yan-e2e"))
    parser.add_argument("--finetuning_seconds", type=float, default=60)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--speed_calls", type=int, default=20)
    arguments = parser.parse_args()
    start = time.perf_counter()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, trust_remote_code=True)
    model = AutoModelForSeq2SeqLM.from_pretrained(arguments.model, trust_remote_code=True, dtype=torch.float32)
    model = model.to(default_device()).eval()
    rows = group_references(Task.load("e2e_nlg").build(load_dataset(str(HERE / "data" / "e2e_nlg"))["test"]))
    rows = rows.select(range(min(arguments.rows, len(rows))))
    show_writing(model, tokenizer, rows)
    show_speed(model, tokenizer, rows, arguments.speed_calls)
    show_quality(model, tokenizer, rows)
    show_finetuning(model, tokenizer, arguments.finetuning_seconds, arguments.rows)
    console.print(f"\nDone in {time.perf_counter() - start:.0f} seconds.")


if __name__ == "__main__":
    main()
