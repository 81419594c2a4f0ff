"""Mixture flow beside plain flow on two-dimensional densities."""

import json

from ..helpers import ran


def test_it_writes_scores_and_pictures(tmp_path):
    ran("examples/moe_fm_2d.py", cwd=tmp_path, updates=20, seeds=1, samples=200, output_dir="2d")
    scores = json.loads((tmp_path / "2d" / "scores.json").read_text())["scores"]
    assert len(scores) == 4 * 4 * 6
    sizes = {s["parameters"] for s in scores}
    assert max(sizes) / min(sizes) < 1.05
    for name in ("densities", "trajectories", "errors"):
        assert (tmp_path / "2d" / f"{name}.png").stat().st_size > 10_000
