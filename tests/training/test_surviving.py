"""
Runs that are killed, disks that fill up, data that is not what it should be: a clear word, and nothing good is lost.
"""

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
from modeling_yan.data.tokenization import train_tokenizer
from modeling_yan.training.checkpoints import (
    check_writable,
    is_complete,
    last_complete_checkpoint,
    resolve_resume,
)
from modeling_yan.training.trainer import EMACallback, YanSeq2SeqTrainer

from ..helpers import ON_CPU, ROOT, TEXTS, flags, process_environment, ran, run_script_main, tiny_model

SCRIPT = ROOT / "examples" / "run_flow.py"


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    train_tokenizer(TEXTS, 300, 32).save_pretrained(tmp_path / "tokenizer")
    rows = [{"source": s, "target": t, "references": [t]} for s in TEXTS for t in TEXTS] * 2
    (tmp_path / "data").mkdir()
    Dataset.from_list(rows).to_parquet(tmp_path / "data" / "train.parquet")
    options = {
        "task": "pairs",
        "dataset_name": "data",
        "tokenizer_name": "tokenizer",
        "max_source_length": 32,
        "max_target_length": 32,
        "config_overrides": "{hidden_size: 16, encoder_layers: 1, flow_layers: 2, max_position_embeddings: 32}",
        "max_steps": 30,
        "save_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "ema_decay": 0.9,
        "disable_tqdm": "True",
        **ON_CPU,
    }
    ran(SCRIPT, cwd=tmp_path, output_dir="whole", **options)
    killed, deadline = tmp_path / "killed", time.monotonic() + 120
    command = [sys.executable, SCRIPT, *flags(output_dir="killed", **options)]
    with (tmp_path / "log.txt").open("w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=process_environment(), stdout=log, stderr=log)
    # Killed as soon as a checkpoint is there, in the middle of what follows it; another process can only look for it.
    while last_complete_checkpoint(killed) is None and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert last_complete_checkpoint(killed) is not None, (tmp_path / "log.txt").read_text()[-2000:]
    assert not (killed / "model.safetensors").exists()
    resumed = run_script_main(SCRIPT, cwd=tmp_path, output_dir="killed", resume_from_checkpoint="last", **options)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert "going on from" in resumed.stderr
    expected, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
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
