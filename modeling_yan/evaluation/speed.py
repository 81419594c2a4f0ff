"""Speed of generation as a ratio between systems, measured side by side in one run."""

import ctypes
import gc
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psutil
import torch


@dataclass
class System:
    """
    Something that generates, to be timed.

    Args:
        name: for tables.
        generate: takes one prepared input, returns the number of tokens written (padding excluded, EOS included).
        inputs: prepared inputs, one per call.
    """

    name: str
    generate: Callable[[dict], int]
    inputs: Sequence[dict]
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def summary(self) -> dict:
        """Median, quartiles and least of latency per call in milliseconds, and tokens per second over all calls."""
        low, median, high = statistics.quantiles(self.seconds, n=4) if len(self.seconds) > 1 else self.seconds * 3
        return {
            "latency_ms": {
                "median": 1e3 * median,
                "quartiles": [1e3 * low, 1e3 * high],
                "fastest": 1e3 * min(self.seconds),
            },
            "tokens_per_second": sum(self.tokens) / sum(self.seconds),
            "calls": len(self.seconds),
            "tokens": sum(self.tokens),
        }


def measure_side_by_side(
    systems: Sequence[System],
    *,
    repeats: int = 3,
    warmup: int = 2,
    seconds: float | None = None,
    pause: float = 0.0,
) -> dict[str, dict]:
    """
    Times every system on every input, switching systems after each call and reversing their order in every other
    round, so that drifts of the machine hit all alike.

    Args:
        repeats: rounds over all inputs.
        warmup: untimed calls of each system.
        seconds: a system that has been timed for so long sits the remaining calls out; one timing it always gets.
        pause: seconds before a system's turn, and then an untimed call: threads of the system before may spin on for
            a while, and what it left in the caches is another's.

    Returns:
        Summary by system name.

    Raises:
        ValueError: if the systems have different numbers of inputs, or fewer than 2 timings would be made.
    """
    counts = {len(system.inputs) for system in systems}
    if len(counts) != 1 or counts.pop() * repeats < (1 if seconds else 2):
        raise ValueError("every system needs as many inputs as the others, and inputs x repeats at least 2")
    for system in systems:
        system.seconds, system.tokens = [], []
        for prepared in list(system.inputs)[:warmup]:
            system.generate(prepared)
    for repeat in range(repeats):
        for index in range(len(systems[0].inputs)):
            for system in systems if (repeat + index) % 2 == 0 else reversed(systems):
                if seconds is not None and sum(system.seconds) > seconds:
                    continue
                if pause:
                    time.sleep(pause)
                    system.generate(system.inputs[index])
                synchronize()
                start = time.perf_counter()
                tokens = system.generate(system.inputs[index])
                synchronize()
                system.seconds.append(time.perf_counter() - start)
                system.tokens.append(tokens)
    return {system.name: system.summary() for system in systems}


def default_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize() -> None:
    """Waits for the accelerator, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory(call: Callable[[], object], device: torch.device) -> float:
    """
    Most memory a call holds above what was held before it, in MiB: of the GPU, or of the process, sampled each ms.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronize()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    process, stop = psutil.Process(), threading.Event()
    gc.collect()
    if sys.platform == "linux":
        # Freed memory that the allocator keeps would hide what the call needs.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = process.memory_info().rss
    peak = [before]

    def watch() -> None:
        while not stop.wait(0.001):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    call()
    stop.set()
    watcher.join()
    return (peak[0] - before) / 2**20


def timed(call: Callable[[], object], repeats: int) -> dict:
    """Median and spread of a call in milliseconds after two warm-up calls."""
    for _ in range(2):
        call()
    seconds = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        call()
        synchronize()
        seconds.append(1e3 * (time.perf_counter() - start))
    return {"median_ms": statistics.median(seconds), "fastest_ms": min(seconds), "slowest_ms": max(seconds)}
