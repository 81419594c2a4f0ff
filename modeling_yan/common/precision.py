"""Precision and device of a training run, chosen by what this machine multiplies fastest."""

import functools
import logging
import os
import time
from collections.abc import Mapping

import torch

logger = logging.getLogger(__name__)
# Rows, inner and outer width of the product that is timed: a feed-forward layer of a small model over a batch.
PRODUCT = (640, 384, 1536)
TRUE = ("true", "yes", "t", "y", "1")


@functools.cache
def bfloat16_speed(repeats: int = 4) -> float:
    """
    How many times as fast as in float32 a product in bfloat16 is on this CPU; below 1 it is done in software. Both are
    timed in turn, since other work may run beside, and the fastest of each counts; it takes some tenths of a second.
    """
    rows, inner, outer = PRODUCT
    seconds = {torch.float32: [], torch.bfloat16: []}
    factors = {
        dtype: (torch.ones(rows, inner, dtype=dtype), torch.ones(inner, outer, dtype=dtype)) for dtype in seconds
    }
    for _ in range(repeats + 1):
        for dtype, (left, right) in factors.items():
            start = time.perf_counter()
            left @ right
            seconds[dtype].append(time.perf_counter() - start)
    # The first product of each also prepares.
    return min(seconds[torch.float32][1:]) / min(seconds[torch.bfloat16][1:])


def choose_precision(given: Mapping[str, str]) -> tuple[dict[str, bool], str]:
    """
    Flags of `TrainingArguments` for device and precision, where they were not given.

    Args:
        given: flags that were given, among `use_cpu`, `bf16` and `fp16`, with their values.

    Returns:
        Flags to add, and one line that says what was chosen and why; "" where nothing had to be.
    """
    asked = {name: value.lower() in TRUE for name, value in given.items()}
    flags = {}
    on_cpu = asked.get("use_cpu", False)
    if not on_cpu and not torch.accelerator.is_available():
        # Trainer refuses bf16 without it where there is no GPU.
        flags["use_cpu"] = on_cpu = True
    if asked.get("fp16") or asked.get("bf16") is False:
        return flags, ""
    if not on_cpu:
        supported = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        if "bf16" in asked:
            return flags, ""
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.accelerator.current_accelerator()
        return {**flags, "bf16": supported}, f"{name}: {'bfloat16' if supported else 'float32'}"
    speed = bfloat16_speed()
    if speed >= 1:
        line = "" if "bf16" in asked else f"bfloat16 on this CPU: {speed:.1f} times the speed of float32, used"
        return {**flags, "bf16": True}, line
    flags["bf16"] = False
    if "bf16" in asked:
        logger.warning(
            f"bf16=True, but this CPU multiplies bfloat16 in software, at {speed:.2f} times the speed of float32; "
            "training runs in float32"
        )
        return flags, ""
    return flags, f"bfloat16 on this CPU: {speed:.2f} times the speed of float32; float32 is used"


def is_main_process() -> bool:
    """Whether this is the one process of a run that prints."""
    return int(os.environ.get("RANK", 0)) == 0
