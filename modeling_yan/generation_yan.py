"""Generation: noise -> a few ODE steps -> the whole answer at once, and the choice among candidates."""

import hashlib
from array import array
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers.generation import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput

from .alignment_yan import canvas_lengths
from .compilation_yan import CompiledFunctions, default_compile_options, next_power_of_two, round_up
from .flow_matching_yan import SOLVER_EVALUATIONS
from .generation_options_yan import YanGenerationOptionsMixin
from .writing_yan import WritingPlan, YanWritingMixin, cut_lengths

# Rows whose canvases round up to the same multiple are written together.
LENGTH_BUCKET = 16
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


def _longest_text(options) -> int:
    """Tokens that an answer may have."""
    return options.max_new_tokens if options.max_new_tokens is not None else options.max_length


@dataclass
class WrittenRows:
    """
    Args:
        ids: (n, num_return_sequences, L), not yet cut.
        scores, lengths: (n, num_return_sequences).
        states: trajectory (steps + 1, n * num_return_sequences, L, d), where asked for.
    """

    ids: torch.LongTensor
    scores: torch.FloatTensor
    lengths: torch.LongTensor
    states: torch.FloatTensor | None


class YanGenerationMixin(YanWritingMixin, YanGenerationOptionsMixin):
    """`generate()` of YAN: the options, the draws, which canvases are written together and which of them are kept."""

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
            target_lengths: canvas length of each answer in tokens, EOS included: one for all or (B,). The paper's oracle setting.
                `config.canvas_ratio` times as many positions are written.

        Options: `num_inference_steps` (3; steps of the solver), `solver` ("euler", "midpoint", "heun"; the latter two
        evaluate the network twice a step), `time_shift` (1.0), `expert_selection` ("sample", "argmax"),
        `prior_temperature` (1.0, scales drawn noise), `blank_penalty` (0.0; taken off the logit of the blank, for longer texts
        from canvases with room for blanks), `max_new_tokens` or `max_length` (longest answer),
        `min_new_tokens`, `length_mode` ("predicted", or "canvas": `max_new_tokens` positions cut at EOS),
        `num_length_candidates` (1), `num_candidates` (1; priors per row), `num_return_sequences` (1), `do_sample` with
        `temperature`, `top_k`, `top_p` (tokens drawn instead of the most probable), `return_dict_in_generate`,
        `output_trajectory`, `compile` (off; or a `compile_config`: the encoder and everything after it as one graph each, for
        shapes rounded up and masked; the first call of every shape compiles. Drafts for a streamer are written uncompiled).

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
        if encoder_outputs is None and inputs_embeds is None:
            source, source_mask, length_logits = self._encode(input_ids, attention_mask, options)
        else:
            if encoder_outputs is None:
                encoder_outputs = self.model.encoder(input_ids, attention_mask, inputs_embeds=inputs_embeds)
            source, source_mask = encoder_outputs[0], self._needed_mask(attention_mask)
            length_logits = self.length_logits(source, source_mask)
        batch_size, device = len(source), source.device
        if self.config.canvas_ratio > 1 and options.min_new_tokens:
            raise ValueError(
                f"min_new_tokens={options.min_new_tokens} cannot be promised by a model with canvas_ratio={self.config.canvas_ratio}: any "
                "position may be a blank. Leave it out; target_lengths makes canvases longer"
            )
        if streamer is not None and batch_size * (options.num_return_sequences) > 1:
            raise ValueError(
                f"a streamer takes one text, got {batch_size} rows x {options.num_return_sequences} return sequences"
            )
        # 4.
        lengths = self._canvas_lengths(options, batch_size, length_logits, target_lengths, prior_noise, device)
        canvas_length = int(lengths.max())
        keys = self._row_seeds(input_ids, attention_mask, batch_size, generator)
        draft = None
        if streamer is not None and hasattr(streamer, "put_draft"):

            def draft(latents: torch.Tensor) -> None:
                ids, _ = self.decode_latents(latents[:1])
                streamer.put_draft(value=self._finish(ids, lengths[0, :1], options)[0][0].cpu())

        # 5. to 7.
        returned = options.num_return_sequences
        ids = torch.zeros(batch_size, returned, canvas_length, dtype=torch.long, device=device)
        scores = torch.zeros(batch_size, returned, device=device)
        row_lengths = torch.zeros(batch_size, returned, dtype=torch.long, device=device)
        states = None
        for rows in self._group_rows(lengths, options):
            written = self._write(rows, keys, source, source_mask, lengths, options, prior_noise, draft)
            ids[rows, :, : written.ids.shape[-1]] = written.ids
            scores[rows], row_lengths[rows] = written.scores, written.lengths
            states = written.states
        ids, scores, row_lengths = ids.flatten(0, 1), scores.flatten(), row_lengths.flatten()
        # 8.
        # A canvas with room for blanks may hold more tokens than were asked for.
        most = row_lengths if self.config.canvas_ratio == 1 else row_lengths.clamp(max=_longest_text(options))
        sequences, _ = self._finish(ids, most, options)
        if streamer is not None:
            streamer.put(sequences[0].cpu())
            streamer.end()
        if not options.return_dict_in_generate:
            return sequences
        return YanGenerateOutput(
            sequences=sequences,
            sequences_scores=scores,
            target_lengths=row_lengths,
            num_evaluations=options.num_inference_steps * SOLVER_EVALUATIONS[options.solver],
            trajectory=states,
        )

    @staticmethod
    def _needed_mask(attention_mask: torch.Tensor | None) -> torch.Tensor | None:
        """No mask where it masks nothing."""
        return None if attention_mask is None or bool(attention_mask.all()) else attention_mask

    def _compiled(self, name: str, arguments: tuple, options, *, rest: tuple = ()) -> tuple:
        """
        A method by its name, compiled for exactly these tensors' shapes.

        Args:
            rest: further arguments, which are not tensors and are part of what is compiled.
        """
        if options.compile_config is None:
            compile_options = default_compile_options(self.device)
        else:
            compile_options = {**options.compile_config.to_dict(), "fullgraph": True, "dynamic": False}
            compile_options.pop("_compile_all_devices", None)
        shapes = tuple(None if x is None else (x.shape, x.dtype, x.device) for x in arguments)
        key = (name, shapes, rest, self.dtype, self.config._attn_implementation, repr(sorted(compile_options.items())))
        compiled = CompiledFunctions.of(self).get(key, getattr(self, name), compile_options)
        return compiled(*arguments, *rest)

    def _encode(self, input_ids, attention_mask, options) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Source states (B, Lx', d), their mask, and logits over lengths; padded to a bucket where this is compiled."""
        rows, length = input_ids.shape
        table = self.config.max_position_embeddings
        if not options.compile or length > table or self.config.encoder_config is not None:
            mask = self._needed_mask(attention_mask)
            source, length_logits = self.encode_source(input_ids, mask)
            return source, mask, length_logits
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        padding = (0, round_up(length, LENGTH_BUCKET, table) - length, 0, next_power_of_two(rows) - rows)
        mask = F.pad(mask, padding)
        # Rows that fill the batch up read one token; a row without any would have nothing to attend to.
        mask[rows:, 0] = 1
        source, length_logits = self._compiled("encode_source", (F.pad(input_ids, padding), mask), options)
        return source[:rows], mask[:rows], None if length_logits is None else length_logits[:rows]

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

    def _write(self, rows, keys, source, source_mask, lengths, options, prior_noise=None, on_draft=None) -> WrittenRows:
        """Steps 5 to 7 of `generate` for some rows of the batch (n,); everything that is drawn belongs to its row."""
        if len(rows) < len(source):
            keys = [keys[row] for row in rows.tolist()]
            source, lengths = source[rows], lengths[rows]
            source_mask = None if source_mask is None else source_mask[rows]
            prior_noise = None if prior_noise is None else prior_noise[rows]
        device, (batch_size, num_lengths) = source.device, lengths.shape
        returned = options.num_return_sequences
        priors = max(options.num_candidates, returned)
        # 5.
        longest = lengths.amax(1).tolist()
        canvas_length = max(longest)
        x_0, uniform = self._draw(keys, longest, priors, options, prior_noise, device)
        x_0 = x_0.unsqueeze(2).expand(-1, -1, num_lengths, -1, -1).flatten(0, 2)
        uniform = uniform.unsqueeze(3).expand(-1, -1, -1, num_lengths, -1).flatten(1, 3)
        row_lengths = lengths.unsqueeze(1).expand(-1, priors, -1).flatten()
        canvas_mask = None
        if num_lengths > 1 or min(longest) < canvas_length:
            canvas_mask = torch.arange(canvas_length, device=device) < row_lengths.unsqueeze(1)
        # 6. and 7.
        plan = WritingPlan.from_options(options)
        if options.compile and on_draft is None:
            ids, scores, states = self._write_compiled(x_0, uniform, source, source_mask, row_lengths, plan, options)
        else:
            ids, scores, states = self.write_canvas(x_0, uniform, source, source_mask, canvas_mask, plan, on_draft)
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
        )

    def _write_compiled(self, x_0, uniform, source, source_mask, row_lengths, plan, options) -> tuple:
        """`write_canvas` on shapes rounded up: more rows, longer canvases and sources, all of it masked."""
        canvases, length = x_0.shape[:2]
        rows, source_length, table = len(source), source.shape[1], self.config.max_position_embeddings
        more_rows = next_power_of_two(rows) - rows
        more_canvases = more_rows * (canvases // rows)
        more_positions = round_up(length, LENGTH_BUCKET, table) - length
        more_source = round_up(source_length, LENGTH_BUCKET, max(table, source_length)) - source_length
        if source_mask is None:
            source_mask = torch.ones(rows, source_length, dtype=torch.long, device=source.device)
        source_mask = F.pad(source_mask.long(), (0, more_source, 0, more_rows))
        # Rows that fill the batch up must have something to attend to and somewhere to write.
        source_mask[rows:, 0] = 1
        filled = F.pad(row_lengths, (0, more_canvases), value=1)
        canvas_mask = torch.arange(length + more_positions, device=x_0.device) < filled.unsqueeze(1)
        ids, scores, states = self._compiled(
            "write_canvas",
            (
                F.pad(x_0, (0, 0, 0, more_positions, 0, more_canvases)),
                F.pad(uniform, (0, more_positions, 0, more_canvases)),
                F.pad(source, (0, 0, 0, more_source, 0, more_rows)),
                source_mask,
                canvas_mask,
            ),
            options,
            rest=(plan,),
        )
        return ids[:canvases, :length], scores[:canvases], states[..., :canvases, :length, :]

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

    def _canvas_lengths(
        self, options, batch_size: int, length_logits, target_lengths, prior_noise, device
    ) -> torch.LongTensor:
        """Candidate canvas lengths (B, number of candidates), the most probable first."""
        lengths = self._text_lengths(options, batch_size, length_logits, target_lengths, prior_noise, device)
        if self.config.canvas_ratio == 1:
            return lengths
        longest = self.config.max_position_embeddings if prior_noise is None else prior_noise.shape[-2]
        return canvas_lengths(lengths, self.config.canvas_ratio, longest)

    def _text_lengths(
        self, options, batch_size: int, length_logits, target_lengths, prior_noise, device
    ) -> torch.LongTensor:
        """Candidate lengths in tokens (B, number of candidates), the most probable first."""
        table = self.config.max_position_embeddings
        longest = _longest_text(options)
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
            longest = min(longest, max(int(prior_noise.shape[-2] / self.config.canvas_ratio), 1))
        if shortest > longest:
            raise ValueError(
                f"min_new_tokens={shortest} is more than the {longest} positions that max_new_tokens, max_length or "
                "prior_noise allow"
            )
        if options.length_mode == "canvas":
            return torch.full((batch_size, 1), longest, device=device)
        logits = length_logits[:, shortest - 1 : longest]
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

    def _draw(
        self, seeds: list[int], longest: list[int], priors: int, options, prior_noise, device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Prior states (B, priors, L, d) float32, and uniform numbers (2, B, priors, L) for experts and tokens, for rows whose
        longest canvases are these.
        """
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

    def _finish(self, ids, lengths, options) -> tuple[torch.LongTensor, torch.LongTensor]:
        """Drops a leading BOS, pads after EOS and trims to the longest row: ids (N, L), lengths (N,)."""
        eos = WritingPlan.from_options(options).eos_token_ids
        cut = torch.minimum(cut_lengths(ids, None, eos), lengths)
        pad = options.pad_token_id
        if pad is None:
            pad = (eos or (0,))[0]
        position = torch.arange(ids.shape[1], device=ids.device)
        ids = torch.where(position < cut.unsqueeze(1), ids, pad)
        if options.bos_token_id is not None and options.bos_token_id not in eos:
            starts = ids[:, 0] == options.bos_token_id
            shifted = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], pad)], 1)
            ids, cut = torch.where(starts.unsqueeze(1), shifted, ids), cut - starts.long()
        return ids[:, : max(int(cut.max()), 1)], cut
