"""What the scripts share: arguments from flags or one file, config overrides, clear exits, building a model."""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoTokenizer, HfArgumentParser, PreTrainedModel, PreTrainedTokenizerBase

from modeling_yan.canvas_yan import text_room
from modeling_yan.common.paths import configuration_path
from modeling_yan.configuration_yan import TRAINING_FIELDS, YanConfig

FILES_OF_ARGUMENTS = (".yaml", ".yml", ".json")


@dataclass
class ModelArguments:
    """Which model a training script starts from, and what of it is trained."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of a YAN to start from (any stage); else a new model."}
    )
    preset: str = field(
        default="yan-tiny", metadata={"help": "Sizes of a new model: configuration/models/<preset>.json."}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer folder or Hub name; the model's by default."}
    )
    config_overrides: str | None = field(
        default=None,
        metadata={"help": "Config fields to change, as YAML: '{flow_layers: 3, training_config: {unroll_steps: 1}}'."},
    )
    attn_implementation: str = field(
        default="sdpa", metadata={"help": "eager is the faster one to train short texts with on a CPU."}
    )
    freeze: str = field(
        default="", metadata={"help": "Parts not to train, comma-separated: embeddings, encoder, flow, decoder."}
    )
    ema_decay: float | None = field(default=None, metadata={"help": "Average the weights with this decay."})
    embedding_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the token embeddings; that of everything else by default."}
    )
    training_flops: float | None = field(
        default=None, metadata={"help": "Train for this many FLOPs instead of max_steps."}
    )

    @property
    def overrides(self) -> dict:
        """`config_overrides` as `parse_overrides` reads them."""
        return parse_overrides(self.config_overrides)

    @property
    def frozen_parts(self) -> list[str]:
        """Names of the parts in `freeze`."""
        return [part.strip() for part in self.freeze.split(",") if part.strip()]


def as_flags(options: dict) -> list[str]:
    """
    Options as a command line: a list becomes several values, a dict JSON; what is None is left out.

        as_flags({"steps": [1, 3], "task": "squad"})    # ["--steps", "1", "3", "--task", "squad"]
    """
    flags = []
    for name, value in options.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        flags += [f"--{name}", *(json.dumps(v) if isinstance(v, dict) else str(v) for v in values)]
    return flags


def parse_arguments(parser: HfArgumentParser) -> tuple:
    """
    Parses flags, or one YAML or JSON file followed by flags that override it.

    Returns:
        An object of each dataclass of the parser.

    Raises:
        ValueError: for a file that cannot be read or holds unknown keys.
    """
    arguments = sys.argv[1:]
    if arguments and arguments[0].endswith(FILES_OF_ARGUMENTS):
        path = Path(arguments[0])
        if not path.is_file():
            raise ValueError(f"no file {path}")
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(options, dict):
            raise ValueError(f"{path} must hold keys and values")
        unknown = sorted(set(options) - {f.name for group in parser.dataclass_types for f in fields(group)})
        if unknown:
            raise ValueError(f"{path}: unknown keys {unknown}")
        arguments = as_flags(options) + arguments[1:]
    return parser.parse_args_into_dataclasses(args=arguments)


def check_positive(arguments: argparse.Namespace, *names: str) -> None:
    """
    Raises:
        ValueError: for an argument of these names that is given, alone or in a list, and not greater than 0.
    """
    for name in names:
        value = getattr(arguments, name)
        for number in value if isinstance(value, list) else [value]:
            if number is not None and number <= 0:
                raise ValueError(f"--{name} {number} must be greater than 0")


def run_script(main: Callable[[], None]) -> None:
    """Runs a script's `main`; bad input ends it with one line and exit status 2."""
    try:
        main()
    except (ValueError, OSError, StrictDataclassError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


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
    unknown = sorted({*others} - {*YanConfig().to_dict()}) + sorted({*nested} - {*TRAINING_FIELDS})
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


def load_tokenizer(arguments: ModelArguments) -> PreTrainedTokenizerBase:
    """
    The tokenizer of `tokenizer_name`, or else of `model_name_or_path`.

    Raises:
        ValueError: if neither is given.
    """
    name = arguments.tokenizer_name or arguments.model_name_or_path
    if name is None:
        raise ValueError("tokenizer_name is needed for a new model")
    return AutoTokenizer.from_pretrained(name, trust_remote_code=True)


def check_model_arguments(arguments: ModelArguments) -> None:
    """
    Finds out whether there can be a model of these arguments, from configs alone: no weights and no data are loaded.

    Raises:
        ValueError: for a config override of an unknown name or of a value that does not fit.
        OSError: if there is no such checkpoint or preset.
    """
    overrides = arguments.overrides
    if arguments.model_name_or_path is None:
        load_preset(arguments.preset, **overrides)
        return
    try:
        YanConfig.from_pretrained(arguments.model_name_or_path, **overrides)
    except StrictDataclassError as error:
        raise ValueError(f"config_overrides={arguments.config_overrides!r}: {error}") from None


def build_model(
    model_class: type[PreTrainedModel], arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """
    A model of any stage from a checkpoint of any stage (parts it lacks start fresh), or a new one from a preset over
    the tokenizer's vocabulary.

    Args:
        model_class: of this package.
        arguments: what to start from, and config fields to change.
        tokenizer: of a new model: its size and its ids of pad, BOS, EOS and mask go into the config.

    Raises:
        ValueError: for a config override of an unknown name or of a value that does not fit, before weights are loaded.
    """
    check_model_arguments(arguments)
    overrides = {"attn_implementation": arguments.attn_implementation, **arguments.overrides}
    if arguments.model_name_or_path is not None:
        # Weights saved in bfloat16 would swallow small updates; mixed precision is Trainer's (--bf16).
        return model_class.from_pretrained(arguments.model_name_or_path, dtype=torch.float32, **overrides)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "mask")}
    return model_class(load_preset(arguments.preset, **{"vocab_size": len(tokenizer), **ids, **overrides}))


def load_model_or_preset(
    model_class: type[PreTrainedModel], model: str | None, preset: str | None, **overrides
) -> PreTrainedModel:
    """
    What a measurement of speed runs, in float32: a trained model, or a preset with random weights.

    Args:
        model: folder or Hub name.
        preset: sizes of the other choice.
        **overrides: config fields that are changed in the preset.

    Raises:
        ValueError: unless exactly one of the two is given.
    """
    if (model is None) == (preset is None):
        raise ValueError("give exactly one of --model and --preset")
    if model is not None:
        return model_class.from_pretrained(model, dtype=torch.float32)
    return model_class(load_preset(preset, **overrides))


def fitting_lengths(config: YanConfig, asked: list[int] | None, default: list[int]) -> list[int]:
    """
    Lengths of answers, in tokens and ascending, that a model of this config has positions for.

    Args:
        asked: by the user; None for those of `default` that fit, or else the longest that does.

    Raises:
        ValueError: for a length that was asked for and does not fit.
    """
    longest = text_room(config.max_position_embeddings, config.canvas_ratio)
    if asked and max(asked) > longest:
        raise ValueError(
            f"answers of {max(asked)} tokens are longer than the {longest} that this model writes "
            f"(max_position_embeddings={config.max_position_embeddings}, canvas_ratio={config.canvas_ratio})"
        )
    return sorted(asked or [length for length in default if length <= longest] or [longest])
