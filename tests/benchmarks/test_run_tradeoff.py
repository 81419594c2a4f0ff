"""Quality against speed: what is scored, what is timed, and which systems may not take part."""

import json

import pytest
from datasets import Dataset, DatasetDict

from modeling_yan.evaluation.text_writers import check_same, in_batches, time_batches, time_calls

from ..helpers import ON_CPU, ran, refused

SCRIPT = "benchmarks/run_tradeoff.py"
SIZES = "{hidden_size: 16, num_attention_heads: 2, intermediate_size: 32, encoder_layers: 1, flow_layers: 1, \
num_experts: 1, max_position_embeddings: 64}"
ANSWERS = [f"that is {2 * n + 1}" for n in range(12)]
ROWS = [{"source": f"{n} and {n + 1}", "target": a, "references": [a]} for n, a in enumerate(ANSWERS)]
DATA = {"task": "pairs", "dataset_name": "data", "max_source_length": 32, "max_target_length": 32}
TRAINING = {"max_steps": 1, "per_device_train_batch_size": 4, "save_strategy": "no", "report_to": "none", **ON_CPU}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs by split, a YAN and a BART with one decoder layer, each after one update."""
    folder = tmp_path_factory.mktemp("tradeoff")
    rows = {"train": Dataset.from_list(ROWS), "test": Dataset.from_list(ROWS[:5])}
    for split, own in DatasetDict(rows).items():
        (folder / "data").mkdir(exist_ok=True)
        own.to_parquet(folder / "data" / f"{split}.parquet")
    ran(
        "examples/run_flow.py", cwd=folder, **DATA, **TRAINING, config_overrides=SIZES, train_tokenizer=300,
        output_dir="yan",
    )  # fmt: skip
    ran(
        "benchmarks/run_baseline.py", cwd=folder, **DATA, **TRAINING, architecture="bart", layers=3, decoder_layers=1,
        hidden_size=16, num_attention_heads=2, tokenizer_name="yan", output_dir="deep", init_std=0.05,
    )  # fmt: skip
    return folder


@pytest.mark.slow
def test_all_systems_are_scored_and_timed_on_the_same_sources(folder):
    pytest.importorskip("ctranslate2")
    pytest.importorskip("onnxscript")
    shown = ran(
        SCRIPT, cwd=folder, models="yan", baselines="deep", task="pairs", dataset_name="data", timed=3, rounds=2,
        batch_sizes=[2], num_bootstrap=10, output="tradeoff.json",
    )  # fmt: skip
    report = json.loads((folder / "tradeoff.json").read_text())
    cells = {cell["system"]: cell for cell in report["cells"]}
    runtimes = {"yan": "ONNX Runtime", "deep": "CTranslate2"}
    assert list(cells) == [f"{n}, {r} {p}" for n, r in runtimes.items() for p in ("float32", "int8")]
    assert report["rows"] == 5
    assert report["timed"] == 3
    for cell in cells.values():
        assert cell["ms"] > 0
        assert cell["texts_per_second"]["2"] > 0
        assert cell["updates"] == 1
        low, high = cell["scores"]["rougeL_interval"]
        assert low <= cell["scores"]["rougeL"] <= high
    assert cells["deep, CTranslate2 int8"]["shape"] == "2 encoder, 1 decoder layers"
    assert (folder / "tradeoff.png").stat().st_size > 5_000
    assert "texts/s, 2" in shown


def test_folders_of_one_name_cannot_be_told_apart(tmp_path):
    models = {"models": ["first/yan", "second/yan"], "task": "pairs", "dataset_name": "data"}
    assert "several folders of the names ['yan']" in refused(SCRIPT, cwd=tmp_path, **models, output="t.json")


def test_a_runtime_that_writes_something_else_takes_no_part():
    texts = [str(n) for n in range(50)]
    check_same(list, lambda own: [t if t != "7" else "8" for t in own], texts, "runtime")
    with pytest.raises(ValueError, match="runtime: 2 of 50 texts"):
        check_same(list, lambda own: [t if t not in "78" else "9" for t in own], texts, "runtime")


def test_batches_come_back_in_order_and_every_system_has_its_turns():
    texts, calls = ["ccc", "a", "bb", "dddd"], []

    def writer(name: str):
        def write(own):
            calls.append((name, tuple(own)))
            return [text.upper() for text in own]

        return write

    assert in_batches(writer("x"), texts, 2) == ["CCC", "A", "BB", "DDDD"]
    assert calls == [("x", ("a", "bb")), ("x", ("ccc", "dddd"))]
    calls.clear()
    assert set(time_calls({"x": writer("x"), "y": writer("y")}, texts, rounds=2)) == {"x", "y"}
    # A warm-up call and one a text, the second round in turned order.
    assert [name for name, _ in calls[::5]] == ["x", "y", "y", "x"]
    assert all(rate > 0 for rate in time_batches({"x": writer("x")}, texts, 3, rounds=1).values())
