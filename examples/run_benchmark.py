"""
Time and memory of YAN beside a GPT-2-shaped model of equal size: forward, training step and generate(), batch 1 and 32.

    python examples/run_benchmark.py --model examples/models/yan-e2e --output results/benchmark_cpu.json
    python examples/run_benchmark.py --preset yan-small --output results/benchmark_cpu_small.json

A cell of generate() is reported only if the system's tokens equal those of its own plain reference: for YAN every expert
at every step without caches, for GPT-2 generation without KV cache.
"""

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging

from modeling_yan import YanForConditionalGeneration
from modeling_yan.evaluation.speed import System, gpt2_of_equal_size, measure_side_by_side, peak_memory, timed
from modeling_yan.training.scripts import load_preset, run_script


def plain_tokens(model, source: torch.Tensor, length: int, seed: int) -> torch.Tensor:
    """YAN's tokens by the reference path: all experts, no caches, no shared pass."""
    options, _ = model._prepare_generation_config(None)
    generator = torch.Generator(source.device).manual_seed(seed)
    seeds = model._row_seeds(source, None, len(source), generator)
    lengths = torch.full((len(source), 1), length, device=source.device)
    x_0, uniform = model._draw(seeds, lengths, 1, options, None, source.device)
    condition = model.model.condition(length, None, model.get_encoder()(source).last_hidden_state, None)
    return model.decoder(model._solve_plain(x_0[:, 0], condition, uniform[0][:, 0], options)).argmax(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a YAN folder or Hub name")
    parser.add_argument("--preset", help="or random weights of this size (configuration/models)")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--source_length", type=int, default=32)
    parser.add_argument("--target_length", type=int, default=26)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    if (arguments.model is None) == (arguments.preset is None):
        raise ValueError("give exactly one of --model and --preset")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.model:
        model = YanForConditionalGeneration.from_pretrained(arguments.model, dtype=torch.float32)
    else:
        model = YanForConditionalGeneration(load_preset(arguments.preset))
    model = model.to(device).eval()
    model.generation_config.update(num_candidates=1, num_length_candidates=1)
    peer = gpt2_of_equal_size(model)
    source_length, length = arguments.source_length, arguments.target_length
    rows, table = [], Table("batch", "what", "system", "median ms", "peak MiB", "tokens per second", "ratio")

    def add(batch: int, what: str, system: str, numbers: dict, ratio: float | None = None) -> None:
        rows.append({"batch_size": batch, "what": what, "system": system, **numbers})
        rate = numbers.get("tokens_per_second")
        table.add_row(
            str(batch),
            what,
            system,
            f"{numbers['median_ms']:.1f}",
            f"{numbers['peak_mib']:.1f}",
            "" if rate is None else f"{rate:,.0f}",
            "" if ratio is None else f"{ratio:.1f} x",
        )

    for batch in arguments.batch_sizes:
        shape = (batch, source_length)
        source = torch.randint(4, model.config.vocab_size, shape, device=device)
        labels = torch.randint(4, model.config.vocab_size, (batch, length), device=device)
        joined = torch.cat([source, labels], 1)
        joined_labels = torch.cat([torch.full_like(source, -100), labels], 1)
        inputs = {
            "YAN": (model, {"input_ids": source, "labels": labels}),
            "GPT-2-shaped": (peer, {"input_ids": joined, "labels": joined_labels}),
        }

        def forward(name: str, inputs=inputs) -> Callable[[], object]:
            system, arguments_ = inputs[name]
            return torch.no_grad()(lambda: system(**arguments_))

        def training_step(name: str, inputs=inputs) -> Callable[[], object]:
            system, arguments_ = inputs[name]

            def step() -> None:
                system.train()
                system(**arguments_).loss.backward()
                system.zero_grad(set_to_none=True)
                system.eval()

            return step

        for what, make in (("forward with loss", forward), ("training step", training_step)):
            for name in inputs:
                call = make(name)
                add(batch, what, name, {**timed(call, arguments.repeats), "peak_mib": peak_memory(call, device)})

        def yan(item: torch.Tensor, batch=batch) -> torch.Tensor:
            generator = torch.Generator(device).manual_seed(0)
            return model.generate(item, target_lengths=length, eos_token_id=None, generator=generator)

        def gpt2(item: torch.Tensor, use_cache: bool = True) -> torch.Tensor:
            options = {"min_new_tokens": length, "max_new_tokens": length, "do_sample": False, "eos_token_id": None}
            mask = torch.ones_like(item)
            return peer.generate(item, attention_mask=mask, use_cache=use_cache, **options)[:, source_length:]

        plain = plain_tokens(model, source, length, 0)
        gates = {
            "YAN": bool((yan(source) == plain).all()),
            "GPT-2-shaped": bool((gpt2(source) == gpt2(source, use_cache=False)).all()),
        }
        calls = {"YAN": yan, "GPT-2-shaped": gpt2}
        failed = [name for name, equal in gates.items() if not equal]
        if failed:
            raise ValueError(f"batch {batch}: {failed} differ from their plain reference; no speed is reported")

        def count(call) -> Callable[[torch.Tensor], int]:
            return lambda item: call(item).numel()

        systems = [System(name, count(call), [source]) for name, call in calls.items()]
        results = measure_side_by_side(systems, repeats=arguments.repeats)
        for name, call in calls.items():
            summary = results[name]
            low, high = summary["latency_ms"]["quartiles"]
            numbers = {
                "median_ms": summary["latency_ms"]["median"],
                "quartiles_ms": [low, high],
                "tokens_per_second": summary["tokens_per_second"],
                "peak_mib": peak_memory(functools.partial(call, source), device),
            }
            ratio = summary["tokens_per_second"] / results["GPT-2-shaped"]["tokens_per_second"]
            add(batch, f"generate {length} tokens", name, numbers, ratio)

    report = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(model.dtype),
        "parameters": {"YAN": model.num_parameters(), "GPT-2-shaped": peer.num_parameters()},
        "num_inference_steps": model.generation_config.num_inference_steps,
        "source_length": source_length,
        "target_length": length,
        "rows": rows,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    Console().print(table)


if __name__ == "__main__":
    run_script(main)
