"""Answers for a whole data set: resumed after an interruption, in one process or two."""

import json

from datasets import Dataset, load_dataset

from ..helpers import E2E_DATA, ROOT, YAN_E2E, accelerate_launch, ran, refused, run_process, succeeded

SCRIPT = "examples/run_batch_inference.py"


def test_it_resumes_and_does_not_depend_on_batches_or_processes(tmp_path):
    meanings = dict.fromkeys(load_dataset(str(E2E_DATA))["test"]["meaning_representation"])
    (tmp_path / "sources").mkdir()
    Dataset.from_dict({"source": list(meanings)[:30]}).to_parquet(tmp_path / "sources" / "test.parquet")
    options = {"model": YAN_E2E, "dataset_name": "sources", "dtype": "float32"}
    ran(SCRIPT, cwd=tmp_path, batch_size=7, output_dir="answers", **options)
    shard = tmp_path / "answers" / "answers-00000-of-00001.jsonl"
    whole = shard.read_bytes()
    rows = [json.loads(line) for line in whole.splitlines()]
    assert [row["index"] for row in rows] == list(range(30))
    assert all(row["tokens"] > 3 for row in rows)
    # Stopped in the middle of a line: the batch it belongs to is written again.
    shard.write_bytes(whole[: len(whole) * 2 // 3])
    printed = ran(SCRIPT, cwd=tmp_path, batch_size=7, output_dir="answers", **options)
    assert any(f"{rows} were there" in printed for rows in (7, 14, 21))
    assert shard.read_bytes() == whole
    script = ROOT / SCRIPT
    succeeded(run_process(*accelerate_launch(), script, cwd=tmp_path, batch_size=30, output_dir="two", **options))
    shards = sorted((tmp_path / "two").glob("*.jsonl"))
    assert [path.name for path in shards] == ["answers-00000-of-00002.jsonl", "answers-00001-of-00002.jsonl"]
    both = {row["index"]: row for path in shards for row in map(json.loads, path.read_text().splitlines())}
    assert [both[index] for index in range(30)] == rows
    assert "another number" in refused(SCRIPT, cwd=tmp_path, output_dir="two", **options)
