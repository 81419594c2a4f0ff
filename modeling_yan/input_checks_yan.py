"""Checks of what callers hand in: each names the argument, the value and the remedy, before any work is done."""

import math
import numbers
import sys
from collections.abc import Callable, Mapping

import torch


def may_look_at(values: torch.Tensor) -> bool:
    """Whether values can be checked without waiting for a device or breaking a traced graph."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def check_labels(labels: torch.Tensor, vocab_size: int, blank_id: int | None = None) -> None:
    """
    Raises:
        ValueError: for labels that are neither ids below `vocab_size` nor -100, or that hold the blank of a CTC canvas.
    """
    valid = labels[labels != -100]
    if valid.numel() and (int(valid.min()) < 0 or int(valid.max()) >= vocab_size):
        raise ValueError(
            f"labels hold ids from {int(valid.min())} to {int(valid.max())}; ids are 0 to {vocab_size - 1}, and -100 "
            "is padding"
        )
    if blank_id is not None and bool((valid == blank_id).any()):
        raise ValueError(
            f"labels hold pad_token_id={blank_id}, which is the blank of this model's canvas; padding in labels is -100"
        )


def check_choice(name: str, values: torch.Tensor, shape: tuple[int, ...], below: float) -> None:
    """
    Raises:
        ValueError: for another shape, and for a value that is negative or not below `below`.
    """
    if values.shape != shape:
        raise ValueError(f"{name} has shape {tuple(values.shape)}, expected {tuple(shape)}")
    if values.numel() and not bool(((values >= 0) & (values < below)).all()):
        raise ValueError(
            f"{name} holds values from {values.min().item()} to {values.max().item()}, not 0 to below {below}"
        )


def check_tensor(name: str, value: object, remedy: str = "pass a tensor") -> torch.Tensor:
    """
    Raises:
        ValueError: for what is no tensor.
    """
    if not torch.is_tensor(value):
        raise ValueError(f"{name} is of type {type(value).__name__}; {remedy}")
    return value


def check_token_ids(name: str, ids: object, vocab_size: int) -> None:
    """
    Raises:
        ValueError: unless `ids` is an integer tensor of ids below `vocab_size`; -100 is none.
    """
    check_tensor(name, ids, "pass token ids as tokenizer(texts, return_tensors='pt', padding=True) gives them")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise ValueError(f"{name} has dtype {ids.dtype}, expected integer token ids")
    if ids.numel() == 0:
        return
    low, high = (int(x) for x in torch.stack(ids.aminmax()).tolist())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"{name} holds ids from {low} to {high}, the vocabulary has 0 to {vocab_size - 1}; use the model's own "
            "tokenizer"
        )


def check_copied(input_ids: torch.LongTensor | None) -> None:
    """
    Raises:
        ValueError: where there are no ids for an answer to copy from.
    """
    if input_ids is None:
        raise ValueError(
            "input_ids are missing: with copy_mechanism=True or length_head='source' an answer copies from them; pass "
            "them, beside encoder_outputs where there are any"
        )


def check_mask(name: str, mask: object, shape: tuple[int, int], of: str) -> None:
    """
    Raises:
        ValueError: unless `mask` is a tensor of this shape, that of the argument `of`, with 1 at tokens and 0
            elsewhere.
    """
    check_tensor(name, mask, "pass a tensor with 1 at tokens and 0 at padding")
    if mask.shape != shape:
        raise ValueError(f"{name} has shape {tuple(mask.shape)}, {of} has {tuple(shape)}; they must agree")
    if mask.dtype != torch.bool and not bool((mask == mask.bool()).all()):
        raise ValueError(f"{name} holds values other than 0 and 1; pass 1 at tokens and 0 at padding")


def check_no_gaps(name: str, mask: torch.Tensor) -> None:
    """
    Raises:
        ValueError: for a mask (B, L) with padding between the tokens of a row.
    """
    begins = mask.bool().int().diff(dim=-1, prepend=mask.new_zeros(len(mask), 1, dtype=torch.int)) == 1
    rows = (begins.sum(-1) > 1).nonzero().flatten().tolist()
    if rows:
        raise ValueError(
            f"{name} has padding between the tokens of rows {rows[:5]}; with length_head='source' it may stand before "
            "or behind them alone"
        )


def check_finite(name: str, values: object) -> None:
    """
    Raises:
        ValueError: unless `values` is a tensor of finite floating-point numbers.
    """
    check_tensor(name, values)
    if not values.is_floating_point():
        raise ValueError(f"{name} has dtype {values.dtype}, expected floating-point numbers")
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} holds values that are not finite")


def check_number(
    name: str, value: object, *, allowed: Callable[[float], bool], expected: str, whole: bool = False
) -> None:
    """
    Raises:
        ValueError: unless `value` is a finite number (a whole one where asked for) that is allowed; a bool is none.
    """
    kind = numbers.Integral if whole else numbers.Real
    fits = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value) and allowed(value)
    if not fits:
        raise ValueError(f"{name}={value!r} must be {expected}")


def check_source(
    config,
    input_ids: torch.LongTensor | None,
    attention_mask: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None = None,
    encoder_outputs=None,
) -> tuple[torch.Tensor] | None:
    """
    Args:
        config: of the model that reads the source.
        encoder_outputs: states (B, Lx, d), alone or as an encoder returns them; `input_ids` stand beside them where an
            answer copies from them.

    Returns:
        The states as the first of a tuple; None where there are none.

    Raises:
        ValueError: unless there is one source, with at least one token in each row and no more than the model reads.
    """
    if isinstance(encoder_outputs, Mapping):
        encoder_outputs = (encoder_outputs["last_hidden_state"],)
    elif torch.is_tensor(encoder_outputs):
        encoder_outputs = (encoder_outputs,)
    states = None if encoder_outputs is None else encoder_outputs[0]
    given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "encoder_outputs": states}
    given = {name: value for name, value in given.items() if value is not None}
    if not given or ("inputs_embeds" in given and len(given) > 1):
        raise ValueError(
            "pass input_ids (or one of inputs_embeds and encoder_outputs; input_ids beside the latter where an answer "
            "copies from them)"
        )
    if config.canvas_from_source:
        check_copied(input_ids)
    if input_ids is not None:
        check_token_ids("input_ids", input_ids, config.vocab_size)
    for name, value in given.items():
        if name != "input_ids":
            check_finite(name, value)
        if value.dim() != (2 if name == "input_ids" else 3):
            expected = f"(batch, length{', hidden size' * (name != 'input_ids')})"
            raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {expected}")
        if 0 in value.shape[:2]:
            raise ValueError(f"{name} is empty, shape {tuple(value.shape)}; give at least one token per row")
    name, shape = next((name, value.shape[:2]) for name, value in given.items())
    if any(value.shape[:2] != shape for value in given.values()):
        raise ValueError(f"batch and length must agree: {', '.join(f'{n} {tuple(v.shape)}' for n, v in given.items())}")
    check_lengths(config, name, shape, attention_mask)
    return None if states is None else (states,)


def check_lengths(config, name: str, shape: tuple[int, int], attention_mask: torch.Tensor | None) -> None:
    """
    Args:
        name, shape: of the source.

    Raises:
        ValueError: for a mask that is none, or that says of a row that it is empty or longer than the model reads.
    """
    longest = shape[1]
    if attention_mask is not None:
        check_mask("attention_mask", attention_mask, shape, name)
        lengths = attention_mask.bool().sum(-1).tolist()
        empty = [row for row, length in enumerate(lengths) if length == 0]
        if empty:
            raise ValueError(f"attention_mask has rows without any token, {empty[:5]}; drop empty sources")
        if config.canvas_from_source:
            check_no_gaps("attention_mask", attention_mask)
        longest = max(lengths)
    if longest > config.max_position_embeddings:
        raise ValueError(
            f"{name} has {longest} tokens, more than max_position_embeddings={config.max_position_embeddings}; pass "
            "truncation=True to the tokenizer or the pipeline"
        )


def check_generator(generator: object) -> None:
    """
    Raises:
        ValueError: for anything but None and a `torch.Generator`.
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(
            f"generator is of type {type(generator).__name__}; pass a torch.Generator, such as "
            "torch.Generator().manual_seed(0)"
        )


def check_streamer(streamer: object) -> None:
    """
    Raises:
        ValueError: for something without `put` and `end`.
    """
    if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        raise ValueError(
            f"streamer is of type {type(streamer).__name__}; pass one with put() and end(), such as TextStreamer"
        )


def refuse_stock_pipeline(depth: int = 16) -> None:
    """
    The library's own text-generation pipeline, which a model object is given to without a word, takes an answer for a
    continuation and cuts the source's length off its beginning. Nothing that it passes tells it from a direct call; its
    frame does.

    Raises:
        ValueError: when called, at most `depth` frames down, by that pipeline.
    """
    frame = sys._getframe(1)
    for _ in range(depth):
        if frame is None or frame.f_back is None:
            return
        # Not by its locals: to read them would keep the caller's model alive for as long as the caller runs.
        stock = frame.f_code.co_qualname == "TextGenerationPipeline._forward"
        # A pipeline that extends the library's calls it from a `_forward` of its own.
        if stock and frame.f_back.f_code.co_name != "_forward":
            raise ValueError(
                "pipeline('text-generation') of transformers cuts the beginning off YAN's answers. With a model "
                "object, pass pipeline_class=YanTextGenerationPipeline (from pipeline_yan.py, or from modeling_yan "
                "where it is installed); or pass the folder's name with trust_remote_code=True"
            )
        frame = frame.f_back


__all__ = [
    "check_choice",
    "check_finite",
    "check_generator",
    "check_labels",
    "check_mask",
    "check_no_gaps",
    "check_number",
    "check_source",
    "check_streamer",
    "check_tensor",
    "check_token_ids",
    "may_look_at",
    "refuse_stock_pipeline",
]
