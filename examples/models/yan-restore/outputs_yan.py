"""What the models return. The fields of the loss terms are those of the table in `losses_yan.py`."""

import dataclasses
from dataclasses import dataclass

import torch
from transformers.modeling_outputs import MaskedLMOutput
from transformers.utils import ModelOutput

from .losses_yan import AUTOENCODER_TERMS, LOSS_TERMS


@dataclass
class YanModelOutput(ModelOutput):
    """
    Args:
        last_hidden_state: source states h (B, Lx, d).
        velocities: all experts at the given canvas state (B, Ly, K, d); only with `x_t`.
        gate_probs: gate at the given canvas state (B, Ly, K), float32; only with `x_t`.
    """

    last_hidden_state: torch.FloatTensor | None = None
    velocities: torch.FloatTensor | None = None
    gate_probs: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


@dataclass
class _MaskedLMOutput(MaskedLMOutput):
    """
    Args:
        loss: weighted sum of the terms; only with `labels`.
        logits: (B, L, V).
        latents: encoder output the logits were decoded from (B, L, d).
        ce_loss, mmd_loss, latent_l2: the terms, unweighted and detached; None where the weight is 0.
    """

    latents: torch.FloatTensor | None = None


@dataclass
class _Seq2SeqLMOutput(ModelOutput):
    """
    Args:
        loss: weighted sum of the terms; only with `labels`.
        logits: decoder of the unrolled endpoint (B, Ly, V).
        length_logits: over lengths 1 .. max_position_embeddings (B, max_position_embeddings).
        latents: the unrolled endpoint (B, Ly, d).
        encoder_last_hidden_state: source states h (B, Lx, d).
        hidden_states, attentions: of the encoder over the source, when asked for.
        expert_usage: mean gate probability of each expert over the target tokens (K,); only with `labels`.
        nll_loss, mse_loss, ce_loss, …: each term of `LOSS_TERMS`, unweighted and detached; None where the weight is 0,
            but for `gate_entropy`, which is always told.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    length_logits: torch.FloatTensor | None = None
    latents: torch.FloatTensor | None = None
    encoder_last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    expert_usage: torch.FloatTensor | None = None


def _with_terms(name: str, base: type[ModelOutput], terms: tuple[str, ...]) -> type[ModelOutput]:
    """The output class with a field for each loss term."""
    fields = [(term, torch.FloatTensor | None, None) for term in terms]
    namespace = {"__module__": __name__, "__doc__": base.__doc__}
    return dataclasses.make_dataclass(name, fields, bases=(base,), namespace=namespace)


YanMaskedLMOutput = _with_terms("YanMaskedLMOutput", _MaskedLMOutput, AUTOENCODER_TERMS)
YanSeq2SeqLMOutput = _with_terms("YanSeq2SeqLMOutput", _Seq2SeqLMOutput, tuple(LOSS_TERMS))

__all__ = ["YanMaskedLMOutput", "YanModelOutput", "YanSeq2SeqLMOutput"]
