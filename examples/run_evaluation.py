"""
Quality of a YAN on a task: steps, length modes and numbers of candidates, the autoencoder's ceiling, other ways to sample
(--variants), and baselines. `run_quality_report.py` makes tables of what it writes.

    python examples/run_evaluation.py --model examples/models/yan-e2e --task e2e_nlg --dataset_name ../shared/data/e2e_nlg \
        --baselines outputs/gpt2-e2e outputs/bart-e2e --output results/quality_e2e.json
"""

import argparse
import json
import time
from datetime import date
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging

from modeling_yan.evaluation.metrics import bert_f1, diversity, score_texts
from modeling_yan.evaluation.quality import length_errors, longest_sources, parse_variant, reconstruct, training_report
from modeling_yan.evaluation.speed import (
    System,
    count_tokens,
    default_device,
    device_name,
    measure_side_by_side,
)
from modeling_yan.evaluation.text_generation import generate_texts, is_seq2seq, load_text_model
from modeling_yan.training.scripts import run_script
from modeling_yan.training.tasks import Task, group_references, load_splits
from modeling_yan.training.tokenization import set_truncation_side


def measure_speed(systems: dict, tokenizer, sources: list[str], max_source_length: int, max_new_tokens: int) -> dict:
    """Batch 1, every system writing its own greedy answer."""
    cut = {"truncation": True, "max_length": max_source_length}
    device = next(iter(systems.values()))[0].device
    inputs = [tokenizer(source, return_tensors="pt", **cut).to(device) for source in sources]

    def timed(model, options: dict):
        def generate(item) -> int:
            ids = model.generate(**item, max_new_tokens=max_new_tokens, **options)
            # What an answer begins with is not written: the prompt, or the token that starts a decoder.
            start = int(model.config.is_encoder_decoder) if is_seq2seq(model) else item["input_ids"].shape[1]
            return count_tokens(ids[:, start:], tokenizer.pad_token_id, tokenizer.eos_token_id)

        return generate

    return measure_side_by_side([System(name, timed(*pair), inputs) for name, pair in systems.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", required=True)
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 3, 5, 8])
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--length_candidates", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--baselines", nargs="*", default=[])
    parser.add_argument("--max_source_length", type=int, default=None, help="tokens of a source, instead of the task's")
    parser.add_argument(
        "--max_target_length", type=int, default=None, help="tokens of an answer, instead of the task's"
    )
    parser.add_argument("--max_rows", type=int, default=None)
    parser.add_argument(
        "--longest_rows", type=int, default=None, help="score only so many sources, those with the most tokens"
    )
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--speed_rows", type=int, default=30, help="rows to time each system on, one by one; 0 for none"
    )
    parser.add_argument(
        "--diffusion_steps", type=int, nargs="*", default=[3], help="of masked diffusion; length is added"
    )
    parser.add_argument(
        "--variants",
        nargs="*",
        default=[],
        help="other options of generate(), such as time_shift=2,expert_selection=argmax",
    )
    parser.add_argument(
        "--bertscore_model", default=None, help="encoder for BERTScore, Hub name or folder; left out by default"
    )
    parser.add_argument(
        "--bertscore_layer", type=int, default=None, help="for an encoder that bert-score does not know"
    )
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamplings behind the 95 %% intervals")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    device = default_device()
    variants = {text: parse_variant(text) for text in arguments.variants}
    task = Task.load(arguments.task).with_lengths(arguments.max_source_length, arguments.max_target_length)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model, trust_remote_code=True)
    model = load_text_model(arguments.model, dtype=torch.float32).to(device)
    for folder in arguments.baselines:
        vocabulary = AutoConfig.from_pretrained(folder, trust_remote_code=True).vocab_size
        if vocabulary != len(tokenizer):
            raise ValueError(
                f"--baselines {folder} has {vocabulary} token ids, the model's tokenizer {len(tokenizer)}: it was trained with "
                "another tokenizer"
            )
    set_truncation_side(tokenizer, task.truncation_side)
    splits = load_splits(arguments.dataset_name, task, tokenizer.mask_token)
    if arguments.split not in splits:
        raise ValueError(f"--split {arguments.split} is not in {arguments.dataset_name}; it has {sorted(splits)}")
    rows = group_references(splits[arguments.split])
    rows = rows.select(range(min(arguments.max_rows or len(rows), len(rows))))
    if arguments.longest_rows is not None:
        rows = longest_sources(rows, tokenizer, arguments.longest_rows)
    references = rows["references"]
    # The oracle knows the length of the first reference, in tokens with EOS.
    oracle = [
        len(ids)
        for ids in tokenizer(list(rows["target"]), truncation=True, max_length=task.max_target_length)["input_ids"]
    ]
    sizes = {"batch_size": arguments.batch_size, "max_source_length": task.max_source_length}
    # A model of fixed canvases needs no length, and to give it one would give short answers away.
    canvas = model.generation_config.length_mode == "canvas"
    longest = model.generation_config.max_new_tokens if canvas else task.max_target_length
    # What is refused must not be found out after everything else was measured.
    if arguments.bertscore_model:
        bert_f1(rows["target"][:1], references[:1], arguments.bertscore_model, arguments.bertscore_layer)
    for options in variants.values():
        generate_texts(model, tokenizer, rows["source"][:1], **sizes, max_new_tokens=longest, **options)
    console = Console()
    columns = "system|length|steps|priors x lengths|BLEU-4|ROUGE-L|EM|F1|self-BLEU|words|seconds"
    table = Table(*columns.split("|"))
    results = []

    def record(name: str, texts: list[str], seconds: float, **setting) -> None:
        words = sum(len(text.split()) for text in texts) / len(texts)
        scores = score_texts(texts, references, num_bootstrap=arguments.bootstrap) | diversity(texts)
        if arguments.bertscore_model:
            scores["bert_f1"] = bert_f1(texts, references, arguments.bertscore_model, arguments.bertscore_layer)
        results.append({"system": name, **setting, **scores, "mean_words": words, "seconds": round(seconds, 2)})
        table.add_row(
            name,
            setting.get("variant", setting.get("length", "")),
            str(setting.get("num_inference_steps", "")),
            f"{setting.get('num_candidates', '')} x {setting.get('num_length_candidates', '')}",
            *(f"{scores[name]:.1f}" for name in ("bleu", "rougeL", "exact_match", "f1", "self_bleu")),
            f"{words:.1f}",
            f"{seconds:.1f}",
        )

    texts = reconstruct(
        model, tokenizer, rows["target"], max_length=task.max_target_length, batch_size=arguments.batch_size
    )
    record("autoencoder of the first reference", texts, 0.0)
    for folder in arguments.baselines:
        baseline = load_text_model(folder).to(device)
        # Masked diffusion: the few evaluations that YAN takes, and as many as tokens.
        diffusion = getattr(baseline.config, "masked_diffusion", False)
        steps = [*arguments.diffusion_steps, task.max_target_length] if diffusion else [None]
        for number in steps:
            start = time.perf_counter()
            texts = generate_texts(
                baseline,
                tokenizer,
                rows["source"],
                **sizes,
                max_new_tokens=task.max_target_length,
                eos_token_id=tokenizer.eos_token_id,
                **({} if number is None else {"num_inference_steps": number}),
            )
            seconds = time.perf_counter() - start
            setting = {"parameters": baseline.num_parameters()}
            record(Path(folder).name, texts, seconds, **setting, **({"num_inference_steps": number} if number else {}))
    settings = [
        {"length": length, "num_inference_steps": steps, "num_candidates": candidates, "num_length_candidates": lengths}
        for length in (("canvas",) if canvas else ("predicted", "oracle"))
        for candidates in arguments.candidates
        for lengths in (arguments.length_candidates if length == "predicted" else [1])
        for steps in arguments.steps
    ]
    usual = {"length": "canvas" if canvas else "predicted", "num_inference_steps": 3}
    usual |= {"num_candidates": arguments.candidates[0], "num_length_candidates": arguments.length_candidates[0]}
    settings += [{**usual, **options, "variant": text} for text, options in variants.items()]
    for setting in settings:
        start = time.perf_counter()
        texts = generate_texts(
            model,
            tokenizer,
            rows["source"],
            **sizes,
            max_new_tokens=longest,
            target_lengths=oracle if setting["length"] == "oracle" else None,
            generator=torch.Generator().manual_seed(arguments.seed),
            **{k: v for k, v in setting.items() if k not in ("length", "variant")},
        )
        record("YAN", texts, time.perf_counter() - start, **setting)

    systems = {
        f"YAN {c} x {n}": (
            model,
            {"num_candidates": c, "num_length_candidates": n, "generator": torch.Generator().manual_seed(0)},
        )
        for c in {1, max(arguments.candidates)}
        for n in ({1} if canvas else {1, max(arguments.length_candidates)})
    }
    systems |= {
        Path(folder).name: (load_text_model(folder).to(device), {"do_sample": False}) for folder in arguments.baselines
    }
    speed = {}
    if arguments.speed_rows:
        speed = measure_speed(
            systems, tokenizer, rows["source"][: arguments.speed_rows], sizes["max_source_length"], longest
        )
    report = {
        "training": {Path(folder).name: training_report(folder) for folder in (arguments.model, *arguments.baselines)},
        "length_head": length_errors(model, tokenizer, rows["source"], oracle, **sizes),
        "date": date.today().isoformat(),
        "task": task.name,
        "metric": task.metric,
        "split": arguments.split,
        "rows": len(rows),
        "longest_rows": arguments.longest_rows,
        "seed": arguments.seed,
        "parameters": model.num_parameters(),
        "torch": torch.__version__,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype),
        "batch_size": arguments.batch_size,
        "quality": results,
        "speed_batch_1": speed,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    console.print(table)
    if speed:
        fast = Table("system, batch 1", "median ms", "tokens per second")
        for name, summary in speed.items():
            fast.add_row(name, f"{summary['latency_ms']['median']:.1f}", f"{summary['tokens_per_second']:.0f}")
        console.print(fast)


if __name__ == "__main__":
    run_script(main)
