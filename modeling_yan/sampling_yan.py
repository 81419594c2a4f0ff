"""
The numerical core of generation: noise and source states in, ids and scores out. Tensors only: nothing here waits for
the device, so that the whole of it can be compiled, captured or exported.
"""

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from .canvas_yan import copied_tokens
from .copying_yan import CopySource
from .ctc_yan import ctc_places, move_to_places
from .flow_matching_yan import sample_categorical, solve_mixture_ode, time_grid
from .input_checks_yan import check_copied
from .velocity_field_yan import FlowCondition

# Logits that decoding holds at once, in float32: 64 MiB. A vocabulary of 128,256 then takes 130 positions at a time.
DECODE_LOGITS = 2**24


@dataclass(frozen=True)
class SamplingOptions:
    """
    The options that decide what is computed. Hashable: a compiled form of the computation is kept under them.

    Args:
        num_inference_steps: steps of the solver.
        solver: "euler", "midpoint" or "heun".
        time_shift: above 1 spends the steps late, below 1 early.
        expert_selection: "sample" or "argmax" of the gate at t = 0.
        blank_penalty: taken off the logit of the blank, where the canvas has blanks.
        min_new_tokens: positions that are not EOS.
        eos_token_ids: what ends a text.
        do_sample: draw tokens, filtered by `temperature`, `top_k` and `top_p`; otherwise take the most probable.
        output_trajectory: keep all states.
    """

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

    def choose_experts(self, gate_log_probs: torch.Tensor, uniform: torch.Tensor) -> torch.LongTensor:
        """Gate (B, L, K) and numbers in [0, 1) (B, L) -> experts (B, L)."""
        if self.expert_selection == "argmax":
            return gate_log_probs.argmax(-1)
        return sample_categorical(gate_log_probs.exp(), uniform=uniform)

    def filter_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Temperature, top-k and top-p of logits (n, V), position by position."""
        if self.temperature is not None and self.temperature != 1.0:
            logits = TemperatureLogitsWarper(float(self.temperature))(None, logits)
        if self.top_k:
            logits = TopKLogitsWarper(self.top_k)(None, logits)
        if self.top_p is not None and self.top_p < 1.0:
            logits = TopPLogitsWarper(self.top_p)(None, logits)
        return logits


def row_seeds(
    input_ids: torch.LongTensor | None,
    attention_mask: torch.Tensor | None,
    batch_size: int,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    distinct: bool = True,
) -> list[int]:
    """
    One seed per row, from a draw of the generator (torch's global one if absent) and the row's tokens (B, Lx), so that
    a row's noise depends neither on its batch-mates nor on padding. Rows without ids count by their index; with
    `distinct` a repeated row counts its repeats, and gets other seeds. With a generator for each row, each gets the
    seed that it has in a batch of its own.
    """
    if isinstance(generator, Sequence):
        rows = [slice(row, row + 1) for row in range(batch_size)]
        parts = [[None if x is None else x[row] for x in (input_ids, attention_mask)] for row in rows]
        return [row_seeds(*part, 1, own)[0] for part, own in zip(parts, generator, strict=True)]
    options = {} if generator is None else {"generator": generator, "device": generator.device}
    base = int(torch.randint(2**62, (1,), **options))
    if input_ids is None:
        rows = [[index] for index in range(batch_size)]
    else:
        ids = input_ids.tolist()
        masks = [[1] * len(row) for row in ids] if attention_mask is None else attention_mask.tolist()
        rows = [[i for i, m in zip(row, mask, strict=True) if m] for row, mask in zip(ids, masks, strict=True)]
    seen: dict[bytes, int] = {}
    seeds = []
    for row in rows:
        key = array("q", [base, *row]).tobytes()
        repeat = seen[key] = seen.get(key, -1) + 1 if distinct else 0
        digest = hashlib.blake2b(key + repeat.to_bytes(8, "little"), digest_size=8).digest()
        seeds.append(int.from_bytes(digest, "little") >> 1)
    return seeds


def draw_noise(
    seeds: Sequence[int],
    lengths: Sequence[int],
    num_priors: int,
    hidden_size: int,
    *,
    std: float = 1.0,
    device: torch.device | str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Everything that generation draws, row by row.

    Args:
        seeds: one per row.
        lengths: longest canvas of each row; behind it there are zeros.
        num_priors: priors of each row.
        std: standard deviation of the prior.

    Returns:
        Prior states (B, priors, L, d) in float32, and uniform numbers (2, B, priors, L) behind the choice of experts
        and of tokens.
    """
    longest = max(lengths)
    x_0 = torch.zeros(len(seeds), num_priors, longest, hidden_size, device=device)
    uniform = torch.zeros(2, len(seeds), num_priors, longest, device=device)
    generator = torch.Generator(x_0.device)
    for row, (seed, length) in enumerate(zip(seeds, lengths, strict=True)):
        generator.manual_seed(seed)
        for prior in range(num_priors):
            x_0[row, prior, :length].normal_(generator=generator)
            uniform[:, row, prior, :length] = torch.rand(2, length, generator=generator, device=x_0.device)
    return x_0.mul_(std), uniform


def given_noise(prior_noise: torch.Tensor, drawn: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """
    Prior states that are given, in the shape of those that are drawn.

    Args:
        prior_noise: (B, L', d) or (B, priors, L', d), no shorter than the canvas.
        drawn: (B, priors, L, d).
        lengths: longest canvas of each row.

    Raises:
        ValueError: for another shape.
    """
    given = prior_noise.unsqueeze(1) if prior_noise.dim() == 3 else prior_noise
    rows, priors, length, width = drawn.shape
    if given.dim() != 4 or given.shape[:2] != (rows, priors) or given.shape[3] != width or given.shape[2] < length:
        raise ValueError(
            f"prior_noise has shape {tuple(prior_noise.shape)}, expected (batch, priors, at least the canvas length, "
            f"hidden size) = {tuple(drawn.shape)}; the second dimension may be left out when it is 1"
        )
    on_canvas = torch.arange(length, device=drawn.device) < torch.tensor(lengths, device=drawn.device).unsqueeze(1)
    return given[:, :, :length].to(drawn) * on_canvas[:, None, :, None]


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


def best_distinct(texts: torch.LongTensor, scores: torch.Tensor, count: int) -> tuple[torch.LongTensor, torch.Tensor]:
    """
    The best candidates of each row, as many different texts among them as there are.

    Args:
        texts: ids (B, candidates, L), the same behind the end of each.
        scores: (B, candidates).
        count: how many are wanted.

    Returns:
        Indices (B, count), best score first; and whether the text is that of a better candidate (B, count).
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    texts = texts.gather(1, order.unsqueeze(-1).expand_as(texts))
    equal = (texts.unsqueeze(2) == texts.unsqueeze(1)).all(-1)
    repeated = equal.tril(-1).any(-1)
    chosen = repeated.long().argsort(dim=1, stable=True)[:, :count].sort(1).values
    return order.gather(1, chosen), repeated.gather(1, chosen)


class YanSamplingMixin:
    """
    Uses of the model: `model.encoder`, `model.flow`, `decoder`, `length_head`. Generation reaches the network through
    `encode_source` and `write_canvas` alone: who computes these two elsewhere (exported graphs) has its `generate()`.
    """

    def encode_source(
        self,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        encoder_outputs: tuple | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Source states (B, Lx, d), and logits over lengths (B, max_position_embeddings) where there is a length head,
        from exactly one of `input_ids`, `inputs_embeds` and `encoder_outputs`.
        """
        if encoder_outputs is None:
            encoder_outputs = self.model.encoder(input_ids, attention_mask, inputs_embeds=inputs_embeds)
        return encoder_outputs[0], self.length_logits(encoder_outputs[0], attention_mask)

    def length_logits(self, source: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor | None:
        """Logits over lengths from source states (B, Lx, d); index i is length i + 1."""
        return None if self.length_head is None else self.length_head(source, attention_mask)

    def copied_ids(
        self, length: int, input_ids: torch.LongTensor | None, attention_mask: torch.Tensor | None
    ) -> torch.LongTensor | None:
        """
        Ids that canvases of this length can copy, from sources (B, Lx): where positions point at the source, its own
        (B, Lx); where they belong to its tokens, one for each position (B, L); None where nothing is copied.

        Raises:
            ValueError: where the sources' ids are needed and not there.
        """
        if not self.config.copies_source:
            return None
        check_copied(input_ids)
        if self.config.copy_mechanism:
            return input_ids
        return copied_tokens(length, self.config.canvas_ratio, input_ids, attention_mask, self.config.pad_token_id)

    def copy_source(
        self, copied_ids: torch.LongTensor | None, source: torch.Tensor, source_mask: torch.Tensor | None
    ) -> CopySource | None:
        """What the decoder copies from: `copied_ids`, and where positions point the states (B, Lx, d) pointed at."""
        if copied_ids is None:
            return None
        return CopySource(copied_ids, source, source_mask) if self.config.copy_mechanism else CopySource(copied_ids)

    def write_canvas(
        self,
        x_0: torch.Tensor,
        uniform: torch.Tensor,
        source: torch.Tensor,
        source_mask: torch.Tensor | None,
        canvas_mask: torch.Tensor | None,
        copied_ids: torch.LongTensor | None,
        options: SamplingOptions,
        on_draft: Callable[[torch.Tensor], None] | None = None,
    ) -> tuple[torch.LongTensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        From noise to text: condition, gate, steps, decoder.

        Args:
            x_0: prior states (N, L, d) in float32; N is a multiple of B, the canvases of a source next to each other.
            uniform: numbers in [0, 1) (2, N, L) behind the draws of experts and of tokens.
            source: states (B, Lx, d), and `source_mask` (B, Lx); None where every position is a token.
            canvas_mask: (N, L) true at positions to be written; None where all are.
            copied_ids: of the B sources, as the method of that name gives them.
            on_draft: called after each step with the endpoint (N, L, d) as that step sees it.

        Returns:
            Ids (N, L), not yet cut, mean log-probability (N,) and that of each token (N, L), as `decode_latents` gives
            them; and the endpoint (N, L, d), or all states (steps + 1, N, L, d) with `output_trajectory`.
        """
        repeats = x_0.shape[0] // source.shape[0]
        condition = self.canvas_condition(x_0.shape[1], source, source_mask, canvas_mask, repeats)
        states = self.solve(x_0, condition, uniform[0], options, on_draft)
        written = self.decode_latents(
            states[-1] if options.output_trajectory else states,
            canvas_mask,
            uniform[1],
            options,
            self.copy_source(copied_ids, source, source_mask),
        )
        return *written, states

    def canvas_condition(
        self,
        length: int,
        source: torch.Tensor,
        source_mask: torch.Tensor | None,
        canvas_mask: torch.Tensor | None,
        repeats: int = 1,
    ) -> FlowCondition:
        """
        What stays the same along a trajectory on canvases of this length, `repeats` for each source; other arguments as
        those of `write_canvas`.
        """
        # Canvases begin at the left edge, so that only positions counted from the end depend on the mask.
        positions = self.model.encoder.positions(length, canvas_mask if self.config.reverse_positions else None)
        return self.model.flow.condition(positions, source, source_mask, canvas_mask, repeats=repeats)

    def solve(
        self,
        x_0: torch.Tensor,
        condition: FlowCondition,
        uniform: torch.Tensor,
        options: SamplingOptions,
        on_draft: Callable[[torch.Tensor], None] | None = None,
    ) -> torch.Tensor:
        """
        The endpoint (N, L, d) in float32, or all states (steps + 1, N, L, d); arguments as those of `write_canvas`.
        """
        states, _ = self.model.flow.solve(
            x_0,
            condition,
            lambda gate: options.choose_experts(gate, uniform),
            time_grid=time_grid(options.num_inference_steps, shift=options.time_shift, device=x_0.device),
            solver=options.solver,
            callback=None if on_draft is None else lambda step, state, endpoint: on_draft(endpoint),
            return_trajectory=options.output_trajectory,
        )
        return states

    def solve_plain(
        self, x_0: torch.Tensor, condition: FlowCondition, uniform: torch.Tensor, options: SamplingOptions
    ) -> torch.Tensor:
        """Reference of `solve`: every expert at every evaluation, and no tables."""

        def evaluate(x_t: torch.Tensor, t: torch.Tensor, index: int) -> tuple[torch.Tensor, torch.Tensor]:
            return self.model.flow(x_t, t.expand(len(x_t)), condition)

        def choose(evaluation: tuple) -> torch.LongTensor:
            return options.choose_experts(evaluation[1], uniform)

        def velocity(evaluation: tuple, experts: torch.LongTensor, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            index = experts[..., None, None].expand(-1, -1, 1, x_t.shape[-1])
            return evaluation[0].gather(2, index).squeeze(2)

        grid = time_grid(options.num_inference_steps, shift=options.time_shift, device=x_0.device)
        return solve_mixture_ode(evaluate, choose, velocity, x_0, time_grid=grid, solver=options.solver)[0]

    def decode_latents(
        self,
        latents: torch.Tensor,
        canvas_mask: torch.Tensor | None = None,
        uniform: torch.Tensor | None = None,
        options: SamplingOptions | None = None,
        copied: CopySource | None = None,
    ) -> tuple[torch.LongTensor, torch.Tensor, torch.Tensor]:
        """
        Ids (N, L), their mean log-probability (N,) up to EOS, and that of each (N, L), under the unfiltered
        distribution. Logits are computed a few positions at a time and never held for all. On a canvas with blanks
        (`config.canvas_ratio` above 1), the mean is over the positions as they were written; the ids are the text
        without blanks, EOS behind it, and the log-probability of a token is that of the first position that wrote it.

        Args:
            uniform: (N, L), decides drawn tokens; only with `do_sample`.
            copied: as `copy_source` gives it.
        """
        options = options or SamplingOptions()
        states = self.decoder.states(latents)
        rows, length = states.shape[:2]
        size = max(1, DECODE_LOGITS // self.config.vocab_size)
        positions = torch.arange(length, device=states.device).repeat(rows)
        draws = states.new_zeros(rows, length) if uniform is None else uniform
        copies = self.decoder.copies(states, None if copied is None else copied.for_rows(rows)) or ()
        flat = [states.flatten(0, 1), draws.flatten(), positions, *(part.flatten(0, 1) for part in copies)]
        chunks = [flat] if rows * length <= size else zip(*(x.split(size) for x in flat))
        picked = [self._pick_tokens(options, *chunk) for chunk in chunks]
        ids, log_probs = (torch.cat(parts).view(rows, length) for parts in zip(*picked, strict=True))
        return self.read_positions(ids, log_probs, canvas_mask, options)

    def read_positions(
        self,
        ids: torch.LongTensor,
        log_probs: torch.Tensor,
        canvas_mask: torch.Tensor | None,
        options: SamplingOptions,
    ) -> tuple[torch.LongTensor, torch.Tensor, torch.Tensor]:
        """What `decode_latents` returns, from the token of each position (N, L) and its log-probability (N, L)."""
        cut = cut_lengths(ids, canvas_mask, options.eos_token_ids)
        counted = torch.arange(ids.shape[1], device=ids.device) < cut.unsqueeze(1)
        scores = (log_probs * counted).sum(-1) / counted.sum(-1)
        if self.config.canvas_ratio > 1:
            blank = self.config.pad_token_id
            places = ctc_places(ids, canvas_mask, blank)
            ids = move_to_places(ids, places, (*options.eos_token_ids, blank)[0])
            log_probs = move_to_places(log_probs, places, 0.0)
        return ids, scores, log_probs

    def _pick_tokens(
        self,
        options: SamplingOptions,
        states: torch.Tensor,
        uniform: torch.Tensor,
        positions: torch.Tensor,
        *copies: torch.Tensor,
    ) -> tuple[torch.LongTensor, torch.Tensor]:
        """
        Tokens and their log-probabilities (n,) for decoder states (n, d) at these positions of their rows (n,);
        `copies` are ids and scores of what they can copy (n, S), if anything.
        """
        logits = self.decoder.logits(states, copies or None).float()
        if options.min_new_tokens > 0 and options.eos_token_ids:
            early = positions.unsqueeze(1) < options.min_new_tokens
            eos = list(options.eos_token_ids)
            logits[:, eos] = logits[:, eos].masked_fill(early, -torch.inf)
        weighed = logits + self.token_bias(options, logits.device)
        if options.do_sample:
            ids = sample_categorical(options.filter_logits(weighed).softmax(-1), uniform=uniform)
        else:
            ids = weighed.argmax(-1)
        return ids, logits.gather(1, ids.unsqueeze(1)).squeeze(1) - logits.logsumexp(-1)

    def token_bias(self, options: SamplingOptions, device: torch.device | str | None = None) -> torch.Tensor:
        """What is added to logits (V,) before a token is chosen: bans, and the penalty on the blank."""
        bias = torch.zeros(self.config.vocab_size, device=device)
        for token_id in self._banned(options.eos_token_ids):
            bias[token_id] = -torch.inf
        if options.blank_penalty:
            bias[self.config.pad_token_id] -= options.blank_penalty
        return bias

    def writable_logits(self, logits: torch.Tensor, eos_token_ids: tuple[int, ...] = ()) -> torch.Tensor:
        """
        Logits (..., V) without the tokens that no text holds: mask and padding, unless padding is the blank or EOS.
        """
        ids = torch.arange(logits.shape[-1], device=logits.device)
        for token_id in self._banned(eos_token_ids):
            logits = logits.masked_fill(ids == token_id, -torch.inf)
        return logits

    def _banned(self, eos_token_ids: tuple[int, ...]) -> list[int]:
        padding = self.config.pad_token_id if self.config.canvas_ratio == 1 else None
        return [i for i in (padding, self.config.mask_token_id) if i is not None and i not in eos_token_ids]
