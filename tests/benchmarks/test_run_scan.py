"""The benchmark of the selective scan compares only what is equal."""

import json

from ..helpers import ran


def test_only_equal_scans_are_compared(tmp_path):
    ran(
        "benchmarks/run_scan.py",
        cwd=tmp_path,
        lengths=[8, 24],
        batch_sizes=2,
        width=16,
        states=4,
        repeats=2,
        longest_baseline=8,
        output="scan.json",
    )
    rows = json.loads((tmp_path / "scan.json").read_text())["rows"]
    everywhere = {"sequential", "chunked", "bidirectional"}
    assert {row["system"].split()[0] for row in rows if row["length"] == 8} == {*everywhere, "two"}
    assert {row["system"].split()[0] for row in rows if row["length"] == 24} == everywhere
    compared = [row["difference_from_reference"] for row in rows if row["difference_from_reference"] is not None]
    assert len(compared) == 6
    assert max(compared) < 1e-4
    assert (tmp_path / "scan.png").stat().st_size > 10_000
