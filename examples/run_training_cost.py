"""
What a training step of YAN costs beside one of a BART of equal size on the same batch: time, peak memory, FLOPs, and where they go.

    python examples/run_training_cost.py --preset yan-small --output results/training_cost_cpu.json

Forward and backward; the optimizer is left out, for it costs both the same. FLOPs are those of matrix
products as torch's profiler counts them, forward and backward. The last column is the time over BART's, divided by the FLOPs over
BART's: 1 is a step that costs exactly what its arithmetic says.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedModel
from transformers.utils import logging

from modeling_yan import YanForConditionalGeneration
from modeling_yan.evaluation.speed import default_device, device_name, peak_memory, synchronize, timed
from modeling_yan.training.scripts import load_preset, run_script
from modeling_yan.training.stages import freeze

# Name of a row -> config fields that differ from the preset's, and parts that are frozen.
VARIANTS: dict[str, tuple[dict, tuple[str, ...]]] = {
    "YAN, stage 2: autoencoder frozen, 1 unrolled step": ({"unroll_steps": 1}, ("encoder", "decoder")),
    "YAN, stage 3: 1 unrolled step": ({"unroll_steps": 1}, ()),
    "YAN, stage 3: 3 unrolled steps": ({"unroll_steps": 3}, ()),
    "YAN, stage 3: 3 unrolled steps, loss in chunks": ({"unroll_steps": 3, "loss_chunk_size": 256}, ()),
    "YAN, likelihood alone": ({"unroll_steps": 1, "mse_loss_weight": 0.0, "ce_loss_weight": 0.0}, ()),
}
BART = "BART-shaped"


def bart_of_equal_size(config, parameters: int) -> BartForConditionalGeneration:
    """As many encoder as decoder layers as YAN has in its encoder; the width comes closest to the parameter count."""
    layers, best = config.encoder_layers, None
    for width in range(64, 4096, 16):
        # Attention, cross-attention and feed-forward matrices, and the shared embeddings.
        count = layers * (12 + 16) * width**2 + (config.vocab_size + 2 * config.max_position_embeddings) * width
        if best is None or abs(count - parameters) < abs(best[1] - parameters):
            best = (width, count)
    width = best[0]
    return BartForConditionalGeneration(
        BartConfig(
            vocab_size=config.vocab_size,
            d_model=width,
            encoder_layers=layers,
            decoder_layers=layers,
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
    )


def training_step(model: PreTrainedModel, batch: dict) -> Callable[[], None]:
    def step() -> None:
        model(**batch).loss.backward()
        model.zero_grad(set_to_none=True)

    return step


def profiled(step: Callable[[], None], device: torch.device) -> tuple[float, list[dict]]:
    """FLOPs of a step, and its operators by their own time."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities, with_flops=True) as profiler:
        step()
        synchronize()
    events = profiler.key_averages()
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    total = sum(getattr(event, own) for event in events)
    largest = sorted(events, key=lambda event: getattr(event, own), reverse=True)[:8]
    shares = [{"operator": e.key, "share": round(getattr(e, own) / total, 3), "calls": e.count} for e in largest]
    return sum(event.flops for event in events), shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="yan-small")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--source_length", type=int, default=128)
    parser.add_argument("--target_length", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    device = default_device()
    torch.manual_seed(0)
    config = load_preset(arguments.preset)
    vocabulary = config.vocab_size
    batch = {
        "input_ids": torch.randint(4, vocabulary, (arguments.batch_size, arguments.source_length), device=device),
        "labels": torch.randint(4, vocabulary, (arguments.batch_size, arguments.target_length), device=device),
    }

    def yan(name: str) -> PreTrainedModel:
        overrides, frozen = VARIANTS[name]
        model = YanForConditionalGeneration(load_preset(arguments.preset, hidden_dropout_prob=0.0, **overrides))
        freeze(model, frozen)
        return model

    parameters = YanForConditionalGeneration(config).num_parameters()
    builders = {BART: lambda: bart_of_equal_size(config, parameters)} | {n: (lambda n=n: yan(n)) for n in VARIANTS}
    rows = []
    for name, build in builders.items():
        model = build().to(device).train()
        step = training_step(model, batch)
        numbers = timed(step, arguments.repeats)
        flops, operators = profiled(step, device)
        rows.append(
            {
                "system": name,
                "parameters": model.num_parameters(),
                **numbers,
                "peak_mib": peak_memory(step, device),
                "gflops": flops / 1e9,
                "gflops_per_second": flops / 1e6 / numbers["median_ms"],
                "operators": operators,
            }
        )
    base = rows[0]
    table = Table(
        "system", "parameters", "median ms", "peak MiB", "GFLOP", "GFLOP/s", "time / BART", "over its FLOP share"
    )
    for row in rows:
        row["time_ratio"] = row["median_ms"] / base["median_ms"]
        row["over_flop_share"] = row["time_ratio"] / (row["gflops"] / base["gflops"])
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
    report = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": "float32",
        **{name: getattr(arguments, name) for name in ("preset", "batch_size", "source_length", "target_length")},
        "rows": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    Console(width=150).print(table)


if __name__ == "__main__":
    run_script(main)
