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


def places_of_quotation(begin: Tensor, length: int, mask: Tensor | None, size: int) -> tuple[Tensor, Tensor]:
    """
    Where the positions of an answer stand that quotes the source from a place on, position i being i places further.

    Args:
        begin: of each row (B,).
        length: positions.
        mask: of the source (B, S), 1 at tokens; None where all are.
        size: S.

    Returns:
        Places (B, L), at most S - 1; and whether they hold a token (B, L): false beyond the source's last.
    """
    places = begin.unsqueeze(1) + torch.arange(length, device=begin.device)
    within = places < size
    places = places.clamp_max(size - 1)
    return places, within if mask is None else within & mask.bool().gather(1, places)


def diagonals(values: Tensor) -> Tensor:
    """Values (B, L, S + L) -> (B, L, S): what stands as far behind each of the first S as its row says, row i by i."""
    rows, length, size = values.shape
    places = torch.arange(size - length, device=values.device)
    places = places + torch.arange(length, device=values.device).unsqueeze(1)
    return values.gather(-1, places.expand(rows, -1, -1))


def quotation_log_probs(begins: Tensor, given_begin: Tensor) -> Tensor:
    """
    Log-probability of each token given those before it, where a whole answer quotes from one place that is not known:

        p(y) = sum over b of p(b) * product over i of p(y_i | b)

    Args:
        begins: log-probability of each place (B, S).
        given_begin: log p(y_i | b) (B, L, S), 0 where there is no token.

    Returns:
        (B, L); their sum over a row is log p(y).
    """
    prefixes = (begins.unsqueeze(1) + given_begin.cumsum(1)).logsumexp(-1)
    return torch.cat([prefixes[:, :1], prefixes.diff(dim=1)], 1)


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
