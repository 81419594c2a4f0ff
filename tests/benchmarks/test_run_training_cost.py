"""The cost of a training step: time, memory and arithmetic beside a BART of equal size."""

import json

from ..helpers import ran


def test_time_memory_and_arithmetic_are_counted(tmp_path):
    ran(
        "benchmarks/run_training_cost.py",
        cwd=tmp_path,
        preset="yan-tiny",
        batch_size=2,
        source_length=12,
        target_length=8,
        repeats=2,
        output="cost.json",
    )
    rows = {row["system"]: row for row in json.loads((tmp_path / "cost.json").read_text())["rows"]}
    bart = rows.pop("BART-shaped")
    assert all(abs(row["parameters"] / bart["parameters"] - 1) < 0.05 for row in rows.values())
    assert all(row["gflops"] > 0 and row["median_ms"] > 0 for row in rows.values())
    one, three = (rows[f"YAN, stage 3: {n}"]["gflops"] for n in ("1 unrolled step", "3 unrolled steps"))
    assert one < three < 3 * one
