"""
What positions of a canvas can copy from their source. Pure functions on tensors.

A position that points adds the tokens of its source to the vocabulary under one softmax: `p(v)` is proportional to
`exp(logit of v) + sum of exp(score of s)` over the places s of the source that hold v (CopyNet, arXiv 1603.06393).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def lowest(dtype: torch.dtype) -> float:
    """A score of what cannot be copied: far below all others, and finite, so that differences of two of them are."""
    return torch.finfo(dtype).min / 4


@dataclass
class CopySource:
    """
    What the positions of N canvases can copy, of B sources, N being a multiple of B.

    Args:
        ids: the token that each position can copy (B, L); or with `states` the source (B, Lx).
        states: of the source (B, Lx, d), which positions point at.
        mask: (B, Lx), 1 at tokens; None where every position of the source is one.
    """

    ids: Tensor
    states: Tensor | None = None
    mask: Tensor | None = None

    def for_rows(self, rows: int) -> "CopySource":
        """For so many canvases, those of a source next to each other."""
        repeats = rows // len(self.ids)
        if repeats == 1:
            return self
        parts = (self.ids, self.states, self.mask)
        return CopySource(*(None if part is None else part.repeat_interleave(repeats, 0) for part in parts))


def steps_of_positions(length: int, ratio: float, device: torch.device) -> Tensor:
    """Tokens between the beginning of the answer and each position of a canvas (L, 1): `floor(i / ratio)`."""
    return (torch.arange(length, device=device) / ratio).long().unsqueeze(1)


def shift_by_position(scores: Tensor, ratio: float = 1.0) -> Tensor:
    """
    Scores (B, L, S) of places in the source -> (B, L, S), where a place has the score of the one that stands
    `floor(i / ratio)` before it, i being the position on the canvas: one place where a quotation begins serves all
    positions.
    """
    length, size = scores.shape[1:]
    origins = torch.arange(size, device=scores.device) - steps_of_positions(length, ratio, scores.device)
    shifted = scores.gather(-1, origins.clamp_min(0).expand(scores.shape))
    return shifted.masked_fill(origins < 0, lowest(scores.dtype))


def total_beyond(scores: Tensor, mask: Tensor | None, ratio: float = 1.0) -> Tensor:
    """
    Of scores (B, L, S) of places, the log-sum-exp (B, L, 1) of those that the shift takes beyond the last token of the
    source; `mask` (B, S), 1 at tokens, padded on either side.
    """
    length, size = scores.shape[1:]
    places = torch.arange(size, device=scores.device)
    last = size - 1 if mask is None else (places * mask.long()).amax(-1).view(-1, 1, 1)
    beyond = places + steps_of_positions(length, ratio, scores.device) > last
    return scores.masked_fill(~beyond, lowest(scores.dtype)).logsumexp(-1, keepdim=True)


def total_by_token(scores: Tensor, ids: Tensor) -> Tensor:
    """
    Scores (B, L, S) of places -> scores of the tokens (B, S) that they hold: the first place of a token has the
    log-sum-exp of all its places, the others have `lowest`.
    """
    same = ids.unsqueeze(2) == ids.unsqueeze(1)
    places = torch.arange(ids.shape[1], device=ids.device)
    repeated = (same & (places < places.unsqueeze(1))).any(-1)
    peak = scores.detach().amax(-1, keepdim=True)
    sums = ((scores - peak).exp() @ same.to(scores.dtype)).float()
    totals = sums.clamp_min(torch.finfo(sums.dtype).tiny).log() + peak
    return totals.masked_fill(repeated.unsqueeze(1), lowest(totals.dtype))


def add_copies(logits: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    """
    Logits (..., V) that also count the scores (..., S) of different tokens (..., S): `log(exp(logit) + exp(score))`.
    """
    at = logits.gather(-1, ids)
    return logits.scatter_add(-1, ids, F.softplus(scores - at.float()).to(logits.dtype))
