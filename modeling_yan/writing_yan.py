"""
The numerical core of generation: noise and source states in, ids and scores out. Tensors only: nothing here waits for the
device, so that the whole of it can be compiled, captured or exported.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from .alignment_yan import collapse_alignment
from .flow_matching_yan import evaluation_times, select_experts, solve_ode, time_grid
from .layers_yan import FlowCondition, route_tokens

# Logits that decoding holds at once, in float32: 64 MiB. A vocabulary of 128,256 then takes 130 positions at a time.
DECODE_LOGITS = 2**24


@dataclass(frozen=True)
class WritingPlan:
    """The options that decide what is computed. Hashable: a compiled form of the computation is kept under its plan."""

    num_inference_steps: int = 3
    solver: str = "euler"
    time_shift: float = 1.0
    expert_selection: str = "sample"
    blank_penalty: float = 0.0
    min_new_tokens: int = 0
    eos_token_ids: tuple[int, ...] = ()
    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    output_trajectory: bool = False

    @classmethod
    def from_options(cls, options) -> "WritingPlan":
        """The part of a complete `GenerationConfig` that matters here."""
        eos = options.eos_token_id
        eos = () if eos is None else tuple(eos) if isinstance(eos, (list, tuple)) else (int(eos),)
        sampling = {name: getattr(options, name) for name in ("temperature", "top_k", "top_p")}
        return cls(
            **{name: getattr(options, name) for name in ("num_inference_steps", "solver", "time_shift")},
            expert_selection=options.expert_selection,
            blank_penalty=float(options.blank_penalty),
            min_new_tokens=options.min_new_tokens or 0,
            eos_token_ids=eos,
            do_sample=bool(options.do_sample),
            output_trajectory=bool(options.output_trajectory),
            **(sampling if options.do_sample else {}),
        )


def cut_lengths(
    ids: torch.LongTensor, canvas_mask: torch.Tensor | None, eos_token_ids: tuple[int, ...]
) -> torch.LongTensor:
    """Tokens of each row (N, L) up to and including its first EOS, at most its canvas (N,)."""
    ends = torch.zeros_like(ids, dtype=torch.bool)
    for eos in eos_token_ids:
        ends |= ids == eos
    position = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    first = torch.where(ends, position, ids.shape[1]).amin(-1)
    return first if canvas_mask is None else torch.minimum(first, canvas_mask.sum(-1))


def filter_logits(logits: torch.Tensor, plan: WritingPlan) -> torch.Tensor:
    """Temperature, top-k and top-p of logits (n, V), position by position."""
    if plan.temperature is not None and plan.temperature != 1.0:
        logits = TemperatureLogitsWarper(float(plan.temperature))(None, logits)
    if plan.top_k:
        logits = TopKLogitsWarper(plan.top_k)(None, logits)
    if plan.top_p is not None and plan.top_p < 1.0:
        logits = TopPLogitsWarper(plan.top_p)(None, logits)
    return logits


class YanWritingMixin:
    """Uses of the model: `model.encoder`, `model.flow`, `decoder`, `length_head`."""

    def encode_source(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Source states (B, Lx, d), and logits over lengths (B, max_position_embeddings) where there is a length head."""
        source = self.model.encoder(input_ids, attention_mask).last_hidden_state
        return source, self.length_logits(source, attention_mask)

    def length_logits(self, source: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor | None:
        """Logits over lengths from source states (B, Lx, d); index i is length i + 1."""
        return None if self.length_head is None else self.length_head(source, attention_mask)

    def write_canvas(
        self,
        x_0: torch.Tensor,
        uniform: torch.Tensor,
        source: torch.Tensor,
        source_mask: torch.Tensor | None,
        canvas_mask: torch.Tensor | None,
        plan: WritingPlan,
        on_draft: Callable[[torch.Tensor], None] | None = None,
    ) -> tuple[torch.LongTensor, torch.Tensor, torch.Tensor]:
        """
        From noise to text: condition, gate, steps, decoder.

        Args:
            x_0: prior states (N, L, d) in float32; N is a multiple of B, the canvases of a source next to each other.
            uniform: numbers in [0, 1) (2, N, L) behind the draws of experts and of tokens.
            source: states (B, Lx, d), and `source_mask` (B, Lx); None where every position is a token.
            canvas_mask: (N, L) true at positions to be written; None where all are.
            on_draft: called after each step with the endpoint (N, L, d) as that step sees it.

        Returns:
            Ids (N, L), not yet cut, and mean log-probability (N,), both as `decode_latents` gives them; and the endpoint (N, L, d), or all
            states (steps + 1, N, L, d) with `output_trajectory`.
        """
        repeats = x_0.shape[0] // source.shape[0]
        # Canvases begin at the left edge, so that only positions counted from the end depend on the mask.
        positions = self.model.encoder.positions(x_0.shape[1], canvas_mask if self.config.end_positions else None)
        condition = self.model.flow.condition(positions, source, source_mask, canvas_mask, repeats=repeats)
        states = self.solve(x_0, condition, uniform[0], plan, on_draft)
        ids, scores = self.decode_latents(
            states[-1] if plan.output_trajectory else states, canvas_mask, uniform[1], plan
        )
        return ids, scores, states

    def _choose_experts(self, gate: torch.Tensor, uniform: torch.Tensor, plan: WritingPlan) -> torch.LongTensor:
        return gate.argmax(-1) if plan.expert_selection == "argmax" else select_experts(gate.exp(), uniform=uniform)

    def solve(
        self, x_0: torch.Tensor, condition: FlowCondition, uniform: torch.Tensor, plan: WritingPlan, on_draft=None
    ) -> torch.Tensor:
        """Integrates the chosen experts' velocities in float32: the endpoint (N, L, d), or all states (steps + 1, N, L, d)."""
        flow = self.model.flow
        grid = time_grid(plan.num_inference_steps, shift=plan.time_shift, device=x_0.device)
        times = evaluation_times(grid, plan.solver)
        # Scales and shifts depend on t alone: one table for all evaluations.
        time_embeddings = flow.time_embedding(times)
        table = [layer.split(1) for layer in flow.modulate(time_embeddings)]
        # The gate at t = 0 and the first evaluation share one trunk pass.
        first = flow.trunk(x_0, [layer[0] for layer in table], condition)
        gate = flow.gate(first, condition.pooled, time_embeddings[:1], condition.canvas_mask)
        routing = route_tokens(self._choose_experts(gate, uniform, plan), self.config.num_experts)
        evaluations, ahead = 0, None

        def velocity(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            nonlocal evaluations, ahead
            index = evaluations
            hidden = first if index == 0 else flow.trunk(x_t, [layer[index] for layer in table], condition)
            evaluations += 1
            v = flow.velocity(flow.experts(hidden, routing), x_t, t)
            if on_draft is not None:
                # The endpoint as this evaluation sees it.
                ahead = x_t + (1 - times[index]) * v
            return v

        return solve_ode(
            velocity,
            x_0,
            solver=plan.solver,
            time_grid=grid,
            callback=None if on_draft is None else lambda step, state: on_draft(ahead),
            return_trajectory=plan.output_trajectory,
        )

    def solve_plain(
        self, x_0: torch.Tensor, condition: FlowCondition, uniform: torch.Tensor, plan: WritingPlan
    ) -> torch.Tensor:
        """Reference of `solve`: every expert at every evaluation, the gate by a pass of its own, no tables."""
        flow = self.model.flow
        rows = len(x_0)
        _, gate = flow(x_0, x_0.new_zeros(rows), condition)
        experts = self._choose_experts(gate, uniform, plan)
        index = experts[..., None, None].expand(-1, -1, 1, x_0.shape[-1])

        def velocity(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return flow(x_t, t.expand(rows), condition)[0].gather(2, index).squeeze(2)

        grid = time_grid(plan.num_inference_steps, shift=plan.time_shift, device=x_0.device)
        return solve_ode(velocity, x_0, solver=plan.solver, time_grid=grid)

    def decode_latents(
        self,
        latents: torch.Tensor,
        canvas_mask: torch.Tensor | None = None,
        uniform: torch.Tensor | None = None,
        plan: WritingPlan | None = None,
    ) -> tuple[torch.LongTensor, torch.Tensor]:
        """
        Ids (N, L) and their mean log-probability (N,) up to EOS, under the unfiltered distribution. Logits are computed a
        few positions at a time and never held for all. Where the canvas has room for blanks (`config.canvas_ratio` above 1), the
        log-probability is that of the positions as they were written, and the ids are the text without blanks, EOS behind it.

        Args:
            uniform: (N, L), decides drawn tokens; only with `do_sample`.
        """
        plan = plan or WritingPlan()
        states = self.decoder.states(latents)
        rows, length = states.shape[:2]
        size = max(1, DECODE_LOGITS // self.config.vocab_size)
        ids, chosen = [], []
        positions = torch.arange(length, device=states.device).repeat(rows)
        draws = states.new_zeros(rows, length) if uniform is None else uniform
        flat = [states.flatten(0, 1), draws.flatten(), positions]
        # Tracing has to know how many chunks there are; an exported graph, whose lengths are free, takes all at once.
        whole = torch.compiler.is_exporting() or rows * length <= size
        chunks = [flat] if whole else zip(*(x.split(size) for x in flat))
        for chunk, draw, position in chunks:
            logits = self.decoder.lm_head(chunk).float()
            if plan.min_new_tokens > 0 and plan.eos_token_ids:
                early = position.unsqueeze(1) < plan.min_new_tokens
                eos = list(plan.eos_token_ids)
                logits[:, eos] = logits[:, eos].masked_fill(early, -torch.inf)
            weighed = logits
            if plan.blank_penalty:
                blank = torch.arange(logits.shape[1], device=logits.device) == self.config.pad_token_id
                weighed = logits - plan.blank_penalty * blank
            if plan.do_sample:
                picked = select_experts(filter_logits(weighed, plan).softmax(-1), uniform=draw)
            else:
                picked = weighed.argmax(-1)
            ids.append(picked)
            chosen.append(logits.gather(1, picked.unsqueeze(1)).squeeze(1) - logits.logsumexp(-1))
        ids, chosen = torch.cat(ids).view(rows, length), torch.cat(chosen).view(rows, length)
        cut = cut_lengths(ids, canvas_mask, plan.eos_token_ids)
        counted = torch.arange(length, device=ids.device) < cut.unsqueeze(1)
        scores = (chosen * counted).sum(-1) / counted.sum(-1)
        if self.config.canvas_ratio > 1:
            blank = self.config.pad_token_id
            ids = collapse_alignment(ids, canvas_mask, blank, (*plan.eos_token_ids, blank)[0])
        return ids, scores
