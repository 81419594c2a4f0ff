"""The console command: the scripts' own code under one name."""

import importlib.util
import io
import json
import sys
import tomllib

import pytest
from datasets import Dataset

from modeling_yan.cli import COMMANDS

from .helpers import ON_CPU, ROOT, YAN_E2E, ran, refused

CLI = "modeling_yan/cli.py"
SMALL = "{hidden_size: 16, num_attention_heads: 2, intermediate_size: 24, encoder_layers: 1, flow_layers: 1}"


def test_it_is_installed_under_its_name():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"yan": "modeling_yan.cli:main"}


def test_train_finds_recipes_by_name_and_generate_reads_what_it_wrote(tmp_path, monkeypatch):
    rows = [{"text": f"number {i}", "label": ["odd", "even one"][i % 2]} for i in range(24)]
    Dataset.from_list(rows).to_csv(tmp_path / "my.csv")
    (tmp_path / "task.yaml").write_text(
        "source: '{text}'\ntarget: '{label}'\nmax_source_length: 32\nmax_target_length: 8\n"
    )
    ran(
        CLI,
        "train",
        "flow_facts.yaml",
        cwd=tmp_path,
        task="task.yaml",
        dataset_name="my.csv",
        train_tokenizer=300,
        config_overrides=SMALL,
        output_dir="out",
        max_steps=1,
        **ON_CPU,
    )
    assert json.loads((tmp_path / "out" / "report.json").read_text())["updates"] == 1
    answers = ran(CLI, "generate", "--model", "out", "number 1", "number 2", cwd=tmp_path)
    assert len(answers.split("\n")) == 3
    monkeypatch.setattr(sys, "stdin", io.StringIO("number 1\nnumber 2\n"))
    assert ran(CLI, "generate", model="out", cwd=tmp_path) == answers


def test_generate_answers_with_the_shipped_model(tmp_path):
    text = "name[Aromi], eatType[coffee shop], area[city centre]"
    assert "Aromi" in ran(CLI, "generate", "--model", YAN_E2E, text, cwd=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "absent.yaml"], "no file absent.yaml"),
        (["train", "--train_file", "absent.csv"], "train_file=absent.csv is no file"),
        (["distill", "--teacher", "t", "--distilled_dir", "d"], "neither train_file nor dataset_name"),
        (["generate", "--model", "absent", "a"], "absent"),
        (["generate", "--model", "absent", "--batch_size", "0", "a"], "--batch_size 0 must be greater than 0"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_arguments_end_with_one_clear_line(tmp_path, arguments, message):
    assert message in refused(CLI, *arguments, cwd=tmp_path)


def test_commands_that_there_are_not_are_answered_with_those_there_are(tmp_path):
    from .helpers import run_script_main

    done = run_script_main(CLI, "dream", cwd=tmp_path)
    assert done.returncode == 2
    assert all(name in done.stderr for name in COMMANDS)


def test_a_server_without_its_packages_says_which_extra_has_them(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else find(name, *rest))
    line = refused(CLI, "serve", cwd=tmp_path, model=YAN_E2E)
    assert "the server needs ray" in line
    assert 'pip install "modeling-yan[serving]"' in line
