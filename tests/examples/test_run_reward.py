"""Learning from rewards by the script, and the rewards that are shipped."""

import json

import pytest

from modeling_yan import YanForConditionalGeneration
from modeling_yan.data.tasks import Task

from ..helpers import ON_CPU, ROOT, ran, refused, run_script_main, script_functions, tiny_model, word_tokenizer

REWARDS = ROOT / "examples" / "rewards.py"


def test_it_scores_before_and_after(workspace):
    # A flow, and not the autoencoder alone, which is refused.
    YanForConditionalGeneration.from_pretrained(workspace / "autoencoder").save_pretrained(workspace / "flow")
    options = {
        "model_name_or_path": "flow",
        "tokenizer_name": "autoencoder",
        "task": "e2e_nlg",
        "dataset_name": "data",
        "output_dir": "reward",
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "num_generations": 3,
        "max_eval_samples": 5,
        "save_strategy": "no",
        "logging_steps": 1,
        **ON_CPU,
    }
    ran("examples/run_reward.py", cwd=workspace, reward=f"{REWARDS}:mentions_every_value", **options)
    report = json.loads((workspace / "reward" / "report.json").read_text())
    assert report["rows"] == 3
    assert 0 <= report["before"]["reward"] <= 1
    assert "bleu" in report["after"]
    line = refused("examples/run_reward.py", cwd=workspace, reward=f"{REWARDS}:nothing", **options)
    assert "no function" in line
    options["model_name_or_path"] = "autoencoder"
    assert "autoencoder lacks" in refused(
        "examples/run_reward.py", cwd=workspace, reward=f"{REWARDS}:sentence_bleu", **options
    )


def test_rows_of_a_file_are_held_out_to_be_scored(tmp_path):
    tiny_model().save_pretrained(tmp_path / "flow")
    word_tokenizer().save_pretrained(tmp_path / "flow")
    (tmp_path / "words.csv").write_text("q,a\n" + "".join(f"w{i},w{i + 1}\n" for i in range(4, 28)))
    Task("words", "{q}", "{a}", max_source_length=8, max_target_length=8).save(tmp_path / "words.yaml")
    options = {"model_name_or_path": "flow", "task": "words.yaml", "dataset_name": "words.csv", "output_dir": "reward"}
    ran(
        "examples/run_reward.py",
        cwd=tmp_path,
        reward=f"{REWARDS}:sentence_bleu",
        max_steps=1,
        num_generations=2,
        save_strategy="no",
        **options,
        **ON_CPU,
    )
    assert json.loads((tmp_path / "reward" / "report.json").read_text())["rows"] == 1


def test_its_help_says_that_the_file_is_run():
    done = run_script_main("examples/run_reward.py", "--help", cwd=ROOT)
    assert "The file is run: name none that you do not trust." in " ".join(done.stdout.split())


def test_the_shipped_rewards_know_a_good_text():
    functions = script_functions(REWARDS)
    texts, source = ["Aromi is an Italian pub.", "a pub"], ["name[Aromi], food[Italian], eatType[pub]"] * 2
    assert functions["mentions_every_value"](texts, source) == pytest.approx([1, 1 / 3])
    bleu = functions["sentence_bleu"](texts, [["x y", texts[0]], ["Aromi is an Italian pub."]])
    assert bleu[0] == pytest.approx(1)
    assert 0 <= bleu[1] < 0.2
