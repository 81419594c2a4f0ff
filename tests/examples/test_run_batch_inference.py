"""Answers for a whole data set: resumed after an interruption by the same run alone, in one process or two."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForSeq2SeqLM

from modeling_yan.common.files import locked
from modeling_yan.data.tokenization import train_tokenizer

from ..helpers import (
    E2E_DATA,
    ROOT,
    TEXTS,
    YAN_E2E,
    copies,
    ran,
    refused,
    run_two_processes,
    tiny_model,
)

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
    run_two_processes(ROOT / SCRIPT, cwd=tmp_path, batch_size=30, output_dir="two", **options)
    shards = sorted((tmp_path / "two").glob("*.jsonl"))
    assert [path.name for path in shards] == ["answers-00000-of-00002.jsonl", "answers-00001-of-00002.jsonl"]
    both = {row["index"]: row for path in shards for row in map(json.loads, path.read_text().splitlines())}
    assert [both[index] for index in range(30)] == rows
    assert "another number" in refused(SCRIPT, cwd=tmp_path, output_dir="two", **options)


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A folder with a small `yan`, six `rows.jsonl`, and `answers` to them."""
    folder, tokenizer = tmp_path_factory.mktemp("begun"), train_tokenizer(TEXTS * 20, 300, 32)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "mask")}
    tiny_model(vocab_size=len(tokenizer), **ids).save_pretrained(folder / "yan")
    tokenizer.save_pretrained(folder / "yan")
    write_rows(folder / "rows.jsonl", [f"{text} {number}" for number in range(2) for text in TEXTS[:3]])
    ran(SCRIPT, cwd=folder, output_dir="answers", **SMALL)
    return folder


SMALL = {"model": "yan", "dataset_name": "rows.jsonl", "split": "train", "batch_size": 2}


def write_rows(path: Path, sources: list[str]) -> None:
    path.write_text("".join(json.dumps({"source": text, "other": text.upper()}) + "\n" for text in sources))


def half_done(folder: Path) -> Path:
    """Cuts the answers after three of six; the shard."""
    shard = folder / "answers" / "answers-00000-of-00001.jsonl"
    shard.write_bytes(b"".join(shard.read_bytes().splitlines(keepends=True)[:3]))
    return shard


@pytest.fixture
def folder(begun, tmp_path) -> Path:
    """Copies of the model and the answers, to change."""
    return copies(tmp_path, yan=begun / "yan", answers=begun / "answers")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"seed": 1}, "seed (now 1, then 0)"),
        ({"num_inference_steps": 2}, "num_inference_steps (now 2, then None)"),
        ({"num_length_candidates": 2}, "num_length_candidates (now 2, then None)"),
        ({"max_source_length": 3}, "max_source_length (now 3, then None)"),
        ({"column": "other"}, "sources (now '6 rows, "),
        ({"dtype": "bfloat16"}, "dtype (now 'torch.bfloat16', then 'torch.float32')"),
    ],
)
def test_a_run_with_other_settings_does_not_go_on(begun, folder, changed, named):
    (folder / "rows.jsonl").write_bytes((begun / "rows.jsonl").read_bytes())
    shard = half_done(folder)
    before = shard.read_bytes()
    line = refused(SCRIPT, cwd=folder, output_dir="answers", **{**SMALL, "model": begun / "yan", **changed})
    assert "was begun with other settings" in line
    assert named in line
    assert shard.read_bytes() == before


def test_other_sources_and_other_weights_do_not_go_on(begun, folder):
    half_done(folder)
    options = {**SMALL, "output_dir": "answers", "model": begun / "yan"}
    write_rows(folder / "rows.jsonl", TEXTS)
    assert "sources (now '4 rows, " in refused(SCRIPT, cwd=folder, **options)
    (folder / "rows.jsonl").write_bytes((begun / "rows.jsonl").read_bytes())
    model = AutoModelForSeq2SeqLM.from_pretrained(folder / "yan")
    with torch.no_grad():
        model.decoder.lm_head.bias[5] += 1
    model.save_pretrained(folder / "yan")
    line = refused(SCRIPT, cwd=folder, **{**options, "model": "yan"})
    assert "weights (now" in line
    assert "tokenizer (now" not in line


def test_the_same_run_goes_on_with_any_batch_size_unless_sources_repeat(begun, folder):
    (folder / "rows.jsonl").write_bytes((begun / "rows.jsonl").read_bytes())
    whole = (begun / "answers" / "answers-00000-of-00001.jsonl").read_bytes()
    shard = half_done(folder)
    # Left by a run that was killed: nobody holds it.
    (folder / "answers" / ".lock-00000").write_text("1234")
    options = {**SMALL, "output_dir": "answers", "model": begun / "yan"}
    ran(SCRIPT, cwd=folder, **{**options, "batch_size": 3})
    assert shard.read_bytes() == whole
    assert len(load_dataset(str(folder / "answers"))["train"]) == 6
    write_rows(folder / "rows.jsonl", ["a pub", "a pub"])
    ran(SCRIPT, cwd=folder, **{**options, "output_dir": "repeated"})
    line = refused(SCRIPT, cwd=folder, **{**options, "output_dir": "repeated", "batch_size": 1})
    assert "batch_size (now 1, then 2)" in line


def test_rows_need_a_source_and_no_answer(begun, tmp_path):
    options = {**SMALL, "model": begun / "yan"}
    (tmp_path / "rows.jsonl").write_text('{"source": "a pub"}\n{"source": null}\n')
    line = refused(SCRIPT, cwd=tmp_path, output_dir="answers", **options)
    assert "rows.jsonl, split train, row 2: column 'source' is empty" in line
    (tmp_path / "two.yaml").write_text('source: "{food}, {area}"\ntarget: "{text}"\nreferences: texts\n')
    (tmp_path / "rows.jsonl").write_text('{"food": "fish", "area": "river"}\n')
    ran(SCRIPT, cwd=tmp_path, task="two.yaml", output_dir="answers", **options)
    shard = tmp_path / "answers" / "answers-00000-of-00001.jsonl"
    assert json.loads(shard.read_text())["source"] == "fish, river"


def test_two_runs_do_not_write_to_one_folder(begun, folder):
    (folder / "rows.jsonl").write_bytes((begun / "rows.jsonl").read_bytes())
    options = {**SMALL, "output_dir": "answers", "model": begun / "yan"}
    with locked(folder / "answers" / ".lock-00000"):
        assert "another run writes to answers" in refused(SCRIPT, cwd=folder, **options)
    ran(SCRIPT, cwd=folder, **options)


@pytest.mark.parametrize("change", ["absent", "damaged", "line"])
def test_answers_of_unknown_origin_are_left_alone(begun, folder, change):
    (folder / "rows.jsonl").write_bytes((begun / "rows.jsonl").read_bytes())
    settings, shard = folder / "answers" / ".settings.json", folder / "answers" / "answers-00000-of-00001.jsonl"
    if change == "absent":
        settings.unlink()
    elif change == "damaged":
        settings.write_text("{")
    else:
        shard.write_text("no JSON\n")
    before = shard.read_bytes()
    line = refused(SCRIPT, cwd=folder, output_dir="answers", **{**SMALL, "model": begun / "yan"})
    assert "choose another --output_dir" in line
    assert shard.read_bytes() == before


@pytest.mark.parametrize("size", [0, -3])
def test_batches_of_no_rows_are_refused(begun, size):
    options = {**SMALL, "batch_size": size, "output_dir": "none"}
    assert f"--batch_size {size} must be greater than 0" in refused(SCRIPT, cwd=begun, **options)
    assert not (begun / "none").exists()
