"""A teacher's answers by the script: written once, gone on with after an interruption, and trained on."""

import json

import pytest
import torch
from datasets import Dataset, load_dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from modeling_yan import YanConfig
from modeling_yan.data.tasks import Task
from modeling_yan.training.distillation import lengths_for_teacher

from ..helpers import ON_CPU, copies, ran, refused, save_tiny_peer, tiny_bert

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
        ".settings.json",
        "pairs.yaml",
        "train.parquet",
        "validation.parquet",
    ]


# Teachers from elsewhere

ROWS = [{"question": f"which number follows {i}", "answer": f"after {i} comes {i + 1}"} for i in range(24)]
SMALL = "{hidden_size: 16, num_attention_heads: 2, intermediate_size: 24, encoder_layers: 1, flow_layers: 1}"


def foreign_tokenizer(**special_tokens: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE of no model's class, which makes token types, too."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet, known = pre_tokenizers.ByteLevel.alphabet(), list(dict.fromkeys(special_tokens.values()))
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=known)
    tokenizer.train_from_iterator([text for row in ROWS for text in row.values()], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens)


def foreign_teacher(kind: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """GPT-2 without a padding token, as it was published, or BART; untrained."""
    torch.manual_seed(0)
    if kind == "gpt2":
        tokenizer = foreign_tokenizer(bos_token="<|endoftext|>", eos_token="<|endoftext|>")
        ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
        return GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes, **ids)), tokenizer
    tokenizer = foreign_tokenizer(bos_token="<s>", pad_token="<pad>", eos_token="</s>")
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    return BartForConditionalGeneration(BartConfig(vocab_size=len(tokenizer), **sizes, **heads)), tokenizer


@pytest.mark.parametrize("kind", ["gpt2", "bart"])
def test_a_teacher_from_elsewhere_with_its_own_tokenizer_is_distilled_in_one_command(tmp_path, kind):
    model, tokenizer = foreign_teacher(kind)
    # Untrained, it may stop at once.
    model.generation_config.min_new_tokens = 4
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "teacher")
    Dataset.from_list(ROWS).to_csv(tmp_path / "my.csv")
    options = {"teacher": "teacher", "distilled_dir": "answers", "output_dir": "yan", "teacher_batch_size": 5}
    columns = {"train_file": "my.csv", "source_column": "question", "target_column": "answer"}
    ran(SCRIPT, cwd=tmp_path, config_overrides=SMALL, max_steps=2, **options, **columns, **ON_CPU)
    answers = [json.loads(line) for line in (tmp_path / "answers" / ".answers.jsonl").read_text().splitlines()]
    assert {row["source"] for row in answers} < {row["question"] for row in ROWS}
    assert any(row["target"] for row in answers)
    teachers, own = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("teacher", "yan"))
    assert own.get_vocab() != teachers.get_vocab()
    report = json.loads((tmp_path / "yan" / "report.json").read_text())
    assert (report["updates"], report["train_rows"]) == (2, len([row for row in answers if row["target"]]))


def test_a_student_around_a_pretrained_encoder_is_distilled_in_one_command(tmp_path):
    model, tokenizer = foreign_teacher("bart")
    model.generation_config.min_new_tokens = 4
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "teacher")
    tiny_bert(tmp_path / "encoder", max_position_embeddings=64)
    Dataset.from_list(ROWS).to_csv(tmp_path / "my.csv")
    options = {"teacher": "teacher", "distilled_dir": "answers", "encoder": "encoder", "output_dir": "yan"}
    columns = {"train_file": "my.csv", "source_column": "question", "target_column": "answer"}
    ran(SCRIPT, cwd=tmp_path, config_overrides="{copy_mechanism: true}", max_steps=2, **options, **columns, **ON_CPU)
    student = YanConfig.from_pretrained(tmp_path / "yan")
    assert (student.encoder_config.model_type, student.copy_mechanism) == ("bert", True)
    assert json.loads((tmp_path / "yan" / "report.json").read_text())["updates"] == 2


@pytest.fixture
def words(tmp_path):
    """Options of a teacher of words, of data and of a task of its own for it."""
    save_tiny_peer(tmp_path / "teacher")
    rows = [{"q": f"w{i} w{i + 1} w{i + 2}", "a": f"w{40 - i}"} for i in range(4, 28)]
    Dataset.from_list(rows).to_csv(tmp_path / "words.csv")
    Task(
        "words", "{q}", "{a}", max_source_length=3, max_target_length=4, metric="exact_match", truncation_side="left"
    ).save(tmp_path / "words.yaml")
    data = {"task": "words.yaml", "train_file": "words.csv", "teacher": "teacher", "distilled_dir": "answers"}
    return {**data, "output_dir": "yan", "config_overrides": SMALL, "max_steps": 1, "save_strategy": "no", **ON_CPU}


def test_answers_that_other_settings_would_change_are_not_gone_on_with(tmp_path, words):
    words["only_write"] = True
    assert "3 answers" in ran(SCRIPT, cwd=tmp_path, max_train_samples=3, **words)
    before = (tmp_path / "answers" / ".answers.jsonl").read_bytes()
    save_tiny_peer(tmp_path / "other", "gpt2")
    for options, message in (
        ({"teacher": "other"}, "teacher (now"),
        ({"teacher_beams": 2}, "teacher_beams (now 2, then 1)"),
        ({"max_target_length": 6}, "max_target_length (now 6, then 4)"),
    ):
        error = refused(SCRIPT, cwd=tmp_path, **{**words, **options})
        assert "--distilled_dir answers was begun with other settings" in error
        assert message in error
    assert (tmp_path / "answers" / ".answers.jsonl").read_bytes() == before
    save_tiny_peer(tmp_path / "teacher", "gpt2")
    assert "files of the teacher (now" in refused(SCRIPT, cwd=tmp_path, **words)


def test_a_student_cuts_and_is_judged_as_its_task_says(tmp_path, words):
    ran(SCRIPT, cwd=tmp_path, max_train_samples=5, **words)
    task = Task.load(str(tmp_path / "yan" / "task.yaml"))
    assert (task.truncation_side, task.metric) == ("left", "exact_match")
    assert AutoTokenizer.from_pretrained(tmp_path / "yan").truncation_side == "left"
    assert json.loads((tmp_path / "yan" / "report.json").read_text())["train_rows"] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": "typical"}, "targets=typical chooses among the answers of the data"),
        ({"config_overrides": "{hidden_size: 17, num_attention_heads: 2}"}, "hidden_size"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_teacher_is_asked(tmp_path, words, options, message):
    assert message in refused(SCRIPT, cwd=tmp_path, **{**words, **options})
    assert not (tmp_path / "answers").exists()


def test_teacher_and_student_must_share_the_token_that_masks_words(workspace, teacher, tmp_path):
    copies(workspace, teacher=teacher)
    tiny_bert(workspace / "bert")
    (workspace / "gaps.yaml").write_text(
        '{source: "{meaning_representation} {mask_token}", target: "{human_reference}"}'
    )
    options = {"teacher": "teacher", "encoder": "bert", "task": "gaps.yaml", "dataset_name": "data", **ON_CPU}
    error = refused(SCRIPT, cwd=workspace, distilled_dir=tmp_path / "distilled", output_dir=tmp_path / "yan", **options)
    assert "the teacher masks words with '<mask>', the model with '[MASK]'" in error


def test_lengths_of_columns_are_the_texts_own_in_the_teachers_tokens():
    tokenizer = foreign_tokenizer(eos_token="</s>")
    sources, targets = ([row[name] for row in ROWS] for name in ("question", "answer"))
    longest = [max(len(tokenizer(text)["input_ids"]) for text in texts) for texts in (sources, targets)]
    assert lengths_for_teacher(tokenizer, sources, targets) == (longest[0], longest[1] + 1)


def test_a_teachers_tokenizer_that_can_neither_pad_nor_end_is_refused(tmp_path):
    model, tokenizer = foreign_teacher("gpt2")[0], foreign_tokenizer(bos_token="<|endoftext|>")
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "teacher")
    Dataset.from_list(ROWS).to_csv(tmp_path / "my.csv")
    options = {"teacher": "teacher", "distilled_dir": "answers", "output_dir": "yan"}
    columns = {"train_file": "my.csv", "source_column": "question", "target_column": "answer"}
    assert "neither a padding nor an end token" in refused(SCRIPT, cwd=tmp_path, **options, **columns, **ON_CPU)
