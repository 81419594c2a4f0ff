"""The model that arguments ask for: from a checkpoint, around a pretrained encoder, or new."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_yan import YanForConditionalGeneration
from modeling_yan.canvas_yan import text_room
from modeling_yan.common.adapters import with_adapter
from modeling_yan.common.arguments import ModelArguments
from modeling_yan.common.hub import (
    base_of,
    check_config_file,
    read_config,
    read_model,
    read_model_and_gaps,
    read_tokenizer,
    readable,
    readable_base,
    refuse_gaps,
)
from modeling_yan.common.overrides import load_preset
from modeling_yan.common.paths import configuration_path
from modeling_yan.common.precision import is_main_process
from modeling_yan.configuration_yan import DEFAULT_TOKEN_IDS, YanConfig
from modeling_yan.from_encoder_yan import OF_ENCODER, config_around


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


def check_new_tokenizer(size: int | None, arguments: ModelArguments) -> None:
    """
    Args:
        size: of a tokenizer that is to be trained; None for none.

    Raises:
        ValueError: where there is a tokenizer already.
    """
    trained_before = arguments.tokenizer_name or arguments.model_name_or_path or arguments.encoder
    if size and trained_before:
        raise ValueError(
            f"train_tokenizer={size} is for a new model; leave it out, or leave {trained_before!r} out "
            "(tokenizer_name, model_name_or_path, encoder)"
        )


def check_tokenizer_fits(tokenizer: PreTrainedTokenizerBase, config: YanConfig) -> None:
    """
    Raises:
        ValueError: for a tokenizer with more entries than a model has embeddings.
    """
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer):,} entries, the model embeddings for {config.vocab_size:,}: they are "
            "not of one model; leave tokenizer_name out, or resize the model's embeddings first"
        )


def check_adaptable(arguments: ModelArguments) -> None:
    """
    Raises:
        ValueError: for an adapter, around which a new one cannot be saved: it would name the model below both.
    """
    name = arguments.model_name_or_path
    base = None if name is None else base_of(name)
    if base is not None:
        raise ValueError(
            f"use_lora begins an adapter, and model_name_or_path={name} is one, of {base}; leave use_lora out to train "
            f"all weights on, or merge it first: in Python, read_model(YanForConditionalGeneration, {name!r}) of "
            "modeling_yan.common.hub, then save_pretrained"
        )


@contextlib.contextmanager
def reading_base(arguments: ModelArguments) -> Iterator[str]:
    """
    Around what reads the model of `model_name_or_path`, whose name it gives: of an adapter, that of its model.

    Raises:
        ValueError, OSError: naming both, where an adapter's model cannot be read.
    """
    name = arguments.model_name_or_path
    base = base_of(name)
    with contextlib.nullcontext() if base is None else readable_base(name, base):
        yield base or name


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
    with reading_base(arguments) as name:
        check_config_file(name, YanForConditionalGeneration)
        try:
            config = YanConfig.from_pretrained(name, **overrides)
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
    A model of any stage from a checkpoint of any stage (parts it lacks start fresh; an adapter is merged into its
    model), or a new one: around a pretrained encoder, or from a preset over the tokenizer's vocabulary.

    Args:
        model_class: of this package.
        arguments: what to start from, and config fields to change.
        tokenizer: of a new model: its size and its ids of pad, BOS, EOS and mask go into the config.
        whole: refuse a checkpoint that lacks parts.

    Raises:
        ValueError: for a config override of an unknown name or of a value that does not fit, before weights are loaded;
            for weights that cannot be read or do not fit the config; for a tokenizer that does not fit a model.
    """
    config = check_model_arguments(arguments)
    overrides = {"attn_implementation": arguments.attn_implementation, **arguments.overrides}
    if arguments.model_name_or_path is not None:
        # Weights saved in bfloat16 would swallow small updates; mixed precision is Trainer's (--bf16).
        if tokenizer is not None:
            check_tokenizer_fits(tokenizer, config)
        with reading_base(arguments) as name:
            model, missing = read_model_and_gaps(model_class, name, dtype=torch.float32, **overrides)
            if whole:
                refuse_gaps(name, missing, model)
        say_what_starts_fresh(name, missing)
        if name == arguments.model_name_or_path:
            return model
        with readable(arguments.model_name_or_path):
            return with_adapter(model, arguments.model_name_or_path).requires_grad_(True)
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
