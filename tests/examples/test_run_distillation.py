"""A teacher's answers by the script: written once, gone on with after an interruption, and trained on."""

import json

from datasets import Dataset, load_dataset

from ..helpers import ON_CPU, copies, ran, refused

SCRIPT = "examples/run_distillation.py"


def test_it_writes_answers_resumes_and_trains(workspace, teacher):
    copies(workspace, teacher=teacher)
    options = {
        "teacher": "teacher",
        "task": "e2e_nlg",
        "dataset_name": "data",
        "distilled_dir": "distilled",
        "model_name_or_path": "autoencoder",
        "output_dir": "distilled-yan",
        "teacher_batch_size": 4,
        "per_device_train_batch_size": 8,
        "extra_sources": 6,
        **ON_CPU,
    }
    ran(SCRIPT, cwd=workspace, only_write=True, crossed_sources=4, **options)
    path = workspace / "distilled" / ".answers.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    given = load_dataset(str(workspace / "data"))["train"]
    train, human = set(given["meaning_representation"]), set(given["human_reference"])
    assert len(lines) == len(train) + 6 + 4
    # Given sources keep what people wrote, made-up ones have the teacher's answer alone.
    rows = load_dataset("parquet", data_files=str(workspace / "distilled" / "train.parquet"))["train"]
    assert all(set(row["references"]) <= human for row in rows if row["source"] in train)
    assert all(row["references"] == [row["target"]] for row in rows if row["source"] not in train)
    # An interruption in the middle of a line.
    path.write_bytes(b"".join(lines[:5]) + lines[5][:10])
    ran(SCRIPT, cwd=workspace, crossed_sources=4, max_steps=2, **options)
    assert path.read_bytes() == whole
    report = json.loads((workspace / "distilled-yan" / "report.json").read_text())
    assert report["train_rows"] <= len(lines)
    assert "other sources" in refused(SCRIPT, cwd=workspace, seed=7, only_write=True, **options)


def test_answers_that_are_not_finished_are_no_data_set(workspace, teacher, monkeypatch):
    copies(workspace, teacher=teacher)
    options = {"teacher": "teacher", "task": "e2e_nlg", "dataset_name": "data", "distilled_dir": "distilled"}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "to_parquet", full)
        assert "No space left" in refused(SCRIPT, cwd=workspace, only_write=True, output_dir="out", **options, **ON_CPU)
    flow = {"task": "pairs", "dataset_name": "distilled", "model_name_or_path": "autoencoder", "output_dir": "flow"}
    assert "distilled" in refused("examples/run_flow.py", cwd=workspace, max_steps=1, **flow, **ON_CPU)
    ran(SCRIPT, cwd=workspace, only_write=True, output_dir="out", **options, **ON_CPU)
    assert sorted(path.name for path in (workspace / "distilled").iterdir()) == [
        ".answers.jsonl",
        "train.parquet",
        "validation.parquet",
    ]
