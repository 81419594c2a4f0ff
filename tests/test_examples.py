"""The scripts as a user runs them: tiny settings, real text from small files, what they write and how they refuse."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, load_dataset
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from modeling_yan import YanForConditionalGeneration, YanForMaskedLM
from modeling_yan.evaluation.text_generation import load_text_model

ROOT = Path(__file__).parents[1]
DATA = ROOT / "examples" / "data" / "e2e_nlg"


def run(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    command = [sys.executable, str(ROOT / "examples" / script), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def ran(script: str, *arguments: str, cwd: Path) -> str:
    done = run(script, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def refused(script: str, *arguments: str, cwd: Path) -> str:
    done = run(script, *arguments, cwd=cwd)
    assert done.returncode == 2, done.stderr[-3000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr[-3000:]
    return lines[0]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """A small data set of real rows, an autoencoder and a teacher trained for a few updates."""
    path = tmp_path_factory.mktemp("examples")
    rows = load_dataset(str(DATA))["test"]
    (path / "data").mkdir()
    rows.select(range(120)).to_parquet(path / "data" / "train.parquet")
    rows.select(range(300, 330)).to_parquet(path / "data" / "validation.parquet")
    common = [
        "--max_steps",
        "3",
        "--per_device_train_batch_size",
        "8",
        "--report_to",
        "none",
        "--use_cpu",
        "--save_strategy",
        "no",
    ]
    ran(
        "run_autoencoder.py", "--train_tokenizer", "400", "--dataset_name", "data", "--text_columns", "meaning_representation",
        "human_reference", "--config_overrides", "{hidden_size: 32, intermediate_size: 64}", "--output_dir", "autoencoder",
        "--ema_decay", "0.9", *common, cwd=path,
    )  # fmt: skip
    ran(
        "baselines/run_baseline.py", "--architecture", "gpt2", "--task", "e2e_nlg", "--dataset_name", "data",
        "--tokenizer_name", "autoencoder", "--hidden_size", "32", "--layers", "1", "--output_dir", "teacher", *common, cwd=path,
    )  # fmt: skip
    # Three updates teach it no more than to stop at once.
    generation = GenerationConfig.from_pretrained(path / "teacher")
    generation.min_new_tokens = 4
    generation.save_pretrained(path / "teacher")
    return path


FLOW = ["--per_device_train_batch_size", "8", "--report_to", "none", "--use_cpu", "--logging_steps", "2"]


def test_autoencoder_folder_is_a_loadable_model_with_its_metrics(workspace):
    model = YanForMaskedLM.from_pretrained(workspace / "autoencoder")
    assert model.config.vocab_size == 400
    metrics = json.loads((workspace / "autoencoder" / "eval_results.json").read_text())
    assert 0 <= metrics["eval_token_accuracy"] <= 1


def test_flow_trains_from_the_autoencoder_logs_every_term_and_resumes(workspace):
    arguments = [
        "--model_name_or_path", "autoencoder", "--task", "e2e_nlg", "--dataset_name", "data", "--output_dir", "flow",
        "--save_steps", "2", "--eval_strategy", "steps", "--eval_steps", "2", "--freeze", "encoder,decoder",
        "--metric_for_best_model", "bleu", "--load_best_model_at_end", "--ema_decay", "0.9", *FLOW,
    ]  # fmt: skip
    ran("run_flow.py", *arguments, "--max_steps", "2", cwd=workspace)
    log = json.loads((workspace / "flow" / "checkpoint-2" / "trainer_state.json").read_text())["log_history"]
    assert {"nll_loss", "mse_loss", "ce_loss", "length_loss"} <= set(log[0])
    assert any("eval_bleu" in entry for entry in log)
    assert (workspace / "flow" / "checkpoint-2" / "ema.safetensors").exists()
    seen = {"gate_entropy", "expert_usage_0", "expert_usage_1", "grad_norm", "tokens_per_second", "memory_mib"}
    assert seen <= set(log[0])
    assert log[0]["expert_usage_0"] + log[0]["expert_usage_1"] == pytest.approx(1, abs=1e-3)
    resumed = [*arguments, "--max_steps", "4", "--resume_from_checkpoint", "flow/checkpoint-2", "--plots"]
    table = ran("run_flow.py", *resumed, cwd=workspace)
    assert "step 4" in table
    samples = [json.loads(line) for line in (workspace / "flow" / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in samples] == [2] * (len(samples) // 2) + [4] * (len(samples) // 2)
    assert all({"source", "answer", "reference"} <= row.keys() for row in samples)
    assert all((workspace / "flow" / name).stat().st_size > 10_000 for name in ("training.png", "latents.png"))
    report = json.loads((workspace / "flow" / "report.json").read_text())
    assert report["updates"] == 4
    assert {"nll_loss", "expert_usage_1"} <= report["last_terms"].keys()
    assert report["latents"]["std"] > 0
    assert report["trained_parameters"] < report["parameters"]
    assert "bleu" in report["validation"]
    # What was frozen is what the autoencoder had, and the options survive for the next user.
    flow = AutoModelForSeq2SeqLM.from_pretrained(workspace / "flow")
    frozen = YanForMaskedLM.from_pretrained(workspace / "autoencoder").state_dict()
    assert all(torch.equal(flow.state_dict()[name], value) for name, value in frozen.items())
    assert flow.generation_config.max_length == 128
    assert flow.generation_config.num_inference_steps == 3


def test_recipe_file_with_an_override_trains_a_lora_adapter(workspace):
    recipe = {
        "model_name_or_path": "autoencoder",
        "task": "e2e_nlg",
        "dataset_name": "data",
        "output_dir": "lora",
        "use_lora": True,
        "max_steps": 50,
        "per_device_train_batch_size": 4,
        "report_to": "none",
        "use_cpu": True,
        "max_train_samples": 16,
        "max_eval_samples": 4,
    }
    (workspace / "recipe.json").write_text(json.dumps(recipe))
    ran("run_flow.py", "recipe.json", "--max_steps", "2", cwd=workspace)
    assert json.loads((workspace / "lora" / "report.json").read_text())["updates"] == 2
    assert (workspace / "lora" / "adapter_model.safetensors").exists()


def test_a_flow_is_trained_from_a_new_model_and_tokenizer(workspace):
    arguments = [
        "--task",
        "e2e_nlg",
        "--dataset_name",
        "data",
        "--output_dir",
        "new",
        "--train_tokenizer",
        "300",
        *FLOW,
    ]
    ran("run_flow.py", *arguments, "--max_steps", "2", cwd=workspace)
    tokenizer = AutoTokenizer.from_pretrained(workspace / "new", trust_remote_code=True)
    assert len(tokenizer) <= 300
    model = YanForConditionalGeneration.from_pretrained(workspace / "new")
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.decode(tokenizer("name[Aromi]")["input_ids"], skip_special_tokens=True) == "name[Aromi]"


def test_distillation_writes_answers_resumes_and_trains(workspace):
    arguments = [
        "--teacher", "teacher", "--task", "e2e_nlg", "--dataset_name", "data", "--distilled_dir", "distilled",
        "--model_name_or_path", "autoencoder", "--output_dir", "distilled-yan", "--teacher_batch_size", "4", *FLOW,
    ]  # fmt: skip
    ran(
        "run_distillation.py",
        *arguments,
        "--only_write",
        "--extra_sources",
        "6",
        "--crossed_sources",
        "4",
        cwd=workspace,
    )
    path = workspace / "distilled" / "answers.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    train = {row["meaning_representation"] for row in load_dataset(str(workspace / "data"))["train"]}
    assert len(lines) == len(train) + 6 + 4
    # Given sources keep what people wrote, made-up ones have the teacher's answer alone.
    rows = load_dataset("parquet", data_files=str(workspace / "distilled" / "train.parquet"))["train"]
    human = {row["human_reference"] for row in load_dataset(str(workspace / "data"))["train"]}
    assert all(set(row["references"]) <= human for row in rows if row["source"] in train)
    assert all(row["references"] == [row["target"]] for row in rows if row["source"] not in train)
    # An interruption in the middle of a line.
    path.write_bytes(b"".join(lines[:5]) + lines[5][:10])
    ran(
        "run_distillation.py",
        *arguments,
        "--extra_sources",
        "6",
        "--crossed_sources",
        "4",
        "--max_steps",
        "2",
        cwd=workspace,
    )
    assert path.read_bytes() == whole
    report = json.loads((workspace / "distilled-yan" / "report.json").read_text())
    assert report["train_rows"] <= len(lines)
    message = refused(
        "run_distillation.py", *arguments, "--extra_sources", "6", "--seed", "7", "--only_write", cwd=workspace
    )
    assert "other sources" in message


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("run_flow.py", ["--task", "nonsense", "--dataset_name", "data", "--model_name_or_path", "autoencoder"], "nonsense"),
        ("run_flow.py", ["--task", "squad", "--dataset_name", "data", "--model_name_or_path", "autoencoder"], "answers.text"),
        ("run_flow.py", ["--task", "e2e_nlg", "--dataset_name", "data"], "tokenizer_name"),
        (
            "run_flow.py",
            ["--task", "e2e_nlg", "--dataset_name", "data", "--model_name_or_path", "autoencoder", "--train_tokenizer", "300"],
            "train_tokenizer=300",
        ),
        (
            "run_flow.py",
            ["--task", "e2e_nlg", "--dataset_name", "data", "--model_name_or_path", "autoencoder", "--freeze", "brain"],
            "brain",
        ),
        (
            "run_flow.py",
            ["--task", "e2e_nlg", "--dataset_name", "data", "--model_name_or_path", "autoencoder", "--config_overrides", "{x: 1}"],
            "'x'",
        ),
        ("run_autoencoder.py", ["--dataset_name", "data", "--text_columns", "prose", "--train_tokenizer", "400"], "prose"),
        (
            "run_autoencoder.py",
            ["--dataset_name", "data", "--task", "e2e_nlg", "--distinct", "--train_tokenizer", "400"],
            "distinct=True",
        ),
    ],
)  # fmt: skip
def test_bad_arguments_end_with_one_clear_line(workspace, script, arguments, message):
    assert message in refused(
        script, *arguments, "--output_dir", "refused", "--use_cpu", "--report_to", "none", cwd=workspace
    )


def test_unknown_recipe_keys_are_refused(workspace):
    (workspace / "bad.yaml").write_text("task: e2e_nlg\nlearning_rat: 0.1\n")
    assert "learning_rat" in refused("run_flow.py", "bad.yaml", cwd=workspace)
    assert "no file" in refused("run_flow.py", "absent.yaml", cwd=workspace)


def test_evaluation_reports_every_setting_and_the_ceiling(workspace):
    ran(
        "run_evaluation.py", "--model", ROOT / "examples/models/yan-e2e", "--task", "e2e_nlg", "--dataset_name", DATA,
        "--max_rows", "4", "--steps", "1", "3", "--candidates", "1", "2", "--length_candidates", "1", "2", "--speed_rows", "2",
        "--variants", "time_shift=2,solver=heun", "--output", "quality.json", cwd=workspace,
    )  # fmt: skip
    report = json.loads((workspace / "quality.json").read_text())
    assert len(report["quality"]) == 1 + 2 * 2 * 2 + 2 * 2 + 1
    assert report["quality"][-1]["variant"] == "time_shift=2,solver=heun"
    assert "| YAN, length predicted, best of 2 |" in ran("run_quality_report.py", "quality.json", cwd=workspace)
    assert report["quality"][0]["system"] == "autoencoder of the first reference"
    assert all(row["bleu_interval"][0] <= row["bleu"] <= row["bleu_interval"][1] for row in report["quality"])
    assert all(row["word_entropy"] > 3 for row in report["quality"])
    assert 0 <= report["length_head"]["exact"] <= 100
    assert all(summary["tokens_per_second"] > 0 for summary in report["speed_batch_1"].values())
    message = refused(
        "run_evaluation.py", "--model", ROOT / "examples/models/yan-e2e", "--task", "e2e_nlg", "--dataset_name", DATA,
        "--split", "holdout", "--output", "x.json", cwd=workspace,
    )  # fmt: skip
    assert "holdout" in message
    message = refused(
        "run_evaluation.py", "--model", ROOT / "examples/models/yan-e2e", "--task", "e2e_nlg", "--dataset_name", DATA,
        "--variants", "time_shifts=2", "--output", "x.json", cwd=workspace,
    )  # fmt: skip
    assert "time_shifts" in message


def test_short_answers_on_a_filled_canvas_need_no_length(workspace):
    ran(
        "run_flow.py", "--model_name_or_path", "autoencoder", "--task", "e2e_nlg", "--dataset_name", "data", "--fill_canvas",
        "--targets", "consensus", "--max_target_length", "12", "--max_eval_samples", "4", "--output_dir", "filled", "--max_steps",
        "2", "--save_strategy", "no", *FLOW, cwd=workspace,
    )  # fmt: skip
    options = GenerationConfig.from_pretrained(workspace / "filled")
    assert (options.length_mode, options.max_new_tokens) == ("canvas", 12)
    report, before = (json.loads((workspace / name / "report.json").read_text()) for name in ("filled", "autoencoder"))
    assert report["total_train_flops"] == pytest.approx(report["train_flops"] + before["train_flops"])
    # Fewer rows than references: one to a source.
    assert report["train_rows"] < 120
    ran(
        "run_evaluation.py", "--model", "filled", "--task", "e2e_nlg", "--dataset_name", DATA, "--max_rows", "3", "--steps", "1",
        "--candidates", "1", "--speed_rows", "2", "--bootstrap", "20", "--output", "filled.json", cwd=workspace,
    )  # fmt: skip
    evaluated = json.loads((workspace / "filled.json").read_text())
    assert [row.get("length") for row in evaluated["quality"]] == [None, "canvas"]
    assert evaluated["length_head"] is None
    # Its decoder reads the encoder's latents of clean text, as every new model's does whose canvas has a position per token; but what is
    # read are the first twelve tokens of a reference.
    assert evaluated["quality"][0]["bleu"] > 15


def test_a_sweep_measures_every_variant_once_and_goes_on_where_it_stopped(workspace):
    recipe = {
        "model_name_or_path": "autoencoder", "task": "e2e_nlg", "dataset_name": "data", "max_steps": 2, "report_to": "none",
        "per_device_train_batch_size": 4, "use_cpu": True, "save_strategy": "no", "output_dir": "unused",
        "config_overrides": {"unroll_steps": 1, "decoder_layers": 2},
    }  # fmt: skip
    sweep = {
        "recipe": "recipe-sweep.yaml",
        "common": {"max_eval_samples": 2},
        "evaluation": {"split": "validation", "max_rows": 2, "steps": 1, "candidates": 1, "speed_rows": 1, "bootstrap": 2},
        "variants": {"plain": None, "chosen": {"targets": "easiest", "num_targets": 2, "config_overrides": {"num_experts": 3}}},
    }  # fmt: skip
    (workspace / "recipe-sweep.yaml").write_text(json.dumps(recipe))
    (workspace / "sweep.yaml").write_text(json.dumps(sweep))
    arguments = ["sweep.yaml", "--output_dir", "swept", "--results", "sweep.json"]
    assert "| chosen | 1 | 2 |" in ran("run_sweep.py", *arguments, cwd=workspace)
    rows = json.loads((workspace / "sweep.json").read_text())
    assert [(row["variant"], row["seed"]) for row in rows] == [("plain", 0), ("chosen", 0)]
    assert all(row["training"]["updates"] == 2 and row["quality"] for row in rows)
    assert "--targets easiest" in rows[1]["command"]
    config = json.loads((workspace / "swept" / "chosen-0" / "config.json").read_text())
    assert (config["unroll_steps"], config["decoder_layers"], config["num_experts"]) == (1, 2, 3)
    weights = workspace / "swept" / "plain-0" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    (workspace / "swept" / "plain-0" / "quality.json").unlink()
    ran("run_sweep.py", *arguments, cwd=workspace)
    assert weights.stat().st_mtime_ns == written
    assert json.loads((workspace / "sweep.json").read_text())[1] == rows[1]
    (workspace / "sweep.yaml").write_text("recipe: absent.yaml\nvariants: {plain: {}}")
    assert "absent.yaml" in refused("run_sweep.py", *arguments, cwd=workspace)


def test_step_distillation_script_scores_both_numbers_of_steps(workspace):
    ran(
        "run_step_distillation.py", "--model_name_or_path", ROOT / "examples/models/yan-e2e", "--task", "e2e_nlg", "--dataset_name",
        "data", "--output_dir", "one-step", "--max_steps", "2", "--max_eval_samples", "3", "--save_strategy", "no", *FLOW,
        cwd=workspace,
    )  # fmt: skip
    report = json.loads((workspace / "one-step" / "report.json").read_text())
    assert set(report["before"]) == set(report["after"]) == {"1", "3"}
    assert GenerationConfig.from_pretrained(workspace / "one-step").num_inference_steps == 1


def test_a_masked_diffusion_peer_of_equal_size_trains_for_a_budget(workspace):
    ran(
        "baselines/run_baseline.py", "--architecture", "masked_diffusion", "--task", "e2e_nlg", "--dataset_name", "data",
        "--tokenizer_name", ROOT / "examples/models/yan-e2e", "--like", str(ROOT / "examples/models/yan-e2e"), "--layers", "2",
        "--training_flops", "6e10", "--output_dir", "diffusion", "--per_device_train_batch_size", "2",
        "--per_device_eval_batch_size", "32", "--report_to", "none", "--use_cpu", cwd=workspace,
    )  # fmt: skip
    report = json.loads((workspace / "diffusion" / "report.json").read_text())
    yan = AutoModelForSeq2SeqLM.from_pretrained(ROOT / "examples/models/yan-e2e", trust_remote_code=True)
    assert abs(report["parameters"] / yan.num_parameters() - 1) < 0.05
    assert report["updates"] >= 1
    assert 3e10 < report["train_flops"] <= 6e10
    assert load_text_model(str(workspace / "diffusion")).config.masked_diffusion
    ran(
        "run_evaluation.py", "--model", ROOT / "examples/models/yan-e2e", "--task", "e2e_nlg", "--dataset_name", DATA,
        "--baselines", "diffusion", "--diffusion_steps", "2", "--max_rows", "5", "--longest_rows", "3", "--steps", "1", "--candidates", "1",
        "--length_candidates", "1", "--speed_rows", "2", "--bootstrap", "20", "--output", "peers.json", cwd=workspace,
    )  # fmt: skip
    evaluated = json.loads((workspace / "peers.json").read_text())
    steps = [row["num_inference_steps"] for row in evaluated["quality"] if row["system"] == "diffusion"]
    assert steps == [2, 96]
    assert evaluated["rows"] == 3
    assert evaluated["training"]["diffusion"]["train_flops"] == report["train_flops"]
    line = refused(
        "run_evaluation.py", "--model", ROOT / "examples/models/yan-e2e", "--task", "e2e_nlg", "--dataset_name", DATA,
        "--baselines", "teacher", "--output", "x.json", cwd=workspace,
    )  # fmt: skip
    assert "another tokenizer" in line


def test_benchmark_reports_only_what_passes_its_check(workspace):
    ran(
        "run_benchmark.py", "--preset", "yan-tiny", "--batch_sizes", "1", "2", "--lengths", "4", "9", "--steps", "1", "3",
        "--compiled_batches", "--repeats", "2", "--seconds_per_system", "0.5", "--output", "benchmark.json", cwd=workspace,
    )  # fmt: skip
    report = json.loads((workspace / "benchmark.json").read_text())
    systems = {cell["system"] for cell in report["cells"]}
    assert {"YAN, 1 step", "YAN, 3 steps", "GPT-2, KV cache", "masked diffusion, length/4 steps"} < systems
    assert len(report["cells"]) == 4 * len(systems)
    for cell in report["cells"]:
        assert cell["gate"] == "passed"
        assert cell["tokens_per_second"] > 0
        assert 0 < cell["roofline_share"] < 1
    assert {entry["length"] for entry in report["autoregression_wins_from_batch"]} == {4, 9}
    assert (workspace / "benchmark.png").stat().st_size > 10_000
    line = refused("run_benchmark.py", "--preset", "yan-tiny", "--model", "x", "--output", "b.json", cwd=workspace)
    assert "exactly one of --model and --preset" in line


def test_sft_script_trains_an_adapter_on_conversations(workspace):
    rows = load_dataset(str(workspace / "data"))["train"]
    turns = [
        {"messages": [{"role": "user", "content": r["meaning_representation"]}, {"role": "assistant", "content": r["human_reference"]}]}
        for r in rows
    ]  # fmt: skip
    (workspace / "chat").mkdir()
    Dataset.from_list(turns).to_parquet(workspace / "chat" / "train.parquet")
    arguments = [
        "--model_name_or_path", "autoencoder", "--dataset_name", "chat", "--output_dir", "sft", "--max_steps", "2",
        "--per_device_train_batch_size", "4", "--max_length", "64", "--use_lora", "--report_to", "none", "--use_cpu", "--bf16", "False",
    ]  # fmt: skip
    assert "chat_template" in refused("run_sft.py", *arguments, cwd=workspace)
    tokenizer = AutoTokenizer.from_pretrained(workspace / "autoencoder")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tokenizer.save_pretrained(workspace / "templated")
    ran("run_sft.py", *arguments, "--tokenizer_name", "templated", cwd=workspace)
    assert (workspace / "sft" / "adapter_model.safetensors").exists()


def test_reward_script_scores_before_and_after(workspace):
    arguments = [
        "--model_name_or_path", "autoencoder", "--task", "e2e_nlg", "--dataset_name", "data", "--output_dir", "reward",
        "--max_steps", "2", "--per_device_train_batch_size", "2", "--num_generations", "3", "--max_eval_samples", "5",
        "--report_to", "none", "--use_cpu", "--save_strategy", "no", "--logging_steps", "1",
    ]  # fmt: skip
    reward = ROOT / "examples" / "rewards.py"
    ran("run_reward.py", *arguments, "--reward", f"{reward}:mentions_every_value", cwd=workspace)
    report = json.loads((workspace / "reward" / "report.json").read_text())
    assert report["rows"] == 3
    assert 0 <= report["before"]["reward"] <= 1
    assert "bleu" in report["after"]
    functions = runpy.run_path(str(reward))
    texts, source = ["Aromi is an Italian pub.", "a pub"], ["name[Aromi], food[Italian], eatType[pub]"] * 2
    assert functions["mentions_every_value"](texts, source) == pytest.approx([1, 1 / 3])
    bleu = functions["sentence_bleu"](texts, [["x y", texts[0]], ["Aromi is an Italian pub."]])
    assert bleu[0] == pytest.approx(1)
    assert 0 <= bleu[1] < 0.2
    assert "no function" in refused("run_reward.py", *arguments, "--reward", f"{reward}:nothing", cwd=workspace)


def test_scan_benchmark_compares_only_what_is_equal(workspace):
    ran(
        "run_scan_benchmark.py", "--lengths", "8", "24", "--batch_sizes", "2", "--width", "16", "--states", "4", "--repeats", "2",
        "--longest_peer", "8", "--output", "scan.json", cwd=workspace,
    )  # fmt: skip
    rows = json.loads((workspace / "scan.json").read_text())["rows"]
    assert {(row["length"], row["system"].split()[0]) for row in rows} == {
        (8, "sequential"), (8, "chunked"), (8, "bidirectional"), (8, "two"),
        (24, "sequential"), (24, "chunked"), (24, "bidirectional"),
    }  # fmt: skip
    compared = [row["difference_from_reference"] for row in rows if row["difference_from_reference"] is not None]
    assert len(compared) == 6
    assert max(compared) < 1e-4
    assert (workspace / "scan.png").stat().st_size > 10_000


def test_batch_inference_resumes_and_does_not_depend_on_batches(workspace):
    meanings = dict.fromkeys(load_dataset(str(DATA))["test"]["meaning_representation"])
    (workspace / "sources").mkdir()
    Dataset.from_dict({"source": list(meanings)[:30]}).to_parquet(workspace / "sources" / "test.parquet")
    model = str(ROOT / "examples" / "models" / "yan-e2e")
    arguments = ["--model", model, "--dataset_name", "sources", "--dtype", "float32"]
    ran("run_batch_inference.py", *arguments, "--batch_size", "7", "--output_dir", "answers", cwd=workspace)
    shard = workspace / "answers" / "answers-00000-of-00001.jsonl"
    whole = shard.read_bytes()
    rows = [json.loads(line) for line in whole.splitlines()]
    assert [row["index"] for row in rows] == list(range(30))
    assert all(row["tokens"] > 3 for row in rows)
    # Stopped in the middle of a line: the batch it belongs to is written again.
    shard.write_bytes(whole[: len(whole) * 2 // 3])
    output = ran("run_batch_inference.py", *arguments, "--batch_size", "7", "--output_dir", "answers", cwd=workspace)
    assert "14 were there" in output or "21 were there" in output or "7 were there" in output
    assert shard.read_bytes() == whole
    launch = [
        sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / "configuration/accelerate/cpu_2proc.yaml"),
        "--main_process_port", "0", str(ROOT / "examples" / "run_batch_inference.py"), *arguments, "--batch_size", "30",
        "--output_dir", "two",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, cwd=workspace, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    shards = sorted((workspace / "two").glob("*.jsonl"))
    assert [path.name for path in shards] == ["answers-00000-of-00002.jsonl", "answers-00001-of-00002.jsonl"]
    both = {row["index"]: row for path in shards for row in map(json.loads, path.read_text().splitlines())}
    assert [both[index] for index in range(30)] == rows
    assert "another number" in refused("run_batch_inference.py", *arguments, "--output_dir", "two", cwd=workspace)


def test_training_cost_counts_time_memory_and_arithmetic(workspace):
    ran(
        "run_training_cost.py", "--preset", "yan-tiny", "--batch_size", "2", "--source_length", "12", "--target_length", "8",
        "--repeats", "2", "--output", "cost.json", cwd=workspace,
    )  # fmt: skip
    rows = {row["system"]: row for row in json.loads((workspace / "cost.json").read_text())["rows"]}
    bart = rows.pop("BART-shaped")
    assert all(abs(row["parameters"] / bart["parameters"] - 1) < 0.05 for row in rows.values())
    assert all(row["gflops"] > 0 and row["median_ms"] > 0 for row in rows.values())
    one, three = (rows[f"YAN, stage 3: {n}"]["gflops"] for n in ("1 unrolled step", "3 unrolled steps"))
    assert one < three < 3 * one


def test_two_dimensional_example_writes_scores_and_pictures(workspace):
    ran("moe_fm_2d.py", "--updates", "20", "--seeds", "1", "--samples", "200", "--output_dir", "2d", cwd=workspace)
    scores = json.loads((workspace / "2d" / "scores.json").read_text())["scores"]
    assert len(scores) == 4 * 4 * 6
    sizes = {s["parameters"] for s in scores}
    assert max(sizes) / min(sizes) < 1.05
    for name in ("densities", "trajectories", "errors"):
        assert (workspace / "2d" / f"{name}.png").stat().st_size > 10_000


def test_quickstart_runs_offline(workspace):
    out = ran("quickstart.py", "--finetuning_seconds", "2", "--rows", "20", "--speed_calls", "2", cwd=workspace)
    assert out.count("draft after step 3") == 10
    assert "tokens per second" in out
    assert "are equal" in out
    assert "adapter weights" in out


def test_rows_of_the_shipped_data_are_what_the_task_expects():
    rows = load_dataset(str(DATA))["test"]
    assert isinstance(rows, Dataset)
    assert len(rows) == 2000


def test_ablation_times_only_equal_endpoints(workspace):
    ran(
        "run_ablation.py", "--preset", "yan-tiny", "--batch_sizes", "1", "4", "--length", "12", "--repeats", "2", "--no_compile",
        "--experts", "3", "--training_batch", "2", "--profile", "profile.txt", "--output", "ablation.json", cwd=workspace,
    )  # fmt: skip
    rows = json.loads((workspace / "ablation.json").read_text())["rows"]
    assert [row["what"] for row in rows[-3:]] == [
        f"training step, K = 3, likelihood over {k}" for k in ("all", "1", "2")
    ]
    assert [row["what"] for row in rows if row["batch_size"] == 4][-2:] == [
        "mixed lengths, grouped",
        "mixed lengths, not grouped",
    ]
    assert sum(row["what"].startswith("solver, ") for row in rows) == 2 * 6
    assert all(row["median_ms"] > 0 for row in rows)
    assert "Self CPU" in (workspace / "profile.txt").read_text()


def test_mixture_report_counts_every_token_once(workspace):
    ran(
        "run_mixture_report.py", "--models", ROOT / "examples/models/yan-e2e", "--task", "e2e_nlg", "--dataset_name", DATA,
        "--split", "test", "--max_rows", "3", "--output", "mixture.json", cwd=workspace,
    )  # fmt: skip
    (row,) = json.loads((workspace / "mixture.json").read_text())["models"]
    assert sum(row["expert_share"]) == pytest.approx(1)
    kinds = {kind for kinds in row["kinds"].values() for kind in kinds}
    assert kinds <= {"punctuation", "function word", "in the source", "other"}
    assert {"punctuation", "function word", "in the source"} <= kinds
    assert (workspace / "mixture_yan-e2e.png").stat().st_size > 10_000
