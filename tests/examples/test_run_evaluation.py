"""Quality and speed of a checkpoint by the script, its tables, and how it refuses."""

import json

import pytest
from datasets import Dataset, load_dataset

from ..helpers import (
    E2E_DATA,
    WITH_BLANKS,
    YAN_E2E,
    copies,
    ran,
    refused,
    tiny_bert,
    tiny_model,
    word_piece_tokenizer,
    word_tokenizer,
)

SCRIPT = "examples/run_evaluation.py"
E2E = {"model": YAN_E2E, "task": "e2e_nlg", "dataset_name": E2E_DATA}


def test_the_shipped_rows_are_what_the_task_expects():
    rows = load_dataset(str(E2E_DATA))["test"]
    assert len(rows) == 2000
    assert {"meaning_representation", "human_reference"} <= set(rows.column_names)


def test_it_reports_every_setting_and_the_ceiling(tmp_path):
    ran(
        SCRIPT,
        cwd=tmp_path,
        max_rows=4,
        steps=[1, 3],
        candidates=[1, 2],
        length_candidates=[1, 2],
        speed_rows=2,
        variants="time_shift=2,solver=heun",
        output="quality.json",
        **E2E,
    )
    report = json.loads((tmp_path / "quality.json").read_text())
    assert len(report["quality"]) == 1 + 2 * 2 * 2 + 2 * 2 + 1
    assert report["quality"][-1]["variant"] == "time_shift=2,solver=heun"
    assert report["quality"][0]["system"] == "autoencoder of the first reference"
    assert all(row["bleu_interval"][0] <= row["bleu"] <= row["bleu_interval"][1] for row in report["quality"])
    assert all(row["word_entropy"] > 3 for row in report["quality"])
    assert 0 <= report["length_head"]["exact"] <= 100
    assert all(summary["tokens_per_second"] > 0 for summary in report["speed_batch_1"].values())
    tables = ran("benchmarks/run_quality_report.py", "quality.json", cwd=tmp_path)
    assert "| YAN, length predicted, best of 2 |" in tables


@pytest.mark.parametrize("options", [{"copy_mechanism": True}, {**WITH_BLANKS, "length_head": "source"}])
def test_a_model_that_copies_is_evaluated(options, tmp_path):
    tokenizer = word_tokenizer()
    for part in (tiny_model(**options), tokenizer):
        part.save_pretrained(tmp_path / "model")
    rows = [{"source": f"w{i} w{i + 1} w{i + 2}", "target": f"w{i}", "references": [f"w{i}"]} for i in range(5, 9)]
    Dataset.from_list(rows).to_json(tmp_path / "rows.jsonl")
    few = {"steps": 1, "candidates": 1, "length_candidates": 1, "speed_rows": 1, "bootstrap": 10}
    lengths = {"max_source_length": 8, "max_target_length": 8}
    data = {"model": "model", "task": "pairs", "dataset_name": "rows.jsonl", "split": "train"}
    ran(SCRIPT, cwd=tmp_path, output="scores.json", **data, **lengths, **few)
    systems = {row["system"] for row in json.loads((tmp_path / "scores.json").read_text())["quality"]}
    assert systems == {"autoencoder of the first reference", "YAN"}


def test_encoders_that_are_named_score_every_setting(mauve_stand_in, tmp_path):
    # BERT's smallest words: what is scored is the way to the packages, not the encoder.
    tiny_bert(tmp_path / "bert", max_position_embeddings=128)
    tokenizer = word_piece_tokenizer()
    tokenizer.model_max_length = 128
    tokenizer.save_pretrained(tmp_path / "bert")
    few = {"steps": 1, "candidates": 1, "length_candidates": 1, "speed_rows": 0, "bootstrap": 0}
    encoders = {"bertscore_model": "bert", "bertscore_layer": 1, "mauve_model": "bert"}
    table = ran(SCRIPT, cwd=tmp_path, max_rows=20, output="scores.json", **few, **encoders, **E2E)
    assert "MAU" in table
    scored = json.loads((tmp_path / "scores.json").read_text())["quality"]
    assert len(scored) == 3
    assert all(0 < row["mauve"] <= 100 and 0 < row["bert_f1"] <= 100 for row in scored)
    # Before anything is measured.
    line = refused(SCRIPT, cwd=tmp_path, max_rows=4, **few, **encoders, **E2E)
    assert "needs at least 20 predictions, got 4" in line


def test_splits_and_options_that_are_not_there_are_named(tmp_path):
    assert "holdout" in refused(SCRIPT, cwd=tmp_path, split="holdout", output="x.json", **E2E)
    assert "time_shifts" in refused(SCRIPT, cwd=tmp_path, variants="time_shifts=2", output="x.json", **E2E)


def test_a_baseline_with_another_tokenizer_is_refused(tmp_path, teacher):
    copies(tmp_path, teacher=teacher)
    line = refused(SCRIPT, cwd=tmp_path, baselines="teacher", output="x.json", **E2E)
    assert "another tokenizer" in line
