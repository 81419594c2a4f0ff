"""
Does the mixture matter? Quality, gate entropy, use of the experts and what kind of token each takes, for models that differ in their
number of experts; and a picture of one text's way from noise to latents.

    python examples/run_mixture_report.py --models outputs/k1-0 outputs/k4-0 --task e2e_nlg --dataset_name ../shared/data/e2e_nlg \
        --output results/mixture_e2e.json
"""

import argparse
import json
import re
import string
from collections import Counter
from datetime import date
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer
from transformers.utils import logging

from modeling_yan import YanForConditionalGeneration
from modeling_yan.evaluation.metrics import score_texts
from modeling_yan.evaluation.plots import plot_trajectories
from modeling_yan.evaluation.text_generation import generate_texts
from modeling_yan.flow_matching_yan import gate_entropy
from modeling_yan.training.scripts import run_script
from modeling_yan.training.tasks import Task, group_references, load_splits
from modeling_yan.writing_yan import WritingPlan

# Closed-class words of English; what is neither these, nor punctuation, nor in the source, is "other".
FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the is are was it its and or but of in on at to for from with by near located that which this has have not no you "
        "can as there their they be if also",
    )
)


def token_kind(token: str, source: str) -> str:
    """What a token of an answer is: punctuation, a function word, in the source, or other."""
    word = token.strip().lower()
    if not word or all(c in string.punctuation or not c.isprintable() for c in word):
        return "punctuation"
    if word in FUNCTION_WORDS:
        return "function word"
    return "in the source" if word in source.lower() else "other"


@torch.no_grad()
def watch(model, tokenizer, source: str, seed: int) -> dict:
    """One text: its ids, trajectory, and each position's expert and gate entropy at t = 0."""
    inputs = tokenizer(source, return_tensors="pt")
    generator = torch.Generator().manual_seed(seed)
    written = model.generate(
        **inputs, generator=generator, num_length_candidates=1, return_dict_in_generate=True, output_trajectory=True
    )
    trajectory = written.trajectory[:, 0]
    states, _ = model.encode_source(inputs["input_ids"])
    condition = model.model.condition(trajectory.shape[1], None, states, None)
    _, gate = model.model.flow(trajectory[:1], torch.zeros(1), condition)
    # The numbers that generate() drew the experts by: they depend on the generator and the row's tokens.
    seeds = model._row_seeds(inputs["input_ids"], None, 1, torch.Generator().manual_seed(seed))
    options, _ = model._prepare_generation_config(None)
    _, uniform = model._draw(seeds, [trajectory.shape[1]], 1, options, None, "cpu")
    plan = WritingPlan.from_options(options)
    length = min(trajectory.shape[1], written.sequences.shape[1])
    return {
        "tokens": [tokenizer.decode([i]) for i in written.sequences[0, :length].tolist()],
        "experts": model._choose_experts(gate, uniform[0, :, 0], plan)[0, :length],
        "entropy": gate_entropy(gate)[0, :length],
        "trajectory": trajectory[:, :length],
    }


def report_model(folder: str, rows, seed: int, picture: Path) -> dict:
    model = YanForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    kinds: Counter = Counter()
    entropies = []
    for index, source in enumerate(rows["source"]):
        seen = watch(model, tokenizer, source, seed)
        entropies.append(seen["entropy"])
        kinds.update((int(k), token_kind(t, source)) for k, t in zip(seen["experts"], seen["tokens"], strict=True))
        if index == 0:
            plot_trajectories(seen["trajectory"], seen["experts"], seen["tokens"], picture)
    total = sum(kinds.values())
    texts = generate_texts(
        model,
        tokenizer,
        rows["source"],
        batch_size=64,
        generator=torch.Generator().manual_seed(seed),
        num_length_candidates=1,
    )
    training = Path(folder) / "report.json"
    return {
        "model": Path(folder).name,
        "num_experts": model.config.num_experts,
        "parameters": model.num_parameters(),
        "training": json.loads(training.read_text(encoding="utf-8")) if training.exists() else None,
        **score_texts(texts, rows["references"]),
        "gate_entropy": float(torch.cat(entropies).mean()),
        "expert_share": [
            sum(n for (k, _), n in kinds.items() if k == expert) / total for expert in range(model.config.num_experts)
        ],
        "kinds": {
            str(expert): {kind: n for (k, kind), n in sorted(kinds.items()) if k == expert}
            for expert in range(model.config.num_experts)
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="YAN folders")
    parser.add_argument("--task", required=True)
    parser.add_argument("--dataset_name", required=True)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--max_rows", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    splits = load_splits(arguments.dataset_name, Task.load(arguments.task))
    if arguments.split not in splits:
        raise ValueError(f"--split {arguments.split} is not in {arguments.dataset_name}; it has {sorted(splits)}")
    rows = group_references(splits[arguments.split])
    rows = rows.select(range(min(arguments.max_rows or len(rows), len(rows))))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    reports = [
        report_model(
            folder, rows, arguments.seed, arguments.output.with_name(f"{arguments.output.stem}_{Path(folder).name}.png")
        )
        for folder in arguments.models
    ]
    result = {
        "date": date.today().isoformat(),
        "split": arguments.split,
        "rows": len(rows),
        "seed": arguments.seed,
        "models": reports,
    }
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    table = Table("model", "K", "parameters", "BLEU-4", "ROUGE-L", "gate entropy", "share of each expert")
    for row in reports:
        shares = " ".join(f"{share:.2f}" for share in row["expert_share"])
        table.add_row(
            row["model"], str(row["num_experts"]), f"{row['parameters']:,}", f"{row['bleu']:.1f}", f"{row['rougeL']:.1f}",
            f"{row['gate_entropy']:.3f}", shares,
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    run_script(main)
