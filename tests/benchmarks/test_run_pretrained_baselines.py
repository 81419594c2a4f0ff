"""What starts from the same pretrained encoder as YAN: BERT2BERT, a classification head, and marked answers."""

import json

import pytest
import torch
from datasets import Dataset, DatasetDict

from ..helpers import ON_CPU, ran, refused, script_functions, seeded, tiny_bert, word_piece_tokenizer

SPANS = "benchmarks/run_span_baseline.py"
CONTEXT = "river near pubs near river pub"
ANSWERS = ("pubs", "river", "river pub")
TRAINING = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "save_strategy": "no",
    **ON_CPU,
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    tiny_bert(folder)
    return folder


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """Rows of SQuAD's form; the second answer occurs twice, and the place that is named is the second."""
    answers = [(text, CONTEXT.rindex(text)) for text in ANSWERS]
    rows = [
        {
            "question": question,
            "context": CONTEXT,
            "answers": {"text": [f"{text} near", text], "answer_start": [0, start]},
        }
        for question, (text, start) in zip(("river", "pub", "near"), answers, strict=True)
    ]
    folder = tmp_path_factory.mktemp("data") / "questions"
    DatasetDict({name: Dataset.from_list(rows) for name in ("train", "validation")}).save_to_disk(folder)
    return folder


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("benchmarks/run_baseline.py", {"architecture": "bert2bert", "task": "reading", "max_target_length": 4}),
        (SPANS, {}),
    ],
)
def test_a_baseline_trains_and_answers(script, options, encoder, questions, tmp_path):
    ran(
        script,
        cwd=tmp_path,
        encoder=encoder,
        dataset_name=questions,
        output_dir="out",
        max_source_length=20,
        **options,
        **TRAINING,
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["updates"] == 2
    assert report["validation"]["rows"] == 3
    assert 0 <= report["validation"]["f1"] <= 100


def test_a_head_trains_and_names_labels(encoder, tmp_path):
    rows = {"sentence": ["pub near", "river pub"] * 2, "label": [0, 1] * 2}
    DatasetDict({name: Dataset.from_dict(rows) for name in ("train", "validation")}).save_to_disk(tmp_path / "data")
    options = {"task": "sentiment", "dataset_name": "data", "output_dir": "out"}
    ran("benchmarks/run_head_baseline.py", cwd=tmp_path, encoder=encoder, **options, **TRAINING)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["validation"]["exact_match"] in (0, 50, 100)


def test_marks_stand_where_the_answer_was_said_to_be(questions):
    functions = script_functions(SPANS)
    tokenizer, rows = word_piece_tokenizer(), Dataset.load_from_disk(questions / "train")
    marked = functions["mark_answers"](rows, tokenizer, 64)
    for row, expected in zip(marked, ANSWERS, strict=True):
        ids = row["input_ids"][row["start_positions"] : row["end_positions"] + 1]
        assert tokenizer.decode(ids).replace(" ##", "") == expected
    assert marked[1]["start_positions"] > marked[0]["start_positions"]
    # What is left: [CLS] question [SEP] river near pub ##s near [SEP].
    cut = functions["mark_answers"](rows, tokenizer, 9)
    assert [(row["start_positions"], row["end_positions"]) for row in cut] == [(5, 6), (0, 0), (0, 0)]


def test_the_best_span_is_that_of_all_pairs():
    functions = script_functions(SPANS)
    for seed in range(20):
        start, end = torch.randn(2, 9, generator=seeded(seed))
        allowed = torch.rand(9, generator=seeded(seed)) < 0.6
        allowed[4] = True
        places = allowed.nonzero().flatten().tolist()
        pairs = [(i, j) for i in places for j in places if i <= j]
        assert functions["best_span"](start, end, allowed) == max(pairs, key=lambda p: start[p[0]] + end[p[1]])


def test_other_columns_are_named(encoder, tmp_path):
    DatasetDict({"train": Dataset.from_dict({"text": ["a"]})}).save_to_disk(tmp_path / "data")
    error = refused(SPANS, cwd=tmp_path, encoder=encoder, dataset_name="data", output_dir="out", **TRAINING)
    assert "has no columns ['question', 'context', 'answers']" in error
