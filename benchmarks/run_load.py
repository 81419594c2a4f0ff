r"""
Requests per second and latency of the HTTP server under 1 to 64 clients, with dynamic batching and without.

    python benchmarks/run_load.py --model examples/models/yan-e2e --task e2e_nlg --dataset_name examples/data/e2e_nlg \
        --output benchmarks/results/load_cpu.json

Server and clients share this machine and meet on loopback. Each client sends its next request when it has the answer to
the last. A row is reported only if every answer has status 200 and is, for its prompt and seed, what the model writes
by itself.
"""

import argparse
import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from modeling_yan.common.arguments import check_positive, run_script
from modeling_yan.common.reports import machine, write_report
from modeling_yan.data.loading import load_data, select_split
from modeling_yan.data.tasks import Task
from modeling_yan.serving.engine import Engine, Row
from modeling_yan.serving.server import check_extra

SEED = 0
# What a server without batching is called by, and how it is started.
SYSTEMS = {"dynamic batching": [], "no batching": ["--max_batch_size", "1"]}
# Of a server that loads its model on a busy machine, in seconds.
LONGEST_START = 180
COLUMNS = ("server", "clients", "requests per second", "p50 ms", "p95 ms", "p99 ms", "prompts a batch")


@dataclass
class Load:
    """
    What clients saw.

    Args:
        seconds: of each answered request.
        wrong: what was not the answer expected, the first few.
    """

    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def served(arguments: argparse.Namespace, flags: list[str]) -> Iterator[str]:
    """
    Address of a server that lives as long as the context.

    Raises:
        ValueError: if it does not start.
    """
    port = free_port()
    command = [sys.executable, "-m", "modeling_yan.cli", "serve", "--model", arguments.model, "--port", str(port)]
    command += ["--threads", str(arguments.threads), "--replicas", str(arguments.replicas), *flags]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + LONGEST_START
            while time.monotonic() < end and process.poll() is None:
                log.seek(0)
                if "answers at" in log.read():
                    break
                time.sleep(0.2)
            else:
                log.seek(0)
                raise ValueError(f"{' '.join(command)} did not start: {log.read()[-2000:]}")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


async def batches(session, address: str) -> tuple[float, float]:
    """Batches and prompts that the server has answered since it began."""
    from prometheus_client.parser import text_string_to_metric_families

    async with session.get(f"{address}/metrics") as response:
        families = text_string_to_metric_families(await response.text())
    samples = {sample.name: sample.value for family in families for sample in family.samples}
    return samples["yan_batch_size_count"], samples["yan_batch_size_sum"]


async def put_load(address: str, expected: dict[str, str], clients: int, seconds: float, load: Load) -> None:
    """Lets clients send requests for so many seconds, and waits for the last answers."""
    import aiohttp

    prompts, begun, end = list(expected), 0, time.monotonic() + seconds

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal begun
        while time.monotonic() < end:
            prompt = prompts[begun % len(prompts)]
            begun += 1
            start = time.perf_counter()
            async with session.post(f"{address}/v1/completions", json={"prompt": prompt, "seed": SEED}) as response:
                body = await response.json()
            load.seconds.append(time.perf_counter() - start)
            if response.status != 200 or body["choices"][0]["text"] != expected[prompt]:
                load.wrong.append(f"{response.status} {body} to {prompt!r}")

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(client(session) for _ in range(clients)))


async def measure(address: str, expected: dict[str, str], clients: int, seconds: float) -> dict:
    """
    One row of the report.

    Raises:
        ValueError: for an answer that is another than the model's.
    """
    import aiohttp

    await put_load(address, expected, clients, min(2.0, seconds), Load())
    async with aiohttp.ClientSession() as session:
        before = await batches(session, address)
        load, start = Load(), time.perf_counter()
        await put_load(address, expected, clients, seconds, load)
        elapsed = time.perf_counter() - start
        after = await batches(session, address)
    if load.wrong:
        raise ValueError(f"{len(load.wrong)} of {len(load.seconds)} answers are wrong, such as {load.wrong[0]}")
    p50, p95, p99 = (1000 * np.percentile(load.seconds, (50, 95, 99))).tolist()
    return {
        "clients": clients,
        "requests": len(load.seconds),
        "requests_per_second": len(load.seconds) / elapsed,
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "prompts_per_batch": (after[1] - before[1]) / (after[0] - before[0]),
        "load_average": os.getloadavg()[0],
    }


def expected_answers(arguments: argparse.Namespace) -> dict[str, str]:
    """What the model writes by itself for each prompt."""
    rows = select_split(load_data(arguments.dataset_name), arguments.split, arguments.dataset_name)
    engine = Engine.load(arguments.model)
    sources = Task.load(arguments.task).build(rows, engine.tokenizer.mask_token)["source"]
    prompts = list(dict.fromkeys(sources))[: arguments.num_prompts]
    return {prompt: engine.answer([Row(prompt, SEED)])[0].texts[0] for prompt in prompts}


def table(rows: list[dict]) -> Table:
    """The report as a person reads it."""
    shown = Table(*COLUMNS)
    for row in rows:
        numbers = [f"{row[name]:.0f}" for name in ("p50_ms", "p95_ms", "p99_ms")]
        rate, batch = f"{row['requests_per_second']:.1f}", f"{row['prompts_per_batch']:.1f}"
        shown.add_row(row["server"], str(row["clients"]), rate, *numbers, batch)
    return shown


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", required=True, help="a YAN folder or Hub name")
    add("--task", required=True, help="name in configuration/tasks or a YAML file; its sources are the prompts")
    add("--dataset_name", required=True, help="Hub name, local folder or file")
    add("--split", default="test")
    add("--num_prompts", type=int, default=256)
    add("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    add("--seconds", type=float, default=15.0, help="of each row, after two to warm up")
    add("--replicas", type=int, default=1)
    add("--threads", type=int, default=1, help="of each replica")
    add("--output", type=Path, required=True, help="JSON file")
    arguments = parser.parse_args()
    check_positive(arguments, "num_prompts", "clients", "seconds", "replicas", "threads")
    return arguments


def main() -> None:
    arguments = parse()
    check_extra()
    idle = os.getloadavg()[0]
    expected, rows = expected_answers(arguments), []
    for system, flags in SYSTEMS.items():
        with served(arguments, flags) as address:
            for clients in arguments.clients:
                row = asyncio.run(measure(address, expected, clients, arguments.seconds))
                rows.append({"server": system, **row})
                Console().print(f"{system}, {clients} clients: {row['requests_per_second']:.1f} requests per second")
    settings = {"replicas": arguments.replicas, "threads": arguments.threads, "prompts": len(expected)}
    report = {
        **machine(torch.device("cpu")),
        "cpus": os.cpu_count(),
        "load_average_before": idle,
        "model": arguments.model,
        **settings,
        "rows": rows,
    }
    write_report(report, arguments.output)
    Console(width=120).print(table(rows))


if __name__ == "__main__":
    run_script(main)
