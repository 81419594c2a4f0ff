r"""
Does the mixture matter? Quality, gate entropy, use of the experts and what kind of token each takes, for models that
differ in their number of experts; and a picture of one text's way from noise to latents.

    python benchmarks/run_mixture_report.py --models outputs/k1-0 outputs/k4-0 --task e2e_nlg \
        --dataset_name ../shared/data/e2e_nlg --output benchmarks/results/mixture_e2e.json
"""

import argparse
import re
import string
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from modeling_yan import YanForConditionalGeneration
from modeling_yan.common.arguments import check_positive, run_script
from modeling_yan.common.hub import read_model, read_tokenizer
from modeling_yan.common.reports import machine, read_report, write_report
from modeling_yan.ctc_yan import ctc_places
from modeling_yan.data.tasks import Task, load_rows
from modeling_yan.evaluation.metrics import score_texts
from modeling_yan.evaluation.plots import plot_trajectories
from modeling_yan.evaluation.text_generation import generate_texts
from modeling_yan.flow_matching_yan import gate_entropy
from modeling_yan.sampling_yan import cut_lengths, draw_noise, row_seeds

# Closed-class words of English; what is neither these, nor punctuation, nor in the source, is "other".
FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the is are was it its and or but of in on at to for from with by near located that which this has have "
        "not no you can as there their they be if also",
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


@dataclass
class Watched:
    """
    A text as it was written, position by position; blanks and repetitions of a canvas with blanks are left out.

    Args:
        tokens: the text's.
        experts: of each token (n,).
        entropy: of each token's gate at t = 0, in nats (n,).
        trajectory: states (steps + 1, n, d), prior first.
    """

    tokens: list[str]
    experts: torch.Tensor
    entropy: torch.Tensor
    trajectory: torch.Tensor


@torch.no_grad()
def watch(model: YanForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, source: str, seed: int) -> Watched:
    """Writes an answer to one source on one canvas."""
    inputs, config = tokenizer(source, return_tensors="pt"), model.config
    single = {"num_candidates": 1, "num_length_candidates": 1}
    output = {"return_dict_in_generate": True, "output_trajectory": True}
    written = model.generate(**inputs, generator=torch.Generator().manual_seed(seed), **single, **output)
    states = written.trajectory[:, 0]
    # The gate that the experts were drawn from, and the numbers that they were drawn by.
    gate = model.model(**inputs, x_t=states[:1], timesteps=torch.zeros(1)).gate_probs.log()
    seeds = row_seeds(inputs["input_ids"], None, 1, torch.Generator().manual_seed(seed))
    _, uniform = draw_noise(seeds, [states.shape[1]], 1, config.hidden_size)
    options = model.generation_options().sampling
    experts = options.choose_experts(gate, uniform[0, :, 0])[0]

    ids = model.decoder(states[-1:]).argmax(-1)
    end = int(cut_lengths(ids, None, options.eos_token_ids))
    ids = ids[0, :end]
    kept = torch.ones_like(ids, dtype=torch.bool)
    if config.canvas_ratio > 1:
        kept = ctc_places(ids.unsqueeze(0), None, config.pad_token_id)[0] < end
    return Watched(
        tokens=[tokenizer.decode([i]) for i in ids[kept].tolist()],
        experts=experts[:end][kept],
        entropy=gate_entropy(gate)[0, :end][kept],
        trajectory=states[:, :end][:, kept],
    )


def report_model(folder: str, rows: Dataset, picture: Path, seed: int, trust_remote_code: bool = False) -> dict:
    """One model's row of the report; the picture is of its first answer."""
    tokenizer = read_tokenizer(folder, trust_remote_code=trust_remote_code)
    model = read_model(YanForConditionalGeneration, folder, dtype=torch.float32)
    seen = [watch(model, tokenizer, source, seed) for source in rows["source"]]
    plot_trajectories(seen[0].trajectory, seen[0].experts, seen[0].tokens, picture)
    kinds = Counter(
        (int(expert), token_kind(token, source))
        for text, source in zip(seen, rows["source"], strict=True)
        for expert, token in zip(text.experts, text.tokens, strict=True)
    )
    texts = generate_texts(
        model,
        tokenizer,
        rows["source"],
        batch_size=64,
        generator=torch.Generator().manual_seed(seed),
        num_length_candidates=1,
    )
    experts, total = range(model.config.num_experts), sum(kinds.values())
    of_expert = {k: {kind: n for (expert, kind), n in sorted(kinds.items()) if expert == k} for k in experts}
    return {
        "model": Path(folder).name,
        "num_experts": model.config.num_experts,
        "parameters": model.num_parameters(),
        "training": read_report(folder),
        **score_texts(texts, rows["references"]),
        "gate_entropy": float(torch.cat([text.entropy for text in seen]).mean()),
        "expert_share": [sum(of_expert[k].values()) / total for k in experts],
        "kinds": {str(k): found for k, found in of_expert.items()},
    }


def make_table(reports: list[dict]) -> Table:
    table = Table("model", "K", "parameters", "BLEU-4", "ROUGE-L", "gate entropy", "share of each expert")
    for row in reports:
        table.add_row(
            row["model"],
            str(row["num_experts"]),
            f"{row['parameters']:,}",
            f"{row['bleu']:.1f}",
            f"{row['rougeL']:.1f}",
            f"{row['gate_entropy']:.3f}",
            " ".join(f"{share:.2f}" for share in row["expert_share"]),
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="YAN folders")
    parser.add_argument("--task", required=True, help="name in configuration/tasks, or a YAML file")
    parser.add_argument("--dataset_name", required=True, help="Hub name, local folder or file")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--max_rows", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with a tokenizer")
    parser.add_argument("--output", type=Path, required=True, help="JSON; a PNG for each model is written beside it")
    arguments = parser.parse_args()
    check_positive(arguments, "max_rows")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    task, output = Task.load(arguments.task), arguments.output
    mask_token = read_tokenizer(arguments.models[0], trust_remote_code=arguments.trust_remote_code).mask_token
    rows = load_rows(arguments.dataset_name, task, arguments.split, mask_token=mask_token, max_rows=arguments.max_rows)
    output.parent.mkdir(parents=True, exist_ok=True)
    pictures = {folder: output.with_name(f"{output.stem}_{Path(folder).name}.png") for folder in arguments.models}
    settings = (arguments.seed, arguments.trust_remote_code)
    models = [report_model(folder, rows, picture, *settings) for folder, picture in pictures.items()]
    about = {"split": arguments.split, "rows": len(rows), "seed": arguments.seed}
    write_report({**machine(torch.device("cpu")), **about, "models": models}, output)
    Console().print(make_table(models))


if __name__ == "__main__":
    run_script(main)
