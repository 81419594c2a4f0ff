"""Recipes and corpora: every recipe is one, corpora stream, pack and stay on disk."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset, DatasetDict
from transformers import HfArgumentParser, Seq2SeqTrainingArguments, TrainingArguments

from modeling_yan import YanForConditionalGeneration
from modeling_yan.training.corpora import load_corpus, load_task_corpus, tokenize_corpus
from modeling_yan.training.scripts import ModelArguments, load_preset, parse_arguments
from modeling_yan.training.tasks import Task
from modeling_yan.training.tokenization import train_tokenizer

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configuration" / "training").glob("*.yaml"))
SWEEPS = sorted((ROOT / "configuration" / "sweeps").glob("*.yaml"))
TEXTS = ["The river runs past the pub.", "A cheap café near the Vaults!", "", None, "The river runs past the pub."]


def data_arguments(script: str):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "examples"))
        return runpy.run_path(str(ROOT / "examples" / script))


def test_there_is_a_recipe_for_every_stage_of_every_preset():
    names = {path.stem for path in RECIPES}
    for preset in ("tiny", "small", "base", "mamba_base"):
        assert {f"autoencoder_{preset}", f"flow_{preset}", f"finetuning_{preset}"} <= names


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses_and_fits_its_model(recipe, monkeypatch, tmp_path):
    options = yaml.safe_load(recipe.read_text())
    autoencoder, reward = recipe.stem.startswith("autoencoder"), "reward" in options
    if reward:
        script = data_arguments("run_reward.py")
        classes = [script["RewardArguments"], TrainingArguments]
    elif autoencoder:
        classes = [data_arguments("run_autoencoder.py")["DataArguments"], TrainingArguments]
    else:
        script = data_arguments("run_distillation.py" if "teacher" in options else "run_flow.py")
        classes = [script["DataArguments"], Seq2SeqTrainingArguments]
        classes += [script["DistillationArguments"]] if "teacher" in options else []
    # bf16 is refused where neither a GPU nor use_cpu says that it is meant.
    flags = [] if "use_cpu" in options or torch.cuda.is_available() else ["--use_cpu"]
    monkeypatch.setattr(sys, "argv", ["script", str(recipe), *flags, "--output_dir", str(tmp_path)])
    model_arguments, data, *_ = parse_arguments(HfArgumentParser([ModelArguments, *classes]))
    if reward:
        monkeypatch.chdir(ROOT)
        Task.load(data.task)
        assert callable(script["load_reward"](data.reward))
        return
    overrides = yaml.safe_load(model_arguments.config_overrides or "{}")
    preset = options.get("preset", "yan-" + recipe.stem.split("_", 1)[1].replace("_", "-"))
    if not autoencoder:
        task = Task.load(data.task)
        if not (ROOT / "configuration" / "models" / f"{preset}.json").exists():
            return
        longest = max(getattr(data, n) or getattr(task, n) for n in ("max_source_length", "max_target_length"))
    else:
        longest = data.max_length
    config = load_preset(preset, **overrides)
    assert longest <= config.max_position_embeddings
    with torch.device("meta"):
        YanForConditionalGeneration(config)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_changes_what_its_recipe_has(path, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    script = data_arguments("run_sweep.py")
    sweep = script["load_sweep"](path)
    parser = HfArgumentParser(
        (ModelArguments, data_arguments("run_flow.py")["DataArguments"], Seq2SeqTrainingArguments)
    )
    for changes in sweep["variants"].values():
        flags = script["as_flags"](script["merge"](sweep["common"], changes or {}))
        monkeypatch.setattr(sys, "argv", ["script", sweep["recipe"], *flags, "--output_dir", str(tmp_path)])
        model_arguments, *_ = parse_arguments(parser)
        load_preset("yan-tiny", **yaml.safe_load(model_arguments.config_overrides or "{}"))


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
    assert corpus["text"] == ["tall, blue", "red", *columns["human_reference"]]
    assert load_task_corpus(str(tmp_path), Task.load("e2e_nlg"), "validation") is None


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


def test_the_script_trains_on_a_packed_stream(folders, tmp_path):
    command = [
        sys.executable, str(ROOT / "examples" / "run_autoencoder.py"), str(ROOT / "configuration/training/autoencoder_tiny.yaml"),
        "--dataset_name", str(folders["arrow"]), "--output_dir", str(tmp_path / "out"), "--train_tokenizer", "300", "--max_length", "8",
        "--max_steps", "2", "--per_device_train_batch_size", "2", "--use_cpu", "--config_overrides", "{hidden_size: 16}",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "a stream" in done.stdout
    assert (tmp_path / "out" / "model.safetensors").exists()
