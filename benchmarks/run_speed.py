r"""
Speed of YAN (eager, compiled, as graphs in ONNX Runtime) beside GPT-2 (KV cache; static cache and compiled), BART, a
deep encoder with one decoder layer (all three in CTranslate2, too, in float32 and int8), and masked diffusion, all of
equal parameter count, in one run on one device: JSON, a table and a picture.

    python benchmarks/run_speed.py --model examples/models/yan-e2e --lengths 16 32 64 96 --batch_sizes 1 32 \
        --output benchmarks/results/benchmark_cpu_shipped.json
    python benchmarks/run_speed.py --preset yan-small --batch_sizes 1 8 \
        --output benchmarks/results/benchmark_cpu_small.json
    python benchmarks/run_speed.py --preset yan-base --dtype bfloat16 --batch_sizes 1 8 32 128 512 \
        --output benchmarks/results/benchmark_gpu.json

A cell is reported only if what the system wrote equals its own plain computation: for YAN every expert at every step
without tables, for the autoregressive ones the argmax after every prefix without a cache, for masked diffusion the same
schedule without a cache. In int8 a token's logit may be 2 % of the largest below the best, and YAN may differ in
a tenth of its tokens. All decode greedily on as many threads. ONNX Runtime and CTranslate2 take part on a CPU in
float32, where they are installed. Every call is charged with everything: encoder, length head, draws, scoring.
"""

import argparse
import functools
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from modeling_yan import YanForConditionalGeneration
from modeling_yan.common.arguments import check_positive, run_script
from modeling_yan.common.building import fitting_lengths, load_model_or_preset
from modeling_yan.common.reports import machine, write_report
from modeling_yan.evaluation import ctranslate2_baselines as ctranslate2
from modeling_yan.evaluation.baselines import (
    ENOUGH_AGREEMENT,
    WritingSystem,
    bart_baseline,
    check,
    compiled_gpt2_baseline,
    diffusion_baselines,
    gpt2_baseline,
    release,
    shallow_decoder_baseline,
    yan_system,
)
from modeling_yan.evaluation.plots import plot_speed
from modeling_yan.evaluation.roofline import count_work, measure_device, roofline_seconds
from modeling_yan.evaluation.speed import System, default_device, measure_side_by_side, peak_memory
from modeling_yan.serving.graph_writers import yan_graphs
from modeling_yan.serving.onnx_runtime import YanOrtForConditionalGeneration

BASELINE = "GPT-2, KV cache"
LENGTHS = [16, 64, 128, 256, 512, 1024]
COLUMNS = ("batch size", "tokens", "system", "median ms", "fastest ms", "tokens/s", "ratio", "roofline", "peak MiB")


def build_model(arguments: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> YanForConditionalGeneration:
    """
    A trained model or, with random weights, a preset with positions enough for the lengths.

    Raises:
        ValueError: for sources that are longer than the model's positions.
    """
    longest = max(*(arguments.lengths or LENGTHS), arguments.source_length)
    model = load_model_or_preset(
        YanForConditionalGeneration, arguments.model, arguments.preset, max_position_embeddings=longest
    )
    positions = model.config.max_position_embeddings
    if arguments.source_length > positions:
        raise ValueError(f"--source_length {arguments.source_length} is more than max_position_embeddings={positions}")
    model.generation_config.update(num_candidates=1, num_length_candidates=1)
    return model.to(device, dtype).eval()


def runtimes(model: YanForConditionalGeneration) -> list[str]:
    """Which of ONNX Runtime and CTranslate2 can take part; says why one cannot."""
    if model.device.type != "cpu" or model.dtype != torch.float32:
        return []
    needed = {"onnx_runtime": ("onnxruntime", "onnxscript"), "ctranslate2": ("ctranslate2",)}
    found = []
    for name, packages in needed.items():
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            print(f"{name} is left out: pip install {' '.join(missing)}", flush=True)
        else:
            found.append(name)
    return found


def yan_graph_systems(
    model: YanForConditionalGeneration, steps: list[int], graphs: dict[str, YanOrtForConditionalGeneration]
) -> list[WritingSystem]:
    return [
        yan_system(
            model,
            n,
            runtime=runtime,
            runtime_name=f"ONNX Runtime{' int8' * (precision == 'int8')}",
            least_agreement=ENOUGH_AGREEMENT if precision == "int8" else 1.0,
        )
        for n in steps
        for precision, runtime in graphs.items()
    ]


def build_systems(
    model: YanForConditionalGeneration,
    steps: list[int],
    compiled: bool,
    names: list[str] | None = None,
    graphs: dict[str, YanOrtForConditionalGeneration] | None = None,
    translators: bool = False,
) -> list[WritingSystem]:
    """
    YAN at these numbers of steps and its baselines.

    Args:
        compiled: whether compiled systems are among them.
        graphs: the model in ONNX Runtime, by precision; left out if absent.
        translators: whether the baselines in CTranslate2 are among them.
        names: how the names of those that are wanted begin; all by default.

    Raises:
        ValueError: for a name that no system's begins with.
    """
    left_to_right = [gpt2_baseline(model), bart_baseline(model), shallow_decoder_baseline(model)]
    systems = [yan_system(model, n) for n in steps]
    systems += yan_graph_systems(model, steps, graphs or {})
    if compiled:
        systems += [yan_system(model, n, compiled=True) for n in steps]
        systems.append(compiled_gpt2_baseline(left_to_right[0]))
    systems += left_to_right
    if translators:
        wanted = [s for s in left_to_right if names is None or any(may_begin(s.name, name) for name in names)]
        systems += [system for eager in wanted for system in ctranslate2.ctranslate2_baselines(eager)]
    systems += diffusion_baselines(model)
    if names is None:
        return systems
    known = [system.name for system in systems]
    unknown = [name for name in names if not any(full.startswith(name) for full in known)]
    if unknown:
        raise ValueError(f"--systems {unknown}: no system's name begins so; there are {known}")
    return [system for system in systems if system.name.startswith(tuple(names))]


def may_begin(eager: str, name: str) -> bool:
    """Whether a name that was asked for may mean a form of an eager baseline."""
    stem = eager.removesuffix(", KV cache")
    return stem.startswith(name) or name.startswith(stem)


def describe(
    system: WritingSystem,
    source: torch.LongTensor,
    length: int,
    summary: dict,
    *,
    seconds_per_system: float,
    rates: dict[str, float],
) -> dict:
    """
    A system's row of a cell: its speed, and what a call costs where one is quick enough to be repeated for that.

    Args:
        summary: of `measure_side_by_side`.
        seconds_per_system: a call that takes more is not repeated.
        rates: of `measure_device`.
    """
    median = summary["latency_ms"]["median"]
    row = {
        "system": system.name,
        "median_ms": median,
        "quartiles_ms": summary["latency_ms"]["quartiles"],
        "fastest_ms": summary["latency_ms"]["fastest"],
        "calls": summary["calls"],
        # At the median, so that one disturbed call does not count against a system.
        "tokens_per_second": source.shape[0] * length / median * 1e3,
        "evaluations": system.evaluations(length),
        "parameters": system.model.num_parameters(),
    }
    if median > 1e3 * seconds_per_system:
        return row
    call = functools.partial(system.write, source, length)
    if not system.compiled:
        work = count_work(call)
        row |= {**work, "roofline_share": 1e3 * roofline_seconds(work, rates) / median}
    return {**row, "peak_mib": peak_memory(call, source.device)}


def measure_cell(
    systems: list[WritingSystem],
    source: torch.LongTensor,
    length: int,
    arguments: argparse.Namespace,
    rates: dict[str, float],
) -> list[dict]:
    """
    All systems at one batch size and length, side by side; one that is wrong is reported as such, without numbers.

    Raises:
        ValueError: if a system writes another number of tokens than it was asked for, or searches wider or on more
            threads than the others.
    """
    settings = {(system.beams, system.threads) for system in systems}
    if len(settings) > 1:
        raise ValueError(f"the systems of a cell have different (beams, threads): {sorted(settings)}")
    rows, gates = [], {}
    for system in systems:
        written = system.write(source, length).shape
        if written != (len(source), length):
            raise ValueError(f"{system.name} wrote {tuple(written)} instead of {(len(source), length)}")
        gates[system.name] = check(system, source, length)
        if gates[system.name] is None:
            rows.append({"system": system.name, "skipped": "differs from its plain computation"})
    right = [system for system in systems if gates[system.name] is not None]
    calls = [System(s.name, lambda item, s=s: s.write(item, length).numel(), [source]) for s in right]
    seconds = arguments.seconds_per_system
    options = {"repeats": arguments.repeats, "warmup": 1, "seconds": seconds, "pause": arguments.pause}
    results = measure_side_by_side(calls, **options) if calls else {}
    for system in right:
        summary = results[system.name]
        row = describe(system, source, length, summary, seconds_per_system=seconds, rates=rates)
        row |= {"gate": gates[system.name], "load_average": os.getloadavg()[0]}
        if BASELINE in results:
            row["ratio"] = results[BASELINE]["latency_ms"]["median"] / row["median_ms"]
        rows.append(row)
    return rows


def measure_batch(
    model: YanForConditionalGeneration,
    batch_size: int,
    lengths: list[int],
    arguments: argparse.Namespace,
    rates: dict[str, float],
    graphs: dict[str, YanOrtForConditionalGeneration] | None = None,
    translators: bool = False,
) -> Iterator[list[dict]]:
    """Yields, for each length, the rows of all systems at one batch size."""
    compiled = batch_size in arguments.compiled_batches
    systems = build_systems(model, arguments.steps, compiled, arguments.systems, graphs, translators)
    source = torch.randint(4, model.config.vocab_size, (batch_size, arguments.source_length), device=model.device)
    # Milliseconds per token of the last answer: more for masked diffusion the longer it is, less for YAN.
    pace: dict[str, float] = {}
    for length in lengths:
        expected = {system.name: pace.get(system.name, 0.0) * length / 1e3 for system in systems}
        late = [name for name, seconds in expected.items() if seconds > arguments.longest_call]
        rows = [{"system": name, "skipped": f"about {expected[name]:.0f} s a call expected"} for name in late]
        wanted = [system for system in systems if system.name not in late]
        try:
            rows += measure_cell(wanted, source, length, arguments, rates)
        except torch.OutOfMemoryError:
            rows += [{"system": s.name, "skipped": "a system of this cell ran out of memory"} for s in wanted]
        pace |= {row["system"]: row["median_ms"] / length for row in rows if "median_ms" in row}
        yield [{"batch_size": batch_size, "length": length, **row} for row in rows]
    del systems
    release()


def kind_of_runtime(system: str) -> str:
    """What a system is fairly compared with: graphs with CTranslate2, compiled calls with such, plain with plain."""
    if "ONNX Runtime" in system or "CTranslate2" in system:
        return "exported"
    return "compiled" if "compiled" in system else "plain"


def crossovers(cells: list[dict], steps: int = 3) -> list[dict]:
    """
    For every length the smallest batch size at which a left-to-right system writes more tokens per second than the
    fastest YAN of this many steps in a runtime of the same kind (`kind_of_runtime`), or None.
    """
    found = []
    names = {cell["system"] for cell in cells if not cell["system"].startswith(("YAN", "masked"))}
    rates = {(c["system"], c["batch_size"], c["length"]): c["tokens_per_second"] for c in cells if "median_ms" in c}
    ours: dict[tuple, float] = {}
    for (system, *cell), rate in rates.items():
        if system.startswith(f"YAN, {steps} steps"):
            key = (kind_of_runtime(system), *cell)
            ours[key] = max(rate, ours.get(key, 0.0))
    for name in sorted(names):
        kind = kind_of_runtime(name)
        for length in sorted({cell["length"] for cell in cells}):
            both = [
                (batch, rate, ours[(kind, batch, length)])
                for (system, batch, at), rate in sorted(rates.items())
                if system == name and at == length and (kind, batch, length) in ours
            ]
            if both:
                batch = next((batch for batch, theirs, own in both if theirs > own), None)
                found.append({"system": name, "length": length, "batch_size": batch, "largest_batch": both[-1][0]})
    return found


def make_table(cells: list[dict]) -> Table:
    """The cells that were measured."""
    table = Table(*COLUMNS)
    for cell in cells:
        if "median_ms" not in cell:
            continue
        table.add_row(
            str(cell["batch_size"]),
            str(cell["length"]),
            cell["system"],
            f"{cell['median_ms']:.1f}",
            f"{cell['fastest_ms']:.1f}",
            f"{cell['tokens_per_second']:,.0f}",
            f"{cell['ratio']:.1f}" if "ratio" in cell else "",
            f"{cell['roofline_share']:.0%}" if "roofline_share" in cell else "",
            f"{cell['peak_mib']:.0f}" if "peak_mib" in cell else "",
        )
    return table


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", help="a YAN folder or Hub name")
    add("--preset", help="or random weights of this size (configuration/models)")
    add("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    add("--batch_sizes", type=int, nargs="+", default=[1, 8, 32, 128])
    add("--lengths", type=int, nargs="+", help=f"tokens of an answer; of {LENGTHS} those that fit by default")
    add("--steps", type=int, nargs="+", default=[1, 3])
    add("--source_length", type=int, default=32)
    add("--compiled_batches", type=int, nargs="*", default=[1], help="batch sizes with compiled systems too")
    add("--systems", nargs="+", help="only those whose names begin so, such as YAN GPT-2; all by default")
    add("--precisions", nargs="*", choices=["float32", "int8"], default=["float32", "int8"], help="of exported graphs")
    add("--pause", type=float, default=0.25, help="seconds before a system's turn; threads of others come to rest")
    add("--repeats", type=int, default=10, help="timed calls of a system in a cell")
    add("--seconds_per_system", type=float, default=5.0, help="a system gets no further call after these")
    add("--longest_call", type=float, default=20.0, help="calls expected to take more seconds are left out")
    add("--output", type=Path, required=True, help="JSON; the plot is written beside it as PNG")
    arguments = parser.parse_args()
    numbers = ("batch_sizes", "lengths", "steps", "source_length", "repeats", "seconds_per_system", "longest_call")
    check_positive(arguments, *numbers)
    return arguments


def main() -> None:
    arguments = parse()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    device = default_device()
    model = build_model(arguments, device, getattr(torch, arguments.dtype))
    lengths = fitting_lengths(model.config, arguments.lengths, LENGTHS)
    rates = measure_device(device, model.dtype)
    available = runtimes(model)
    wants_graphs = arguments.systems is None or any(name.startswith("YAN") for name in arguments.systems)
    precisions = arguments.precisions if wants_graphs and "onnx_runtime" in available else []
    graphs = yan_graphs(model, arguments.steps, precisions)
    report = {
        "model": arguments.model or arguments.preset,
        **machine(device),
        "dtype": str(model.dtype),
        "source_length": arguments.source_length,
        "seed": 0,
        **rates,
    }
    cells: list[dict] = []
    for batch_size in sorted(arguments.batch_sizes):
        for rows in measure_batch(model, batch_size, lengths, arguments, rates, graphs, "ctranslate2" in available):
            cells += rows
            # After every length: a run that is cut off keeps what it has.
            report |= {"cells": cells, "autoregression_wins_from_batch": crossovers(cells)}
            write_report(report, arguments.output)
            print(f"batch size {batch_size}, {rows[0]['length']} tokens: done", flush=True)
    plot_speed(cells, arguments.output.with_suffix(".png"))
    Console().print(make_table(cells))


if __name__ == "__main__":
    run_script(main)
