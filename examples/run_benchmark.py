"""
Speed of YAN beside GPT-2 (KV cache; static cache and compiled), BART, a deep encoder with one decoder layer, and masked
diffusion, all of equal parameter count, in one run on one device.

    python examples/run_benchmark.py --model examples/models/yan-e2e --lengths 16 64 128 --output results/benchmark_cpu.json
    python examples/run_benchmark.py --preset yan-small --batch_sizes 1 8 --output results/benchmark_cpu_small.json
    python examples/run_benchmark.py --preset yan-base --dtype bfloat16 --batch_sizes 1 8 32 128 512 --output results/benchmark_gpu.json

A cell is reported only if what the system wrote equals its own plain computation: for YAN every expert at every step without
tables, for the autoregressive ones the argmax after every prefix without a cache, for masked diffusion the same schedule without
a cache. Every call is charged with everything: encoder, length head, draws, scoring.
"""

import argparse
import functools
import json
from datetime import date
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from modeling_yan import YanForConditionalGeneration
from modeling_yan.evaluation.peers import (
    Peer,
    bart_peer,
    check,
    compiled_gpt2_peer,
    diffusion_peers,
    gpt2_peer,
    release,
    shallow_decoder_peer,
    yan_peer,
)
from modeling_yan.evaluation.plots import plot_speed
from modeling_yan.evaluation.roofline import count_work, measure_device, roofline_seconds
from modeling_yan.evaluation.speed import (
    System,
    default_device,
    device_name,
    measure_side_by_side,
    peak_memory,
)
from modeling_yan.training.scripts import load_preset, run_script

BASELINE = "GPT-2, KV cache"


def build_model(arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> YanForConditionalGeneration:
    if (arguments.model is None) == (arguments.preset is None):
        raise ValueError("give exactly one of --model and --preset")
    if arguments.model:
        model = YanForConditionalGeneration.from_pretrained(arguments.model, dtype=dtype)
    else:
        longest = max(*arguments.lengths, arguments.source_length)
        with device:
            model = YanForConditionalGeneration(load_preset(arguments.preset, max_position_embeddings=longest)).to(
                dtype
            )
    if max(arguments.lengths) * model.config.canvas_ratio > model.config.max_position_embeddings:
        raise ValueError(
            f"--lengths {max(arguments.lengths)} x canvas_ratio={model.config.canvas_ratio} is more than the model's "
            f"max_position_embeddings={model.config.max_position_embeddings}"
        )
    model.generation_config.update(num_candidates=1, num_length_candidates=1)
    return model.to(device).eval()


def build_peers(
    model: YanForConditionalGeneration, steps: list[int], compiled: bool, systems: list[str] | None = None
) -> list[Peer]:
    """Those whose names begin with one of `systems`; all by default."""
    gpt2 = gpt2_peer(model)
    peers = [yan_peer(model, n) for n in steps]
    # In a compiled graph the noise is the same, so that one compiled setting is enough to see what compiling gives.
    peers += [yan_peer(model, 3, compiled=True), compiled_gpt2_peer(gpt2)] if compiled else []
    peers += [gpt2, bart_peer(model), shallow_decoder_peer(model), *diffusion_peers(model)]
    if systems is None:
        return peers
    unknown = [name for name in systems if not any(peer.name.startswith(name) for peer in peers)]
    if unknown:
        raise ValueError(f"--systems {unknown}: no system's name begins so; there are {[peer.name for peer in peers]}")
    return [peer for peer in peers if peer.name.startswith(tuple(systems))]


def measure_cell(
    peers: list[Peer], source: torch.LongTensor, length: int, arguments: argparse.Namespace, rates: dict
) -> list[dict]:
    """All systems at one batch size and length, side by side; a system that is wrong is reported as such, without numbers."""
    rows, right = [], []
    for peer in peers:
        written = peer.write(source, length).shape
        if written != (len(source), length):
            raise ValueError(f"{peer.name} wrote {tuple(written)} instead of {(len(source), length)}")
        gate = check(peer, source, length)
        if gate is None:
            rows.append({"system": peer.name, "skipped": "differs from its plain computation"})
        else:
            right.append((peer, gate))
    systems = [
        System(peer.name, functools.partial(lambda item, peer: peer.write(item, length).numel(), peer=peer), [source])
        for peer, _ in right
    ]
    results = measure_side_by_side(systems, repeats=arguments.repeats, warmup=1, seconds=arguments.seconds_per_system)
    base = results.get(BASELINE)
    for peer, gate in right:
        summary = results[peer.name]
        median = summary["latency_ms"]["median"]
        row = {
            "system": peer.name,
            "median_ms": median,
            "quartiles_ms": summary["latency_ms"]["quartiles"],
            "calls": summary["calls"],
            # At the median, so that one disturbed call does not count against a system.
            "tokens_per_second": source.shape[0] * length / median * 1e3,
            "evaluations": peer.evaluations(length),
            "parameters": peer.model.num_parameters(),
            "gate": gate,
        }
        if base is not None:
            row["ratio"] = base["latency_ms"]["median"] / median
        slow = median > 1e3 * arguments.seconds_per_system
        if not peer.compiled and not slow:
            work = count_work(functools.partial(peer.write, source, length))
            row |= {**work, "roofline_share": 1e3 * roofline_seconds(work, rates) / median}
        if not slow:
            row["peak_mib"] = peak_memory(functools.partial(peer.write, source, length), source.device)
        rows.append(row)
    return rows


def crossovers(cells: list[dict], steps: int = 3) -> list[dict]:
    """For every length the smallest batch at which a left-to-right system writes more tokens per second than YAN, or None."""
    found = []
    names = {cell["system"] for cell in cells if not cell["system"].startswith(("YAN", "masked"))}
    timed = {(c["system"], c["batch_size"], c["length"]): c["tokens_per_second"] for c in cells if "median_ms" in c}
    for name in sorted(names):
        for length in sorted({cell["length"] for cell in cells}):
            both = [
                (batch, rate, timed[(f"YAN, {steps} steps", batch, length)])
                for (system, batch, at), rate in sorted(timed.items())
                if system == name and at == length and (f"YAN, {steps} steps", batch, length) in timed
            ]
            if both:
                batch = next((batch for batch, theirs, ours in both if theirs > ours), None)
                found.append({"system": name, "length": length, "batch_size": batch, "largest_batch": both[-1][0]})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a YAN folder or Hub name")
    parser.add_argument("--preset", help="or random weights of this size (configuration/models)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 64, 128, 256, 512, 1024])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 3, 8])
    parser.add_argument("--source_length", type=int, default=32)
    parser.add_argument(
        "--compiled_batches", type=int, nargs="*", default=[1], help="batches with compiled systems too"
    )
    parser.add_argument(
        "--systems", nargs="+", help="only those whose names begin so, such as YAN GPT-2; all by default"
    )
    parser.add_argument("--repeats", type=int, default=10, help="timed calls of a system in a cell")
    parser.add_argument(
        "--seconds_per_system", type=float, default=5.0, help="a system gets no further call after these"
    )
    parser.add_argument(
        "--longest_call", type=float, default=20.0, help="calls expected to take more seconds are left out"
    )
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    device = default_device()
    model = build_model(arguments, device, getattr(torch, arguments.dtype))
    rates = measure_device(device, model.dtype)
    report = {
        "date": date.today().isoformat(),
        "model": arguments.model or arguments.preset,
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dtype": str(model.dtype),
        "source_length": arguments.source_length,
        "seed": 0,
        **rates,
    }
    table = Table("batch", "tokens", "system", "median ms", "tokens/s", "ratio", "roofline", "peak MiB")
    cells = []
    for batch in sorted(arguments.batch_sizes):
        seen: dict = {}
        peers = build_peers(
            model, arguments.steps, compiled=batch in arguments.compiled_batches, systems=arguments.systems
        )
        source = torch.randint(4, model.config.vocab_size, (batch, arguments.source_length), device=device)
        for length in sorted(arguments.lengths):
            rows, wanted = [], []
            for peer in peers:
                # In proportion to the next shorter answer: more for masked diffusion, less for YAN.
                known = {at: seconds for (name, at), seconds in seen.items() if name == peer.name}
                expected = known[max(known)] * length / max(known) if known else 0.0
                if expected > arguments.longest_call:
                    rows.append({"system": peer.name, "skipped": f"about {expected:.0f} s a call expected"})
                else:
                    wanted.append(peer)
            try:
                rows += measure_cell(wanted, source, length, arguments, rates)
            except torch.OutOfMemoryError:
                rows += [{"system": peer.name, "skipped": "a system of this cell ran out of memory"} for peer in wanted]
            for row in rows:
                cells.append({"batch_size": batch, "length": length, **row})
                if "median_ms" in row:
                    seen[row["system"], length] = row["median_ms"] / 1e3
                    table.add_row(
                        str(batch),
                        str(length),
                        row["system"],
                        f"{row['median_ms']:.1f}",
                        f"{row['tokens_per_second']:,.0f}",
                        f"{row['ratio']:.1f}" if "ratio" in row else "",
                        f"{row['roofline_share']:.0%}" if "roofline_share" in row else "",
                        f"{row['peak_mib']:.0f}" if "peak_mib" in row else "",
                    )
            print(f"batch {batch}, {length} tokens: done", flush=True)
            # After every cell: a run that is cut off keeps what it has.
            report |= {"cells": cells, "autoregression_wins_from_batch": crossovers(cells)}
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        del peers
        release()
    plot_speed(cells, arguments.output.with_suffix(".png"))
    Console().print(table)


if __name__ == "__main__":
    run_script(main)
