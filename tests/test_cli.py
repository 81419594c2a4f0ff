"""The console command: the scripts' own code under one name."""

import importlib.util
import io
import json
import os
import re
import shutil
import sys
import textwrap
import tomllib

import pytest
from datasets import Dataset

from modeling_yan import YanForConditionalGeneration, restore
from modeling_yan.cli import COMMANDS
from modeling_yan.common.hub import read_model, read_tokenizer

from .helpers import ON_CPU, ROOT, YAN_E2E, YAN_RESTORE, ran, refused, run_process, succeeded

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


def test_restore_gives_a_document_back(tmp_path):
    text = "what time does the train leave\r\n\r\n  - at 9:30, see https://example.org\n"
    (tmp_path / "typed.txt").write_bytes(text.encode())
    restored = ran(CLI, "restore", "--model", YAN_RESTORE, "typed.txt", cwd=tmp_path)
    model, tokenizer = read_model(YanForConditionalGeneration, YAN_RESTORE), read_tokenizer(YAN_RESTORE)
    assert restored == restore(model, tokenizer, text).text
    assert restored.startswith("What time does the train leave?\r\n\r\n  - ")
    assert "https://example.org" in restored


def test_evaluate_and_generate_take_what_train_wrote_and_adapters_of_it(tmp_path):
    rows = [{"text": f"number {i}", "label": ["odd", "even one"][i % 2]} for i in range(24)]
    Dataset.from_list(rows).to_csv(tmp_path / "my.csv")
    columns = {"train_file": "my.csv", "source_column": "text", "target_column": "label", "max_steps": 1, **ON_CPU}
    ran(CLI, "train", cwd=tmp_path, output_dir="yan", config_overrides=SMALL, **columns)
    ran(CLI, "train", cwd=tmp_path, output_dir="lora", model_name_or_path="yan", use_lora=True, **columns)
    few = {"steps": 1, "candidates": 1, "speed_rows": 0, "bootstrap": 20}
    for model in ("yan", "lora"):
        table = ran(CLI, "evaluate", cwd=tmp_path, model=model, test_file="my.csv", output=f"{model}.json", **few)
        assert "autoencoder" in table
        report = json.loads((tmp_path / f"{model}.json").read_text())
        # Filled canvases, whose option an adapter brings along; the task that training left beside the model.
        assert [row.get("length") for row in report["quality"]] == [None, "canvas"]
        assert (report["task"], report["split"], report["rows"]) == ("task", "my.csv", 24)
        assert len(ran(CLI, "generate", "--model", model, "number 1", "number 2", cwd=tmp_path).split("\n")) == 3
    # Nothing but the adapter and its options.
    assert not (tmp_path / "lora" / "config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "absent.yaml"], "no file absent.yaml"),
        (["train", "--train_file", "absent.csv"], "train_file=absent.csv is no file"),
        (["distill", "--teacher", "t", "--distilled_dir", "d"], "neither train_file nor dataset_name"),
        (["evaluate", "--model", "absent", "--test_file", "a.csv"], "--task is needed: there is no absent/task.yaml"),
        (["evaluate", "--model", YAN_E2E, "--task", "e2e_nlg"], "give --test_file"),
        (["evaluate", "--model", YAN_E2E, "--task", "e2e_nlg", "--test_file", "a.csv"], "test_file=a.csv is no file"),
        (["generate", "--model", "absent", "a"], "absent"),
        (["restore", "--model", YAN_RESTORE, "absent.txt"], "file absent.txt: "),
        (["generate", "--model", "absent", "--batch_size", "0", "a"], "--batch_size 0 must be greater than 0"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_arguments_end_with_one_clear_line(tmp_path, arguments, message):
    assert message in refused(CLI, *arguments, cwd=tmp_path)


@pytest.mark.parametrize(
    "command",
    [
        "modeling_yan/cli.py",
        # That of lm-eval is lm-eval's own.
        *(f"modeling_yan/cli.py {name}" for name in COMMANDS if name != "lm-eval"),
        *(f"examples/{name}.py" for name in ("moe_fm_2d", "quickstart", "run_autoencoder", "run_batch_inference")),
        *(f"examples/{name}.py" for name in ("run_reward", "run_sft")),
        *(f"conversion/{name}.py" for name in ("convert_encoder_to_yan", "convert_published_checkpoint")),
    ],
)
def test_help_fits_100_columns_and_says_what_every_option_is(command, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "get_terminal_size", lambda *_: os.terminal_size((100, 24)))
    text = ran(*command.split(), "--help", cwd=tmp_path)
    # Commands, which are copied as they stand, may be longer.
    assert [line for line in text.splitlines() if len(line) > 100 and not line.startswith("    ")] == []
    # Help stands behind two spaces or on a line of its own.
    options = re.split(r"\n  (?=-)", text[text.index("\noptions:\n") :])[1:]
    assert [option for option in options if not re.search(r"\S(  +|\n +)\S", option)] == []


def test_help_shows_the_defaults_that_a_run_without_a_recipe_has(tmp_path):
    text = " ".join(ran(CLI, "train", "--help", cwd=tmp_path).split())
    assert "The initial learning rate for the optimizer. (default: 0.001)" in text
    # The data decides.
    assert "Total number of training epochs to perform. --max_steps" in text


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
    assert "pip install -c constraints.txt -e '.[serving]'" in line


# Imports a module where nothing is installed but what the package needs with an extra.
ONLY_WITH = """
    import sys
    from importlib.machinery import PathFinder
    from importlib.metadata import PackageNotFoundError, distribution, packages_distributions

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    def needed(name, extras, found):
        try:
            requirements = [Requirement(line) for line in distribution(name).requires or []]
        except PackageNotFoundError:
            return found
        for own in requirements:
            wanted = own.marker is None or any(own.marker.evaluate({"extra": extra}) for extra in ("", *extras))
            key = canonicalize_name(own.name), *sorted(own.extras)
            if wanted and key not in found:
                found.add(key)
                needed(own.name, own.extras, found)
        return found

    extra, module = sys.argv[1:]
    kept = {name for name, *_ in needed("modeling-yan", [extra], {("modeling-yan",), ("packaging",)})}
    known = packages_distributions().items()
    hidden = {name for name, owners in known if not kept & {canonicalize_name(owner) for owner in owners}}

    find = PathFinder.find_spec.__func__

    @classmethod
    def find_spec(cls, name, *rest):
        return None if name.split(".")[0] in hidden else find(cls, name, *rest)

    PathFinder.find_spec = find_spec
    __import__(module)
    print("imported")
"""


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if name != "lm-eval"])
def test_a_command_needs_no_more_than_its_extra(name, tmp_path):
    command = COMMANDS[name]
    program = textwrap.dedent(ONLY_WITH)
    done = run_process("-c", program, command.extra or "none", command.module, cwd=tmp_path)
    assert succeeded(done).stdout.endswith("imported\n")


def test_a_command_whose_packages_are_missing_says_which_extra_has_them(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "modeling_yan.training.flow", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", None)
    line = refused(CLI, "train", cwd=tmp_path)
    assert line.startswith("error: yan train needs datasets, which is not installed")
    assert "pip install -c constraints.txt -e '.[train]'" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "--max_step", "3", "--train_file", "a.csv"],
            "['--max_step', '3']; --max_step: did you mean",
        ),
        (
            ["train", "--train_file", "a.csv", "--max_source_length", "0"],
            "--max_source_length 0 must be greater than 0",
        ),
        (["train", "--train_file", "a.csv", "--freeze", "encoders"], "freeze=['encoders'] are not parts of a model"),
        (["generate", "--model", YAN_E2E, "a", " "], "text 2 is empty; leave it out"),
        (
            ["generate", "--model", "outputs/absent", "a"],
            "outputs/absent cannot be read (there is no folder",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_slips_are_named_before_any_work(tmp_path, arguments, message):
    assert message in refused(CLI, *arguments, cwd=tmp_path)


def test_a_text_that_is_read_in_part_is_named(tmp_path):
    done = run_process(
        "-m", "modeling_yan.cli", "generate", "--model", YAN_E2E, "name[Aromi]", "a " * 400, cwd=tmp_path
    )
    assert len(succeeded(done).stdout.splitlines()) == 2
    assert "text 2 has 402 tokens, of which the first 128 are read" in done.stderr
