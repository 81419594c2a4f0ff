"""Runs that are killed, disks that fill up, data that is not what it should be: a clear word, and nothing good is lost."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainingArguments, TrainerCallback

from modeling_yan import YanForConditionalGeneration
from modeling_yan.training.checkpoints import (
    check_writable,
    is_complete,
    last_complete_checkpoint,
    resolve_resume,
)
from modeling_yan.training.tokenization import train_tokenizer
from modeling_yan.training.trainer import EMACallback, YanSeq2SeqTrainer

from ..conftest import tiny_model

ROOT = Path(__file__).parents[2]
TEXTS = ["a cheap pub near the river", "an expensive restaurant", "the Vaults", "kid friendly coffee in the centre"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A tokenizer and a data set of pairs."""
    path = tmp_path_factory.mktemp("surviving")
    train_tokenizer(TEXTS, 300, 32).save_pretrained(path / "tokenizer")
    rows = [{"source": s, "target": t} for s in TEXTS for t in TEXTS] * 2
    (path / "data").mkdir()
    Dataset.from_list(rows).to_parquet(path / "data" / "train.parquet")
    return path


def command(workspace: Path, *flags: str, data: str = "data", steps: int = 12) -> list[str]:
    return [
        sys.executable, str(ROOT / "examples" / "run_flow.py"), "--task", "pairs", "--dataset_name", data,
        "--tokenizer_name", "tokenizer", "--max_source_length", "32", "--max_target_length", "32", "--config_overrides",
        "{hidden_size: 16, intermediate_size: 24, encoder_layers: 1, flow_layers: 2, max_position_embeddings: 32}",
        "--max_steps", str(steps), "--save_steps", "2", "--logging_steps", "1", "--per_device_train_batch_size", "4",
        "--learning_rate", "0.01", "--report_to", "none", "--use_cpu", "--disable_tqdm", "True", *flags,
    ]  # fmt: skip


def environment() -> dict:
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def run(workspace: Path, *flags: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(workspace, *flags, **options), cwd=workspace, env=environment(), capture_output=True, text=True
    )


def test_a_killed_run_goes_on_to_the_same_weights(workspace):
    whole = run(workspace, "--output_dir", "whole", "--ema_decay", "0.9")
    assert whole.returncode == 0, whole.stderr[-2000:]
    process = subprocess.Popen(
        command(workspace, "--output_dir", "killed", "--ema_decay", "0.9"),
        cwd=workspace,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # Somewhere after the first checkpoint; the moment is not chosen by the test.
    killed, deadline = workspace / "killed", time.monotonic() + 120
    while last_complete_checkpoint(killed) is None and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.random() * 0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert last_complete_checkpoint(killed) is not None
    resumed = run(workspace, "--output_dir", "killed", "--ema_decay", "0.9", "--resume_from_checkpoint", "last")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert "going on from" in resumed.stderr
    expected = load_file(workspace / "whole" / "model.safetensors")
    ours = load_file(workspace / "killed" / "model.safetensors")
    assert expected.keys() == ours.keys()
    assert [name for name in expected if not torch.equal(expected[name], ours[name])] == []


def trainer(path: Path, *callbacks: TrainerCallback, **options) -> YanSeq2SeqTrainer:
    tokenizer = train_tokenizer(TEXTS, 300, 32)
    pairs = [(tokenizer(s)["input_ids"], tokenizer(t)["input_ids"]) for s in TEXTS for t in TEXTS]
    rows = Dataset.from_list([{"input_ids": s, "attention_mask": [1] * len(s), "labels": t} for s, t in pairs])
    settings = {"max_steps": 6, "save_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1, **options}
    arguments = Seq2SeqTrainingArguments(path, report_to="none", use_cpu=True, disable_tqdm=True, **settings)
    return YanSeq2SeqTrainer(
        tiny_model(vocab_size=300).train(),
        arguments,
        train_dataset=rows,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=list(callbacks),
    )


class FullDisk(TrainerCallback):
    """From a step on, files of more than 20 kB cannot be written: the kernel refuses as it does on a full disk."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match=r"checkpoint-4 could not be written and was removed.*checkpoint-2"):
            trainer(tmp_path, FullDisk(2)).train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-2"]
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    YanForConditionalGeneration.from_pretrained(tmp_path / "checkpoint-2")
    resumed = trainer(tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 6


class Poison(TrainerCallback):
    def on_step_begin(self, args, state, control, model=None, **kwargs):
        if state.global_step == 3:
            model.decoder.lm_head.bias.data.fill_(float("nan"))


def test_a_nan_loss_stops_before_it_is_saved(tmp_path):
    with pytest.raises(ValueError, match=r"loss is nan at step 4.*ce_loss.*checkpoint-2"):
        trainer(tmp_path, Poison()).train()
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-2"]
    weights = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


def test_incomplete_checkpoints_are_passed_over(tmp_path):
    trainer(tmp_path).train()
    newest = tmp_path / "checkpoint-6"
    assert last_complete_checkpoint(tmp_path) == newest
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert not is_complete(newest)
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    (tmp_path / "checkpoint-4" / "trainer_state.json").unlink()
    arguments = Seq2SeqTrainingArguments(tmp_path, resume_from_checkpoint="last", use_cpu=True)
    assert resolve_resume(arguments) == str(tmp_path / "checkpoint-2")
    arguments.resume_from_checkpoint = str(newest)
    with pytest.raises(ValueError, match=r"checkpoint-6 is not a complete checkpoint.*checkpoint-2"):
        resolve_resume(arguments)
    fresh = Seq2SeqTrainingArguments(tmp_path / "new", resume_from_checkpoint="last", use_cpu=True)
    assert resolve_resume(fresh) is None


def test_average_that_cannot_be_restored_is_refused(tmp_path):
    trainer(tmp_path).train()
    with pytest.raises(ValueError, match="leave ema_decay out"):
        trainer(tmp_path, EMACallback(0.9), max_steps=8).train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


class Killed(BaseException):
    """Nothing in the code under test catches it, as nothing catches a kill."""


def test_a_checkpoint_is_complete_only_once_its_average_is_written(tmp_path, monkeypatch):
    def killed(self, folder):
        raise Killed

    trainer(tmp_path, EMACallback(0.9), max_steps=2).train()
    monkeypatch.setattr(EMACallback, "save", killed)
    with pytest.raises(Killed):
        trainer(tmp_path, EMACallback(0.9), max_steps=4).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert (tmp_path / "checkpoint-2" / "ema.safetensors").exists()


def test_an_output_folder_that_cannot_be_written_to_is_refused_first(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"output_dir=.*cannot be written to"):
        check_writable(tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        ([{"source": "a", "answer": "b"}], (), "column 'target' is not in the data"),
        ([{"source": "a", "target": ""}], (), "row 0: task pairs: the target of a row is empty"),
        ([{"source": "a", "target": "b"}, {"source": None, "target": "b"}], (), "row 1: task pairs: column 'source' is empty"),
        ([{"source": ["a", "b"], "target": "b"}], (), "column 'source' holds a list, ['a', 'b'], not text"),
        ([{"source": "a", "target": "b"}], ("--max_source_length", "64"), "max_position_embeddings=32"),
        ([{"source": "a", "target": "b"}], ("--output_dir", "tokenizer/tokenizer.json/out"), "cannot be written to"),
        ([{"source": "a", "target": "b"}], ("--resume_from_checkpoint", "none/checkpoint-5"), "not a complete checkpoint"),
        ([{"source": "a", "target": "b"}], ("--num_targets", "2"), "num_targets=2 is for targets=easiest"),
    ],
)  # fmt: skip
def test_messy_data_and_bad_settings_end_with_one_clear_line(workspace, tmp_path, rows, flags, message):
    Dataset.from_list(rows).to_parquet(tmp_path / "train.parquet")
    done = run(workspace, "--output_dir", str(tmp_path / "out"), *flags, data=str(tmp_path))
    assert done.returncode == 2, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert message in lines[0]


def test_long_rows_are_cut_and_counted(workspace, tmp_path):
    Dataset.from_list([{"source": "river " * 50, "target": "b"}] * 4).to_parquet(tmp_path / "train.parquet")
    done = run(workspace, "--output_dir", str(tmp_path / "out"), data=str(tmp_path), steps=1)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "input_ids: 4 of 4 rows reach 32 tokens and may have been cut" in done.stderr
    assert json.loads((tmp_path / "out" / "report.json").read_text())["updates"] == 1
