"""
Canvases: how many positions a text gets, and which positions of a batch are written. Pure functions on tensors.

`ratio` is positions per token (`config.canvas_ratio`). At 1 position i is token i; above 1 some positions stay blank
(`ctc_yan.py`). A row's canvas is the first positions of the row; texts that are padded on the left are canvases at the
right edge.
"""

import torch
from torch import Tensor

from .ctc_yan import needed_positions


def canvas_lengths(lengths: Tensor, ratio: float | Tensor, longest: int) -> Tensor:
    """Positions for texts of these lengths (...), EOS included: `ceil(ratio * length)`, at most `longest`."""
    return (lengths * ratio).ceil().long().clamp(1, longest)


def text_room(positions: int, ratio: float) -> int:
    """Tokens of the longest text that a canvas of so many positions is meant for, at least 1."""
    return max(int(positions / ratio), 1)


def length_mask(lengths: Tensor, size: int | None = None) -> Tensor:
    """(B, size) bool, true at the first `lengths` (B,) positions of each row; as wide as the longest row by default."""
    size = int(lengths.max()) if size is None else size
    return torch.arange(size, device=lengths.device) < lengths.unsqueeze(1)


def source_lengths(source: Tensor, mask: Tensor | None) -> Tensor:
    """Tokens of each source (B,), from ids or states (B, Lx, ...) and their mask (B, Lx)."""
    if mask is None:
        return torch.full((source.shape[0],), source.shape[1], device=source.device)
    return mask.long().sum(-1)


def source_indices(length: int, ratio: float, source: Tensor, mask: Tensor | None) -> Tensor:
    """
    Where the token of each canvas position stands in its source, on canvases whose positions belong to the source's
    tokens: position j to token `floor(j / ratio)`, and those behind the last token to it.

    Args:
        length: positions of the canvas, L.
        source: ids or states (B, Lx, ...).
        mask: (B, Lx), 1 at tokens, padded on either side; None where every position is a token.

    Returns:
        (B, L), indices below Lx.
    """
    tokens = (torch.arange(length, device=source.device) / ratio).long()
    last = (source_lengths(source, mask) - 1).clamp_min(0).unsqueeze(1)
    first = 0 if mask is None else mask.long().argmax(-1, keepdim=True)
    return torch.minimum(tokens.unsqueeze(0), last) + first


def copied_tokens(length: int, ratio: float, ids: Tensor, mask: Tensor | None, blank: int) -> Tensor:
    """
    What each position of such a canvas holds where the source is written unchanged: the first position of a token that
    token, the others of it the blank.

    Args:
        length: positions of the canvas, L.
        ids: source (B, Lx), and `mask` (B, Lx), 1 at tokens; None where every position is a token.

    Returns:
        Ids (B, L).
    """
    indices = source_indices(length, ratio, ids, mask)
    first = torch.ones_like(indices, dtype=torch.bool)
    first[:, 1:] = indices[:, 1:] != indices[:, :-1]
    return ids.gather(1, indices).masked_fill(~first, blank)


def target_canvas(
    labels: Tensor,
    ratio: float,
    longest: int,
    *,
    read: Tensor | None = None,
    jitter: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """
    The canvas that targets are learned on.

    Args:
        labels: (B, L), -100 is padding on either side.
        longest: most positions of a canvas with blanks.
        read: tokens of the sources (B,), where canvases are as long as these say and not as the targets.
        jitter: canvases with blanks are up to this share shorter or longer, but long enough for their text.
        generator: of the jitter.

    Returns:
        (B, L) bool with a ratio of 1, true at tokens; else (B, C) bool.

    Raises:
        ValueError: for a text that `longest` positions cannot hold.
    """
    if ratio == 1:
        return labels != -100
    needed = needed_positions(labels)
    if int(needed.max()) > longest:
        raise ValueError(
            f"labels hold a text that needs {int(needed.max())} positions, more than max_position_embeddings="
            f"{longest}; tokenize it with truncation=True"
        )
    lengths = (labels != -100).sum(-1) if read is None else read
    if jitter and read is None:
        draws = torch.rand(len(labels), generator=generator, device=labels.device)
        ratio = ratio * (1 + jitter * (2 * draws - 1))
    return length_mask(torch.maximum(canvas_lengths(lengths, ratio, longest), needed))
