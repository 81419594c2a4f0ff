"""Generation: noise -> a few ODE steps -> the whole answer at once, and the choice among candidates."""

import hashlib
from array import array
from dataclasses import dataclass

import torch
from transformers.generation import GenerationConfig
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from .flow_matching_yan import evaluation_times, select_experts, solve_ode, time_grid
from .generation_options_yan import YanGenerationOptionsMixin
from .layers_yan import FlowCondition, route_tokens

# Rows whose canvases round up to the same multiple are written together.
LENGTH_BUCKET = 16
# Logits that decoding holds at once, in float32: 64 MiB. A vocabulary of 128,256 then takes 130 positions at a time.
DECODE_LOGITS = 2**24
# What Trainer, PEFT and pipelines pass along and generation does not need.
IGNORED_ARGUMENTS = ("labels", "decoder_input_ids", "decoder_attention_mask", "token_type_ids", "synced_gpus")


@dataclass
class YanGenerateOutput(ModelOutput):
    """
    Args:
        sequences: ids (B * num_return_sequences, L), without BOS, cut after EOS, padded with `pad_token_id`.
        sequences_scores: mean token log-probability of each, up to EOS.
        target_lengths: canvas length of each.
        num_evaluations: evaluations of the velocity field's trunk.
        trajectory: latent states (steps + 1, B * num_return_sequences, L, d), prior first; with `output_trajectory`.
    """

    sequences: torch.LongTensor | None = None
    sequences_scores: torch.FloatTensor | None = None
    target_lengths: torch.LongTensor | None = None
    num_evaluations: int | None = None
    trajectory: torch.FloatTensor | None = None


@dataclass
class WrittenRows:
    """
    Args:
        ids: (n, num_return_sequences, L), not yet cut.
        scores, lengths: (n, num_return_sequences).
        states: trajectory (steps + 1, n * num_return_sequences, L, d), where asked for.
        evaluations: of the velocity field.
    """

    ids: torch.LongTensor
    scores: torch.FloatTensor
    lengths: torch.LongTensor
    states: torch.FloatTensor | None
    evaluations: int


class YanGenerationMixin(YanGenerationOptionsMixin):
    """`generate()` of YAN. Uses of the model: `model.encoder`, `model.condition`, `model.flow`, `decoder`, `length_head`."""

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        streamer=None,
        generator: torch.Generator | None = None,
        prior_noise: torch.FloatTensor | None = None,
        target_lengths: int | list[int] | torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        **kwargs,
    ) -> YanGenerateOutput | torch.LongTensor:
        r"""
        Writes an answer to every source.

        1. Resolve the options: argument, then `generation_config`, then the model's own, then the default.
        2. Check the inputs.
        3. Encode the sources, once per row whatever the number of candidates.
        4. Decide the canvas lengths.
        5. Draw prior noise and the uniform numbers behind every other draw, row by row.
        6. Solve the ODE from noise to latents.
        7. Decode, score, and keep the best candidates.
        8. Cut after EOS, pad, return.

        Args:
            input_ids: sources (B, Lx), padded on either side; or `inputs_embeds` (B, Lx, d), or `encoder_outputs`.
            attention_mask: (B, Lx), 1 at tokens.
            generation_config: options, see below; any of them can be given as a keyword argument.
            streamer: gets the final ids by `put` (batch size 1); each step's draft by `put_draft` if it has it.
            generator: decides everything random. Draws depend on it and on the row's own tokens only, neither on
                other rows nor on padding; repeated rows get different draws.
            prior_noise: the state at t = 0 instead of a draw: (B, L, d), or (B, num_candidates, L, d). No canvas is longer
                than it; a shorter one uses its beginning.
            target_lengths: canvas length of each answer, EOS included: one for all or (B,). The paper's oracle setting.

        Options: `num_inference_steps` (3; steps of the solver), `solver` ("euler", "midpoint", "heun"; the latter two
        evaluate the network twice a step), `time_shift` (1.0), `expert_selection` ("sample", "argmax"),
        `prior_temperature` (1.0, scales drawn noise), `max_new_tokens` or `max_length` (longest answer),
        `min_new_tokens`, `length_mode` ("predicted", or "canvas": `max_new_tokens` positions cut at EOS),
        `num_length_candidates` (1), `num_candidates` (1; priors per row), `num_return_sequences` (1), `do_sample` with
        `temperature`, `top_k`, `top_p` (tokens drawn instead of the most probable), `return_dict_in_generate`,
        `output_trajectory`.

        Returns:
            ids (B * num_return_sequences, L), or `YanGenerateOutput` with `return_dict_in_generate=True`.

        Raises:
            ValueError: for unknown arguments and for every input that cannot be answered, naming it.
        """
        # 1.
        if "inputs" in kwargs and input_ids is None:
            input_ids = kwargs.pop("inputs")
        for name in IGNORED_ARGUMENTS:
            kwargs.pop(name, None)
        for name in ("logits_processor", "stopping_criteria"):
            if kwargs.pop(name, None):
                raise ValueError(f"{name} works token by token; YAN writes all positions at once")
        options, unused = self._prepare_generation_config(generation_config, **kwargs)
        if unused:
            raise ValueError(f"generate() got unknown arguments {sorted(unused)}; see its docstring for the options")
        # 2.
        self._check_inputs(input_ids, attention_mask, inputs_embeds, encoder_outputs)
        # 3.
        if encoder_outputs is None:
            encoder_outputs = self.model.encoder(input_ids, attention_mask, inputs_embeds=inputs_embeds)
        source = encoder_outputs[0]
        batch_size, device = len(source), source.device
        if streamer is not None and batch_size * (options.num_return_sequences) > 1:
            raise ValueError(
                f"a streamer takes one text, got {batch_size} rows x {options.num_return_sequences} return sequences"
            )
        # 4.
        lengths = self._canvas_lengths(options, source, attention_mask, target_lengths, prior_noise)
        canvas_length = int(lengths.max())
        keys = self._row_seeds(input_ids, attention_mask, batch_size, generator)
        draft = None
        if streamer is not None and hasattr(streamer, "put_draft"):

            def draft(latents: torch.Tensor) -> None:
                ids = self.decoder(latents[:1]).argmax(-1)
                streamer.put_draft(value=self._finish(ids, lengths[0, :1], options)[0][0].cpu())

        # 5. to 7.
        returned = options.num_return_sequences
        ids = torch.zeros(batch_size, returned, canvas_length, dtype=torch.long, device=device)
        scores = torch.zeros(batch_size, returned, device=device)
        row_lengths = torch.zeros(batch_size, returned, dtype=torch.long, device=device)
        states, evaluations = None, 0
        for rows in self._group_rows(lengths, options):
            written = self._write(
                rows, keys, source, attention_mask, lengths, options, prior_noise=prior_noise, draft=draft
            )
            ids[rows, :, : written.ids.shape[-1]] = written.ids
            scores[rows], row_lengths[rows] = written.scores, written.lengths
            states, evaluations = written.states, written.evaluations
        ids, scores, row_lengths = ids.flatten(0, 1), scores.flatten(), row_lengths.flatten()
        # 8.
        sequences, _ = self._finish(ids, row_lengths, options)
        if streamer is not None:
            streamer.put(sequences[0].cpu())
            streamer.end()
        if not options.return_dict_in_generate:
            return sequences
        return YanGenerateOutput(
            sequences=sequences,
            sequences_scores=scores,
            target_lengths=row_lengths,
            num_evaluations=evaluations,
            trajectory=states,
        )

    @staticmethod
    def _group_rows(lengths: torch.LongTensor, options) -> list[torch.LongTensor]:
        """
        Rows that are written together, by their longest candidate (B, candidates): short rows do not pay for long ones. One
        group where grouping would save less than a quarter of the positions, or where a trajectory is asked for.
        """
        longest = lengths.amax(1)
        whole = [torch.arange(len(longest), device=longest.device)]
        if len(longest) == 1 or options.output_trajectory:
            return whole
        buckets = torch.div(longest + LENGTH_BUCKET - 1, LENGTH_BUCKET, rounding_mode="floor").tolist()
        if len(set(buckets)) == 1:
            return whole
        groups: dict[int, list[int]] = {}
        for row, bucket in enumerate(buckets):
            groups.setdefault(bucket, []).append(row)
        positions = sum(len(rows) * bucket for bucket, rows in groups.items())
        if positions > 0.75 * len(buckets) * max(buckets):
            return whole
        return [torch.tensor(rows, device=longest.device) for _, rows in sorted(groups.items())]

    def _write(
        self, rows, keys, source, attention_mask, lengths, options, *, prior_noise=None, draft=None
    ) -> WrittenRows:
        """Steps 5 to 7 of `generate` for some rows of the batch (n,); everything that is drawn belongs to its row."""
        if len(rows) < len(source):
            keys = [keys[row] for row in rows.tolist()]
            source, lengths = source[rows], lengths[rows]
            attention_mask = None if attention_mask is None else attention_mask[rows]
            prior_noise = None if prior_noise is None else prior_noise[rows]
        device, (batch_size, num_lengths) = source.device, lengths.shape
        returned = options.num_return_sequences
        priors = max(options.num_candidates, returned)
        canvas_length = int(lengths.max())
        # 5.
        x_0, uniform = self._draw(keys, lengths, priors, options, prior_noise, device)
        x_0 = x_0.unsqueeze(2).expand(-1, -1, num_lengths, -1, -1).flatten(0, 2)
        uniform = uniform.unsqueeze(3).expand(-1, -1, -1, num_lengths, -1).flatten(1, 3)
        row_lengths = lengths.unsqueeze(1).expand(-1, priors, -1).flatten()
        canvas_mask = torch.arange(canvas_length, device=device) < row_lengths.unsqueeze(1)
        # 6.
        condition = self._expanded_condition(source, attention_mask, canvas_length, canvas_mask, priors * num_lengths)
        states, evaluations = self._solve(x_0, condition, uniform[0], options, draft)
        # 7.
        ids, scores = self._decode(
            states[-1] if options.output_trajectory else states, row_lengths, uniform[1], options
        )
        best_length = (
            scores.view(-1, num_lengths).argmax(-1)
            + torch.arange(len(scores) // num_lengths, device=device) * num_lengths
        )
        by_prior = scores[best_length].view(batch_size, priors).topk(returned, dim=1).indices
        chosen = best_length.view(batch_size, priors).gather(1, by_prior)
        return WrittenRows(
            ids=ids[chosen],
            scores=scores[chosen],
            lengths=row_lengths[chosen],
            states=states[:, chosen.flatten()] if options.output_trajectory else None,
            evaluations=evaluations,
        )

    def _check_inputs(self, input_ids, attention_mask, inputs_embeds, encoder_outputs) -> None:
        given = [x for x in (input_ids, inputs_embeds, encoder_outputs) if x is not None]
        if not given or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("pass input_ids (or one of inputs_embeds and encoder_outputs)")
        states = given[0] if torch.is_tensor(given[0]) else given[0][0]
        name = (
            "input_ids"
            if input_ids is not None
            else "inputs_embeds"
            if inputs_embeds is not None
            else "encoder_outputs"
        )
        if states.dim() != (2 if name == "input_ids" else 3):
            raise ValueError(
                f"{name} has shape {tuple(states.shape)}, expected (batch, length{', hidden size' * (name != 'input_ids')})"
            )
        if states.shape[0] == 0 or states.shape[1] == 0:
            raise ValueError(f"{name} is empty, shape {tuple(states.shape)}; give at least one token per row")
        if attention_mask is not None:
            if attention_mask.shape != states.shape[:2]:
                raise ValueError(
                    f"attention_mask has shape {tuple(attention_mask.shape)}, {name} has {tuple(states.shape[:2])}; they must agree"
                )
            if not attention_mask.bool().any(-1).all():
                raise ValueError("attention_mask has a row without any token; drop empty sources")
        longest = states.shape[1] if attention_mask is None else int(attention_mask.bool().sum(-1).max())
        if longest > self.config.max_position_embeddings:
            raise ValueError(
                f"{name} has {longest} tokens, more than max_position_embeddings={self.config.max_position_embeddings}; "
                "tokenize with truncation=True"
            )
        if input_ids is not None:
            if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
                raise ValueError(f"input_ids has dtype {input_ids.dtype}, expected integer token ids")
            low, high = (int(x) for x in torch.stack(input_ids.aminmax()).tolist())
            if low < 0 or high >= self.config.vocab_size:
                raise ValueError(
                    f"input_ids holds ids from {low} to {high}, the vocabulary has 0 to {self.config.vocab_size - 1}; "
                    "use the model's own tokenizer"
                )

    def _canvas_lengths(self, options, source, attention_mask, target_lengths, prior_noise=None) -> torch.LongTensor:
        """Candidate canvas lengths (B, number of candidates), the most probable first."""
        batch_size, device, table = len(source), source.device, self.config.max_position_embeddings
        longest = options.max_new_tokens if options.max_new_tokens is not None else options.max_length
        shortest = max(options.min_new_tokens or 0, 1)
        if target_lengths is not None:
            lengths = torch.as_tensor(target_lengths, device=device)
            if lengths.is_floating_point() or lengths.dim() > 1 or lengths.numel() not in (1, batch_size):
                raise ValueError(
                    f"target_lengths must be a whole number or one per row ({batch_size}), got {target_lengths}"
                )
            lengths = lengths.reshape(-1).expand(batch_size)
            low, high = int(lengths.min()), int(lengths.max())
            if low < 1 or high > table:
                raise ValueError(
                    f"target_lengths holds {low} to {high}, must be between 1 and max_position_embeddings={table}"
                )
            return lengths.unsqueeze(1)
        if not 1 <= longest <= table:
            raise ValueError(
                f"max_new_tokens / max_length={longest} must be between 1 and max_position_embeddings={table}"
            )
        if prior_noise is not None and prior_noise.dim() in (3, 4):
            longest = min(longest, prior_noise.shape[-2])
        if shortest > longest:
            raise ValueError(
                f"min_new_tokens={shortest} is more than the {longest} positions that max_new_tokens, max_length or "
                "prior_noise allow"
            )
        if options.length_mode == "canvas":
            return torch.full((batch_size, 1), longest, device=device)
        logits = self.length_head(source, attention_mask)[:, shortest - 1 : longest]
        return logits.topk(min(options.num_length_candidates, logits.shape[1]), dim=1).indices + shortest

    def _row_seeds(self, input_ids, attention_mask, batch_size: int, generator) -> list[int]:
        """One seed per row from a draw of the generator and the row's tokens; a repeated row counts its repeats."""
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
            repeat = seen[key] = seen.get(key, -1) + 1
            digest = hashlib.blake2b(key + repeat.to_bytes(8, "little"), digest_size=8).digest()
            seeds.append(int.from_bytes(digest, "little") >> 1)
        return seeds

    def _draw(self, seeds, lengths, priors: int, options, prior_noise, device) -> tuple[torch.Tensor, torch.Tensor]:
        """Prior states (B, priors, L, d) float32, and uniform numbers (2, B, priors, L) for experts and tokens."""
        longest = lengths.max(1).values.tolist()
        length, width = max(longest), self.config.hidden_size
        if prior_noise is not None:
            given = prior_noise.unsqueeze(1) if prior_noise.dim() == 3 else prior_noise
            expected = (len(seeds), priors, length, width)
            if (
                given.dim() != 4
                or given.shape[:2] != expected[:2]
                or given.shape[3] != width
                or given.shape[2] < length
            ):
                raise ValueError(
                    f"prior_noise has shape {tuple(prior_noise.shape)}, expected (batch, priors, at least the canvas length, "
                    f"hidden size) = {expected}; the second dimension may be left out when it is 1"
                )
        x_0 = torch.zeros(len(seeds), priors, length, width, device=device)
        uniform = torch.zeros(2, len(seeds), priors, length, device=device)
        scale = self.config.prior_std * options.prior_temperature
        for row, (seed, own) in enumerate(zip(seeds, longest, strict=True)):
            row_generator = torch.Generator(device).manual_seed(seed)
            for prior in range(priors):
                noise = torch.randn(own, width, generator=row_generator, device=device)
                x_0[row, prior, :own] = scale * noise if prior_noise is None else given[row, prior, :own].to(x_0)
                uniform[:, row, prior, :own] = torch.rand(2, own, generator=row_generator, device=device)
        return x_0, uniform

    def _expanded_condition(
        self, source, attention_mask, canvas_length: int, canvas_mask, repeats: int
    ) -> FlowCondition:
        """The flow's condition for `repeats` canvases per row; the source is projected once per row."""
        source_mask = None if attention_mask is None or bool(attention_mask.all()) else attention_mask
        if bool(canvas_mask.all()):
            canvas_mask = None
        positions = self.model.encoder.positions(canvas_length, None)
        return self.model.flow.condition(positions, source, source_mask, canvas_mask, repeats=repeats)

    def _solve(self, x_0, condition: FlowCondition, uniform, options, draft=None) -> tuple[torch.Tensor, int]:
        """
        Integrates the chosen experts' velocities in float32.

        Returns:
            The endpoint (N, L, d), or all states (steps + 1, N, L, d) with `output_trajectory`; and the number of
            trunk evaluations.
        """
        flow = self.model.flow
        grid = time_grid(options.num_inference_steps, shift=options.time_shift, device=x_0.device)
        times = evaluation_times(grid, options.solver)
        # Scales and shifts depend on t alone: one table for all evaluations.
        time_embeddings = flow.time_embedding(times)
        table = [layer.split(1) for layer in flow.modulate(time_embeddings)]
        # The gate at t = 0 and the first evaluation share one trunk pass.
        first = flow.trunk(x_0, [layer[0] for layer in table], condition)
        gate = flow.gate(first, condition.pooled, time_embeddings[:1], condition.canvas_mask)
        experts = (
            gate.argmax(-1) if options.expert_selection == "argmax" else select_experts(gate.exp(), uniform=uniform)
        )
        routing = route_tokens(experts, self.config.num_experts)
        evaluations, ahead = 0, None

        def velocity(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            nonlocal evaluations, ahead
            index = evaluations
            hidden = first if index == 0 else flow.trunk(x_t, [layer[index] for layer in table], condition)
            evaluations += 1
            v = flow.velocity(flow.experts(hidden, routing), x_t, t)
            if draft is not None:
                # The endpoint as this evaluation sees it.
                ahead = x_t + (1 - times[index]) * v
            return v

        states = solve_ode(
            velocity,
            x_0,
            solver=options.solver,
            time_grid=grid,
            callback=None if draft is None else lambda step, state: draft(ahead),
            return_trajectory=options.output_trajectory,
        )
        return states, evaluations

    def _solve_plain(self, x_0, condition: FlowCondition, uniform, options) -> torch.Tensor:
        """Reference of `_solve`: every expert at every evaluation, the gate by a pass of its own, no tables."""
        flow = self.model.flow
        rows = len(x_0)
        _, gate = flow(x_0, x_0.new_zeros(rows), condition)
        experts = (
            gate.argmax(-1) if options.expert_selection == "argmax" else select_experts(gate.exp(), uniform=uniform)
        )
        index = experts[..., None, None].expand(-1, -1, 1, x_0.shape[-1])

        def velocity(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return flow(x_t, t.expand(rows), condition)[0].gather(2, index).squeeze(2)

        grid = time_grid(options.num_inference_steps, shift=options.time_shift, device=x_0.device)
        return solve_ode(velocity, x_0, solver=options.solver, time_grid=grid)

    def _decode(self, latents, lengths, uniform, options) -> tuple[torch.LongTensor, torch.Tensor]:
        """
        Ids (N, L) and their mean log-probability (N,) up to EOS, under the unfiltered distribution. Logits are computed a
        few positions at a time and never held for all.
        """
        states = self.decoder.states(latents)
        rows, length = states.shape[:2]
        minimum, eos = options.min_new_tokens or 0, self._eos_ids(options)
        size = max(1, DECODE_LOGITS // self.config.vocab_size)
        ids, chosen = [], []
        positions = torch.arange(length, device=states.device).repeat(rows)
        chunks = zip(states.flatten(0, 1).split(size), uniform.flatten().split(size), positions.split(size))
        for chunk, draws, position in chunks:
            logits = self.decoder.lm_head(chunk).float()
            if minimum > 0 and eos:
                logits[:, eos] = logits[:, eos].masked_fill(position.unsqueeze(1) < minimum, -torch.inf)
            if options.do_sample:
                picked = select_experts(self._filter(logits, options).softmax(-1), uniform=draws)
            else:
                picked = logits.argmax(-1)
            ids.append(picked)
            chosen.append(logits.gather(1, picked.unsqueeze(1)).squeeze(1) - logits.logsumexp(-1))
        ids, chosen = torch.cat(ids).view(rows, length), torch.cat(chosen).view(rows, length)
        counted = torch.arange(length, device=ids.device) < self._cut_lengths(ids, lengths, options).unsqueeze(1)
        return ids, (chosen * counted).sum(-1) / counted.sum(-1)

    @staticmethod
    def _filter(logits: torch.Tensor, options) -> torch.Tensor:
        """Temperature, top-k and top-p of logits (n, V), position by position."""
        flat = logits
        if options.temperature is not None and options.temperature != 1.0:
            flat = TemperatureLogitsWarper(float(options.temperature))(None, flat)
        if options.top_k:
            flat = TopKLogitsWarper(options.top_k)(None, flat)
        if options.top_p is not None and options.top_p < 1.0:
            flat = TopPLogitsWarper(options.top_p)(None, flat)
        return flat

    @staticmethod
    def _eos_ids(options) -> list[int]:
        eos = options.eos_token_id
        return [] if eos is None else list(eos) if isinstance(eos, (list, tuple)) else [int(eos)]

    def _cut_lengths(self, ids: torch.LongTensor, lengths: torch.LongTensor, options) -> torch.LongTensor:
        """Tokens of each row up to and including its first EOS, at most its canvas (N,)."""
        ends = torch.zeros_like(ids, dtype=torch.bool)
        for eos in self._eos_ids(options):
            ends |= ids == eos
        position = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        first = torch.where(ends, position, ids.shape[1] + 1).amin(-1)
        return torch.minimum(first, lengths)

    def _finish(self, ids, lengths, options) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Drops a leading BOS, pads after EOS and trims to the longest row: ids (N, L), lengths (N,)."""
        cut = self._cut_lengths(ids, lengths, options)
        pad = options.pad_token_id
        if pad is None:
            pad = (self._eos_ids(options) or [0])[0]
        position = torch.arange(ids.shape[1], device=ids.device)
        ids = torch.where(position < cut.unsqueeze(1), ids, pad)
        if options.bos_token_id is not None and options.bos_token_id not in self._eos_ids(options):
            starts = ids[:, 0] == options.bos_token_id
            shifted = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], pad)], 1)
            ids, cut = torch.where(starts.unsqueeze(1), shifted, ids), cut - starts.long()
        return ids[:, : max(int(cut.max()), 1)], cut
