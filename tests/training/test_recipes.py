"""Recipes: each is read by the script it is for, and its lengths fit its model."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import BertConfig

from modeling_yan import YanConfig, YanForConditionalGeneration
from modeling_yan.common.overrides import load_preset
from modeling_yan.data.tasks import Task
from modeling_yan.from_encoder_yan import config_around

from ..helpers import ROOT, parse_command, script_functions

RECIPES = sorted((ROOT / "configuration" / "training").glob("*.yaml"))
SWEEPS = sorted((ROOT / "configuration" / "sweeps").glob("*.yaml"))

# Sizes of the encoders that recipes name, as their config.json on the Hub has them.
MINI_LM = BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536)
ENCODERS = {"sentence-transformers/all-MiniLM-L6-v2": MINI_LM}


def script_of(options: dict) -> str:
    for key, script in {"reward": "reward", "teacher": "distillation", "text_columns": "autoencoder"}.items():
        if key in options:
            return f"examples/run_{script}.py"
    return "examples/run_flow.py"


def read(recipe: Path) -> dict:
    return yaml.safe_load(recipe.read_text(encoding="utf-8"))


def config_of(options: dict) -> YanConfig:
    """
    Of the model that a recipe trains, with its changes: around an encoder, of a preset, of a folder here, or of what
    another recipe writes.
    """
    if options.get("encoder") in ENCODERS:
        return config_around(ENCODERS[options["encoder"]], eos_token_id=102, **options.get("config_overrides", {}))
    overrides, start = options.get("config_overrides", {}), options.get("model_name_or_path")
    if start is None:
        return load_preset(options.get("preset", "yan-tiny"), **overrides)
    if (ROOT / start / "config.json").is_file():
        base = json.loads((ROOT / start / "config.json").read_text(encoding="utf-8"))
    else:
        before = [recipe for recipe in RECIPES if read(recipe).get("output_dir") == start]
        assert before, f"no recipe writes {start}"
        base = config_of(read(before[0])).to_dict()
    return YanConfig.from_dict(base, **overrides)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses_and_fits_its_model(recipe):
    options = read(recipe)
    script = script_of(options)
    parsed = parse_command(script, recipe)
    config = config_of(options)
    lengths = [parsed.max_length] if hasattr(parsed, "max_length") else []
    if "task" in options:
        task = Task.load(parsed.task)
        for name in ("max_source_length", "max_target_length"):
            lengths.append(getattr(parsed, name, None) or getattr(task, name))
    # The defaults for a user's own data name no lengths: those are the data's.
    assert lengths or recipe.stem.startswith("default")
    assert max(lengths, default=0) <= config.max_position_embeddings
    with torch.device("meta"):
        YanForConditionalGeneration(config)
    if hasattr(parsed, "reward"):
        assert callable(script_functions(script)["load_reward"](str(ROOT / parsed.reward)))


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_changes_what_its_recipe_has(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    script = script_functions("benchmarks/run_sweep.py")
    sweep = script["load_sweep"](path)
    for changes in sweep["variants"].values():
        flags = script["as_flags"](script["merge"](sweep["common"], changes or {}))
        parsed = parse_command("examples/run_flow.py", sweep["recipe"], *flags)
        config_of({**read(ROOT / sweep["recipe"]), "config_overrides": yaml.safe_load(parsed.config_overrides or "{}")})
