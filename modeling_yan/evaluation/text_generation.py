"""Writes the answers of any seq2seq or causal model to a list of sources, batched."""

import copy
import inspect
from collections.abc import Iterator, Sequence

import torch
from tqdm.auto import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from modeling_yan.common.hub import read_config, read_model
from modeling_yan.evaluation.masked_diffusion import MaskedDiffusionLM


def is_seq2seq(model: PreTrainedModel) -> bool:
    """Whether `generate()` returns the answer alone (encoder-decoder models and YAN), not the prompt before it."""
    return model.config.is_encoder_decoder or model.config.model_type == "yan"


def load_text_model(name: str, *, trust_remote_code: bool = False, **options) -> PreTrainedModel:
    """
    A causal, sequence-to-sequence, masked diffusion or YAN model that writes text, as its config says which it is, in
    evaluation mode.

    Args:
        name: folder or Hub name.
        trust_remote_code: whether code that comes with it may run.
        **options: handed to `from_pretrained`.

    Raises:
        ValueError: if it cannot be read, only by running code that comes with it, or lacks weights.
    """
    config = read_config(name, trust_remote_code=trust_remote_code)
    seq2seq = config.is_encoder_decoder or config.model_type == "yan"
    model_class = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    if getattr(config, "masked_diffusion", False):
        model_class = MaskedDiffusionLM
    return read_model(model_class, name, trust_remote_code=trust_remote_code, **options)


def reader_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of what reads the sources: of a model made of two (EncoderDecoderModel), its encoder's."""
    return getattr(config, "encoder", config)


def check_room(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    max_source_length: int | None,
    max_new_tokens: int,
) -> None:
    """
    Finds out before the first answer whether a model has positions and ids for all of them; YAN does so by itself.

    Raises:
        ValueError: naming the length or the id that it has no place for.
    """
    if model.config.model_type == "yan" or not sources:
        return
    rows = tokenizer(list(sources), truncation=True, max_length=max_source_length)["input_ids"]
    largest = max((max(row) for row in rows if row), default=0)
    config = reader_config(model.config)
    if largest >= config.vocab_size:
        raise ValueError(
            f"the tokenizer of {model.name_or_path} writes id {largest}, the model has {config.vocab_size} ids: "
            "they do not belong together"
        )
    longest, room = max(map(len, rows)), getattr(config, "max_position_embeddings", None)
    # A decoder of its own counts from the answer's beginning.
    needed = max(longest, max_new_tokens) if is_seq2seq(model) else longest + max_new_tokens
    if room is not None and needed > room:
        raise ValueError(
            f"{model.name_or_path} has {room} positions; a source of {longest} tokens and an answer of up to "
            f"{max_new_tokens} take {needed}. Pass smaller --max_source_length and --max_target_length"
        )


def able_to_pad(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """
    The tokenizer, or where it has no padding token (GPT-2's) a copy that pads with its end token, which masks hide.

    Raises:
        ValueError: if it has neither.
    """
    if tokenizer.pad_token_id is not None:
        return tokenizer
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path} has neither a padding nor an end token; give it one "
            "(tokenizer.pad_token = …) and save it"
        )
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def iterate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    *,
    batch_size: int = 32,
    max_source_length: int | None = None,
    progress: str | None = None,
    target_lengths: Sequence[int] | None = None,
    **generate_kwargs,
) -> Iterator[list[str]]:
    """
    Yields the answers batch by batch, in order.

    Args:
        model: a seq2seq model, a causal model (its prompt is cut off) or YAN.
        tokenizer: the model's; causal models are padded on the left.
        sources: texts to answer.
        max_source_length: cuts sources, in tokens; the tokenizer's limit by default.
        progress: label of a progress bar; none by default.
        target_lengths: YAN only, the length of each answer in tokens, EOS included (the oracle setting).
        **generate_kwargs: handed to `generate()`.

    Raises:
        ValueError: if sources and answers are too long for the model, or the tokenizer is another model's or cannot
            pad.
    """
    check_room(model, tokenizer, sources, max_source_length, generate_kwargs.get("max_new_tokens") or 0)
    side, tokenizer = "right" if is_seq2seq(model) else "left", able_to_pad(tokenizer)
    # A tokenizer of no model's own class makes them for every model, and most models refuse what they do not know.
    takes_types = model.config.model_type == "yan" or "token_type_ids" in inspect.signature(model.forward).parameters
    starts = range(0, len(sources), batch_size)
    for start in tqdm(starts, desc=progress, disable=progress is None):
        batch = tokenizer(
            list(sources[start : start + batch_size]),
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=max_source_length,
            padding_side=side,
        ).to(model.device)
        if not takes_types:
            batch.pop("token_type_ids", None)
        if target_lengths is not None:
            generate_kwargs["target_lengths"] = torch.tensor(target_lengths[start : start + batch_size])
        with torch.no_grad():
            ids = model.generate(**batch, **generate_kwargs)
        if not is_seq2seq(model):
            ids = ids[:, batch["input_ids"].shape[1] :]
        yield [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


def generate_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sources: Sequence[str], **options
) -> list[str]:
    """All answers of `iterate_answers`, in evaluation mode; the model's mode is restored."""
    was_training = model.training
    model.eval()
    try:
        return [text for batch in iterate_answers(model, tokenizer, sources, **options) for text in batch]
    finally:
        model.train(was_training)


def count_tokens(ids: torch.Tensor, pad_token_id: int, eos_token_id: int | None) -> int:
    """Tokens of generated rows (B, L) up to and including EOS, without padding."""
    total = 0
    for row in ids.tolist():
        for token in row:
            if token == pad_token_id and token != eos_token_id:
                break
            total += 1
            if token == eos_token_id:
                break
    return total
