"""Stages 2 and 3 by their script: what it writes, logs and resumes, and how it refuses."""

import json

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from modeling_yan import YanForConditionalGeneration, YanForMaskedLM
from modeling_yan.data.tasks import Task, load_rows
from modeling_yan.evaluation.metrics import score_texts

from ..helpers import E2E_DATA, ON_CPU, ran, refused, run_script_main

SCRIPT = "examples/run_flow.py"
E2E = {"task": "e2e_nlg", "dataset_name": "data", **ON_CPU}


def test_it_trains_from_the_autoencoder_logs_every_term_and_resumes(workspace):
    options = {
        "model_name_or_path": "autoencoder",
        "output_dir": "flow",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "logging_steps": 2,
        "per_device_train_batch_size": 8,
        "freeze": "encoder,decoder",
        "metric_for_best_model": "bleu",
        "load_best_model_at_end": True,
        "ema_decay": 0.9,
        **E2E,
    }
    ran(SCRIPT, cwd=workspace, max_steps=2, **options)
    folder = workspace / "flow"
    log = json.loads((folder / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    assert {"nll_loss", "mse_loss", "ce_loss", "length_loss"} <= set(log[0])
    assert any("eval_bleu" in entry for entry in log)
    assert (folder / "checkpoint-2" / "ema.safetensors").exists()
    seen = {"gate_entropy", "expert_usage_0", "expert_usage_1", "grad_norm", "tokens_per_second", "memory_mib"}
    assert seen <= set(log[0])
    assert log[0]["expert_usage_0"] + log[0]["expert_usage_1"] == pytest.approx(1, abs=1e-3)
    table = ran(SCRIPT, cwd=workspace, max_steps=4, resume_from_checkpoint="flow/checkpoint-2", plots=True, **options)
    assert "step 4" in table
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in samples] == [2] * (len(samples) // 2) + [4] * (len(samples) // 2)
    assert all({"source", "answer", "reference"} <= row.keys() for row in samples)
    assert all((folder / name).stat().st_size > 10_000 for name in ("training.png", "latents.png"))
    report = json.loads((folder / "report.json").read_text())
    assert report["updates"] == 4
    assert {"nll_loss", "expert_usage_1"} <= report["last_terms"].keys()
    assert report["latents"]["std"] > 0
    assert report["trained_parameters"] < report["parameters"]
    assert "bleu" in report["validation"]
    # What was frozen is what the autoencoder had, and the options survive for the next user.
    flow = AutoModelForSeq2SeqLM.from_pretrained(folder)
    frozen = YanForMaskedLM.from_pretrained(workspace / "autoencoder").state_dict()
    assert all(torch.equal(flow.state_dict()[name], value) for name, value in frozen.items())
    assert flow.generation_config.max_length == 128
    assert flow.generation_config.num_inference_steps == 3


def test_a_recipe_file_with_an_override_trains_a_lora_adapter(workspace):
    recipe = {
        "model_name_or_path": "autoencoder",
        "output_dir": "lora",
        "use_lora": True,
        "max_steps": 50,
        "per_device_train_batch_size": 4,
        "max_train_samples": 16,
        "max_eval_samples": 4,
        **E2E,
    }
    (workspace / "recipe.json").write_text(json.dumps(recipe))
    ran(SCRIPT, "recipe.json", cwd=workspace, max_steps=2)
    assert json.loads((workspace / "lora" / "report.json").read_text())["updates"] == 2
    assert (workspace / "lora" / "adapter_model.safetensors").exists()


def test_a_new_model_has_a_tokenizer_of_its_own(workspace):
    ran(
        SCRIPT,
        cwd=workspace,
        output_dir="new",
        train_tokenizer=300,
        max_steps=2,
        per_device_train_batch_size=8,
        **E2E,
    )
    tokenizer = AutoTokenizer.from_pretrained(workspace / "new", trust_remote_code=True)
    assert len(tokenizer) <= 300
    model = YanForConditionalGeneration.from_pretrained(workspace / "new")
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.decode(tokenizer("name[Aromi]")["input_ids"], skip_special_tokens=True) == "name[Aromi]"


def test_short_answers_on_a_filled_canvas_need_no_length(workspace):
    ran(
        SCRIPT,
        cwd=workspace,
        model_name_or_path="autoencoder",
        fill_canvas="True",
        targets="typical",
        max_target_length=12,
        max_eval_samples=4,
        output_dir="filled",
        max_steps=2,
        save_strategy="no",
        per_device_train_batch_size=8,
        **E2E,
    )
    options = GenerationConfig.from_pretrained(workspace / "filled")
    assert (options.length_mode, options.max_new_tokens) == ("canvas", 12)
    report, before = (json.loads((workspace / name / "report.json").read_text()) for name in ("filled", "autoencoder"))
    assert report["total_train_flops"] == pytest.approx(report["train_flops"] + before["train_flops"])
    # Fewer rows than references: one to a source.
    assert report["train_rows"] < 120
    ran(
        "examples/run_evaluation.py",
        cwd=workspace,
        model="filled",
        task="e2e_nlg",
        dataset_name=E2E_DATA,
        max_rows=3,
        steps=1,
        candidates=1,
        speed_rows=2,
        bootstrap=20,
        output="filled.json",
    )
    evaluated = json.loads((workspace / "filled.json").read_text())
    assert [row.get("length") for row in evaluated["quality"]] == [None, "canvas"]
    assert evaluated["length_head"] is None
    # The ceiling is the decoder's reading of the latents of a reference, here row by row.
    model = AutoModelForSeq2SeqLM.from_pretrained(workspace / "filled")
    tokenizer, task = AutoTokenizer.from_pretrained(workspace / "filled"), Task.load("e2e_nlg")
    rows, texts = load_rows(str(E2E_DATA), task, "test", max_rows=3), []
    for text in rows["target"]:
        read = tokenizer(text, truncation=True, max_length=task.max_target_length, return_tensors="pt")
        ids = model.decoder(model.get_encoder()(**read).last_hidden_state).argmax(-1)
        texts += [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    assert evaluated["quality"][0]["bleu"] == pytest.approx(score_texts(texts, rows["references"])["bleu"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "nonsense"}, "nonsense"),
        ({"task": "squad"}, "answers.text"),
        ({"train_tokenizer": 300}, "train_tokenizer=300"),
        ({"freeze": "brain"}, "brain"),
        ({"config_overrides": "{x: 1}"}, "'x'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_end_with_one_clear_line(workspace, options, message):
    options = {"model_name_or_path": "autoencoder", "output_dir": "refused", **E2E, **options}
    assert message in refused(SCRIPT, cwd=workspace, **options)


def test_unknown_recipe_keys_are_refused(workspace):
    (workspace / "bad.yaml").write_text("task: e2e_nlg\nlearning_rat: 0.1\n")
    assert "learning_rat" in refused(SCRIPT, "bad.yaml", cwd=workspace)
    assert "no file" in refused(SCRIPT, "absent.yaml", cwd=workspace)


GOOD = {"source": "a", "target": "b", "references": ["b"]}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"source": "a", "answer": "b"}], {}, "column 'target' is not in the data"),
        ([{"source": "a", "target": ""}], {}, "row 1: task pairs: the target of a row is empty"),
        ([GOOD, {**GOOD, "source": None}], {}, "row 2: task pairs: column 'source' is empty"),
        ([{"source": ["a", "b"], "target": "b"}], {}, "column 'source' holds a list, ['a', 'b'], not text"),
        ([GOOD], {"max_source_length": 1024}, "max_position_embeddings="),
        ([GOOD], {"output_dir": "autoencoder/config.json/out"}, "cannot be written to"),
        ([GOOD], {"resume_from_checkpoint": "none/checkpoint-5"}, "not a complete checkpoint"),
    ],
    ids=["column", "empty", "none", "list", "length", "folder", "checkpoint"],
)
def test_messy_data_and_bad_settings_end_with_one_clear_line(workspace, rows, options, message):
    (workspace / "messy").mkdir()
    Dataset.from_list(rows).to_parquet(workspace / "messy" / "train.parquet")
    lengths = {"max_source_length": 32, "max_target_length": 32}
    fixed = {"model_name_or_path": "autoencoder", "task": "pairs", "dataset_name": "messy", "output_dir": "out"}
    assert message in refused(SCRIPT, cwd=workspace, **{**fixed, **lengths, **ON_CPU, **options})


def test_long_rows_are_cut_and_counted(workspace):
    (workspace / "long").mkdir()
    Dataset.from_list([{**GOOD, "source": "river " * 50}] * 4).to_parquet(workspace / "long" / "train.parquet")
    done = run_script_main(
        SCRIPT,
        cwd=workspace,
        model_name_or_path="autoencoder",
        task="pairs",
        dataset_name="long",
        output_dir="out",
        max_source_length=32,
        max_target_length=32,
        max_steps=1,
        **ON_CPU,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "input_ids: 4 of 4 rows reach 32 tokens and may have been cut" in done.stderr
    assert json.loads((workspace / "out" / "report.json").read_text())["updates"] == 1
