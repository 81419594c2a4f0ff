"""Baselines: masked diffusion of YAN's size, trained for a budget and evaluated beside it, and a shrunken BART."""

import json

import torch
from transformers import AutoModelForSeq2SeqLM

from modeling_yan.evaluation.text_generation import load_text_model

from ..helpers import E2E_DATA, ON_CPU, YAN_E2E, ran, refused

SCRIPT = "benchmarks/run_baseline.py"


def test_masked_diffusion_of_equal_size_trains_for_a_budget(tmp_path, small_data):
    ran(
        SCRIPT,
        cwd=tmp_path,
        architecture="masked_diffusion",
        task="e2e_nlg",
        dataset_name=small_data,
        tokenizer_name=YAN_E2E,
        like=YAN_E2E,
        layers=2,
        training_flops=6e10,
        output_dir="diffusion",
        per_device_train_batch_size=2,
        per_device_eval_batch_size=32,
        max_eval_samples=4,
        max_target_length=16,
        **ON_CPU,
    )
    report = json.loads((tmp_path / "diffusion" / "report.json").read_text())
    yan = AutoModelForSeq2SeqLM.from_pretrained(YAN_E2E)
    assert abs(report["parameters"] / yan.num_parameters() - 1) < 0.05
    assert report["updates"] >= 1
    assert 3e10 < report["train_flops"] <= 6e10
    assert load_text_model(str(tmp_path / "diffusion")).config.masked_diffusion
    ran(
        "examples/run_evaluation.py",
        cwd=tmp_path,
        model=YAN_E2E,
        task="e2e_nlg",
        dataset_name=E2E_DATA,
        baselines="diffusion",
        diffusion_steps=2,
        max_target_length=16,
        max_rows=5,
        longest_rows=3,
        steps=1,
        candidates=1,
        length_candidates=1,
        speed_rows=2,
        bootstrap=20,
        output="baselines.json",
    )
    evaluated = json.loads((tmp_path / "baselines.json").read_text())
    steps = [row["num_inference_steps"] for row in evaluated["quality"] if row["system"] == "diffusion"]
    assert steps == [2, 16]
    assert evaluated["rows"] == 3
    assert evaluated["training"]["diffusion"]["train_flops"] == report["train_flops"]


def test_a_smaller_bart_begins_as_layers_of_its_teacher(tmp_path, small_data):
    options = {
        "architecture": "bart", "task": "e2e_nlg", "dataset_name": small_data, "tokenizer_name": YAN_E2E,
        "max_target_length": 16, "max_eval_samples": 2, "max_steps": 1, "per_device_train_batch_size": 2, **ON_CPU,
    }  # fmt: skip
    ran(SCRIPT, cwd=tmp_path, **options, layers=4, hidden_size=16, num_attention_heads=2, output_dir="teacher")
    ran(SCRIPT, cwd=tmp_path, **options, teacher="teacher", decoder_layers=1, learning_rate=0, output_dir="small")
    teacher, small = (
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / name).state_dict() for name in ("teacher", "small")
    )
    assert set(teacher) - set(small) == {name for name in teacher if name.startswith("model.decoder.layers.1.")}
    assert all(torch.equal(value, teacher[name]) for name, value in small.items())
    assert json.loads((tmp_path / "small" / "report.json").read_text())["hidden_size"] == 16
    options["output_dir"] = "none"
    assert "decoder_layers=3: teacher has 2" in refused(
        SCRIPT, cwd=tmp_path, **options, teacher="teacher", decoder_layers=3
    )
    assert "say how many decoder_layers it keeps" in refused(SCRIPT, cwd=tmp_path, **options, teacher="teacher")
