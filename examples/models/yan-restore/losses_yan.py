"""
The terms of the training loss: one table. A term is a name, a weight, what it reads and how it is computed; the checks
of the config, the fields of the outputs, the trainer's log and the documentation derive from the table, so that a new
term is one entry here.

Every term is a sum over target tokens divided by `LossInputs.count` (what belongs to a row counts by its tokens), so
that micro-batches add up to their batch. Two terms are statistics of a batch instead and give the mean over
micro-batches: `load_balance` and `mmd_loss`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .ctc_yan import ctc_bigram_distance, ctc_nll
from .flow_matching_yan import (
    gate_entropy,
    load_balance,
    masked_mean,
    mixture_nll,
    mmd_to_standard_normal,
    target_velocity,
    token_cross_entropy,
)

# What a term may read, besides labels and lengths: each costs a pass through a part of the model.
ENDPOINT = "endpoint"  # the few-step endpoint, decoded
DRAWN_TIMES = "drawn times"  # velocities and gate on the straight path, at one time a row
DENOISED = "denoised"  # the endpoint that one step from the drawn time reaches, decoded
TARGET_LATENTS = "target latents"  # the encoder's latents of the target, without gradient
TRAINED_LATENTS = "trained latents"  # the same with their gradient


@dataclass
class LossInputs:
    """
    What the terms are computed from. What no term with a weight reads is None.

    Args:
        labels: target ids (B, Ly), -100 where there is no token.
        canvas_mask: (B, L) bool, true at the positions that are written.
        count: target tokens of the whole batch, of which this may be a micro-batch.
        placed: whether position i of the canvas is token i of the target; otherwise tokens may stand anywhere in their
            order (CTC).
        blank_id: what a position without a token holds, where tokens have no place.
        cross_entropy: decoder states (B, L, d), labels (B, L), label smoothing, logits or None -> per position (B, L).
        velocity_std, label_smoothing: of the training settings.
        generator: for terms that draw.
        states, logits: of the endpoint (B, L, d), (B, L, V); logits are None where they are computed in chunks.
        endpoint: the few-step endpoint x1_hat (B, L, d).
        length_logits: (B, max_position_embeddings); None without a length head.
        x_0, x_1: prior and target latents (B, L, d).
        velocities, gate_log_probs: at the drawn times (B, L, K, d), (B, L, K).
        denoised_states: decoder states of the endpoint that one step from the drawn times reaches (B, L, d).
        target_latents: latents of the target with their gradient (B, L, d).
    """

    labels: Tensor
    canvas_mask: Tensor
    count: Tensor | int
    placed: bool
    cross_entropy: Callable[..., Tensor]
    blank_id: int | None = None
    velocity_std: float = 1.0
    label_smoothing: float = 0.0
    generator: torch.Generator | None = None
    states: Tensor | None = None
    logits: Tensor | None = None
    endpoint: Tensor | None = None
    length_logits: Tensor | None = None
    x_0: Tensor | None = None
    x_1: Tensor | None = None
    velocities: Tensor | None = None
    gate_log_probs: Tensor | None = None
    denoised_states: Tensor | None = None
    target_latents: Tensor | None = None

    @property
    def token_mask(self) -> Tensor:
        """(B, Ly) bool: labels that are tokens."""
        return self.labels != -100

    @property
    def lengths(self) -> Tensor:
        """Tokens of each target (B,)."""
        return self.token_mask.sum(-1)

    @property
    def share(self) -> Tensor:
        """This micro-batch's share of the batch's tokens."""
        return self.token_mask.sum() / self.count

    def per_token(self, values: Tensor) -> Tensor:
        """Values of tokens (B, Ly) -> their share of the batch's mean."""
        return masked_mean(values, self.token_mask, self.count)

    def per_position(self, values: Tensor) -> Tensor:
        """Values of canvas positions (B, L) -> their share of the batch's mean."""
        return masked_mean(values, self.canvas_mask) * self.share

    def per_row(self, values: Tensor) -> Tensor:
        """Values of rows (B,), each counting by its tokens, -> their share of the batch's mean."""
        return (values * self.lengths).sum() / self.count


def _nll(x: LossInputs) -> Tensor:
    return x.per_token(mixture_nll(target_velocity(x.x_0, x.x_1), x.velocities, x.gate_log_probs, x.velocity_std))


def _mse(x: LossInputs) -> Tensor:
    return x.per_token((x.endpoint - x.x_1).square().mean(-1))


def _cross_entropy(x: LossInputs) -> Tensor:
    if x.placed:
        return x.per_token(x.cross_entropy(x.states, x.labels, x.label_smoothing, x.logits))
    # A row without labels is no empty text to be learned.
    return masked_mean(ctc_nll(x.logits, x.labels, x.canvas_mask, x.blank_id), x.lengths > 0, x.count)


def _bigrams(x: LossInputs) -> Tensor:
    return x.per_row(ctc_bigram_distance(x.logits, x.labels, x.canvas_mask, x.blank_id))


def _denoising_cross_entropy(x: LossInputs) -> Tensor:
    return x.per_token(x.cross_entropy(x.denoised_states, x.labels))


def _length(x: LossInputs) -> Tensor:
    return x.per_row(token_cross_entropy(x.length_logits, (x.lengths - 1).clamp_min(0)))


def _gate_entropy(x: LossInputs) -> Tensor:
    return x.per_position(gate_entropy(x.gate_log_probs))


def _load_balance(x: LossInputs) -> Tensor:
    return load_balance(x.gate_log_probs.exp(), x.canvas_mask) * x.share


def _mmd(x: LossInputs) -> Tensor:
    latents = x.target_latents[x.token_mask]
    if not len(latents):
        # A micro-batch without labels adds nothing.
        return x.target_latents.new_zeros((), dtype=torch.float32)
    return mmd_to_standard_normal(latents, generator=x.generator) * x.share


def _latent_l2(x: LossInputs) -> Tensor:
    return x.per_token(x.target_latents.float().square().mean(-1))


@dataclass(frozen=True)
class LossTerm:
    """
    Args:
        name: field of the outputs and of the log; `<name>_weight` is its weight in the training settings.
        weight: the default one.
        compute: the unweighted term, a scalar.
        description: one sentence for documentation.
        reads: of ENDPOINT, DRAWN_TIMES, DENOISED, TARGET_LATENTS, TRAINED_LATENTS.
        needs_place: only where every token has its position on the canvas (`canvas_ratio` 1).
        needs_blanks: only where it has none (`canvas_ratio` above 1).
        needs_all_logits: the logits of all positions at once, so not in chunks.
        sign: -1 for what is maximised.
    """

    name: str
    weight: float
    compute: Callable[[LossInputs], Tensor]
    description: str
    reads: frozenset[str] = frozenset()
    needs_place: bool = False
    needs_blanks: bool = False
    needs_all_logits: bool = False
    sign: int = 1

    @property
    def weight_name(self) -> str:
        return f"{self.name}_weight"


LOSS_TERMS: dict[str, LossTerm] = {
    term.name: term
    for term in (
        LossTerm(
            "nll_loss",
            1.0,
            _nll,
            "Negative log-likelihood of the true velocity at a drawn time under the mixture of experts.",
            reads=frozenset({DRAWN_TIMES, TARGET_LATENTS}),
            needs_place=True,
        ),
        LossTerm(
            "mse_loss",
            1.0,
            _mse,
            "Squared distance of the few-step endpoint to the target's latents, mean over channels.",
            reads=frozenset({ENDPOINT, TARGET_LATENTS}),
            needs_place=True,
        ),
        LossTerm(
            "ce_loss",
            1.0,
            _cross_entropy,
            "Cross-entropy of the endpoint's tokens; with blanks, the exact likelihood over all placements (CTC).",
            reads=frozenset({ENDPOINT}),
        ),
        LossTerm(
            "bigram_loss",
            0.0,
            _bigrams,
            "How far the bigrams that the canvas is expected to hold are from the target's, wherever they stand.",
            reads=frozenset({ENDPOINT}),
            needs_blanks=True,
            needs_all_logits=True,
        ),
        LossTerm(
            "denoising_ce_loss",
            0.0,
            _denoising_cross_entropy,
            "Cross-entropy of the endpoint that one step from the drawn time reaches; costs a decoder pass.",
            reads=frozenset({DRAWN_TIMES, TARGET_LATENTS, DENOISED}),
            needs_place=True,
        ),
        LossTerm("length_loss", 0.1, _length, "Cross-entropy of the answer's length; only with a length head."),
        LossTerm(
            "gate_entropy",
            0.0,
            _gate_entropy,
            "Entropy of the gate at the drawn time, which is maximised.",
            reads=frozenset({DRAWN_TIMES, TARGET_LATENTS}),
            needs_place=True,
            sign=-1,
        ),
        LossTerm(
            "load_balance",
            0.0,
            _load_balance,
            "Divergence of the experts' mean use from an even one.",
            reads=frozenset({DRAWN_TIMES, TARGET_LATENTS}),
            needs_place=True,
        ),
        LossTerm(
            "mmd_loss",
            0.0,
            _mmd,
            "Maximum mean discrepancy between latents and the standard normal.",
            reads=frozenset({TRAINED_LATENTS}),
            needs_place=True,
        ),
        LossTerm(
            "latent_l2",
            0.0,
            _latent_l2,
            "Mean square of the latents.",
            reads=frozenset({TRAINED_LATENTS}),
            needs_place=True,
        ),
    )
}
# Those of the autoencoder (stage 1), in the order in which they are computed.
AUTOENCODER_TERMS = ("mmd_loss", "latent_l2", "ce_loss")


def active_terms(weights: Mapping[str, float], *, length_head: bool = True) -> list[LossTerm]:
    """The terms that have a weight, in the order of `weights`."""
    terms = [LOSS_TERMS[name] for name, weight in weights.items() if weight]
    return [term for term in terms if length_head or term.name != "length_loss"]


def weighted_sum(inputs: LossInputs, weights: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """
    Args:
        weights: by name of a term; those of weight 0 are not computed.

    Returns:
        The loss, and its terms by name, unweighted and detached.
    """
    terms = {
        term.name: term.compute(inputs) for term in active_terms(weights, length_head=inputs.length_logits is not None)
    }
    loss = inputs.canvas_mask.new_zeros((), dtype=torch.float32)
    for name, value in terms.items():
        loss = loss + LOSS_TERMS[name].sign * weights[name] * value
    return loss, {name: value.detach() for name, value in terms.items()}


def reads(weights: Mapping[str, float]) -> frozenset[str]:
    """What the terms with a weight read, of the names above."""
    return frozenset().union(*(term.reads for term in active_terms(weights)))


def describe_terms() -> str:
    """The table as Markdown, for the documentation."""

    def needs(term: LossTerm) -> str:
        return "every token has its place" if term.needs_place else "canvas with blanks" if term.needs_blanks else ""

    rows = [["term", "default weight", "what it is", "only where"], ["---", "---:", "---", "---"]]
    rows += [[f"`{t.name}`", f"{t.weight:g}", t.description, needs(t)] for t in LOSS_TERMS.values()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
