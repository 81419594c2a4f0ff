"""What the example scripts share: arguments from flags or one file, clear exits, building a model."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoTokenizer,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)

from modeling_yan import YanConfig
from modeling_yan.training.checkpoints import check_writable, resolve_resume
from modeling_yan.training.resources import configuration_path


@dataclass
class ModelArguments:
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
        default=None, metadata={"help": "Config fields to change, as YAML: '{flow_layers: 3, ce_loss_weight: 2.0}'."}
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
        default=None, metadata={"help": "Train for this many floating-point operations instead of max_steps."}
    )


def parse_arguments(parser: HfArgumentParser) -> tuple:
    """
    Flags, or one YAML or JSON file followed by flags that override it. Unknown keys are errors.

    Raises:
        ValueError: for a file that cannot be read or holds unknown keys.
    """
    arguments = sys.argv[1:]
    if arguments and arguments[0].endswith((".yaml", ".yml", ".json")):
        path = Path(arguments[0])
        if not path.exists():
            raise ValueError(f"no file {path}")
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(options, dict):
            raise ValueError(f"{path} must hold keys and values")
        known = {action.dest for action in parser._actions}
        unknown = sorted(set(options) - known)
        if unknown:
            raise ValueError(f"{path}: unknown keys {unknown}")
        flags = []
        for key, value in options.items():
            values = value if isinstance(value, list) else [value]
            flags += [f"--{key}", *(json.dumps(v) if isinstance(v, dict) else str(v) for v in values)]
        arguments = flags + arguments[1:]
    return parser.parse_args_into_dataclasses(args=arguments)


def run_script(main: Callable[[], None]) -> None:
    """Runs a script's `main`; bad input ends it with one line and exit status 2."""
    try:
        main()
    except (ValueError, OSError, StrictDataclassError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def prepare_run(training: TrainingArguments) -> str | None:
    """
    Seeds everything, and finds out before any work whether the run can start.

    Returns:
        The checkpoint to go on from, if any.

    Raises:
        ValueError: for an output folder that cannot be written to, a checkpoint that is not complete, or processes that
            do not know of each other.
    """
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if training.world_size != launched:
        raise ValueError(
            f"{launched} processes were launched, but each would train alone (world_size={training.world_size}); on CPUs "
            "pass --use_cpu"
        )
    check_writable(training.output_dir)
    resume = resolve_resume(training)
    set_seed(training.seed)
    return resume


def load_preset(name: str, **overrides) -> YanConfig:
    """A config from `configuration/models/<name>.json` with fields changed."""
    options = json.loads(configuration_path("models", f"{name}.json").read_text(encoding="utf-8"))
    return YanConfig(**{**options, **overrides})


def load_tokenizer(arguments: ModelArguments) -> PreTrainedTokenizerBase:
    name = arguments.tokenizer_name or arguments.model_name_or_path
    if name is None:
        raise ValueError("tokenizer_name is needed for a new model")
    return AutoTokenizer.from_pretrained(name, trust_remote_code=True)


def build_model(
    model_class: type[PreTrainedModel], arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """
    A model of any stage from a checkpoint of any stage (parts it lacks start fresh), or a new one from a preset over
    the tokenizer's vocabulary.

    Raises:
        ValueError: for unknown config fields.
    """
    overrides = yaml.safe_load(arguments.config_overrides or "{}")
    unknown = sorted(set(overrides) - set(YanConfig().to_dict()))
    if unknown:
        raise ValueError(f"config_overrides names {unknown}, which are not fields of YanConfig")
    if arguments.model_name_or_path is not None:
        # Weights saved in bfloat16 would swallow small updates; mixed precision is Trainer's (--bf16).
        return model_class.from_pretrained(
            arguments.model_name_or_path,
            dtype=torch.float32,
            attn_implementation=arguments.attn_implementation,
            **overrides,
        )
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "mask")}
    config = load_preset(arguments.preset, **{"vocab_size": len(tokenizer), **ids, **overrides})
    config._attn_implementation = arguments.attn_implementation
    return model_class(config)
