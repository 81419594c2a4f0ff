"""The speed benchmark: every cell passed its check, and what it refuses."""

import importlib.util
import json

import pytest
import torch

from ..helpers import ran, refused, script_functions, tiny_model

SCRIPT = "benchmarks/run_speed.py"


def is_installed(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)


def test_only_what_passes_its_check_is_reported(tmp_path):
    ran(
        SCRIPT,
        cwd=tmp_path,
        preset="yan-tiny",
        batch_sizes=[1, 2],
        lengths=[4, 9],
        steps=[1, 3],
        compiled_batches=[],
        precisions="float32",
        pause=0.01,
        repeats=2,
        seconds_per_system=60,
        output="benchmark.json",
    )
    report = json.loads((tmp_path / "benchmark.json").read_text())
    systems = {cell["system"] for cell in report["cells"]}
    assert {"YAN, 1 step", "YAN, 3 steps", "GPT-2, KV cache", "masked diffusion, length/4 steps"} < systems
    assert ("YAN, 3 steps, ONNX Runtime" in systems) == is_installed("onnxruntime", "onnxscript")
    assert ("BART, CTranslate2 int8" in systems) == is_installed("ctranslate2")
    assert len(report["cells"]) == 4 * len(systems)
    for cell in report["cells"]:
        assert cell["gate"] == "passed"
        assert cell["tokens_per_second"] > 0
        assert 0 < cell["fastest_ms"] <= cell["median_ms"]
        assert cell.get("roofline_share", 1) > 0
    assert {entry["length"] for entry in report["autoregression_wins_from_batch"]} == {4, 9}
    assert (tmp_path / "benchmark.png").stat().st_size > 10_000


def test_a_model_and_a_preset_are_one_too_many(tmp_path):
    line = refused(SCRIPT, cwd=tmp_path, preset="yan-tiny", model="x", output="b.json")
    assert "exactly one of --model and --preset" in line


def test_systems_are_chosen_by_how_their_names_begin():
    build_systems = script_functions(SCRIPT)["build_systems"]
    model = tiny_model(hidden_size=64, intermediate_size=256, vocab_size=500)
    chosen = build_systems(model, [1, 3], False, ["YAN", "GPT-2"])
    assert [system.name for system in chosen] == ["YAN, 1 step", "YAN, 3 steps", "GPT-2, KV cache"]
    with pytest.raises(ValueError, match=r"--systems \['GTP'\].*'BART, KV cache'"):
        build_systems(model, [3], False, ["YAN", "GTP"])


def test_what_is_not_installed_is_left_out_in_one_line(monkeypatch, capsys):
    defined = script_functions(SCRIPT)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert defined["runtimes"](tiny_model()) == []
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "onnx_runtime is left out: pip install onnxruntime onnxscript",
        "ctranslate2 is left out: pip install ctranslate2",
    ]
    assert defined["runtimes"](tiny_model().bfloat16()) == []


def test_systems_that_search_wider_or_on_more_threads_are_not_compared():
    defined = script_functions(SCRIPT)
    systems = defined["build_systems"](tiny_model(), [1], False, ["YAN", "GPT-2"])
    systems[1].beams = 2
    with pytest.raises(ValueError, match=r"different \(beams, threads\)"):
        defined["measure_cell"](systems, torch.full((1, 3), 5), 4, None, {})
