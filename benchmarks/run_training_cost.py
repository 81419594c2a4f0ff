r"""
What a training step of YAN costs beside one of a BART of equal size on the same batch: time, peak memory, FLOPs, and
where they go.

    python benchmarks/run_training_cost.py --preset yan-small --output benchmarks/results/training_cost_cpu.json

Forward and backward; the optimizer is left out, for it costs both the same. FLOPs are those of matrix products as
torch's profiler counts them. The last column is the time over BART's, divided by the FLOPs over BART's: 1 is a step
that costs exactly what its arithmetic says.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedModel
from transformers.utils import logging

from modeling_yan import YanConfig, YanForConditionalGeneration
from modeling_yan.common.arguments import check_positive, run_script
from modeling_yan.common.overrides import load_preset, nest_training_settings
from modeling_yan.common.reports import machine, write_report
from modeling_yan.evaluation.baselines import closest_width
from modeling_yan.evaluation.speed import default_device, peak_memory, synchronize, timed
from modeling_yan.training.freezing import freeze

# Name of a row -> config fields that differ from the preset's, and parts that are frozen.
VARIANTS: dict[str, tuple[dict, tuple[str, ...]]] = {
    "YAN, stage 2: autoencoder frozen, 1 unrolled step": ({"unroll_steps": 1}, ("encoder", "decoder")),
    "YAN, stage 3: 1 unrolled step": ({"unroll_steps": 1}, ()),
    "YAN, stage 3: 3 unrolled steps": ({"unroll_steps": 3}, ()),
    "YAN, stage 3: 3 unrolled steps, loss in chunks": ({"unroll_steps": 3, "loss_chunk_size": 256}, ()),
    "YAN, likelihood alone": ({"unroll_steps": 1, "mse_loss_weight": 0.0, "ce_loss_weight": 0.0}, ()),
}
BART = "BART-shaped"
COLUMNS = ("system", "parameters", "median ms", "peak MiB", "GFLOP", "GFLOP/s", "time / BART", "over its FLOP share")
# Operators that a row names, those that take most time.
OPERATORS = 8


def bart_of_width(config: YanConfig, width: int) -> BartForConditionalGeneration:
    """As many encoder as decoder layers as YAN has in its encoder."""
    bart = BartConfig(
        vocab_size=config.vocab_size,
        d_model=width,
        encoder_layers=config.encoder_layers,
        decoder_layers=config.encoder_layers,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        max_position_embeddings=config.max_position_embeddings,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=None,
        dropout=0.0,
    )
    return BartForConditionalGeneration(bart)


def build_model(name: str, preset: str) -> PreTrainedModel:
    """The model of a row: one of `VARIANTS`, or the BART that comes closest to the preset's number of parameters."""
    if name in VARIANTS:
        overrides, frozen = VARIANTS[name]
        config = load_preset(preset, hidden_dropout_prob=0.0, **nest_training_settings(overrides))
        model = YanForConditionalGeneration(config)
        freeze(model, frozen)
        return model
    config = load_preset(preset)
    with torch.device("meta"):
        parameters = YanForConditionalGeneration(config).num_parameters()
    return bart_of_width(config, closest_width(lambda width: bart_of_width(config, width), parameters, 16))


def profiled(step: Callable[[], None], device: torch.device) -> tuple[float, list[dict]]:
    """FLOPs of a step, and its operators by their own time."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities, with_flops=True) as profiler:
        step()
        synchronize()
    events = profiler.key_averages()
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    total = sum(getattr(event, own) for event in events)
    largest = sorted(events, key=lambda event: getattr(event, own), reverse=True)[:OPERATORS]
    shares = [{"operator": e.key, "share": round(getattr(e, own) / total, 3), "calls": e.count} for e in largest]
    return sum(event.flops for event in events), shares


def measure(name: str, model: PreTrainedModel, batch: dict, repeats: int) -> dict:
    """Time, memory and FLOPs of a training step."""

    def step() -> None:
        model(**batch).loss.backward()
        model.zero_grad(set_to_none=True)

    numbers = timed(step, repeats)
    flops, operators = profiled(step, model.device)
    return {
        "system": name,
        "parameters": model.num_parameters(),
        **numbers,
        "peak_mib": peak_memory(step, model.device),
        "gflops": flops / 1e9,
        "gflops_per_second": flops / 1e6 / numbers["median_ms"],
        "operators": operators,
    }


def measure_all(arguments: argparse.Namespace, device: torch.device) -> list[dict]:
    """A row for BART and for each of `VARIANTS`, with its time and its FLOPs over BART's."""
    vocabulary, rows = load_preset(arguments.preset).vocab_size, []
    shapes = {"input_ids": arguments.source_length, "labels": arguments.target_length}
    batch = {
        name: torch.randint(4, vocabulary, (arguments.batch_size, length), device=device)
        for name, length in shapes.items()
    }
    for name in (BART, *VARIANTS):
        model = build_model(name, arguments.preset).to(device).train()
        row = measure(name, model, batch, arguments.repeats)
        base = rows[0] if rows else row
        row["time_ratio"] = row["median_ms"] / base["median_ms"]
        row["over_flop_share"] = row["time_ratio"] / (row["gflops"] / base["gflops"])
        rows.append(row)
    return rows


def make_table(rows: list[dict]) -> Table:
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(
            row["system"],
            f"{row['parameters']:,}",
            f"{row['median_ms']:.0f}",
            f"{row['peak_mib']:.0f}",
            f"{row['gflops']:.0f}",
            f"{row['gflops_per_second']:.0f}",
            f"{row['time_ratio']:.2f}",
            f"{row['over_flop_share']:.2f}",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="yan-small", help="sizes: configuration/models")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--source_length", type=int, default=128)
    parser.add_argument("--target_length", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    names = ("batch_size", "source_length", "target_length", "repeats")
    check_positive(arguments, *names)
    logging.set_verbosity_error()
    device = default_device()
    torch.manual_seed(0)
    rows = measure_all(arguments, device)
    options = {name: getattr(arguments, name) for name in ("preset", *names[:-1])}
    write_report({**machine(device), "dtype": "float32", **options, "rows": rows}, arguments.output)
    Console(width=150).print(make_table(rows))


if __name__ == "__main__":
    run_script(main)
