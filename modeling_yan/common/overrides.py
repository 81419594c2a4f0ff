"""Config fields that a user changes, and the presets whose fields they are."""

import json

import yaml
from huggingface_hub.errors import StrictDataclassError

from modeling_yan.common.paths import configuration_path
from modeling_yan.configuration_yan import YanConfig
from modeling_yan.training_config_yan import TRAINING_FIELDS


def parse_overrides(text: str | None) -> dict:
    """
    Config fields to change, from YAML. Settings of `YanTrainingConfig` may also stand at the top level.

    Returns:
        Keyword arguments of `YanConfig`, the settings of training in `training_config`.

    Raises:
        ValueError: for anything but keys and values, and for names that are no fields.
    """
    options = yaml.safe_load(text or "{}")
    if not isinstance(options, dict):
        raise ValueError(f"config_overrides={text!r} must hold keys and values, as YAML")
    return nest_training_settings(options)


def nest_training_settings(overrides: dict) -> dict:
    """
    Overrides with the settings of training moved into `training_config`.

    Raises:
        ValueError: for names that are fields neither of `YanConfig` nor of `YanTrainingConfig`, and for a setting that
            stands in both places.
    """
    nested = overrides.get("training_config") or {}
    if not isinstance(nested, dict):
        raise ValueError(f"config_overrides: training_config={nested!r} must hold keys and values")
    flat = {name: value for name, value in overrides.items() if name in TRAINING_FIELDS}
    others = {name: value for name, value in overrides.items() if name not in {*flat, "training_config"}}
    unknown = sorted({*others} - {*YanConfig().to_dict(), "flow_from_encoder"}) + sorted({*nested} - {*TRAINING_FIELDS})
    if unknown:
        raise ValueError(
            f"config_overrides names {unknown}, which are fields neither of YanConfig nor of its training_config"
        )
    twice = sorted({*flat} & {*nested})
    if twice:
        raise ValueError(f"config_overrides names {twice} twice, at the top level and in training_config")
    training = {**nested, **flat}
    return {**others, **({"training_config": training} if training else {})}


def merge_options(*parts: dict) -> dict:
    """One dict of several: later ones win, nested dicts are merged key by key."""
    merged: dict = {}
    for part in parts:
        for name, value in part.items():
            both = isinstance(value, dict) and isinstance(merged.get(name), dict)
            merged[name] = merge_options(merged[name], value) if both else value
    return merged


def load_preset(name: str, **overrides) -> YanConfig:
    """
    A config from `configuration/models/<name>.json` with fields changed, those in `training_config` key by key.

    Raises:
        FileNotFoundError: for an unknown preset, naming those there are.
        ValueError: for values that a field cannot have.
    """
    options = json.loads(configuration_path("models", f"{name}.json").read_text(encoding="utf-8"))
    try:
        return YanConfig(**merge_options(options, overrides))
    except StrictDataclassError as error:
        raise ValueError(f"a YanConfig of preset {name} with {overrides}: {error}") from None
