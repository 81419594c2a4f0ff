"""A sweep trains and measures every variant once, and goes on where it stopped."""

import json
import subprocess
import sys
from pathlib import Path

from ..helpers import ON_CPU, Finished, ran, refused, run_script_main

SCRIPT = "benchmarks/run_sweep.py"


def in_this_process(command: list[str]) -> Finished:
    """Stands in for `subprocess.run`: the scripts of five runs are imported once."""
    interpreter, script, *arguments = command
    assert interpreter == sys.executable
    done = run_script_main(script, *arguments, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_every_variant_is_measured_once(workspace, monkeypatch):
    monkeypatch.setattr(subprocess, "run", in_this_process)
    recipe = {
        "model_name_or_path": "autoencoder",
        "task": "e2e_nlg",
        "dataset_name": "data",
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "output_dir": "unused",
        "config_overrides": {"unroll_steps": 1, "decoder_layers": 2},
        **ON_CPU,
    }
    evaluation = {"split": "validation", "max_rows": 2, "steps": 1, "candidates": 1, "speed_rows": 1, "bootstrap": 2}
    sweep = {
        "recipe": "recipe-sweep.yaml",
        "common": {"max_eval_samples": 2},
        "evaluation": evaluation,
        "variants": {"plain": None, "chosen": {"targets": "typical", "config_overrides": {"num_experts": 3}}},
    }
    (workspace / "recipe-sweep.yaml").write_text(json.dumps(recipe))
    (workspace / "sweep.yaml").write_text(json.dumps(sweep))
    options = {"output_dir": "swept", "results": "sweep.json"}
    assert "| chosen | 1 | 2 |" in ran(SCRIPT, "sweep.yaml", cwd=workspace, **options)
    rows = json.loads((workspace / "sweep.json").read_text())
    assert [(row["variant"], row["seed"]) for row in rows] == [("plain", 0), ("chosen", 0)]
    assert all(row["training"]["updates"] == 2 and row["quality"] for row in rows)
    assert "--targets typical" in rows[1]["command"]
    config = json.loads((workspace / "swept" / "chosen-0" / "config.json").read_text())
    assert config["training_config"]["unroll_steps"] == 1
    assert (config["decoder_layers"], config["num_experts"]) == (2, 3)
    weights = workspace / "swept" / "plain-0" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    (workspace / "swept" / "plain-0" / "quality.json").unlink()
    ran(SCRIPT, "sweep.yaml", cwd=workspace, **options)
    assert weights.stat().st_mtime_ns == written
    assert json.loads((workspace / "sweep.json").read_text())[1] == rows[1]
    (workspace / "sweep.yaml").write_text("recipe: absent.yaml\nvariants: {plain: {}}")
    assert "absent.yaml" in refused(SCRIPT, "sweep.yaml", cwd=workspace, **options)
