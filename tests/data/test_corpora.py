"""Corpora: streamed or mapped, packed without loss, and of a task."""

from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from modeling_yan.data.corpora import load_corpus, load_task_corpus, task_texts, tokenize_corpus
from modeling_yan.data.tasks import Task
from modeling_yan.data.tokenization import train_tokenizer

TEXTS = ["The river runs past the pub.", "A cheap café near the Vaults!", "", None, "The river runs past the pub."]


@pytest.fixture
def folders(tmp_path) -> dict[str, Path]:
    """The same corpus as parquet and as memory-mapped Arrow files."""
    data = Dataset.from_dict({"text": TEXTS, "title": ["a title"] * len(TEXTS)})
    (tmp_path / "parquet").mkdir()
    data.to_parquet(tmp_path / "parquet" / "train.parquet")
    DatasetDict({"train": data}).save_to_disk(tmp_path / "arrow")
    return {"parquet": tmp_path / "parquet", "arrow": tmp_path / "arrow"}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("streaming", [False, True])
def test_corpora_from_either_format_streamed_or_mapped(folders, kind, streaming):
    corpus = load_corpus(str(folders[kind]), ["text", "title"], "train", streaming=streaming)
    texts = [row["text"] for row in corpus]
    assert sorted(texts) == sorted([t for t in TEXTS if t] + ["a title"] * len(TEXTS))
    assert load_corpus(str(folders[kind]), ["text"], "validation", streaming=streaming) is None
    with pytest.raises(ValueError, match=r"\['body'\].*'title'"):
        load_corpus(str(folders[kind]), ["body"], "train", streaming=streaming)


def test_distinct_texts_keep_their_order_and_exclude_streaming(folders):
    corpus = load_corpus(str(folders["parquet"]), ["text"], "train", distinct=True)
    assert corpus["text"] == [TEXTS[0], TEXTS[1]]
    with pytest.raises(ValueError, match="distinct"):
        load_corpus(str(folders["parquet"]), ["text"], "train", distinct=True, streaming=True)


def test_a_tasks_corpus_has_every_source_once_and_every_target(tmp_path):
    rows = [("tall, blue", "A tall blue one."), ("tall, blue", "It is tall and blue."), ("red", "A tall blue one.")]
    columns = {"meaning_representation": [row[0] for row in rows], "human_reference": [row[1] for row in rows]}
    Dataset.from_dict(columns).to_parquet(tmp_path / "train.parquet")
    corpus = load_task_corpus(str(tmp_path), Task.load("e2e_nlg"), "train")
    first, second, third = columns["human_reference"]
    assert corpus["text"] == ["tall, blue", first, second, "red", third]
    assert load_task_corpus(str(tmp_path), Task.load("e2e_nlg"), "validation") is None


def test_the_first_texts_of_many_rows_are_sources_and_targets():
    pairs = Dataset.from_dict({"source": [f"s{i}" for i in range(9)], "target": [f"t{i}" for i in range(9)]})
    assert task_texts(pairs)[:4] == ["s0", "t0", "s1", "t1"]


@pytest.mark.parametrize("streaming", [False, True])
def test_packed_rows_are_full_and_lose_nothing_but_the_rest(folders, streaming):
    tokenizer = train_tokenizer([t for t in TEXTS if t], 300, 64)
    corpus = load_corpus(str(folders["arrow"]), ["text"], "train", streaming=streaming)
    rows = [row["input_ids"] for row in tokenize_corpus(corpus, tokenizer, 8, pack=True)]
    assert {len(row) for row in rows} == {8}
    stream = [token for text in TEXTS if text for token in tokenizer(text)["input_ids"]]
    assert [token for row in rows for token in row] == stream[: len(stream) // 8 * 8]
    cut = [row["input_ids"] for row in tokenize_corpus(corpus, tokenizer, 8)]
    assert len(cut) == 3
    assert all(len(row) <= 8 for row in cut)
