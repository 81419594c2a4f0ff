"""Batches: text infilling for stage 1, sources for training on a model's own answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from modeling_yan.canvas_yan import length_mask


def infill(
    input_ids: torch.Tensor,
    maskable: torch.Tensor,
    *,
    mask_token_id: int,
    pad_token_id: int,
    rate: float = 0.08,
    max_span: int = 3,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """
    Collapses random spans into one mask token each (MoE-FM, autoencoder pretraining); the row is closed up to the left
    and filled with padding at its end, so that the shape stays.

    Args:
        input_ids: clean ids (B, L).
        maskable: (B, L), true at tokens a span may cover (never BOS, EOS or padding).
        rate: expected share of maskable tokens under spans, in [0, 1).
        max_span: span lengths are uniform on 1 .. max_span. Spans that touch become one.

    Returns:
        Corrupted ids (B, L).

    Raises:
        ValueError: for a rate or a span that cannot be.
    """
    if not 0 <= rate < 1 or max_span < 1:
        raise ValueError(f"infilling needs 0 <= rate < 1 and max_span >= 1, got rate={rate}, max_span={max_span}")
    options = {"generator": generator, "device": input_ids.device}
    # A token stays clear if none of the max_span tokens up to it starts a span that reaches it.
    start = 1 - (1 - rate) ** (2 / (max_span + 1))
    starts = torch.rand(input_ids.shape, **options) < start
    lengths = torch.randint(1, max_span + 1, input_ids.shape, **options)
    covered = torch.zeros_like(starts)
    for offset in range(max_span):
        reached = starts & (lengths > offset)
        covered[:, offset:] |= reached[:, : reached.shape[1] - offset]
    covered &= maskable.bool()
    continues = covered.clone()
    continues[:, 1:] &= covered[:, :-1]
    continues[:, 0] = False
    corrupted = torch.where(covered, mask_token_id, input_ids)
    order = continues.long().argsort(dim=1, stable=True)
    kept = length_mask((~continues).sum(1), input_ids.shape[1])
    return torch.where(kept, corrupted.gather(1, order), pad_token_id)


@dataclass
class DataCollatorForTextInfilling:
    """
    `input_ids` features -> a corrupted batch with the clean ids as `labels`. The attention mask is the clean text's:
    the autoencoder sees how long the text was, and where closing up left room at the end.

    Args:
        tokenizer: needs a pad and a mask token.
        rate, max_span: as `infill`.
        generator: for reproducible corruption; torch's global generator if absent.
        pad_to_multiple_of: as in transformers' collators.
    """

    tokenizer: PreTrainedTokenizerBase
    rate: float = 0.08
    max_span: int = 3
    generator: torch.Generator | None = None
    pad_to_multiple_of: int | None = None

    def __post_init__(self):
        for name in ("pad_token_id", "mask_token_id"):
            if getattr(self.tokenizer, name) is None:
                raise ValueError(f"text infilling needs a tokenizer with a {name.removesuffix('_id')}")

    def __call__(self, features: Sequence[dict]) -> dict[str, torch.Tensor]:
        batch = self.tokenizer.pad(
            {"input_ids": [f["input_ids"] for f in features]},
            return_tensors="pt",
            padding_side="right",
            pad_to_multiple_of=self.pad_to_multiple_of,
        )
        clean, mask = batch["input_ids"], batch["attention_mask"]
        maskable = mask.bool()
        for token_id in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id):
            if token_id is not None:
                maskable &= clean != token_id
        corrupted = infill(
            clean,
            maskable,
            mask_token_id=self.tokenizer.mask_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            rate=self.rate,
            max_span=self.max_span,
            generator=self.generator,
        )
        return {"input_ids": corrupted, "attention_mask": mask, "labels": clean.masked_fill(~mask.bool(), -100)}


class DataCollatorForSources:
    """For training on a model's own answers: pads sources and hands all other columns on as lists, in `columns`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer

    def __call__(self, features: list[dict]) -> dict:
        names = ("input_ids", "attention_mask")
        batch = self.tokenizer.pad([{n: f[n] for n in names if n in f} for f in features], return_tensors="pt")
        columns = {name: [f[name] for f in features] for name in features[0] if name not in names}
        return {**batch, "columns": columns}
