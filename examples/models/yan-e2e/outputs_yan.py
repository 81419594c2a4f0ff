"""What the models return."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import MaskedLMOutput
from transformers.utils import ModelOutput


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
class YanMaskedLMOutput(MaskedLMOutput):
    """
    Args:
        loss: weighted sum of the terms below; only with `labels`.
        logits: (B, L, V).
        latents: encoder output the logits were decoded from (B, L, d).
        ce_loss, mmd_loss, latent_l2: the terms, unweighted and detached; None where the weight is 0.
    """

    latents: torch.FloatTensor | None = None
    ce_loss: torch.FloatTensor | None = None
    mmd_loss: torch.FloatTensor | None = None
    latent_l2: torch.FloatTensor | None = None


@dataclass
class YanSeq2SeqLMOutput(ModelOutput):
    """
    Args:
        loss: weighted sum of the terms below; only with `labels`.
        logits: decoder of the unrolled endpoint (B, Ly, V).
        length_logits: over lengths 1 .. max_position_embeddings (B, max_position_embeddings).
        latents: the unrolled endpoint (B, Ly, d).
        encoder_last_hidden_state: source states h (B, Lx, d).
        hidden_states, attentions: of the encoder over the source, when asked for.
        nll_loss, mse_loss, ce_loss, ngram_loss, denoising_ce_loss, length_loss, gate_entropy, load_balance, mmd_loss, latent_l2:
            the terms, unweighted and detached; None where the weight is 0, but for `gate_entropy`, which is always told.
        expert_usage: mean gate probability of each expert over the target tokens (K,); only with `labels`.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    length_logits: torch.FloatTensor | None = None
    latents: torch.FloatTensor | None = None
    encoder_last_hidden_state: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    nll_loss: torch.FloatTensor | None = None
    mse_loss: torch.FloatTensor | None = None
    ce_loss: torch.FloatTensor | None = None
    ngram_loss: torch.FloatTensor | None = None
    denoising_ce_loss: torch.FloatTensor | None = None
    length_loss: torch.FloatTensor | None = None
    gate_entropy: torch.FloatTensor | None = None
    load_balance: torch.FloatTensor | None = None
    mmd_loss: torch.FloatTensor | None = None
    latent_l2: torch.FloatTensor | None = None
    expert_usage: torch.FloatTensor | None = None


__all__ = ["YanMaskedLMOutput", "YanModelOutput", "YanSeq2SeqLMOutput"]
