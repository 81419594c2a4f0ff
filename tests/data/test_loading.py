"""Data sets by name: folders, files, and what is not there."""

import csv
import json

import pytest
from datasets import Dataset, DatasetDict, IterableDataset, Value

from modeling_yan.data.loading import first_rows, load_data, read_file, require_columns, select_split

ROWS = Dataset.from_dict({"text": ["one", "two", "three"]})


@pytest.mark.parametrize(("name", "write"), [
    ("rows.csv", Dataset.to_csv),
    ("rows.json", Dataset.to_json),
    ("rows.jsonl", Dataset.to_json),
    ("rows.parquet", Dataset.to_parquet),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_a_file_is_its_training_split(tmp_path, name, write):
    write(ROWS, tmp_path / name)
    assert load_data(str(tmp_path / name))["train"]["text"][:] == ROWS["text"][:]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["parquet", "saved", "saved_splits"])
def test_a_folder_is_read_or_streamed(tmp_path, kind, streaming):
    if kind == "parquet":
        ROWS.to_parquet(tmp_path / "train.parquet")
    else:
        (ROWS if kind == "saved" else DatasetDict({"train": ROWS})).save_to_disk(tmp_path)
    rows = load_data(str(tmp_path), streaming=streaming)["train"]
    assert isinstance(rows, IterableDataset) == streaming
    assert [row["text"] for row in rows] == ROWS["text"][:]


@pytest.mark.parametrize("streaming", [False, True])
def test_cells_of_csv_files_are_text_wherever_they_stand(tmp_path, streaming):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("code,note\n00701,NA\n", encoding="utf-8")
    for name in (tmp_path, tmp_path / "train.csv"):
        for rows in load_data(str(name), streaming=streaming).values():
            assert list(rows) == [{"code": "00701", "note": "NA"}]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("header", "names"),
    [(",q", ["Unnamed: 0", "q"]), (",Unnamed: 0", ["Unnamed: 0.1", "Unnamed: 0"]), ("q,", ["q", "Unnamed: 1"])],
)
def test_columns_of_csv_files_without_a_name_get_one(tmp_path, streaming, header, names):
    (tmp_path / "rows.csv").write_text(f"{header}\n007,a\n")
    rows = load_data(str(tmp_path / "rows.csv"), streaming=streaming)["train"]
    assert list(rows) == [dict(zip(names, ["007", "a"], strict=True))]


def test_cells_of_csv_files_may_be_long(tmp_path):
    Dataset.from_dict({"text": ["x" * 140_000]}).to_csv(tmp_path / "rows.csv")
    limit = csv.field_size_limit()
    assert len(read_file(str(tmp_path / "rows.csv"), "train_file")["text"][0]) == 140_000
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("name", "streaming"),
    [("train.jsonl", False), ("train.jsonl", True), ("train.json", False), (".", False), (".", True)],
)
def test_dates_in_json_files_stay_the_texts_that_stand_there(tmp_path, name, streaming):
    rows = [
        {"day": "2021-03-07", "time": "2021-03-07T10:00", "number": 1},
        {"day": None, "time": "2004-07-24 10:00:00Z", "number": 2},
    ]
    whole = json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows))
    (tmp_path / name if name != "." else tmp_path / "train.jsonl").write_text(whole)
    read = load_data(str(tmp_path / name), streaming=streaming)["train"]
    assert list(read) == rows
    assert read.features["day"] == read.features["time"] == Value("string")


def test_names_of_files_may_end_in_capitals(tmp_path):
    (tmp_path / "UP.CSV").write_text("q\na\n")
    for streaming in (False, True):
        assert list(load_data(str(tmp_path / "UP.CSV"), streaming=streaming)["train"]) == [{"q": "a"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"question;answer\na;b\n", "'question;answer' is parted by ';'; save it parted by commas"),
        (b"question\tanswer\na\tb\n", "is parted by '.t'; save it parted by commas"),
        ("question,answer\ncafé,b\n".encode("latin-1"), "is not encoded as UTF-8"),
        ("question,answer\na,b\n".encode("utf-16"), "is not encoded as UTF-8"),
    ],
)
def test_files_of_other_programs_are_refused_with_what_to_do(tmp_path, content, message):
    (tmp_path / "rows.csv").write_bytes(content)
    for read in (lambda: read_file(str(tmp_path / "rows.csv"), "train_file"), lambda: load_data(str(tmp_path))):
        with pytest.raises(ValueError, match=message):
            read()


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="empty folder"):
        load_data(str(tmp_path))
    (tmp_path / "rows.txt").write_text("one")
    with pytest.raises(ValueError, match=r"rows\.txt.*\.csv"):
        load_data(str(tmp_path / "rows.txt"))
    with pytest.raises(ValueError, match=r"here has no split 'test'; it has \['train'\]"):
        select_split({"train": ROWS}, "test", "here")
    require_columns(["text"], ["text"], "here")
    with pytest.raises(ValueError, match=r"here has no columns \['title'\]; it has \['text'\]"):
        require_columns(["text"], ["text", "title"], "here")


@pytest.mark.parametrize(("count", "rows"), [(None, 3), (2, 2), (9, 3)])
def test_the_first_rows_are_no_more_than_there_are(count, rows):
    assert len(first_rows(ROWS, count)) == rows
