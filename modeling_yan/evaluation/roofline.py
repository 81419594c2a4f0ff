"""
How near a computation comes to what the device could do: its work, counted, over the device's own rates, measured.
"""

import time
from collections.abc import Callable

import torch

from modeling_yan.common.flops import WorkCounter
from modeling_yan.evaluation.speed import synchronize


def count_work(call: Callable[[], object]) -> dict[str, int]:
    """Floating-point operations of one call and bytes of their operands, as `WorkCounter` counts them."""
    with WorkCounter() as work:
        call()
    return {"flops": work.flops, "bytes": work.bytes}


def measure_device(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.5) -> dict[str, float]:
    """
    The device's largest rates as torch reaches them: FLOP/s of a square product, bytes/s of a copy that leaves the
    caches.
    """
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    source = torch.empty(2**28 if device.type == "cuda" else 2**26, device=device, dtype=torch.float32).zero_()
    target = torch.empty_like(source)

    def rate(call: Callable[[], object], amount: float) -> float:
        call()
        best, begin = 0.0, time.perf_counter()
        while time.perf_counter() - begin < seconds or not best:
            synchronize()
            start = time.perf_counter()
            call()
            synchronize()
            best = max(best, amount / (time.perf_counter() - start))
        return best

    return {
        "flops_per_second": rate(lambda: torch.mm(a, b), 2 * size**3),
        "bytes_per_second": rate(lambda: target.copy_(source), 2 * source.numel() * source.element_size()),
    }


def roofline_seconds(work: dict[str, int], device_rates: dict[str, float]) -> float:
    """The least time this work can take: that of its arithmetic or of its traffic, whichever is longer."""
    return max(work["flops"] / device_rates["flops_per_second"], work["bytes"] / device_rates["bytes_per_second"])
