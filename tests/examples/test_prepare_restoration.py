"""Clean texts of data sets that lack some."""

import json

from datasets import load_dataset

from modeling_yan.lexicon_yan import Lexicon

from ..helpers import ran, refused

SCRIPT = "examples/prepare_restoration.py"
TEXT = "This is a text of some words. And here is more of it."


def write(path, texts: list) -> None:
    path.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))


def test_rows_without_a_text_are_left_out_and_counted(tmp_path):
    write(tmp_path / "rows.jsonl", [TEXT, None, ""])
    out = ran(SCRIPT, cwd=tmp_path, documents="rows.jsonl:body", output_dir="clean", held_out=0)
    assert "rows.jsonl:body, train: 2 of 3 rows have no text" in out
    assert " ".join(load_dataset(str(tmp_path / "clean"))["train"]["text"]) == TEXT


def test_rare_words_come_from_other_counts(tmp_path):
    write(tmp_path / "rows.jsonl", [f"{TEXT} {TEXT}", f"Some more text. {TEXT}"])
    (tmp_path / "english.txt").write_text("the 900\nsome 90\nswerve 1\n")
    options = {"documents": "rows.jsonl:body", "output_dir": "clean", "held_out": 0}
    ran(SCRIPT, cwd=tmp_path, word_counts="english.txt", **options)
    counts = Lexicon.from_pretrained(tmp_path / "clean").counts
    own = Lexicon.count(load_dataset(str(tmp_path / "clean"))["train"]["text"])
    assert own.counts["some"] > 0
    assert counts == {
        **own.counts,
        "the": own.counts.get("the", 0) + round(900 * own.total / 991),
        "some": own.counts["some"] + round(90 * own.total / 991),
        "swerve": 1,
    }
    line = refused(SCRIPT, cwd=tmp_path, word_counts="rows.jsonl", **options | {"output_dir": "other"})
    assert "rows.jsonl must hold one or two words and how often they occur a line" in line
    assert not (tmp_path / "other").exists()


def test_documents_need_texts_and_a_training_split(tmp_path):
    (tmp_path / "held").mkdir()
    write(tmp_path / "held" / "test.jsonl", [TEXT])
    write(tmp_path / "numbers.jsonl", [1, 2])
    line = refused(SCRIPT, cwd=tmp_path, documents="numbers.jsonl:body", output_dir="clean")
    assert "column 'body' of split train holds no texts" in line
    line = refused(SCRIPT, cwd=tmp_path, documents="held:body", output_dir="clean")
    assert "held:body hold no clean training texts; their splits are ['test']" in line
    assert not (tmp_path / "clean").exists()
