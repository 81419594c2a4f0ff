"""The ablation times only variants whose endpoints are equal."""

import json

from ..helpers import ran


def test_only_equal_endpoints_are_timed(tmp_path):
    ran(
        "benchmarks/run_ablation.py",
        cwd=tmp_path,
        preset="yan-tiny",
        batch_sizes=[1, 4],
        length=12,
        repeats=2,
        no_compile=True,
        profile="profile.txt",
        output="ablation.json",
    )
    rows = json.loads((tmp_path / "ablation.json").read_text())["rows"]
    assert ["mixed lengths, grouped" in {row["what"] for row in rows if row["batch_size"] == n} for n in (1, 4)] == [
        False,
        True,
    ]
    assert sum(row["what"].startswith("solver, ") for row in rows) == 2 * 6
    assert all(row["median_ms"] > 0 for row in rows)
    assert "Self CPU" in (tmp_path / "profile.txt").read_text()
