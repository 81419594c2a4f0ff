r"""
What each of generation's savings gives alone: the exact ones of the solver switched off one by one, and whole calls of
generate(): compiled, in half precision, in int8 where torchao is installed, and with rows of mixed length, beside the
plain call.

    python benchmarks/run_ablation.py --model examples/models/yan-e2e --output benchmarks/results/ablation_cpu.json \
        --profile benchmarks/results/profile_cpu.txt
"""

import argparse
import copy
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from transformers.utils import logging

from modeling_yan import YanForConditionalGeneration
from modeling_yan.common.arguments import check_positive, run_script
from modeling_yan.common.building import fitting_lengths, load_model_or_preset
from modeling_yan.common.reports import machine, write_report
from modeling_yan.evaluation.ablation import SAVINGS, solve_without
from modeling_yan.evaluation.speed import System, default_device, measure_side_by_side
from modeling_yan.sampling_yan import SamplingOptions

LENGTH, SOURCE_LENGTH = 128, 32
# Calls behind a profile.
PROFILED_CALLS = 5


def measure(calls: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median milliseconds of each call, side by side."""
    systems = [System(name, lambda item, call=call: call() is None or 1, [None]) for name, call in calls.items()]
    # Only with a limit of time, of which there is none here, may a system be timed once.
    results = measure_side_by_side(systems, repeats=repeats, seconds=float("inf"))
    return {name: summary["latency_ms"]["median"] for name, summary in results.items()}


def rows_of(medians: dict[str, float], base: str, batch_size: int, length: int) -> list[dict]:
    """A row for each call, with the ratio of its time to that of the call `base`."""
    return [
        {"what": name, "batch_size": batch_size, "length": length, "median_ms": ms, "ratio": ms / medians[base]}
        for name, ms in medians.items()
    ]


def solver_savings(model: YanForConditionalGeneration, batch_size: int, length: int, repeats: int) -> list[dict]:
    """
    The solver alone on a canvas of `length` positions, with every saving and without each of them.

    Raises:
        AssertionError: if an endpoint differs.
    """
    width, device = model.config.hidden_size, model.device
    source, x_0 = (torch.randn(batch_size, n, width, device=device) for n in (SOURCE_LENGTH, length))
    uniform, options = torch.rand(batch_size, length, device=device), SamplingOptions()
    left_out = {
        "solver, all savings": (),
        **{f"solver, without: {SAVINGS[name]}": (name,) for name in SAVINGS},
        "solver, without any": tuple(SAVINGS),
    }
    calls = {
        name: functools.partial(solve_without, model, x_0, source, uniform, options, without)
        for name, without in left_out.items()
    }
    base = "solver, all savings"
    expected = calls[base]()
    for name, call in calls.items():
        torch.testing.assert_close(call(), expected, atol=1e-3, rtol=1e-3, msg=f"{name} gives another endpoint")
    return rows_of(measure(calls, repeats), base, batch_size, length)


def quantize(model: YanForConditionalGeneration) -> dict[str, YanForConditionalGeneration]:
    """
    The model with int8 linear layers by torchao, weights alone and with activations; none where it is not installed.
    """
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
    except ImportError:
        return {}
    copies = {}
    for name, config in (
        ("int8 weights", Int8WeightOnlyConfig()),
        ("int8 weights and activations", Int8DynamicActivationInt8WeightConfig()),
    ):
        copies[name] = copy.deepcopy(model)
        quantize_(copies[name], config)
    return copies


def whole_calls(
    model: YanForConditionalGeneration, batch_size: int, length: int, repeats: int, compiled: bool
) -> list[dict]:
    """
    generate() compiled, in half precision, quantised and with rows of mixed length, each against the plain call.

    Raises:
        ValueError: if the compiled call gives other tokens.
    """
    source = torch.randint(4, model.config.vocab_size, (batch_size, SOURCE_LENGTH), device=model.device)
    half = copy.deepcopy(model).to(torch.bfloat16)
    # One row in four is as long as the longest, the others a quarter.
    mixed = [length if row % 4 == 0 else max(length // 4, 1) for row in range(batch_size)]

    def write(system: YanForConditionalGeneration, lengths: int | list[int] = length, **options) -> torch.LongTensor:
        generator = torch.Generator(source.device).manual_seed(0)
        exactly = {"target_lengths": lengths, "eos_token_id": None, "merge_repeats": 0}
        return system.generate(source, generator=generator, **exactly, **options)

    calls = {"plain call": functools.partial(write, model)}
    calls["bfloat16 (not the same numbers)"] = functools.partial(write, half)
    if compiled:
        calls["compiled"] = functools.partial(write, model, compile=True)
        calls["compiled, bfloat16 (not the same numbers)"] = functools.partial(write, half, compile=True)
        if not torch.equal(calls["compiled"](), calls["plain call"]()):
            raise ValueError("the compiled call changes tokens; no speed is reported")
    for name, quantized in quantize(model).items():
        calls[f"{name} (not the same numbers)"] = functools.partial(write, quantized)
    if batch_size > 1:
        calls["mixed lengths, grouped"] = functools.partial(write, model, mixed)
    return rows_of(measure(calls, repeats), "plain call", batch_size, length)


def profile_table(call: Callable[[], object], device: torch.device) -> str:
    """torch.profiler's table of a call, by the time that operators take themselves."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    call()
    with profile(activities=activities) as profiler:
        for _ in range(PROFILED_CALLS):
            call()
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=50)


def profile_calls(model: YanForConditionalGeneration, length: int, compiled: bool) -> str:
    """Tables of the plain and of the compiled call at batch size 1."""
    source = torch.randint(4, model.config.vocab_size, (1, SOURCE_LENGTH), device=model.device)
    parts = []
    for compile_ in (False, True)[: 2 if compiled else 1]:
        call = functools.partial(model.generate, source, target_lengths=length, merge_repeats=0, compile=compile_)
        kind = "compiled" if compile_ else "plain"
        title = f"generate(), batch size 1, {length} tokens, {kind}, {PROFILED_CALLS} calls"
        parts.append(f"{title}\n{profile_table(call, model.device)}")
    return "\n\n".join(parts) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a YAN folder or Hub name")
    parser.add_argument("--preset", help="or random weights of this size (configuration/models)")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--length", type=int, help=f"tokens of an answer; {LENGTH} or what fits by default")
    parser.add_argument("--repeats", type=int, default=20, help="timed calls of each")
    parser.add_argument("--no_compile", action="store_true")
    parser.add_argument("--profile", type=Path, help="write profiles of the plain and of the compiled call here")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    check_positive(arguments, "batch_sizes", "length", "repeats")
    return arguments


def main() -> None:
    arguments = parse()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    model = load_model_or_preset(YanForConditionalGeneration, arguments.model, arguments.preset)
    model = model.to(default_device()).eval()
    model.generation_config.update(num_candidates=1, num_length_candidates=1)
    (length,) = fitting_lengths(model.config, arguments.length and [arguments.length], [LENGTH])
    compiled = not arguments.no_compile
    rows = []
    for batch_size in arguments.batch_sizes:
        rows += solver_savings(model, batch_size, length, arguments.repeats)
        rows += whole_calls(model, batch_size, length, arguments.repeats, compiled)
    report = {
        "model": arguments.model or arguments.preset,
        "parameters": model.num_parameters(),
        **machine(model.device),
        "rows": rows,
    }
    write_report(report, arguments.output)
    if arguments.profile:
        arguments.profile.write_text(profile_calls(model, length, compiled), encoding="utf-8")
    table = Table("batch size", "tokens", "what", "median ms", "ratio")
    for row in rows:
        numbers = (f"{row['median_ms']:.1f}", f"{row['ratio']:.2f}")
        table.add_row(str(row["batch_size"]), str(row["length"]), row["what"], *numbers)
    Console().print(table)


if __name__ == "__main__":
    run_script(main)
