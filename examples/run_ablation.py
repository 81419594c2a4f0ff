"""
What each of generation's savings gives alone: the exact ones of the solver switched off one by one, and whole calls of
generate() with rows of mixed length grouped or not, compiled or not, in half precision or not, in int8 where torchao is installed.

    python examples/run_ablation.py --model examples/models/yan-e2e --output results/ablation_cpu.json --profile results/profile_cpu.txt
"""

import argparse
import copy
import functools
import json
from datetime import date
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from transformers.utils import logging

from modeling_yan import YanForConditionalGeneration
from modeling_yan.evaluation.ablation import SAVINGS, solve_without
from modeling_yan.evaluation.speed import System, default_device, device_name, measure_side_by_side
from modeling_yan.training.scripts import load_preset, run_script
from modeling_yan.writing_yan import WritingPlan


def measure(calls: dict, repeats: int) -> dict[str, float]:
    """Median milliseconds of each call, side by side."""
    systems = [System(name, lambda item, call=call: call() is None or 1, [None]) for name, call in calls.items()]
    results = measure_side_by_side(systems, repeats=repeats)
    return {name: summary["latency_ms"]["median"] for name, summary in results.items()}


def solver_savings(model, batch: int, length: int, repeats: int) -> list[dict]:
    """The solver alone, with every saving and without each of them; an endpoint that differs is an error."""
    source = torch.randn(batch, 32, model.config.hidden_size, device=model.device)
    x_0 = torch.randn(batch, length, model.config.hidden_size, device=model.device)
    uniform = torch.rand(batch, length, device=model.device)
    plan = WritingPlan()
    options = {
        "all savings": (),
        **{f"without: {SAVINGS[name]}": (name,) for name in SAVINGS},
        "without any": tuple(SAVINGS),
    }
    calls = {
        name: functools.partial(solve_without, model, x_0, source, uniform, plan, without)
        for name, without in options.items()
    }
    expected = calls["all savings"]()
    for name, call in calls.items():
        torch.testing.assert_close(call(), expected, atol=1e-3, rtol=1e-3, msg=f"{name} gives another endpoint")
    medians = measure(calls, repeats)
    return [
        {
            "what": f"solver, {name}",
            "batch_size": batch,
            "length": length,
            "median_ms": value,
            "ratio": value / medians["all savings"],
        }
        for name, value in medians.items()
    ]


def quantize(model) -> dict:
    """The model with int8 linear layers by torchao, weights alone and with activations; nothing where it is not installed."""
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


def whole_calls(model, batch: int, length: int, repeats: int, compiled: bool) -> list[dict]:
    """generate(): half precision, compiled graphs, and grouped rows, each against the plain call."""
    source = torch.randint(4, model.config.vocab_size, (batch, 32), device=model.device)
    half = copy.deepcopy(model).to(torch.bfloat16)
    lengths = torch.full((batch,), length)
    # One row in four is as long as the longest, the others a quarter.
    lengths[torch.arange(batch) % 4 != 0] = length // 4

    def write(system, target_lengths, group: bool = True, **options):
        grouping = type(system)._group_rows
        if not group:
            type(system)._group_rows = staticmethod(
                lambda lengths, _: [torch.arange(len(lengths), device=lengths.device)]
            )
        try:
            generator = torch.Generator(source.device).manual_seed(0)
            return system.generate(
                source, target_lengths=target_lengths, generator=generator, eos_token_id=None, **options
            )
        finally:
            type(system)._group_rows = staticmethod(grouping)

    calls = {
        "plain call": functools.partial(write, model, length),
        "bfloat16 (not the same numbers)": functools.partial(write, half, length),
    }
    if compiled:
        calls["compiled"] = functools.partial(write, model, length, compile=True)
        calls["compiled, bfloat16 (not the same numbers)"] = functools.partial(write, half, length, compile=True)
    for name, quantized in quantize(model).items():
        calls[f"{name} (not the same numbers)"] = functools.partial(write, quantized, length)
    exact = ["compiled"] * compiled
    if batch > 1:
        calls["mixed lengths, grouped"] = functools.partial(write, model, lengths)
        calls["mixed lengths, not grouped"] = functools.partial(write, model, lengths, group=False)
        if not torch.equal(calls["mixed lengths, grouped"](), calls["mixed lengths, not grouped"]()):
            raise ValueError("grouping rows changes tokens; no speed is reported")
    expected = calls["plain call"]()
    for name in exact:
        if not torch.equal(calls[name](), expected):
            raise ValueError(f"{name!r} changes tokens; no speed is reported")
    medians = measure(calls, repeats)
    base = medians["plain call"]
    return [
        {"what": name, "batch_size": batch, "length": length, "median_ms": value, "ratio": value / base}
        for name, value in medians.items()
    ]


def training_steps(model, batch: int, length: int, repeats: int, experts: list[int]) -> list[dict]:
    """Forward and backward with every expert in the likelihood, and with the most probable one, two and four; random weights."""
    source = torch.randint(4, model.config.vocab_size, (batch, 32), device=model.device)
    labels = torch.randint(4, model.config.vocab_size, (batch, length), device=model.device)

    def make(number: int, per_token: int | None):
        config = copy.deepcopy(model.config)
        config.num_experts, config.num_experts_per_token = number, per_token
        # What is measured is the likelihood, which needs a position per token.
        config.canvas_ratio, config.nll_loss_weight = 1.0, config.nll_loss_weight or 1.0
        trained = type(model)(config).to(model.device).train()

        def step() -> None:
            trained(source, labels=labels).loss.backward()
            trained.zero_grad(set_to_none=True)

        return step

    rows = []
    for number in experts:
        options = {"all": None, **{str(k): k for k in (1, 2, 4) if k < number}}
        medians = measure({name: make(number, k) for name, k in options.items()}, repeats)
        rows += [
            {
                "what": f"training step, K = {number}, likelihood over {name}",
                "batch_size": batch,
                "length": length,
                "median_ms": value,
                "ratio": value / medians["all"],
            }
            for name, value in medians.items()
        ]
    return rows


def summarise_profile(call, device: torch.device) -> str:
    """torch.profiler's table of a call, by the time operations take themselves."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    call()
    with profile(activities=activities) as profiler:
        for _ in range(5):
            call()
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return profiler.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a YAN folder or Hub name")
    parser.add_argument("--preset", help="or random weights of this size (configuration/models)")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--experts", type=int, nargs="*", default=[4, 8, 16], help="K of the training steps")
    parser.add_argument("--training_batch", type=int, default=64)
    parser.add_argument("--no_compile", action="store_true")
    parser.add_argument("--profile", type=Path, help="write profiles of the plain and of the compiled call here")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    if (arguments.model is None) == (arguments.preset is None):
        raise ValueError("give exactly one of --model and --preset")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    device = default_device()
    if arguments.model:
        model = YanForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32)
    else:
        model = YanForConditionalGeneration(load_preset(arguments.preset))
    table, ratio = model.config.max_position_embeddings, model.config.canvas_ratio
    if arguments.length * ratio > table:
        raise ValueError(
            f"--length {arguments.length} x canvas_ratio={ratio} is more than the model's max_position_embeddings={table}"
        )
    model = model.to(device).eval()
    model.generation_config.update(num_candidates=1, num_length_candidates=1)
    rows = []
    for batch in arguments.batch_sizes:
        rows += solver_savings(model, batch, arguments.length, arguments.repeats)
        rows += whole_calls(model, batch, arguments.length, arguments.repeats, not arguments.no_compile)
    if arguments.experts:
        rows += training_steps(model, arguments.training_batch, 26, max(arguments.repeats // 2, 2), arguments.experts)
    report = {
        "date": date.today().isoformat(),
        "model": arguments.model or arguments.preset,
        "parameters": model.num_parameters(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "rows": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if arguments.profile:
        source = torch.randint(4, model.config.vocab_size, (1, 32), device=device)
        parts = []
        for compiled in (False, True)[: 1 if arguments.no_compile else 2]:
            call = functools.partial(model.generate, source, target_lengths=arguments.length, compile=compiled)
            title = f"generate(), batch 1, {arguments.length} tokens, {'compiled' if compiled else 'plain'}, 5 calls"
            parts.append(f"{title}\n{summarise_profile(call, device)}")
        arguments.profile.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    table = Table("batch", "tokens", "what", "median ms", "ratio")
    for row in rows:
        table.add_row(
            str(row["batch_size"]), str(row["length"]), row["what"], f"{row['median_ms']:.1f}", f"{row['ratio']:.2f}"
        )
    Console().print(table)


if __name__ == "__main__":
    run_script(main)
