"""
Time and memory of the selective scan against sequence length, forward and backward, one way beside another.

    python examples/run_scan_benchmark.py --output results/scan_cpu.json         # also writes results/scan_cpu.png

The scans take the same random inputs; the mixers hold the same weights: a bidirectional Mamba mixer of this package, and two
mixers of transformers joined by the same projection. A cell is reported only if outputs and gradients equal the sequential
scan's, or the mixers each other's.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from transformers import MambaConfig
from transformers import __version__ as transformers_version
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.utils import logging

from modeling_yan import YanConfig
from modeling_yan.evaluation.speed import default_device, device_name, peak_memory, timed
from modeling_yan.mixers_yan import YanMamba
from modeling_yan.selective_scan_yan import IMPLEMENTATIONS, kernel_is_available
from modeling_yan.training.scripts import run_script

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TOLERANCE = 1e-4
PEER = "two mixers of transformers"
MIXER = "bidirectional mixer, chunked"


def scan_inputs(batch: int, length: int, width: int, states: int, device: torch.device) -> list[torch.Tensor]:
    """u, delta, A, B, C of one direction with `2 * width` channels."""
    inner = 2 * width
    values = [
        torch.randn(batch, length, 1, inner, device=device),
        F.softplus(torch.randn(batch, length, 1, inner, device=device) - 2),
        -torch.arange(1.0, states + 1, device=device).expand(1, inner, states).clone(),
        torch.randn(batch, length, 1, states, device=device),
        torch.randn(batch, length, 1, states, device=device),
    ]
    return [value.requires_grad_() for value in values]


def forward_backward(function: Callable[..., torch.Tensor], values: list[torch.Tensor]) -> list[torch.Tensor]:
    """Output and gradients of its sum of squares."""
    for value in values:
        value.grad = None
    output = function(*values)
    output.square().sum().backward()
    return [output.detach(), *(value.grad for value in values)]


def difference(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """Largest difference relative to the largest entry of each tensor."""
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs, strict=True))


def mixers(width: int, states: int, device: torch.device) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """This package's mixer and its equal made of two of transformers' mixers, with the same weights."""
    ours = YanMamba(YanConfig(hidden_size=width, mamba_d_state=states)).to(device)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            scale = 0.5 if name.endswith("A_log") else parameter.shape[-1] ** -0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    config = MambaConfig(hidden_size=width, state_size=states, use_bias=False)
    pair = [MambaMixer(config, layer_idx=0).to(device) for _ in range(2)]
    for theirs, part in zip(pair, (ours.fwd, ours.bwd)):
        theirs.load_state_dict(part.state_dict())

    def peer(states: torch.Tensor) -> torch.Tensor:
        return ours.proj(torch.cat([pair[0](states), pair[1](states.flip(1)).flip(1)], dim=-1))

    return {MIXER: lambda states: ours(states)[0], PEER: peer}


def measure(arguments: argparse.Namespace, device: torch.device) -> list[dict]:
    """One row per way, batch and length."""
    rows = []
    names = ["sequential", "chunked"] + ["kernel"] * (device.type == "cuda" and kernel_is_available())
    for batch in arguments.batch_sizes:
        for length in arguments.lengths:
            torch.manual_seed(0)
            values = scan_inputs(batch, length, arguments.width, arguments.states, device)
            states = torch.randn(batch, length, arguments.width, device=device, requires_grad=True)
            pair = mixers(arguments.width, arguments.states, device)
            systems = {name: (IMPLEMENTATIONS[name], values, arguments.longest_sequential) for name in names}
            systems |= {name: (call, [states], arguments.longest_peer) for name, call in pair.items()}
            for name in [*names[1:], MIXER]:
                # Nothing but the sequential ways becomes too slow to run.
                systems[name] = (*systems[name][:2], max(arguments.lengths))
            references = dict.fromkeys(names, "sequential") | {MIXER: PEER, PEER: PEER}
            for name, (function, inputs, longest) in systems.items():
                if length > longest:
                    continue
                reference = systems[references[name]]
                error = None
                if length <= reference[2]:
                    expected = [x.clone() for x in forward_backward(reference[0], reference[1])]
                    error = difference(forward_backward(function, inputs), expected)
                    if not error < TOLERANCE:
                        raise ValueError(f"{name} differs from {references[name]} by {error:.1e} at length {length}")

                def call(function=function, inputs=inputs) -> None:
                    forward_backward(function, inputs)

                row = {"batch_size": batch, "length": length, "system": name, "difference_from_reference": error}
                rows.append(row | timed(call, arguments.repeats) | {"peak_mib": peak_memory(call, device)})
    return rows


def draw(rows: list[dict], path: Path) -> None:
    """Time and peak memory against length, one column per batch size."""
    batches = sorted({row["batch_size"] for row in rows})
    figure, axes = plt.subplots(2, len(batches), figsize=(5 * len(batches), 7), squeeze=False, sharex=True)
    for column, batch in enumerate(batches):
        for line, (key, label) in enumerate(
            (("median_ms", "forward + backward, ms"), ("peak_mib", "peak memory, MiB"))
        ):
            axis = axes[line][column]
            for name in dict.fromkeys(row["system"] for row in rows):
                cells = [row for row in rows if row["system"] == name and row["batch_size"] == batch]
                axis.plot([c["length"] for c in cells], [max(c[key], 1e-2) for c in cells], marker="o", label=name)
            axis.set(xscale="log", yscale="log", ylabel=label, title=f"batch {batch}")
            axis.grid(alpha=0.3)
        axes[1][column].set_xlabel("sequence length")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--width", type=int, default=256, help="hidden size; the scan has twice as many channels")
    parser.add_argument("--states", type=int, default=16)
    parser.add_argument("--longest_sequential", type=int, default=2048)
    parser.add_argument("--longest_peer", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True, help="JSON; the plot is written beside it as PNG")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    device = default_device()
    rows = measure(arguments, device)
    reference = {(r["batch_size"], r["length"]): r["median_ms"] for r in rows if r["system"] == "sequential"}
    peer = {(r["batch_size"], r["length"]): r["median_ms"] for r in rows if r["system"] == PEER}
    table = Table("batch", "length", "system", "median ms", "peak MiB", "against sequential", "against transformers")
    for row in rows:
        cell, is_mixer = (row["batch_size"], row["length"]), row["system"] in (MIXER, PEER)
        against = (peer if is_mixer else reference).get(cell)
        row["speedup"] = None if against is None else against / row["median_ms"]
        shown = "" if against is None else f"{row['speedup']:.1f} x"
        columns = ("", shown) if is_mixer else (shown, "")
        table.add_row(
            str(cell[0]), str(cell[1]), row["system"], f"{row['median_ms']:.1f}", f"{row['peak_mib']:.0f}", *columns
        )
    report = {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers_version,
        "dtype": "float32",
        "width": arguments.width,
        "channels": 2 * arguments.width,
        "states": arguments.states,
        "tolerance": TOLERANCE,
        "rows": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    draw(rows, arguments.output.with_suffix(".png"))
    Console(width=130).print(table)


if __name__ == "__main__":
    run_script(main)
