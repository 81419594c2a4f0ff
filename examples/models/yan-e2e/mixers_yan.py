"""Token mixers: what lets one position see the others."""

from collections.abc import Callable

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_yan import YanConfig


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain softmax attention, the reference of the fused ones: (B, heads, L, head size) -> (B, L, heads, head size)."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class YanAttention(nn.Module):
    """Multi-head attention without positions or causality, over the sequence itself or over another one."""

    def __init__(self, config: YanConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        # transformers' attention functions take a missing attribute for causal.
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.attention_bias)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return states.view(*states.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def project_key_value(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, heads, L, head size) of the states (B, L, d) attended to; constant over ODE steps."""
        return self._split_heads(self.k_proj(states)), self._split_heads(self.v_proj(states))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        key_value: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            hidden_states: queries (B, L, d).
            attention_mask: as `create_bidirectional_mask` makes it.
            key_value: from `project_key_value`, for cross-attention; self-attention if absent.

        Returns:
            Output (B, L, d), and the attention weights where the implementation gives them.
        """
        query = self._split_heads(self.q_proj(hidden_states))
        key, value = self.project_key_value(hidden_states) if key_value is None else key_value
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling)
        return self.out_proj(output.reshape(hidden_states.shape)), weights


MIXERS = {"attention": YanAttention}


def build_mixer(kind: str, config: YanConfig) -> nn.Module:
    """
    The token mixer of a block.

    Raises:
        NotImplementedError: for "mamba", which this version does not have.
    """
    if kind not in MIXERS:
        raise NotImplementedError(
            f"encoder_mixer / flow_mixer={kind!r} is not available in this version; use one of {sorted(MIXERS)}"
        )
    return MIXERS[kind](config)
