"""Several tasks as one data set."""

from datasets import Dataset, load_dataset

from ..helpers import ran, refused

SCRIPT = "examples/mix_tasks.py"
QUESTIONS = [
    {
        "question": f"Who wrote the {n} act?",
        "context": f"The {n} act is by Ann.",
        "answers": {"text": ["Ann", "by Ann"]},
    }
    for n in ("first", "second", "third", "fourth")
]
ENTITIES = [{"title": f"Shark {n}", "content": "A film about a fish.", "label": 12} for n in range(60)]


def test_every_row_is_that_of_its_task_and_says_which(tmp_path):
    for name, split, rows in (
        ("questions", "train", QUESTIONS),
        ("films", "train", ENTITIES),
        ("films", "test", ENTITIES),
    ):
        Dataset.from_list(rows).to_parquet(tmp_path / name / f"{split}.parquet")
    tasks = ["reading:questions", "entity:films"]
    said = ran(SCRIPT, cwd=tmp_path, tasks=tasks, output_dir="mixed")
    assert said.splitlines()[0] == "train: 3 of reading, 57 of entity"
    splits = load_dataset(str(tmp_path / "mixed"))
    assert sorted(splits["validation"]["task"]) == ["entity"] * 3 + ["reading"]
    assert len(splits["test"]) == 60
    for row in splits["train"]:
        if row["task"] == "reading":
            assert row["source"].startswith("question: Who wrote the ")
            assert (row["target"], row["references"]) == ("Ann", ["Ann", "by Ann"])
        else:
            assert row["source"].startswith("entity: Shark ")
            assert row["target"] == "film"
    assert splits["train"]["source"] != sorted(splits["train"]["source"])
    ran(SCRIPT, cwd=tmp_path, tasks=tasks, output_dir="again")
    assert load_dataset(str(tmp_path / "again"))["train"].to_dict() == splits["train"].to_dict()


def test_a_task_without_data_is_refused(tmp_path):
    error = refused(SCRIPT, cwd=tmp_path, tasks=["reading"], output_dir="mixed")
    assert "--tasks reading names no data; give it as TASK:DATA" in error
    assert not (tmp_path / "mixed").exists()
