"""Restoration from clean texts to scores beside peers: each script once, on the texts of the quickstart."""

import json

import pytest
from datasets import Dataset, load_dataset

from modeling_yan import Lexicon
from modeling_yan.data.redrawn_pairs import RedrawnPairs
from modeling_yan.data.tasks import Task
from modeling_yan.data.tokenization import train_tokenizer
from modeling_yan.evaluation.tagger import CASES, MARKS, TaggedTexts, apply_labels, labels_of

from ..helpers import ON_CPU, ROOT, ran, refused

TEXTS = ROOT / "examples" / "data" / "restore" / "test.parquet"
SIZES = "{hidden_size: 16, num_attention_heads: 2, intermediate_size: 32, encoder_layers: 1, flow_layers: 1, \
decoder_layers: 0, num_experts: 1, max_position_embeddings: 256, length_head: source, canvas_ratio: 2, \
tie_word_embeddings: true, prediction_type: data, cross_attention_layers: [], \
training_config: {nll_loss_weight: 0, mse_loss_weight: 0, denoising_ce_loss_weight: 0}}"
TRAINING = {"max_steps": 1, "per_device_train_batch_size": 4, "save_strategy": "no", **ON_CPU}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The texts by split, a model, and its peers, each after one update."""
    folder = tmp_path_factory.mktemp("restoration")
    ran("examples/prepare_restoration.py", cwd=folder, documents=f"{TEXTS}:text", output_dir="clean", held_out=0.2)
    data = {"task": "restore", "dataset_name": "clean", "train_sampling_strategy": "group_by_length", **TRAINING}
    ran(
        "examples/run_flow.py", cwd=folder, **data, config_overrides=SIZES, train_tokenizer=512, output_dir="yan",
        max_eval_samples=2,
    )  # fmt: skip
    ran(
        "benchmarks/run_baseline.py", cwd=folder, **data, architecture="bart", layers=3, decoder_layers=1,
        hidden_size=16, num_attention_heads=2, tokenizer_name="yan", output_dir="bart", max_eval_samples=2,
        init_std=0.05,
    )  # fmt: skip
    ran("benchmarks/run_tagger_baseline.py", cwd=folder, like="yan", output_dir="tagger", **data)
    return folder


@pytest.mark.slow
def test_all_systems_are_scored_on_the_same_texts(folder):
    pytest.importorskip("ctranslate2")
    shown = ran(
        "benchmarks/run_restoration.py", cwd=folder, model="yan", dataset_name="clean", baselines="bart",
        tagger="tagger", rows=6, timed=2, batch_size=4, num_bootstrap=10, output="report.json",
    )  # fmt: skip
    report = json.loads((folder / "report.json").read_text())
    scores = report["scores"]["test"]
    assert list(scores) == [
        "unchanged",
        "YAN",
        "YAN, restore()",
        "YAN, ONNX Runtime float32",
        "YAN, restore(), ONNX Runtime float32",
        "YAN, ONNX Runtime int8",
        "YAN, restore(), ONNX Runtime int8",
        "bart (2+1), CTranslate2 float32",
        "bart (2+1), CTranslate2 int8",
        "tagger",
    ]
    assert {own["num_rows"] for own in scores.values()} == {6}
    assert {own["source_word_error_rate"] for own in scores.values()} == {scores["unchanged"]["word_error_rate"]}
    for name in ("YAN", "YAN, restore()"):
        assert scores[name] == scores[f"{name}, ONNX Runtime float32"]
    assert set(report["speed"]) - set(scores) == {
        f"deep encoder, one decoder layer, CTranslate2 {kind}, random weights" for kind in ("float32", "int8")
    }
    assert report["training"]["bart"]["updates"] == 1
    assert "texts a second" in shown


def test_a_test_split_is_needed(folder):
    ran("examples/prepare_restoration.py", cwd=folder, documents=f"{TEXTS}:text", output_dir="whole", held_out=0)
    line = refused("benchmarks/run_restoration.py", cwd=folder, model="yan", dataset_name="whole", output="r.json")
    assert "has no split 'test'" in line


def test_the_words_of_the_training_texts_are_counted(folder):
    texts = load_dataset(str(folder / "clean"), split="train")["text"]
    assert Lexicon.from_pretrained(folder / "clean").counts == Lexicon.count(texts).counts


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ("clean", "no text files (*.txt) and no Standard Ebooks"),
        (f"{TEXTS}:body", "has no column 'body'"),
        (str(TEXTS.name), "names no column"),
    ],
)
def test_documents_that_cannot_be_read_are_refused(folder, documents, message):
    line = refused("examples/prepare_restoration.py", cwd=folder, documents=documents, output_dir="none")
    assert message in line


def test_what_was_trained_on_is_not_held_out(tmp_path):
    told = ["Have a nice day, then.", "Nobody saw him go."]
    (tmp_path / "talks").mkdir()
    for split, texts in {"train": told[:1], "validation": told, "test": told[::-1]}.items():
        Dataset.from_dict({"text": texts}).to_parquet(tmp_path / "talks" / f"{split}.parquet")
    ran("examples/prepare_restoration.py", cwd=tmp_path, documents="talks:text", output_dir="clean")
    files = {split: str(tmp_path / "clean" / f"{split}.parquet") for split in ("train", "validation", "test")}
    rows = load_dataset("parquet", data_files=files)
    assert {split: rows[split]["text"][:] for split in rows} == {
        "train": told[:1],
        "validation": told[1:],
        "test": told[1:],
    }


def test_text_files_are_documents_whose_lines_may_be_wrapped(tmp_path):
    (tmp_path / "texts" / "more").mkdir(parents=True)
    (tmp_path / "texts" / "wrapped.txt").write_text("It was late when\nhe left the house.\n\nNobody saw him go.\n")
    (tmp_path / "texts" / "more" / "lines.txt").write_text("The cat is at home.\nThe dog is not here.")
    ran("examples/prepare_restoration.py", cwd=tmp_path, documents="texts", output_dir="clean", held_out=0)
    texts = load_dataset(str(tmp_path / "clean"), split="train")["text"]
    assert sorted(" ".join(texts).replace(". ", ".\n").split("\n")) == [
        "It was late when he left the house.",
        "Nobody saw him go.",
        "The cat is at home.",
        "The dog is not here.",
    ]


def test_chapters_of_books_are_documents(tmp_path):
    pages = tmp_path / "books" / "author_title" / "src" / "epub" / "text"
    pages.mkdir(parents=True)
    (pages / "chapter-1.xhtml").write_text("<p>“It is <i>late</i>,” he said &amp; left.</p>\n<p>Nobody saw him go.</p>")
    (pages / "colophon.xhtml").write_text("<p>This is not the author's own text.</p>")
    ran("examples/prepare_restoration.py", cwd=tmp_path, documents="books", output_dir="clean", held_out=0)
    rows = load_dataset("parquet", data_files=str(tmp_path / "clean" / "train.parquet"), split="train")
    assert sorted(rows["text"]) == ['"It is late," he said & left.', "Nobody saw him go."]


@pytest.fixture(scope="module")
def pairs():
    task = Task.load("restore").with_lengths(512, 512)
    rows = load_dataset("parquet", data_files=str(TEXTS), split="train").select(range(40))
    return task, task.build(rows), train_tokenizer(rows["text"], 512, 512)


def test_pairs_are_drawn_anew_and_repeated_by_their_seed(pairs):
    task, rows, tokenizer = pairs
    first, again = (RedrawnPairs(rows, task, tokenizer, seed=1) for _ in range(2))
    epochs = [[first[index] for index in range(40)] for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert epochs[0] == [again[index] for index in range(40)]
    for index, pair in enumerate(epochs[0]):
        assert tokenizer.decode(pair["labels"], skip_special_tokens=True) == rows[index]["target"]
        assert len(pair["input_ids"]) == len(pair["attention_mask"])
    assert first.lengths == [len(tokenizer(source)["input_ids"]) for source in rows["source"]]


def test_labels_give_capitals_and_marks_back():
    source = ["well", "mcdonald", "s", "nasa", "came", "at", "9:30", "did", "he"]
    target = ["Well,", "McDonald's", "NASA", "came", "at", "9:30.", "Did", "he?"]
    labels = labels_of(source, target)
    assert labels[3] == CASES.index("upper") * len(MARKS)
    assert apply_labels(source[3:], labels[3:]) == "NASA came at 9:30. Did he?"


def test_labels_stand_at_the_first_tokens_of_words(pairs):
    task, rows, tokenizer = pairs
    tagged = TaggedTexts(rows, task, tokenizer, seed=0)
    row = tagged[0]
    shown = [tokenizer.decode([i]) for i, label in zip(row["input_ids"], row["labels"], strict=True) if label >= 0]
    assert len(row["labels"]) == len(row["input_ids"])
    _, labels = tagged.encode("did he come at 9:30", "Did he come at 9:30?")
    assert apply_labels(["did", "he", "come", "at", "9:30"], [n for n in labels if n >= 0]) == "Did he come at 9:30?"
    assert all(piece.startswith(" ") for piece in shown[1:])
