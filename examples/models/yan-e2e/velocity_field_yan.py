"""
The velocity field: time embedding, blocks with adaptive norms, experts, gate, and the trajectory that they are
integrated along.
"""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask

from .canvas_yan import source_indices
from .configuration_yan import YanConfig
from .flow_layers_yan import YanFlowLayer, YanJointFlowLayer
from .flow_matching_yan import evaluation_times, solve_mixture_ode, velocity_from_data
from .layers_yan import masked_mean_pool
from .mixers_yan import mixer_mask

try:
    from transformers.integrations.moe import _grouped_mm
except ImportError:
    _grouped_mm = None


class YanTimeEmbedding(nn.Module):
    """
    Sinusoids of `t` itself (not scaled), then linear and GELU: (n,) -> (n, d). Frequencies `10000^(-i / (d/2 - 1))`.
    """

    def __init__(self, config: YanConfig):
        super().__init__()
        self.half = config.hidden_size // 2
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        # Rounding t to half precision would move the ODE grid.
        frequencies = torch.arange(self.half, device=timesteps.device, dtype=torch.float32)
        angles = timesteps.float()[:, None] * torch.exp(frequencies * (-math.log(10000) / (self.half - 1)))
        sinusoids = torch.cat([angles.sin(), angles.cos()], dim=-1)
        # The weight of a quantized projection is of integers, its bias is not.
        return self.act_fn(self.proj(sinusoids.to(self.proj.bias.dtype)))


@dataclass
class TokenRouting:
    """
    Args:
        experts: of each token (B * L,).
        order: permutation (B * L,) that groups tokens by expert.
        inverse: the way back.
        ends: where each expert's group ends (K,), int32.
    """

    experts: torch.Tensor
    order: torch.Tensor
    inverse: torch.Tensor
    ends: torch.Tensor

    @functools.cached_property
    def counts(self) -> list[int]:
        """Tokens of each expert. Waits for the device, once for a whole trajectory."""
        ends = [0, *self.ends.tolist()]
        return [after - before for before, after in itertools.pairwise(ends)]


def route_tokens(expert_indices: torch.Tensor, num_experts: int) -> TokenRouting:
    """
    Groups tokens by their expert (B, L), once for a whole trajectory, without waiting for the device, and without a
    stable sort, which ONNX does not have.
    """
    experts = expert_indices.flatten()
    # How many tokens of each expert there are up to each token.
    counts = (experts.unsqueeze(1) == torch.arange(num_experts, device=experts.device)).long().cumsum(0)
    ends = counts[-1].cumsum(0)
    inverse = (counts + (ends - counts[-1])).gather(1, experts.unsqueeze(1)).squeeze(1) - 1
    positions = torch.arange(experts.shape[0], device=experts.device)
    order = torch.zeros_like(positions).scatter(0, inverse, positions)
    return TokenRouting(experts, order, inverse, ends.to(torch.int32))


def can_group(hidden_states: torch.Tensor) -> bool:
    """Whether products of groups run without waiting for the device, eagerly and compiled."""
    if _grouped_mm is None or torch.compiler.is_exporting():
        return False
    return hidden_states.device.type == "cpu" or hidden_states.dtype == torch.bfloat16


def grouped_mm(tokens: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """
    Groups of tokens (n, in), which end at `ends` (K,), times their own weights (K, in, out), by transformers' dispatch.
    """
    if not torch.compiler.is_compiling():
        return _grouped_mm(tokens, weight, ends)
    # The dispatch again, without what torch.compile warns of: only bfloat16 is native in a compiled graph, and its rows
    # must be whole multiples of 16 bytes.
    if weight.dtype == torch.bfloat16 and weight.shape[-1] % 8 == 0 and weight.shape[-2] % 8 == 0:
        return F.grouped_mm(tokens, weight, offs=ends)
    return torch.ops.transformers.grouped_mm_fallback(tokens, weight, ends)


class YanExperts(nn.Module):
    """
    K velocity heads `Linear - act - Linear` as stacked weights. With data prediction they start near the identity, for
    GELU(x) - GELU(-x) = x (so for ReLU and SiLU). Everything goes through `forward`, which adapters on
    parameters (PEFT's `target_parameters`) wrap. `config.experts_implementation` says how a routed token's own head is
    computed.
    """

    def __init__(self, config: YanConfig):
        super().__init__()
        experts, width, inner = config.num_experts, config.hidden_size, config.intermediate_size
        self.num_experts = experts
        self.implementation = config.experts_implementation
        self.act_fn = ACT2FN[config.hidden_act]
        self.up_proj = nn.Parameter(torch.empty(experts, inner, width))
        self.up_bias = nn.Parameter(torch.empty(experts, inner))
        self.down_proj = nn.Parameter(torch.empty(experts, width, inner))
        self.down_bias = nn.Parameter(torch.empty(experts, width))

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, implementation={self.implementation!r}"

    def forward(self, hidden_states: torch.Tensor, routing: TokenRouting | None = None) -> torch.Tensor:
        """
        Args:
            hidden_states: (B, L, d).
            routing: from `route_tokens`; without it all experts are computed.

        Returns:
            (B, L, K, d), or with `routing` each token's own expert (B, L, d), the same numbers.
        """
        if routing is None:
            return self._all(hidden_states)
        if self.num_experts == 1:
            return self._one(hidden_states, 0)
        return getattr(self, f"_routed_{self._choose(hidden_states)}")(hidden_states, routing)

    def _choose(self, hidden_states: torch.Tensor) -> str:
        """The loop needs the number of each expert's tokens on the host: a wait on a GPU, a break in a traced graph."""
        name = self.implementation
        if torch.compiler.is_exporting() and name != "dense":
            return "selected"
        if name in ("loop", "dense"):
            return name
        groupable = can_group(hidden_states)
        if name == "grouped_mm" and not groupable:
            raise ValueError(
                f"experts_implementation='grouped_mm' cannot multiply {hidden_states.dtype} on {hidden_states.device}, "
                "and cannot be exported; use 'auto', 'loop' or 'dense'"
            )
        if torch.compiler.is_compiling():
            return "grouped_mm" if groupable else "dense"
        return "grouped_mm" if groupable and (name == "grouped_mm" or hidden_states.device.type != "cpu") else "loop"

    def _all(self, hidden_states: torch.Tensor) -> torch.Tensor:
        flat = hidden_states.flatten(0, -2).unsqueeze(0).expand(self.num_experts, -1, -1)
        inner = self.act_fn(torch.baddbmm(self.up_bias.unsqueeze(1), flat, self.up_proj.transpose(1, 2)))
        outer = torch.baddbmm(self.down_bias.unsqueeze(1), inner, self.down_proj.transpose(1, 2))
        return outer.transpose(0, 1).reshape(*hidden_states.shape[:-1], self.num_experts, -1)

    def _one(self, hidden_states: torch.Tensor, expert: int) -> torch.Tensor:
        inner = self.act_fn(F.linear(hidden_states, self.up_proj[expert], self.up_bias[expert]))
        return F.linear(inner, self.down_proj[expert], self.down_bias[expert])

    def _routed_loop(self, hidden_states: torch.Tensor, routing: TokenRouting) -> torch.Tensor:
        """Expert after expert: the reference."""
        outputs = []
        for expert, tokens in enumerate(hidden_states.flatten(0, -2)[routing.order].split(routing.counts)):
            if len(tokens):
                outputs.append(self._one(tokens, expert))
        return torch.cat(outputs)[routing.inverse].view(hidden_states.shape)

    def _routed_selected(self, hidden_states: torch.Tensor, routing: TokenRouting) -> torch.Tensor:
        """Expert after expert without their numbers of tokens on the host: for exported graphs."""
        flat, outputs = hidden_states.flatten(0, -2), []
        for expert in range(self.num_experts):
            tokens = flat[(routing.experts == expert).nonzero().squeeze(1)]
            outputs.append(self._one(tokens, expert))
        return torch.cat(outputs)[routing.inverse].view(hidden_states.shape)

    def _routed_grouped_mm(self, hidden_states: torch.Tensor, routing: TokenRouting) -> torch.Tensor:
        """All experts in one product of groups."""
        tokens, experts = hidden_states.flatten(0, -2)[routing.order], routing.experts[routing.order]
        inner = grouped_mm(tokens, self.up_proj.transpose(1, 2), routing.ends)
        inner = self.act_fn(inner + self.up_bias[experts])
        outer = grouped_mm(inner, self.down_proj.transpose(1, 2), routing.ends) + self.down_bias[experts]
        return outer[routing.inverse].view(hidden_states.shape)

    def _routed_dense(self, hidden_states: torch.Tensor, routing: TokenRouting) -> torch.Tensor:
        """
        Every expert for every token, then the token's own: K times the arithmetic, for graphs that can hold nothing
        else.
        """
        index = routing.experts.view(*hidden_states.shape[:-1], 1, 1).expand(
            *hidden_states.shape[:-1], 1, hidden_states.shape[-1]
        )
        return self._all(hidden_states).gather(-2, index).squeeze(-2)


class YanGate(nn.Module):
    """Token-wise gate over experts, from the trunk state, the mean source state and the time embedding."""

    def __init__(self, config: YanConfig):
        super().__init__()
        self.temperature = config.gate_temperature
        self.up_proj = nn.Linear(3 * config.hidden_size, config.gate_hidden_size)
        self.act_fn = ACT2FN[config.hidden_act]
        self.down_proj = nn.Linear(config.gate_hidden_size, config.num_experts)

    def forward(
        self, hidden_states: torch.Tensor, pooled: torch.Tensor, time_embedding: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Log-probabilities (B, L, K) in float32; padded tokens get the uniform gate."""
        shape = (*hidden_states.shape[:-1], -1)
        context = torch.cat([pooled, time_embedding.expand(pooled.shape[0], -1)], dim=-1).unsqueeze(1).expand(shape)
        logits = self.down_proj(self.act_fn(self.up_proj(torch.cat([hidden_states, context], dim=-1))))
        logits = logits.float() / self.temperature
        if mask is not None:
            logits = logits.masked_fill(~mask.bool().unsqueeze(-1), 0.0)
        return logits.log_softmax(-1)


@dataclass
class FlowCondition:
    """
    What stays the same at every evaluation of the velocity field along a trajectory.

    Args:
        position_embeddings: (B or 1, L, d); with the states of the source's tokens, where positions belong to them.
        pooled: masked mean of the source states (B, d).
        canvas_mask: (B, L), true at positions to be written; None if all are.
        attention_mask: as the mixer takes it.
        cross_attention_mask: as `create_bidirectional_mask` makes it.
        cross_key_values: keys and values of the source per layer; None where a layer has no cross-attention.
    """

    position_embeddings: torch.Tensor
    pooled: torch.Tensor
    canvas_mask: torch.Tensor | None
    attention_mask: torch.Tensor | None
    cross_attention_mask: torch.Tensor | None
    cross_key_values: list[tuple[torch.Tensor, torch.Tensor] | tuple[None, None]]


class YanVelocityField(nn.Module):
    """K velocity fields over one trunk, and the gate between them."""

    def __init__(self, config: YanConfig):
        super().__init__()
        self.config = config
        self.time_embedding = YanTimeEmbedding(config)
        # Layers of an encoder's form take what its embeddings give, which ends in a norm.
        joint = config.flow_from_encoder
        self.input_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if joint else None
        layer = YanJointFlowLayer if joint else YanFlowLayer
        self.layers = nn.ModuleList([layer(config, i) for i in range(config.flow_layers)])
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.experts = YanExperts(config)
        self.gate = YanGate(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def condition(
        self,
        position_embeddings: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None = None,
        canvas_mask: torch.Tensor | None = None,
        repeats: int = 1,
    ) -> FlowCondition:
        """
        Computes everything that does not change along a trajectory.

        Args:
            position_embeddings: of the canvas (N or 1, L, d).
            encoder_hidden_states: source states (B, Lx, d), projected to keys and values once per row.
            encoder_attention_mask: (B, Lx), true at source tokens.
            canvas_mask: (N, L), true at canvas positions.
            repeats: canvases per source row, N = B * repeats, those of a row next to each other.
        """

        def repeat(states: torch.Tensor) -> torch.Tensor:
            return states if repeats == 1 else states.repeat_interleave(repeats, 0)

        if self.config.canvas_from_source:
            # Unprojected: what the output projection begins as gives these states' own tokens back.
            length, ratio = position_embeddings.shape[1], self.config.canvas_ratio
            indices = source_indices(length, ratio, encoder_hidden_states, encoder_attention_mask).unsqueeze(-1)
            own = encoder_hidden_states.gather(1, indices.expand(-1, -1, encoder_hidden_states.shape[-1]))
            position_embeddings = position_embeddings + repeat(own)
        canvas = position_embeddings.expand(encoder_hidden_states.shape[0] * repeats, -1, -1)
        attended = canvas_mask
        if canvas_mask is not None:
            # A row without any position attends to all of them: its output is ignored, but must be finite.
            attended = canvas_mask.bool() | ~canvas_mask.bool().any(-1, keepdim=True)
        source_mask = None if encoder_attention_mask is None else repeat(encoder_attention_mask)
        return FlowCondition(
            position_embeddings=position_embeddings,
            pooled=repeat(masked_mean_pool(encoder_hidden_states, encoder_attention_mask)),
            canvas_mask=canvas_mask,
            attention_mask=mixer_mask(self.config.flow_mixer, self.config, canvas, attended),
            cross_attention_mask=self._cross_mask(canvas, attended, encoder_hidden_states, source_mask),
            cross_key_values=[
                tuple(repeat(states) for states in layer.cross_attention.project_key_value(encoder_hidden_states))
                if layer.has_cross_attention
                else (None, None)
                for layer in self.layers
            ],
        )

    def _cross_mask(self, canvas, canvas_mask, source, source_mask) -> torch.Tensor | None:
        """
        Mask of what the canvas (N, L, d) attends to beside itself, as the attention function takes it: the source
        (B, Lx, d); in joint layers source and canvas, one behind the other.
        """
        attended, length, rows = source_mask, source.shape[1], canvas.shape[0]
        if self.config.flow_from_encoder:
            length += canvas.shape[1]
            if source_mask is not None or canvas_mask is not None:
                ones = canvas.new_ones((), dtype=torch.bool)
                parts = (source_mask, source.shape[1]), (canvas_mask, canvas.shape[1])
                attended = torch.cat([ones.expand(rows, n) if m is None else m.bool() for m, n in parts], dim=1)
        return create_bidirectional_mask(
            config=self.config,
            inputs_embeds=canvas,
            attention_mask=attended,
            # Only its batch size, length and dtype are read.
            encoder_hidden_states=source[:1, :1].expand(rows, length, -1),
        )

    def modulate(self, time_embedding: torch.Tensor) -> list[torch.Tensor]:
        """Per layer the scales and shifts (n, 1, chunks, d) for n time embeddings (n, d)."""
        return [layer.modulate(time_embedding) for layer in self.layers]

    def trunk(self, x_t: torch.Tensor, modulations: list[torch.Tensor], condition: FlowCondition) -> torch.Tensor:
        """Shared trunk at states (B, L, d); `modulations` have B rows or one for all. Returns (B, L, d)."""
        hidden_states = x_t.to(condition.position_embeddings.dtype) + condition.position_embeddings
        hidden_states = self.dropout(hidden_states if self.input_norm is None else self.input_norm(hidden_states))
        for layer, modulation, (key, value) in zip(self.layers, modulations, condition.cross_key_values, strict=True):
            hidden_states = layer(
                hidden_states, modulation, condition.attention_mask, key, value, condition.cross_attention_mask
            )
        return self.final_norm(hidden_states)

    def velocity(self, outputs: torch.Tensor, x_t: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Expert outputs (..., d) at states of the same shape -> velocities in float32, by `config.prediction_type`."""
        outputs = outputs.float()
        if self.config.prediction_type == "data":
            return velocity_from_data(outputs, x_t.float(), timesteps)
        return outputs

    def forward(
        self, x_t: torch.Tensor, timesteps: torch.Tensor, condition: FlowCondition
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        One plain evaluation with all experts.

        Args:
            x_t: canvas states (B, L, d).
            timesteps: (B,) or (1,).

        Returns:
            Velocities (B, L, K, d), float32, and gate log-probabilities (B, L, K).
        """
        time_embedding = self.time_embedding(timesteps)
        hidden_states = self.trunk(x_t, self.modulate(time_embedding), condition)
        gate = self.gate(hidden_states, condition.pooled, time_embedding, condition.canvas_mask)
        return self.velocity(self.experts(hidden_states), x_t.unsqueeze(2), timesteps), gate

    def solve(
        self,
        x_0: torch.Tensor,
        condition: FlowCondition,
        choose_experts: Callable[[torch.Tensor], torch.Tensor],
        *,
        time_grid: torch.Tensor,
        solver: str = "euler",
        **options,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Integrates the chosen experts' velocities in float32, in training and at generation. Only each token's own
        expert is computed, the choice and the first step share a trunk pass, and scales and shifts of all times are one
        table.

        Args:
            x_0: prior states (B, L, d) in float32.
            choose_experts: gate log-probabilities at t = 0 (B, L, K), without gradient -> experts (B, L).
            time_grid, solver, **options: as `solve_ode` takes them.

        Returns:
            The endpoint (B, L, d), or all states (steps + 1, B, L, d) with `return_trajectory`; and the gate's
            log-probabilities at t = 0.
        """
        time_embeddings = self.time_embedding(evaluation_times(time_grid, solver))
        table = [layer.split(1) for layer in self.modulate(time_embeddings)]

        def evaluate(x_t: torch.Tensor, t: torch.Tensor, index: int) -> torch.Tensor:
            return self.trunk(x_t, [layer[index] for layer in table], condition)

        def choose(hidden_states: torch.Tensor) -> tuple[torch.Tensor, TokenRouting]:
            with torch.no_grad():
                gate = self.gate(hidden_states, condition.pooled, time_embeddings[:1], condition.canvas_mask)
                return gate, route_tokens(choose_experts(gate), self.config.num_experts)

        def velocity(hidden_states: torch.Tensor, choice: tuple, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.velocity(self.experts(hidden_states, choice[1]), x_t, t)

        states, (gate, _) = solve_mixture_ode(
            evaluate, choose, velocity, x_0, time_grid=time_grid, solver=solver, **options
        )
        return states, gate
