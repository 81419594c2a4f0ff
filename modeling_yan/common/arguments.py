"""What the scripts share: arguments from flags or one file, config overrides, clear exits, building a model."""

import argparse
import difflib
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import HfArgumentParser, PreTrainedModel, PreTrainedTokenizerBase

from modeling_yan import YanForConditionalGeneration
from modeling_yan.canvas_yan import text_room
from modeling_yan.common.help import ScriptHelp
from modeling_yan.common.hub import (
    check_config_file,
    read_config,
    read_model,
    read_model_and_gaps,
    read_tokenizer,
    readable,
    refuse_gaps,
)
from modeling_yan.common.paths import configuration_path
from modeling_yan.common.precision import choose_precision, is_main_process
from modeling_yan.configuration_yan import DEFAULT_TOKEN_IDS, YanConfig
from modeling_yan.from_encoder_yan import OF_ENCODER, config_around
from modeling_yan.training_config_yan import TRAINING_FIELDS

FILES_OF_ARGUMENTS = (".yaml", ".yml", ".json")
# What a run is given where neither flags nor a recipe say otherwise, in configuration/training.
NEW_MODEL_DEFAULTS, LOADED_MODEL_DEFAULTS = "default.yaml", "default_finetuning.yaml"
HOSTED_MODEL_DEFAULTS = "default_pretrained.yaml"
# How long training lasts: an explicit number of updates or epochs wins over FLOPs.
BUDGETS = ("max_steps", "num_train_epochs", "training_flops")


@dataclass
class ModelArguments:
    """Which model a training script starts from, and what of it is trained."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub name of a YAN to start from (any stage); else a new model."}
    )
    encoder: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub name of a pretrained encoder of transformers (BERT, RoBERTa, ModernBERT, BART, T5) "
            "to build a new model around."
        },
    )
    preset: str = field(
        default="yan-tiny", metadata={"help": "Sizes of a new model: configuration/models/<preset>.json."}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer folder or Hub name; the model's or the encoder's by default."}
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Run code that comes with a tokenizer or teacher. YAN itself needs none."},
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
    encoder_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate of a pretrained encoder; that of everything else by default."},
    )
    training_flops: float | None = field(
        default=None,
        metadata={"help": "Train for this many FLOPs, unless max_steps or num_train_epochs is given."},
    )
    # Whether anything says how long training lasts; if not, the data decides. Set by `parse_arguments`.
    has_budget: bool = field(default=True, init=False)

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


def read_recipe(path: str, parser: HfArgumentParser) -> dict:
    """
    Options of a YAML or JSON file, or of the recipe of that name in `configuration/training`.

    Raises:
        ValueError: for a file that is not there or holds unknown keys.
    """
    file = Path(path)
    if not file.is_file():
        try:
            file = configuration_path("training", file.name)
        except FileNotFoundError as error:
            raise ValueError(f"no file {path} in {Path.cwd()}, and {error}") from None
    options = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(options, dict):
        raise ValueError(f"{path} must hold keys and values")
    unknown = sorted(set(options) - {f.name for group in parser.dataclass_types for f in fields(group) if f.init})
    if unknown:
        raise ValueError(f"{path}: unknown keys {unknown}")
    return options


def given_flags(parser: argparse.ArgumentParser, arguments: list[str]) -> dict[str, str]:
    """Names of the flags on a command line, with the text of their first value, "true" where they have none."""
    names = {flag: action.dest for action in parser._actions for flag in action.option_strings}
    given = {}
    for place, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag in names:
            following = arguments[place + 1 : place + 2]
            given[names[flag]] = value if equals else next((v for v in following if not v.startswith("--")), "true")
    return given


def default_options(parser: HfArgumentParser, given: Mapping[str, str]) -> dict:
    """
    What a run is given that has no recipe: the defaults of a new model, or of one that is loaded. Of their config
    overrides those stand that neither the preset nor the overrides that were given name.
    """
    loaded, hosted = "model_name_or_path" in given, "encoder" in given
    name = LOADED_MODEL_DEFAULTS if loaded else HOSTED_MODEL_DEFAULTS if hosted else NEW_MODEL_DEFAULTS
    options = read_recipe(str(configuration_path("training", name)), parser)
    if "encoder" in given.get("freeze", "").split(","):
        options.pop("encoder_learning_rate", None)
    if "config_overrides" in options:
        preset = configuration_path("models", f"{given.get('preset', options['preset'])}.json")
        own = json.loads(preset.read_text(encoding="utf-8"))
        defaults = {n: v for n, v in nest_training_settings(options["config_overrides"]).items() if n not in own}
        options["config_overrides"] = merge_options(defaults, parse_overrides(given.get("config_overrides")))
    return options


def read_command_line(parser: HfArgumentParser, use_defaults: bool) -> tuple[dict, list[str]]:
    """
    Options of the recipe on the command line, or of the defaults where there is none, and the flags, which win. Where
    flags say how long training lasts, the recipe does not.
    """
    arguments = ["--bf16=false" if argument == "--no_bf16" else argument for argument in sys.argv[1:]]
    recipe = {}
    if arguments and arguments[0].endswith(FILES_OF_ARGUMENTS):
        recipe, arguments = read_recipe(arguments[0], parser), arguments[1:]
    elif use_defaults:
        recipe = default_options(parser, given_flags(parser, arguments))
        # The user's config overrides are in there, too.
        arguments += as_flags({"config_overrides": recipe.get("config_overrides")})
    if set(BUDGETS) & set(given_flags(parser, arguments)):
        recipe = {name: value for name, value in recipe.items() if name not in BUDGETS}
    return recipe, arguments


def precision_flags(parser: HfArgumentParser, known: Mapping[str, str]) -> list[str]:
    """Flags that choose device and precision of a training script, which is said in one line; none for others."""
    if not {"bf16", "use_cpu"} <= {action.dest for action in parser._actions}:
        return []
    flags, line = choose_precision({name: known[name] for name in ("use_cpu", "bf16", "fp16") if name in known})
    if line and is_main_process():
        print(line, flush=True)
    return as_flags(flags)


def parse_arguments(parser: HfArgumentParser, *, use_defaults: bool = False) -> tuple:
    """
    Parses flags, or one YAML or JSON file followed by flags that override it. Device and precision are chosen, and said
    in one line, where neither names them (`choose_precision`).

    Args:
        use_defaults: without a file, options that no flag names come from `configuration/training/default.yaml`, or for
            a model that is loaded from `default_finetuning.yaml`, not from transformers.

    Returns:
        An object of each dataclass of the parser.

    Raises:
        ValueError: for a file that cannot be read or holds unknown keys, and for unknown flags.
    """
    # A shortened name would be taken for another flag than is meant, or for none.
    parser.allow_abbrev = False
    parser.formatter_class, parser.usage = ScriptHelp, "%(prog)s [RECIPE.yaml] [--option VALUE ...]"
    recipe, arguments = read_command_line(parser, use_defaults)
    known = {name: str(value) for name, value in recipe.items()} | given_flags(parser, arguments)
    if "help" in known:
        # As they are here, which is not always what the dataclasses say.
        parser.set_defaults(**recipe | (dict.fromkeys(BUDGETS) if use_defaults else {}))
    else:
        arguments = arguments + precision_flags(parser, known)
    flags = as_flags(recipe) + arguments
    *parsed, unknown = parser.parse_args_into_dataclasses(args=flags, return_remaining_strings=True)
    if unknown:
        raise ValueError(f"unknown arguments {unknown}{meant_instead(parser, unknown)}; --help lists all")
    for group in parsed:
        if isinstance(group, ModelArguments):
            group.has_budget = bool(set(BUDGETS) & set(known))
            if {"max_steps", "num_train_epochs"} & set(known):
                group.training_flops = None
    return parsed


def meant_instead(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> str:
    """Which options may have been meant by unknown ones, for an error."""
    known = [option for action in parser._actions for option in action.option_strings]
    close = [(name, difflib.get_close_matches(name, known, 1)) for name in unknown if name.startswith("--")]
    return "".join(f"; {name}: did you mean {found[0]}?" for name, found in close if found)


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
    """
    Runs a script's `main`; bad input, files that cannot be read and a full disk end it with one line and exit status 2.
    """
    try:
        main()
    except (ValueError, OSError, StrictDataclassError, SafetensorError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def not_installed(who: str, package: str | None, extra: str) -> ValueError:
    """The error of what needs a package that an extra of this one would have brought."""
    return ValueError(
        f"{who} needs {package}, which is not installed; in the project's folder: pip install -c constraints.txt -e "
        f"'.[{extra}]'"
    )


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


def load_tokenizer(arguments: ModelArguments) -> PreTrainedTokenizerBase:
    """
    The tokenizer of `tokenizer_name`, or else of `model_name_or_path` or `encoder`.

    Raises:
        ValueError: if neither is given, or it cannot be read, or only by running code that comes with it.
    """
    name = arguments.tokenizer_name or arguments.model_name_or_path or arguments.encoder
    if name is None:
        raise ValueError("tokenizer_name is needed for a new model")
    return read_tokenizer(name, trust_remote_code=arguments.trust_remote_code)


def check_model_arguments(arguments: ModelArguments) -> YanConfig:
    """
    Finds out whether there can be a model of these arguments, from configs alone: no weights and no data are loaded.

    Returns:
        The config that the model will have, but for what the tokenizer decides.

    Raises:
        ValueError: for a config override of an unknown name or of a value that does not fit, and for a learning rate of
            embeddings that come from a pretrained encoder.
        OSError: if there is no such checkpoint or preset.
    """
    overrides = arguments.overrides
    if arguments.encoder is not None:
        config = hosted_config(arguments)
        check_pretrained_rates(config, arguments)
        return config
    if arguments.model_name_or_path is None:
        config = load_preset(arguments.preset, **overrides)
        check_pretrained_rates(config, arguments)
        return config
    check_config_file(arguments.model_name_or_path, YanForConditionalGeneration)
    try:
        config = YanConfig.from_pretrained(arguments.model_name_or_path, **overrides)
    except StrictDataclassError as error:
        raise ValueError(f"config_overrides={arguments.config_overrides!r}: {error}") from None
    check_pretrained_rates(config, arguments)
    return config


def hosted_fields(arguments: ModelArguments) -> dict:
    """
    Config fields of a model around `encoder` that arguments ask for: the overrides, and of a preset that was chosen
    what the encoder does not decide.
    """
    preset: dict = {}
    if arguments.preset != ModelArguments.preset:
        preset = json.loads(configuration_path("models", f"{arguments.preset}.json").read_text(encoding="utf-8"))
        decided = {*OF_ENCODER, "num_attention_heads", "intermediate_size", "max_position_embeddings"}
        preset = {name: value for name, value in preset.items() if name not in decided | {*DEFAULT_TOKEN_IDS}}
    return {**preset, **arguments.overrides}


def hosted_config(arguments: ModelArguments) -> YanConfig:
    """
    The config of a new model around `encoder`, from configs and tokenizer alone.

    Raises:
        ValueError: for a model to start from beside it, and for what `config_around` refuses.
    """
    if arguments.model_name_or_path is not None:
        raise ValueError(
            f"encoder={arguments.encoder} begins a new model, and model_name_or_path={arguments.model_name_or_path} "
            "goes on with one; leave one of them out"
        )
    encoder = read_config(arguments.encoder)
    try:
        return config_around(encoder, load_tokenizer(arguments), **hosted_fields(arguments))
    except StrictDataclassError as error:
        raise ValueError(f"config_overrides={arguments.config_overrides!r}: {error}") from None


def check_pretrained_rates(config: YanConfig, arguments: ModelArguments) -> None:
    """
    Raises:
        ValueError: for a learning rate of embeddings that come with a pretrained encoder, and for one of a pretrained
            encoder where there is none, or where it is frozen.
    """
    check_embedding_rate(config, arguments.embedding_learning_rate)
    rate = arguments.encoder_learning_rate
    if rate is None:
        return
    if config.encoder_config is None:
        raise ValueError(f"encoder_learning_rate={rate} is for a pretrained encoder; give --encoder, or leave it out")
    if "encoder" in arguments.frozen_parts:
        raise ValueError(f"encoder_learning_rate={rate}, but freeze={arguments.freeze}; leave one of them out")


def check_embedding_rate(config: YanConfig, rate: float | None) -> None:
    """
    Raises:
        ValueError: for a learning rate of token embeddings that come with a pretrained encoder.
    """
    if rate is not None and getattr(config, "encoder_config", None) is not None:
        raise ValueError(
            f"embedding_learning_rate={rate} is for embeddings drawn at random; those of this model come with its "
            f"pretrained {config.encoder_config.model_type} encoder and would be lost; leave it out"
        )


def token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    """
    Ids that a config takes from a tokenizer; of one without BOS and EOS (BERT's), CLS and SEP.
    """
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "mask")}
    for name, other in (("bos_token_id", "cls_token_id"), ("eos_token_id", "sep_token_id")):
        ids[name] = getattr(tokenizer, other) if ids[name] is None else ids[name]
    return ids


def say_what_starts_fresh(name: str, missing: list[str]) -> None:
    """One line, of the first process alone, with the parts of a model that a checkpoint has no weights for."""
    parts = Counter(".".join(weight.split(".")[: 2 if weight.startswith("model.") else 1]) for weight in missing)
    if parts and is_main_process():
        listed = ", ".join(f"{part} ({count} weights)" for part, count in parts.items())
        print(f"not in {name}, so starting fresh: {listed}", flush=True)


def build_model(
    model_class: type[PreTrainedModel],
    arguments: ModelArguments,
    tokenizer: PreTrainedTokenizerBase,
    *,
    whole: bool = False,
) -> PreTrainedModel:
    """
    A model of any stage from a checkpoint of any stage (parts it lacks start fresh), or a new one: around a pretrained
    encoder, or from a preset over the tokenizer's vocabulary.

    Args:
        model_class: of this package.
        arguments: what to start from, and config fields to change.
        tokenizer: of a new model: its size and its ids of pad, BOS, EOS and mask go into the config.
        whole: refuse a checkpoint that lacks parts.

    Raises:
        ValueError: for a config override of an unknown name or of a value that does not fit, before weights are loaded;
            for weights that cannot be read or do not fit the config.
    """
    check_model_arguments(arguments)
    overrides = {"attn_implementation": arguments.attn_implementation, **arguments.overrides}
    if arguments.model_name_or_path is not None:
        # Weights saved in bfloat16 would swallow small updates; mixed precision is Trainer's (--bf16).
        name = arguments.model_name_or_path
        model, missing = read_model_and_gaps(model_class, name, dtype=torch.float32, **overrides)
        if whole:
            refuse_gaps(name, missing, model)
        say_what_starts_fresh(name, missing)
        return model
    if arguments.encoder is not None:
        with readable(arguments.encoder):
            return model_class.from_encoder(
                arguments.encoder,
                tokenizer,
                attn_implementation=arguments.attn_implementation,
                **hosted_fields(arguments),
            )
    fields_of_tokenizer = {"vocab_size": len(tokenizer), **token_ids(tokenizer)}
    return model_class(load_preset(arguments.preset, **{**fields_of_tokenizer, **overrides}))


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
        return read_model(model_class, model, dtype=torch.float32)
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
