"""Blocks of the velocity field: fresh ones with adaptive norms, and ones that begin as an encoder's own."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_yan import YanConfig
from .layers_yan import YanFeedForward, feed_forward_size
from .mixers_yan import MIXERS, YanCrossAttention, YanJointAttention


class YanModulation(nn.Linear):
    """Time embedding -> (scale, shift) pairs of a flow layer. A class of its own because scales start at 1."""

    def __init__(self, config: YanConfig, num_chunks: int):
        super().__init__(config.hidden_size, num_chunks * config.hidden_size)


def modulated_norm(norm: nn.LayerNorm, states: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """
    `scale * norm(states) + shift` for a norm without weights; one kernel where all rows have the same time.

    Args:
        states: (B, L, d).
        scale, shift: (B or 1, 1, d).
    """
    if scale.shape[0] == 1:
        # Under autocast, states may be wider than what is computed from the time.
        weight, bias = (part.flatten().to(states.dtype) for part in (scale, shift))
        return F.layer_norm(states, norm.normalized_shape, weight, bias, norm.eps)
    return torch.addcmul(shift, norm(states), scale)


class YanFlowLayer(GradientCheckpointingLayer):
    """Block with adaptive layer norms: token mixer, cross-attention to the source (if listed), feed-forward."""

    def __init__(self, config: YanConfig, layer_idx: int):
        super().__init__()
        self.has_cross_attention = layer_idx in config.cross_attention_layers
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps, elementwise_affine=False)
        self.mixer = MIXERS[config.flow_mixer](config)
        self.feed_forward = YanFeedForward(config, feed_forward_size(config, config.flow_mixer))
        self.cross_attention = YanCrossAttention(config) if self.has_cross_attention else None
        # Chunks: (scale, shift) of the mixer, of the feed-forward, of the cross-attention.
        self.num_chunks = 6 if self.has_cross_attention else 4
        self.modulation = YanModulation(config, self.num_chunks)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def modulate(self, time_embedding: torch.Tensor) -> torch.Tensor:
        """Scales and shifts for time embeddings (n, d): (n, 1, chunks, d). They depend on t alone."""
        chunks = self.modulation(F.gelu(time_embedding))
        return chunks.view(time_embedding.shape[0], 1, self.num_chunks, -1)

    def forward(
        self,
        hidden_states: torch.Tensor,
        modulation: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cross_key: torch.Tensor | None = None,
        cross_value: torch.Tensor | None = None,
        cross_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        chunks = modulation.unbind(2)
        normed = modulated_norm(self.norm, hidden_states, chunks[0], chunks[1])
        hidden_states = hidden_states + self.dropout(self.mixer(normed, attention_mask)[0])
        if self.has_cross_attention:
            normed = modulated_norm(self.norm, hidden_states, chunks[4], chunks[5])
            attended, _ = self.cross_attention(normed, cross_attention_mask, (cross_key, cross_value))
            hidden_states = hidden_states + self.dropout(attended)
        normed = modulated_norm(self.norm, hidden_states, chunks[2], chunks[3])
        return hidden_states + self.dropout(self.feed_forward(normed))


class YanJointFlowLayer(GradientCheckpointingLayer):
    """
    Block of BERT's form, so that it can begin with the weights of a pretrained encoder's layer: each norm follows its
    sum, and one softmax attends to the source's states and to the canvas, as the encoder's did to one text. Scales and
    shifts by the time follow the norms, and begin by changing nothing.
    """

    has_cross_attention = True
    num_chunks = 4

    def __init__(self, config: YanConfig, layer_idx: int):
        super().__init__()
        hosted = config.encoder_config
        self.cross_attention = YanJointAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=hosted.layer_norm_eps)
        self.feed_forward = YanFeedForward(config, hosted.intermediate_size, hosted.hidden_act)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=hosted.layer_norm_eps)
        # Chunks: (scale, shift) of the attention's norm and of the feed-forward's.
        self.modulation = YanModulation(config, self.num_chunks)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def modulate(self, time_embedding: torch.Tensor) -> torch.Tensor:
        """As `YanFlowLayer.modulate`."""
        chunks = self.modulation(F.gelu(time_embedding))
        return chunks.view(time_embedding.shape[0], 1, self.num_chunks, -1)

    def forward(
        self,
        hidden_states: torch.Tensor,
        modulation: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        cross_key: torch.Tensor | None = None,
        cross_value: torch.Tensor | None = None,
        cross_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As `YanFlowLayer.forward`; `cross_attention_mask` is over source and canvas, `attention_mask` is not read."""
        chunks = modulation.unbind(2)
        attended = self.cross_attention(hidden_states, cross_attention_mask, (cross_key, cross_value))[0]
        normed = self.attention_norm(hidden_states + self.dropout(attended))
        hidden_states = torch.addcmul(chunks[1], normed, chunks[0])
        normed = self.feed_forward_norm(hidden_states + self.dropout(self.feed_forward(hidden_states)))
        return torch.addcmul(chunks[3], normed, chunks[2])
