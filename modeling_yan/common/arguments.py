"""What the scripts share: arguments from flags or one file, and clear exits."""

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import yaml
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from modeling_yan.common.help import ScriptHelp
from modeling_yan.common.hub import read_config
from modeling_yan.common.overrides import merge_options, nest_training_settings, parse_overrides
from modeling_yan.common.paths import configuration_path
from modeling_yan.common.precision import choose_precision, is_main_process

FILES_OF_ARGUMENTS = (".yaml", ".yml", ".json")
# What a run is given where neither flags nor a recipe say otherwise, in configuration/training.
NEW_MODEL_DEFAULTS, LOADED_MODEL_DEFAULTS = "default.yaml", "default_finetuning.yaml"
HOSTED_MODEL_DEFAULTS = "default_pretrained.yaml"
# How long training lasts: an explicit number of updates or epochs wins over FLOPs.
BUDGETS = ("max_steps", "num_train_epochs", "training_flops")
# Learning rates of parts.
RATES = ("embedding_learning_rate", "encoder_learning_rate")


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


def hosts_encoder(name_or_path: str) -> bool:
    """Whether a model is one around a pretrained encoder. What cannot be read is none: loading it says more."""
    try:
        return getattr(read_config(name_or_path), "encoder_config", None) is not None
    except (OSError, ValueError):
        return False


def default_rates(parser: HfArgumentParser, defaults: Mapping, given: Mapping[str, str]) -> dict[str, float]:
    """
    The defaults' learning rates of parts, but for parts that are frozen. A pretrained encoder of a model that is loaded
    goes on with the rate that it began with.
    """
    rates = {name: defaults[name] for name in RATES if name in defaults}
    loaded = None if "encoder" in given else given.get("model_name_or_path")
    if loaded is not None and hosts_encoder(loaded):
        hosted = read_recipe(str(configuration_path("training", HOSTED_MODEL_DEFAULTS)), parser)
        rates["encoder_learning_rate"] = hosted["encoder_learning_rate"]
    frozen = ModelArguments(freeze=given.get("freeze", "")).frozen_parts
    # The embeddings are the encoder's, and beside an adapter all is frozen.
    if "encoder" in frozen or string_to_bool(given.get("use_lora", "false")):
        return {}
    if "embeddings" in frozen:
        rates.pop("embedding_learning_rate", None)
    return rates


def default_options(parser: HfArgumentParser, given: Mapping[str, str]) -> dict:
    """
    What a run is given that has no recipe: the defaults of a new model, or of one that is loaded. Of their config
    overrides those stand that neither the preset nor the overrides that were given name.
    """
    loaded, hosted = "model_name_or_path" in given, "encoder" in given
    name = LOADED_MODEL_DEFAULTS if loaded else HOSTED_MODEL_DEFAULTS if hosted else NEW_MODEL_DEFAULTS
    options = read_recipe(str(configuration_path("training", name)), parser)
    rates = default_rates(parser, options, given)
    options = {name: value for name, value in options.items() if name not in RATES} | rates
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
