"""The speed benchmark: every cell passed its check, and what it refuses."""

import json

import pytest

from ..helpers import ran, refused, script_functions, tiny_model

SCRIPT = "benchmarks/run_speed.py"


def test_only_what_passes_its_check_is_reported(tmp_path):
    ran(
        SCRIPT,
        cwd=tmp_path,
        preset="yan-tiny",
        batch_sizes=[1, 2],
        lengths=[4, 9],
        steps=[1, 3],
        compiled_batches=[],
        repeats=2,
        seconds_per_system=60,
        output="benchmark.json",
    )
    report = json.loads((tmp_path / "benchmark.json").read_text())
    systems = {cell["system"] for cell in report["cells"]}
    assert {"YAN, 1 step", "YAN, 3 steps", "GPT-2, KV cache", "masked diffusion, length/4 steps"} < systems
    assert len(report["cells"]) == 4 * len(systems)
    for cell in report["cells"]:
        assert cell["gate"] == "passed"
        assert cell["tokens_per_second"] > 0
        assert cell["roofline_share"] > 0
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
