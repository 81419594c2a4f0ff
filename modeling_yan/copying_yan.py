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
        first: where on its canvas a text begins (B,), which is padded before; None where all begin at the first
            position.
    """

    ids: Tensor
    states: Tensor | None = None
    mask: Tensor | None = None
    first: Tensor | None = None

    def for_rows(self, rows: int) -> "CopySource":
        """For so many canvases, those of a source next to each other."""
        repeats = rows // len(self.ids)
        if repeats == 1:
            return self
        parts = (self.ids, self.states, self.mask, self.first)
        return CopySource(*(None if part is None else part.repeat_interleave(repeats, 0) for part in parts))


def from_first(values: Tensor, first: Tensor | None, back: bool = False) -> Tensor:
    """
    Values (B, L, ...) of canvases moved to the left, so that texts begin at the first position; what stood before them
    stands behind.

    Args:
        first: where each begins (B,); None where that is so already.
        back: moves them back.
    """
    if first is None:
        return values
    length = values.shape[1]
    places = torch.arange(length, device=values.device)
    places = (places + first.unsqueeze(1) * (-1 if back else 1)) % length
    return values.gather(1, places.view(*places.shape, *[1] * (values.dim() - 2)).expand_as(values))


def best_passage(begins: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """
    First and last place (B,), (B,) of the most probable passage, `p(b) p(e | b)` as in `quotation_log_probs`.

    Args:
        begins: log-probability that it begins at each place (B, S).
        ends: scores of its last place (B, S).
    """
    size = ends.shape[1]
    behind = torch.ones(size, size, dtype=torch.bool, device=ends.device).triu()
    pairs = ends.unsqueeze(1).masked_fill(~behind, lowest(ends.dtype))
    best_end, last = pairs.log_softmax(-1).max(-1)
    first = (begins + best_end).argmax(-1)
    return first, last.gather(1, first.unsqueeze(1)).squeeze(1)


def diagonals(values: Tensor) -> Tensor:
    """Values (B, L, S + L) -> (B, L, S): what stands as far behind each of the first S as its row says, row i by i."""
    rows, length, size = values.shape
    places = torch.arange(size - length, device=values.device)
    places = places + torch.arange(length, device=values.device).unsqueeze(1)
    return values.gather(-1, places.expand(rows, -1, -1))


def quotation_log_probs(begins: Tensor, ends: Tensor, quoted: Tensor, over: Tensor) -> Tensor:
    """
    Log-probability of each token given those before it, where a whole answer quotes one passage that is not known:

        p(y) = sum over b, e of p(b) p(e | b) * product over i <= e - b of p(y_i | b) * product over i > e - b of p(y_i)

    The end's scores compete among the places from the beginning on, `p(e | b) = exp(ends_e) / sum over s >= b of
    exp(ends_s)`, so that neither the canvas nor the answer's length is asked. Passages longer than the answer count
    where it has no end. It takes O(L S): passages that go on and those that are over are summed by prefix.

    Args:
        begins: log-probability of each place (B, S).
        ends: scores of the last place (B, S).
        quoted: log p(y_i | b) (B, L, S) where the passage goes on, 0 where there is no token.
        over: log p(y_i) (B, L) behind its end, 0 where there is no token.

    Returns:
        (B, L); their sum over a row is log p(y).
    """
    length = quoted.shape[1]
    # 1. Ends from each place on, and what stands as far behind each beginning as a position of the answer (B, L, S).
    onwards = ends.flip(1).logcumsumexp(1).flip(1)
    beyond = ends.new_full((len(ends), length), lowest(ends.dtype))
    goes_on, stops = (diagonals(torch.cat([x, beyond], 1).unsqueeze(1).expand(-1, length, -1)) for x in (onwards, ends))
    # 2. All beginnings: the passage holds the token at i, and perhaps it is the last (B, L).
    read = (begins - onwards).unsqueeze(1) + quoted.cumsum(1)
    inside, stopped = (read + goes_on).logsumexp(-1), (read + stops).logsumexp(-1)
    # 3. Or the passage stopped somewhere before.
    behind = over.cumsum(1)
    after = behind[:, 1:] + (stopped - behind)[:, :-1].logcumsumexp(1)
    prefixes = torch.cat([inside[:, :1], torch.logaddexp(inside[:, 1:], after)], 1)
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
