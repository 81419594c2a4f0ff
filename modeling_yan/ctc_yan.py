"""
CTC (Graves et al. 2006): a canvas with more positions than the text has tokens. A position holds a token or a blank,
neighbours that hold the same token are one, and blanks are left out. No token has a place of its own, so that a text
which is right but shifted costs nothing, and a canvas whose length was guessed a little wrong still holds it.

Pure functions on tensors. Where every token has its place (`config.canvas_ratio` 1) none of this is used.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def needed_positions(labels: Tensor) -> Tensor:
    """Fewest positions (B,) that can hold the texts (B, L), -100 being padding: a blank must part equal neighbours."""
    valid = labels != -100
    repeats = (labels[:, 1:] == labels[:, :-1]) & valid[:, 1:]
    return valid.sum(-1) + repeats.sum(-1)


def texts_first(labels: Tensor) -> Tensor:
    """Labels (B, L) with all padding at the end."""
    return labels.gather(1, (labels == -100).long().argsort(dim=1, stable=True))


# Elements of logits that are worked on at once: on a CPU what its cache holds, elsewhere what is worth a launch.
CPU_CHUNK, DEVICE_CHUNK = 2**21, 2**27


def _chunks(logits: Tensor, *others: Tensor) -> zip:
    """Logits (B, C, V) and other tensors (B, ...), a few rows at a time."""
    elements = CPU_CHUNK if logits.device.type == "cpu" else DEVICE_CHUNK
    rows = max(1, elements // max(1, logits[0].numel())) if len(logits) else 1
    return zip(*(tensor.split(rows) for tensor in (logits, *others)), strict=True)


class _TokenLogProbs(torch.autograd.Function):
    """`token_log_probs` a few rows at a time: beside the logits and their gradient nothing of their size lives."""

    @staticmethod
    def forward(ctx, logits: Tensor, ids: Tensor) -> Tensor:
        totals = torch.cat([rows.float().logsumexp(-1, keepdim=True) for (rows,) in _chunks(logits)])
        ctx.save_for_backward(logits, ids, totals)
        return logits.gather(-1, _each_position(ids, logits)).float() - totals

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        logits, ids, totals = ctx.saved_tensors
        result = torch.empty_like(logits)
        for rows, written, total, chosen, share in _chunks(logits, result, totals, ids, grad):
            probs = (rows.float() - total).exp_().mul_(-share.sum(-1, keepdim=True))
            written.copy_(probs.scatter_add_(-1, _each_position(chosen, rows), share))
        return result, None


def _each_position(ids: Tensor, logits: Tensor) -> Tensor:
    """Ids (B, S) for each of C positions (B, C, S)."""
    return ids.unsqueeze(1).expand(-1, logits.shape[1], -1)


def token_log_probs(logits: Tensor, ids: Tensor) -> Tensor:
    """
    Log-probabilities (B, C, S) in float32 of a few tokens of each row (B, S) at all positions, from logits (B, C, V).
    """
    if torch.compiler.is_compiling() or not logits.requires_grad:
        return logits.float().log_softmax(-1).gather(-1, _each_position(ids, logits))
    return _TokenLogProbs.apply(logits, ids)


class _RepeatProbs(torch.autograd.Function):
    """`repeat_probs` a few rows at a time, as `_TokenLogProbs`."""

    @staticmethod
    def forward(ctx, logits: Tensor) -> Tensor:
        ctx.save_for_backward(logits)
        return torch.cat([_repeats(rows.float().softmax(-1)) for (rows,) in _chunks(logits)])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        (logits,) = ctx.saved_tensors
        result = torch.empty_like(logits)
        for rows, written, share in _chunks(logits, result, grad.unsqueeze(-1)):
            probs = rows.float().softmax(-1)
            by_probs = F.pad(probs[:, 1:] * share, (0, 0, 0, 1))
            by_probs[:, 1:].addcmul_(probs[:, :-1], share)
            mean = torch.linalg.vecdot(by_probs, probs).unsqueeze(-1)
            written.copy_(by_probs.sub_(mean).mul_(probs))
        return result


def _repeats(probs: Tensor) -> Tensor:
    """Probabilities (..., C, V) -> that a position holds what the one before holds (..., C - 1)."""
    return (probs[..., 1:, :] * probs[..., :-1, :]).sum(-1)


def repeat_probs(logits: Tensor) -> Tensor:
    """
    Probability (B, C - 1) in float32 that a position holds the same token as the one before it, both drawn from logits
    (B, C, V).
    """
    if torch.compiler.is_compiling() or not logits.requires_grad:
        return _repeats(logits.float().softmax(-1))
    return _RepeatProbs.apply(logits)


def ctc_nll(logits: Tensor, labels: Tensor, canvas_mask: Tensor, blank_id: int) -> Tensor:
    """
    Negative log-likelihood of texts under independent positions, summed over all ways to place their tokens on the
    canvas, in nats. Exact and differentiable (`torch.nn.functional.ctc_loss`).

    Args:
        logits: (B, C, V).
        labels: (B, L), -100 is padding on either side.
        canvas_mask: (B, C) bool, true at the first positions of a row.
        blank_id: must not occur in `labels`.

    Returns:
        (B,) in float32; infinite where the canvas is shorter than `needed_positions`.
    """
    # 1. A row's classes are the blank and its own tokens; a token is the class of its first place.
    texts = texts_first(labels)
    valid = texts != -100
    own = texts.masked_fill(~valid, blank_id)
    classes = (own.unsqueeze(2) == own.unsqueeze(1)).byte().argmax(-1) + 1
    log_probs = token_log_probs(logits, F.pad(own, (1, 0), value=blank_id))
    # 2. The sum over all placements.
    nll = F.ctc_loss(log_probs.transpose(0, 1), classes, canvas_mask.sum(-1), valid.sum(-1), reduction="none")
    # 3. The library's gradient takes the classes for a whole vocabulary: to each it adds its probability, whose sum
    #    with the softmax of all tokens would be 0. Here the softmax is `token_log_probs`' own.
    probs = (log_probs.exp() * canvas_mask.unsqueeze(-1)).sum((1, 2))
    return nll - (probs - probs.detach())


def ctc_bigram_distance(logits: Tensor, labels: Tensor, canvas_mask: Tensor, blank_id: int) -> Tensor:
    """
    How far the bigrams that independent positions are expected to hold are from a target's, in [0, 1], wherever they
    stand (bags of bigrams over all placements, after arXiv 2210.03953):

        1 - 2 sum_g min(E[count of g], count of g in the target) / (E[number of bigrams] + L - 1)

    A token at i is followed by the next one at k if all between are blanks, and equal tokens are two only with a blank
    between them, so that with p_i the distribution at i and e_i its blank

        E[count of ab] = sum_(i < k) p_i(a) p_k(b) prod_(i < m < k) e_m,   without k = i + 1 where a = b.

    Args:
        logits, labels, canvas_mask, blank_id: as `ctc_nll` takes them.

    Returns:
        (B,) in float32, differentiable and exact: nothing is sampled. 0 for targets of fewer than two tokens.
    """
    texts = texts_first(labels)
    valid = texts != -100
    targets = texts.masked_fill(~valid, 0)
    log_probs = token_log_probs(logits, F.pad(targets, (1, 0), value=blank_id))
    blank = log_probs[..., 0] * canvas_mask
    at = log_probs[..., 1:].exp() * canvas_mask.unsqueeze(-1)
    length = blank.shape[1]
    # Differences of sums over a whole canvas, in double precision.
    total = blank.double().cumsum(-1)
    through = (total - blank).unsqueeze(1) - total.unsqueeze(2)
    later = torch.ones(length, length, dtype=torch.bool, device=logits.device).triu(1)
    only_blanks = torch.where(later, through, -torch.inf).exp().float()

    first, second = at[..., :-1], at[..., 1:]
    repeated = (targets[:, 1:] == targets[:, :-1]).unsqueeze(1)
    follows = only_blanks @ second - repeated * F.pad(second[:, 1:], (0, 0, 0, 1))
    expected = (first * follows).sum(1)

    begins = valid[:, 1:]
    same = (targets.unsqueeze(2) == targets.unsqueeze(1)) & valid.unsqueeze(2)
    counts = (same[:, :-1, :-1] & same[:, 1:, 1:]).sum(1).clamp_min(1)
    matched = (torch.minimum(expected, counts) / counts * begins).sum(-1)

    # A token begins where there is no blank and not what stood before.
    blanks = blank.exp() * canvas_mask
    starts = canvas_mask.sum(-1) - blanks.sum(-1)
    repeats = (repeat_probs(logits) - blanks[:, 1:] * blanks[:, :-1]) * canvas_mask[:, 1:]
    written = starts - repeats.sum(-1) - 1 + blank.sum(-1).exp()
    number = begins.sum(-1)
    return torch.where(number > 0, 1 - 2 * matched / (written + number.clamp_min(1)), 0)


def ctc_lattice(logits: Tensor, labels: Tensor, blank_id: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """
    What a search over all placements of texts walks through: a text's tokens with a blank before, between and behind
    them, as S = 2 L + 1 symbols.

    Args:
        logits, labels, blank_id: as `ctc_nll` takes them.

    Returns:
        Symbols (B, S); their log-probabilities at each position (B, C, S) in float32; whether a symbol may follow the
        one two before it, which a token may that is not equal to it (B, S); and the number of tokens (B, 1).
    """
    texts = texts_first(labels)
    valid = texts != -100
    symbols = torch.full((len(texts), 2 * texts.shape[1] + 1), blank_id, dtype=texts.dtype, device=texts.device)
    symbols[:, 1::2] = texts.masked_fill(~valid, blank_id)
    log_probs = token_log_probs(logits, symbols)
    may_skip = torch.zeros_like(symbols, dtype=torch.bool)
    may_skip[:, 3::2] = texts[:, 1:] != texts[:, :-1]
    return symbols, log_probs, may_skip, valid.sum(-1, keepdim=True)


@torch.no_grad()
def ctc_prefix_log_prob(logits: Tensor, labels: Tensor, canvas_mask: Tensor, blank_id: int) -> Tensor:
    """
    Log-probability that what a canvas holds begins with a text, in nats: the sum over all positions at which the text's
    last token can begin, whatever stands behind it (the prefix probabilities of Graves et al. 2006, section 3.2). With
    EOS as the last token, it is the probability of the text where texts are cut at EOS.

    Args:
        logits, labels, canvas_mask, blank_id: as `ctc_nll` takes them; a text has one token at least.

    Returns:
        (B,) in float32; -inf where the canvas is shorter than `needed_positions`.
    """
    _, log_probs, may_skip, tokens = ctc_lattice(logits, labels, blank_id)
    last = 2 * tokens - 1
    entered = torch.full_like(log_probs[:, 0], -torch.inf)
    entered[:, :2] = log_probs[:, 0, :2]
    scores, arrivals = entered, [entered.gather(1, last)]
    for position in range(1, log_probs.shape[1]):
        from_before = F.pad(scores[:, :-1], (1, 0), value=-torch.inf)
        from_token = F.pad(scores[:, :-2], (2, 0), value=-torch.inf).masked_fill(~may_skip, -torch.inf)
        entered = torch.logaddexp(from_before, from_token) + log_probs[:, position]
        scores = torch.logaddexp(entered, scores + log_probs[:, position])
        arrivals.append(entered.gather(1, last).masked_fill(~canvas_mask[:, position, None], -torch.inf))
    return torch.cat(arrivals, 1).logsumexp(-1)


@torch.no_grad()
def ctc_viterbi(logits: Tensor, labels: Tensor, canvas_mask: Tensor, blank_id: int) -> Tensor:
    """
    The most probable way to place texts on their canvases (Viterbi).

    Args:
        logits, labels, canvas_mask, blank_id: as `ctc_nll` takes them; canvases of `needed_positions` at least.

    Returns:
        (B, C) token ids, blanks included and off the canvas; `ctc_collapse` gives the labels back.
    """
    symbols, log_probs, may_skip, tokens = ctc_lattice(logits, labels, blank_id)
    (rows, length), behind = log_probs.shape[:2], 2 * tokens
    scores = torch.full_like(log_probs[:, 0], -torch.inf)
    scores[:, :2] = log_probs[:, 0, :2]
    steps = []
    for position in range(1, length):
        from_before = F.pad(scores[:, :-1], (1, 0), value=-torch.inf)
        from_token = F.pad(scores[:, :-2], (2, 0), value=-torch.inf).masked_fill(~may_skip, -torch.inf)
        best, step = torch.stack([scores, from_before, from_token]).max(0)
        steps.append(step)
        scores = torch.where(canvas_mask[:, position, None], best + log_probs[:, position], scores)
    last = (behind - 1).clamp_min(0)
    state = torch.where(scores.gather(1, behind) >= scores.gather(1, last), behind, last)
    placed = torch.full((rows, length), blank_id, dtype=symbols.dtype, device=symbols.device)
    for position in range(length - 1, -1, -1):
        on_canvas = canvas_mask[:, position, None]
        placed[:, position, None] = torch.where(on_canvas, symbols.gather(1, state), blank_id)
        if position:
            state = torch.where(on_canvas, state - steps[position - 1].gather(1, state), state)
    return placed


def ctc_places(ids: Tensor, canvas_mask: Tensor | None, blank_id: int) -> Tensor:
    """
    Where in its text the token of each position stands (B, C); C for blanks, for what repeats the position before, and
    off the canvas. Arguments as those of `ctc_collapse`.
    """
    before = F.pad(ids[:, :-1], (1, 0), value=blank_id)
    kept = (ids != blank_id) & (ids != before)
    if canvas_mask is not None:
        kept = kept & canvas_mask.bool()
    return torch.where(kept, kept.long().cumsum(-1) - 1, ids.shape[1])


def move_to_places(values: Tensor, places: Tensor, fill: float) -> Tensor:
    """Values of the positions (B, C) where their tokens stand in the text (B, C), and `fill` behind them."""
    # What is left out goes into a column of its own, which is cut off.
    return torch.full_like(F.pad(values, (0, 1)), fill).scatter(1, places, values)[:, :-1]


def ctc_collapse(ids: Tensor, canvas_mask: Tensor | None, blank_id: int, fill_id: int) -> Tensor:
    """
    The texts that canvases hold: of neighbours that are equal the first, and no blanks.

    Args:
        ids: (B, C), the most probable or a drawn token of each position.
        canvas_mask: (B, C), true at the first positions of a row; all if absent.
        fill_id: put behind a text's last token.

    Returns:
        (B, C). Shapes do not depend on values, so that the function can be compiled and exported.
    """
    return move_to_places(ids, ctc_places(ids, canvas_mask, blank_id), fill_id)
