"""What each expert writes, counted."""

import json

import pytest

from ..helpers import E2E_DATA, YAN_E2E, ran


def test_every_token_is_counted_once(tmp_path):
    ran(
        "benchmarks/run_mixture_report.py",
        cwd=tmp_path,
        models=YAN_E2E,
        task="e2e_nlg",
        dataset_name=E2E_DATA,
        split="test",
        max_rows=3,
        output="mixture.json",
    )
    (row,) = json.loads((tmp_path / "mixture.json").read_text())["models"]
    assert sum(row["expert_share"]) == pytest.approx(1)
    kinds = {kind for kinds in row["kinds"].values() for kind in kinds}
    assert kinds <= {"punctuation", "function word", "in the source", "other"}
    assert {"punctuation", "function word", "in the source"} <= kinds
    assert (tmp_path / "mixture_yan-e2e.png").stat().st_size > 10_000
