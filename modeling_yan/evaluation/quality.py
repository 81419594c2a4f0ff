"""
What a YAN's quality is made of, beside the scores of its texts: the autoencoder's ceiling and the length head's errors.
"""

from collections.abc import Sequence

import torch
import yaml
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.no_grad()
def reconstruct(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int,
    batch_size: int = 32,
) -> list[str]:
    """
    The autoencoder alone: decoder of the encoder's latents of the texts themselves. What it loses, no flow can write.
    """
    answers = []
    for start in range(0, len(texts), batch_size):
        rows = list(texts[start : start + batch_size])
        batch = tokenizer(rows, return_tensors="pt", padding=True, truncation=True, max_length=max_length)
        batch = batch.to(model.device)
        latents = model.get_encoder()(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        ids = model.decoder(latents).argmax(-1).masked_fill(batch["attention_mask"] == 0, tokenizer.pad_token_id)
        answers += [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
    return answers


@torch.no_grad()
def length_errors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str],
    lengths: Sequence[int],
    *,
    max_source_length: int,
    batch_size: int = 32,
) -> dict[str, float] | None:
    """
    How far the most probable length is from the given ones, in tokens with EOS.

    Returns:
        `exact`, in percent, and `mean_absolute_error`; None for a model that predicts no length.
    """
    if not model.config.predicts_length or model.generation_config.length_mode == "canvas":
        return None
    errors = []
    for start in range(0, len(sources), batch_size):
        rows = list(sources[start : start + batch_size])
        batch = tokenizer(rows, return_tensors="pt", padding=True, truncation=True, max_length=max_source_length)
        batch = batch.to(model.device)
        _, logits = model.encode_source(batch["input_ids"], batch["attention_mask"])
        wanted = torch.tensor(lengths[start : start + batch_size], device=logits.device)
        errors += (logits.argmax(-1) + 1 - wanted).abs().tolist()
    return {"exact": 100 * errors.count(0) / len(errors), "mean_absolute_error": sum(errors) / len(errors)}


def longest_sources(rows: Dataset, tokenizer: PreTrainedTokenizerBase, count: int) -> Dataset:
    """
    The `count` rows whose column `source` has the most tokens, in the order they had; all rows where there are no more.
    For choosing a model for sources longer than most of a split.

    Raises:
        ValueError: for a count below 1.
    """
    if count < 1:
        raise ValueError(f"longest_rows={count} must be at least 1; leave it out for all rows")
    sizes = [len(ids) for ids in tokenizer(list(rows["source"]))["input_ids"]]
    longest_first = sorted(range(len(rows)), key=sizes.__getitem__, reverse=True)
    return rows.select(sorted(longest_first[:count]))


def parse_variant(text: str) -> dict:
    """
    Options of `generate()` written as "name=value,name=value", values as in YAML.

    Raises:
        ValueError: for a part without "=".
    """
    parts = [part.partition("=") for part in text.split(",")]
    if not all(name and sign and value for name, sign, value in parts):
        raise ValueError(f"variant {text!r} must be written as name=value,name=value")
    return {name.strip(): yaml.safe_load(value) for name, _, value in parts}
