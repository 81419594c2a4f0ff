r"""
Time and memory of the selective scan against sequence length, forward and backward, one way beside another.

    python benchmarks/run_scan.py --output benchmarks/results/scan_cpu.json    # and benchmarks/results/scan_cpu.png

The scans take the same random inputs; the mixers hold the same weights: a bidirectional Mamba mixer of this package,
and two mixers of transformers joined by the same projection. A cell is reported only if outputs and gradients equal the
sequential scan's, or the mixers each other's.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.utils import logging

from modeling_yan import YanConfig
from modeling_yan.common.arguments import check_positive, run_script
from modeling_yan.common.reports import machine, write_report
from modeling_yan.evaluation.speed import default_device, peak_memory, timed
from modeling_yan.mixers_yan import YanMamba
from modeling_yan.selective_scan_yan import IMPLEMENTATIONS, kernel_is_available

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TOLERANCE = 1e-4
BASELINE = "two mixers of transformers"
MIXER = "bidirectional mixer, chunked"
REFERENCE = "sequential"
COLUMNS = ("batch size", "length", "system", "median ms", "peak MiB", "against sequential", "against transformers")


@dataclass
class Way:
    """
    A way to compute, at one batch size and length.

    Args:
        function: of the inputs.
        inputs: tensors with gradients.
        reference: name of the way that it must agree with.
        longest: sequences that are longer are left out; none by default.
    """

    function: Callable[..., torch.Tensor]
    inputs: list[torch.Tensor]
    reference: str
    longest: int | None = None

    def reaches(self, length: int) -> bool:
        return self.longest is None or length <= self.longest


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
    for theirs, part in zip(pair, (ours.fwd, ours.bwd), strict=True):
        theirs.load_state_dict(part.state_dict())

    def baseline(states: torch.Tensor) -> torch.Tensor:
        return ours.proj(torch.cat([pair[0](states), pair[1](states.flip(1)).flip(1)], dim=-1))

    return {MIXER: lambda states: ours(states)[0], BASELINE: baseline}


def build_ways(batch_size: int, length: int, arguments: argparse.Namespace, device: torch.device) -> dict[str, Way]:
    """The scans on one set of inputs, and the mixers on another. Only the sequential ways become too slow to run."""
    torch.manual_seed(0)
    values = scan_inputs(batch_size, length, arguments.width, arguments.states, device)
    states = torch.randn(batch_size, length, arguments.width, device=device, requires_grad=True)
    names = [REFERENCE, "chunked"] + ["kernel"] * (device.type == "cuda" and kernel_is_available())
    ways = {name: Way(IMPLEMENTATIONS[name], values, REFERENCE) for name in names}
    ways |= {
        name: Way(call, [states], BASELINE) for name, call in mixers(arguments.width, arguments.states, device).items()
    }
    ways[REFERENCE].longest = arguments.longest_sequential
    ways[BASELINE].longest = arguments.longest_baseline
    return ways


def measure(
    name: str, ways: dict[str, Way], length: int, repeats: int, device: torch.device
) -> dict[str, float | str | None]:
    """
    Time, memory, and the difference from the reference, None where that is left out.

    Raises:
        ValueError: if the way differs from its reference.
    """
    way = ways[name]
    reference, error = ways[way.reference], None
    if reference.reaches(length):
        expected = [x.clone() for x in forward_backward(reference.function, reference.inputs)]
        error = difference(forward_backward(way.function, way.inputs), expected)
        if not error < TOLERANCE:
            raise ValueError(f"{name} differs from {way.reference} by {error:.1e} at length {length}")

    def call() -> None:
        forward_backward(way.function, way.inputs)

    numbers = timed(call, repeats) | {"peak_mib": peak_memory(call, device)}
    return {"system": name, "difference_from_reference": error, **numbers}


def measure_all(arguments: argparse.Namespace, device: torch.device) -> list[dict]:
    """A row for each way, batch size and length; `speedup` is the time of its reference over its own."""
    rows = []
    for batch_size in arguments.batch_sizes:
        for length in arguments.lengths:
            ways = build_ways(batch_size, length, arguments, device)
            names = [name for name, way in ways.items() if way.reaches(length)]
            found = {name: measure(name, ways, length, arguments.repeats, device) for name in names}
            for name, row in found.items():
                base = found.get(ways[name].reference)
                row["speedup"] = None if base is None else base["median_ms"] / row["median_ms"]
                rows.append({"batch_size": batch_size, "length": length, **row})
    return rows


def draw(rows: list[dict], path: Path) -> None:
    """Time and peak memory against length, one column per batch size."""
    batches = sorted({row["batch_size"] for row in rows})
    figure, axes = plt.subplots(2, len(batches), figsize=(5 * len(batches), 7), squeeze=False, sharex=True)
    labels = {"median_ms": "forward + backward, ms", "peak_mib": "peak memory, MiB"}
    for column, batch in enumerate(batches):
        for axis, (key, label) in zip(axes[:, column], labels.items(), strict=True):
            for name in dict.fromkeys(row["system"] for row in rows):
                cells = [row for row in rows if row["system"] == name and row["batch_size"] == batch]
                axis.plot([c["length"] for c in cells], [max(c[key], 1e-2) for c in cells], marker="o", label=name)
            axis.set(xscale="log", yscale="log", ylabel=label, title=f"batch size {batch}")
            axis.grid(alpha=0.3)
        axes[1][column].set_xlabel("sequence length")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def make_table(rows: list[dict]) -> Table:
    table = Table(*COLUMNS)
    for row in rows:
        shown = "" if row["speedup"] is None else f"{row['speedup']:.1f} x"
        numbers = (f"{row['median_ms']:.1f}", f"{row['peak_mib']:.0f}")
        columns = ("", shown) if row["system"] in (MIXER, BASELINE) else (shown, "")
        table.add_row(str(row["batch_size"]), str(row["length"]), row["system"], *numbers, *columns)
    return table


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--lengths", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048, 4096, 8192])
    add("--batch_sizes", type=int, nargs="+", default=[1, 8])
    add("--width", type=int, default=256, help="hidden size; the scan has twice as many channels")
    add("--states", type=int, default=16)
    add("--longest_sequential", type=int, default=2048, help="of the sequential scan")
    add("--longest_baseline", type=int, default=512, help="of the two mixers of transformers")
    add("--repeats", type=int, default=5)
    add("--output", type=Path, required=True, help="JSON; the plot is written beside it as PNG")
    arguments = parser.parse_args()
    check_positive(arguments, "lengths", "batch_sizes", "width", "states", "repeats")
    return arguments


def main() -> None:
    arguments = parse()
    logging.set_verbosity_error()
    device = default_device()
    rows = measure_all(arguments, device)
    report = {
        **machine(device),
        "dtype": "float32",
        "width": arguments.width,
        "channels": 2 * arguments.width,
        "states": arguments.states,
        "tolerance": TOLERANCE,
        "rows": rows,
    }
    write_report(report, arguments.output)
    draw(rows, arguments.output.with_suffix(".png"))
    Console(width=130).print(make_table(rows))


if __name__ == "__main__":
    run_script(main)
