"""Token mixers: what lets one position see the others."""

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_yan import CONV_ATTENTION_SIZE, YanConfig
from .selective_scan_yan import IMPLEMENTATIONS, causal_convolution, choose_scan, depthwise_convolution

# Attention of a runtime that splits heads by itself: it is given states (B, L, d) and returns such.
WHOLE_HEADS = "onnxruntime"


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
    """
    Plain softmax attention, the reference of the fused ones: (B, heads, L, head size) -> (B, L, heads, head size).
    """
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def split_heads(states: torch.Tensor, head_dim: int, implementation: str) -> torch.Tensor:
    """(B, L, d) -> (B, heads, L, head size), or as it is for an attention that splits heads by itself."""
    if implementation == WHOLE_HEADS:
        return states
    return states.view(*states.shape[:-1], -1, head_dim).transpose(1, 2)


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
        return split_heads(states, self.head_dim, self.config._attn_implementation)

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


class YanJointAttention(nn.Module):
    """
    Attention of a canvas to a source and to itself in one softmax. The source has keys and values of its own, which
    stay the same at every step.
    """

    def __init__(self, config: YanConfig):
        super().__init__()
        self.config, width, hosted = config, config.hidden_size, config.encoder_config
        self.head_dim = width // hosted.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        for name in ("q_proj", "k_proj", "v_proj", "source_k_proj", "source_v_proj", "out_proj"):
            setattr(self, name, nn.Linear(width, width))

    def _split_heads(self, states: torch.Tensor) -> torch.Tensor:
        return split_heads(states, self.head_dim, self.config._attn_implementation)

    def project_key_value(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, heads, Lx, head size) of source states (B, Lx, d)."""
        return self._split_heads(self.source_k_proj(states)), self._split_heads(self.source_v_proj(states))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        key_value: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `YanAttention.forward`; the mask is over source and canvas, one behind the other."""
        query, key, value = (self._split_heads(p(hidden_states)) for p in (self.q_proj, self.k_proj, self.v_proj))
        key, value = torch.cat([key_value[0], key], dim=-2), torch.cat([key_value[1], value], dim=-2)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attention(self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling)
        return self.out_proj(output.reshape(hidden_states.shape)), weights


class YanNearIdentity(nn.Linear):
    """
    A square projection. A class of its own because it starts near the identity (`YanPreTrainedModel._init_weights`).
    """


class YanCrossAttention(YanAttention):
    """
    Attention to the source that copies before it has learned anything: with all four projections near the identity a
    position looks at the source tokens that share its place in the position table, and takes over what it finds
    (mimetic initialisation, arXiv 2305.09828).
    """

    def __init__(self, config: YanConfig):
        super().__init__(config)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            bias = config.attention_bias or name == "out_proj"
            setattr(self, name, YanNearIdentity(config.hidden_size, config.hidden_size, bias=bias))


class YanNeighbours(nn.Conv1d):
    """
    A depthwise convolution over the neighbours on both sides. Offloaded weights are there during `forward` only, which
    therefore computes all of it.
    """

    def __init__(self, channels: int, width: int):
        super().__init__(channels, channels, width, padding=width // 2, groups=channels)

    def forward(self, hidden_states: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        """`start` (B, L, d) plus the convolution of the states (B, L, d), zeros beyond their ends."""
        weight = self.weight.squeeze(1)
        return depthwise_convolution(hidden_states, weight, start + self.bias, before=weight.shape[1] // 2)


class YanConvAttention(YanAttention):
    """
    Self-attention behind a depthwise convolution over the neighbours on both sides, `x + conv(x)`: nearness, which
    attention alone must read off the position table, costs a few multiplications per channel. Padding is masked before
    the convolution.
    """

    def __init__(self, config: YanConfig):
        super().__init__(config)
        self.conv1d = YanNeighbours(config.hidden_size, CONV_ATTENTION_SIZE)

    def forward(self, hidden_states: torch.Tensor, attention_mask: tuple | None = None) -> tuple:
        """As `YanAttention`; `attention_mask` is a pair, the attention's and the sequence's own (B, L)."""
        attended, valid = (None, None) if attention_mask is None else attention_mask
        x = hidden_states if valid is None else hidden_states * valid.to(hidden_states.dtype).unsqueeze(-1)
        return super().forward(self.conv1d(x, hidden_states), attended)


class YanMambaDirection(nn.Module):
    """Parameters of a Mamba-1 mixer (arXiv 2312.00752) that reads in one direction."""

    def __init__(self, config: YanConfig):
        super().__init__()
        width, inner, states = config.hidden_size, config.mamba_expand * config.hidden_size, config.mamba_d_state
        self.rank = math.ceil(width / 16)
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, config.mamba_d_conv, groups=inner)
        self.x_proj = nn.Linear(inner, self.rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.empty(inner, states))
        self.D = nn.Parameter(torch.empty(inner))
        self.out_proj = nn.Linear(inner, width, bias=False)

    def parameters_at(self, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Step size (B, L, D) in float32, and B and C (B, L, N), which depend on the input (B, L, D)."""
        states = self.A_log.shape[1]
        step, b, c = self.x_proj(u).split((self.rank, states, states), dim=-1)
        return nn.functional.softplus(self.dt_proj(step).float()), b, c


class YanMamba(nn.Module):
    """
    Two Mamba mixers, one over the sequence and one over its reverse, joined by a projection. Both directions go through
    one convolution and one scan, side by side. Padding on either side is masked before the convolution and in the scan,
    which leaves the state before the first token at zero: a padded row equals the row alone.
    """

    def __init__(self, config: YanConfig):
        super().__init__()
        self.scan = config.mamba_scan
        self.fwd = YanMambaDirection(config)
        self.bwd = YanMambaDirection(config)
        self.proj = nn.Linear(2 * config.hidden_size, config.hidden_size)

    def extra_repr(self) -> str:
        return f"scan={self.scan!r}"

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None) -> tuple:
        """
        Args:
            hidden_states: (B, L, d).
            attention_mask: (B, L), true or 1 at tokens.

        Returns:
            Output (B, L, d), anything at padding; and None, for there are no attention weights.
        """
        directions = (self.fwd, self.bwd)
        scan = choose_scan(self.scan, hidden_states.device)
        (x_fwd, gate_fwd), (x_bwd, gate_bwd) = (part.in_proj(hidden_states).chunk(2, dim=-1) for part in directions)
        # (B, L, 2, D): the second half reads the flipped sequence.
        x = torch.stack([x_fwd, x_bwd.flip(1)], dim=2)
        mask = None
        if attention_mask is not None:
            mask = torch.stack([attention_mask, attention_mask.flip(1)], dim=2).to(x.dtype).unsqueeze(-1)
            x = x * mask
        u = causal_convolution(
            x.flatten(2),
            torch.cat([part.conv1d.weight.squeeze(1) for part in directions]),
            torch.cat([part.conv1d.bias for part in directions]),
            use_kernel=scan == "kernel",
        ).view_as(x)
        parts = zip(*(part.parameters_at(u[:, :, i]) for i, part in enumerate(directions)))
        delta, b, c = (torch.stack(tensors, dim=2) for tensors in parts)
        if mask is not None:
            # A step of zero leaves the state as it is, whatever the convolution's bias made of padding.
            delta = delta * mask
        decay_rate = -torch.stack([part.A_log for part in directions]).float().exp()
        y = IMPLEMENTATIONS[scan](u, delta, decay_rate, b, c)
        y = (y + torch.stack([part.D for part in directions]) * u).to(hidden_states.dtype)
        y_fwd = self.fwd.out_proj(y[:, :, 0] * nn.functional.silu(gate_fwd))
        y_bwd = self.bwd.out_proj(y[:, :, 1].flip(1) * nn.functional.silu(gate_bwd))
        return self.proj(torch.cat([y_fwd, y_bwd], dim=-1)), None


MIXERS = {"attention": YanAttention, "conv_attention": YanConvAttention, "mamba": YanMamba}


def mixer_mask(
    kind: str, config: YanConfig, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None
) -> torch.Tensor | tuple | None:
    """The mask (B, L) of a sequence (B, L, d) as the mixer of this kind takes it."""
    if kind == "mamba":
        return attention_mask
    attended = create_bidirectional_mask(config=config, inputs_embeds=inputs_embeds, attention_mask=attention_mask)
    return attended if kind == "attention" or attention_mask is None else (attended, attention_mask)
