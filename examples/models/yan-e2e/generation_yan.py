"""Generation: noise -> a few ODE steps -> the whole answer at once, and the choice among candidates."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from transformers.generation import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput, logging

from .canvas_yan import canvas_lengths, length_mask, source_lengths, text_room
from .compilation_yan import call_compiled, group_by_bucket, pad_canvases, pad_source
from .generation_options_yan import GenerationOptions, YanGenerationOptionsMixin, take_library_arguments
from .input_checks_yan import check_finite, check_generator, check_source, check_streamer, refuse_stock_pipeline
from .sampling_yan import YanSamplingMixin, best_distinct, cut_lengths, draw_noise, given_noise, row_seeds

logger = logging.get_logger(__name__)


@dataclass
class YanGenerateOutput(ModelOutput):
    """
    Args:
        sequences: ids (B * num_return_sequences, L), without BOS, cut after EOS, padded with `pad_token_id`.
        sequences_scores: mean token log-probability of each, up to EOS.
        token_scores: log-probability of each token of `sequences` in nats, under the unfiltered distribution, 0 at
            padding; on a canvas with blanks that of the first position that wrote it.
        target_lengths: canvas length of each.
        num_evaluations: evaluations of the velocity field's trunk.
        trajectory: latent states (steps + 1, B * num_return_sequences, L, d), prior first; with `output_trajectory`.
    """

    sequences: torch.LongTensor | None = None
    sequences_scores: torch.FloatTensor | None = None
    token_scores: torch.FloatTensor | None = None
    target_lengths: torch.LongTensor | None = None
    num_evaluations: int | None = None
    trajectory: torch.FloatTensor | None = None


@dataclass
class Sources:
    """
    Encoded rows.

    Args:
        states: (B, Lx, d).
        mask: (B, Lx); None where every position is a token.
        input_ids: (B, Lx), where they are known.
        seeds: one per row, behind all of its draws.
        lengths: candidate canvas lengths (B, candidates), the most probable first.
        prior_noise: given instead of drawn, (B, [priors,] L, d).
    """

    states: torch.Tensor
    mask: torch.Tensor | None
    input_ids: torch.LongTensor | None
    seeds: list[int]
    lengths: torch.LongTensor
    prior_noise: torch.Tensor | None = None

    def select(self, rows: torch.LongTensor) -> "Sources":
        """Some of the rows (n,)."""
        if len(rows) == len(self.states):
            return self
        return Sources(
            states=self.states[rows],
            mask=None if self.mask is None else self.mask[rows],
            input_ids=None if self.input_ids is None else self.input_ids[rows],
            seeds=[self.seeds[row] for row in rows.tolist()],
            lengths=self.lengths[rows],
            prior_noise=None if self.prior_noise is None else self.prior_noise[rows],
        )


@dataclass
class WrittenRows:
    """
    Args:
        ids: (n, num_return_sequences, L), not yet cut.
        scores, lengths: (n, num_return_sequences).
        log_probs: of each id.
        states: trajectory (steps + 1, n * num_return_sequences, L, d), where asked for.
    """

    ids: torch.LongTensor
    scores: torch.FloatTensor
    lengths: torch.LongTensor
    log_probs: torch.FloatTensor
    states: torch.FloatTensor | None


def merge_repeats(ids: torch.LongTensor, positions: torch.LongTensor, longest: int) -> torch.LongTensor:
    """
    Positions of texts in which no run of up to `longest` tokens stands twice in a row: of such runs the first is kept,
    from left to right, the shortest first.

    Args:
        ids: (N, L).
        positions: where in `ids` the tokens of each text stand (N, L), -1 behind the last.

    Returns:
        Positions (N, L) of the tokens that are kept.
    """
    merged = positions
    for row, (tokens, places) in enumerate(zip(ids.tolist(), positions.tolist(), strict=True)):
        text: list[int] = []
        kept: list[int] = []
        length = len(places) - places.count(-1)
        for place in places[:length]:
            text.append(tokens[place])
            kept.append(place)
            for n in range(1, longest + 1):
                if text[-n:] == text[-2 * n : -n]:
                    del text[-n:], kept[-n:]
                    break
        if len(kept) < length:
            merged = merged.clone() if merged is positions else merged
            merged[row] = F.pad(torch.tensor(kept), (0, positions.shape[1] - len(kept)), value=-1)
    return merged


def text_positions(ids: torch.LongTensor, lengths: torch.LongTensor, options: GenerationOptions) -> torch.LongTensor:
    """
    Which tokens are returned: without a leading BOS, cut after EOS, trimmed to the longest row.

    Args:
        ids: (N, L).
        lengths: most tokens of each (N,).

    Returns:
        Where they stand in `ids` (N, longest row), -1 behind the last.
    """
    cut = torch.minimum(cut_lengths(ids, None, options.sampling.eos_token_ids), lengths)
    places = torch.arange(ids.shape[1], device=ids.device)
    positions = torch.where(places < cut.unsqueeze(1), places, -1)
    if options.bos_token_id is not None:
        starts = (ids[:, :1] == options.bos_token_id).expand_as(ids)
        positions = torch.where(starts, F.pad(positions[:, 1:], (0, 1), value=-1), positions)
    if options.merge_repeats:
        positions = merge_repeats(ids, positions, options.merge_repeats)
    return positions[:, : max(int((positions >= 0).sum(-1).max()), 1)]


def take_positions(values: torch.Tensor, positions: torch.LongTensor, fill: float) -> torch.Tensor:
    """Values (N, L) at these positions (N, L'), and `fill` where they are -1."""
    return values.gather(1, positions.clamp_min(0)).masked_fill(positions < 0, fill)


class YanGenerationMixin(YanSamplingMixin, YanGenerationOptionsMixin):
    """`generate()` of YAN: the options, the draws, which canvases are written together and which of them are kept."""

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        streamer=None,
        generator: torch.Generator | list[torch.Generator] | None = None,
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
            input_ids: sources (B, Lx), padded on either side; or `inputs_embeds` (B, Lx, d), or `encoder_outputs`. With
                `config.length_head="source"` answers copy from `input_ids`, which are needed then.
            attention_mask: (B, Lx), 1 at tokens.
            generation_config: options, see below; any of them can be given as a keyword argument.
            streamer: gets the final ids by `put` (batch size 1), and the ids of each step's draft by `put_draft` if it
                has that.
            generator: decides everything random. Draws depend on it and on the row's own tokens only, neither on
                other rows nor on padding; repeated rows get different draws. A list holds one for each row, which
                then gets what a call of its own would give it.
            prior_noise: the state at t = 0 instead of a draw: (B, L, d), or (B, num_candidates, L, d). No canvas is
                longer than it; a shorter one uses its beginning.
            target_lengths: canvas length of each answer in tokens, EOS included: one for all or (B,). The paper's
                oracle setting. `config.canvas_ratio` times as many positions are written.

        Options:
            num_inference_steps (3): steps of the solver.
            solver ("euler"): or "midpoint", "heun", which evaluate the network twice a step.
            time_shift (1.0): above 1 spends the steps late, below 1 early.
            expert_selection ("sample"): an expert per token, drawn from the gate at t = 0; or "argmax".
            prior_temperature (1.0): scales drawn noise.
            blank_penalty (0.0): taken off the logit of the blank, for longer texts from canvases with blanks.
            merge_repeats (0): runs of up to so many tokens that stand twice in a row are written once.
            max_new_tokens, max_length: longest answer in tokens.
            min_new_tokens: shortest answer.
            length_mode ("predicted"): the length head decides; "canvas": `max_new_tokens` positions, cut at EOS;
                "source": as long as the source, where the model was made for that (`config.length_head`).
            num_length_candidates (1): most probable lengths tried in one batch.
            num_candidates (1): priors per row.
            num_return_sequences (1): how many come back, best first, different texts as far as the candidates go.
            do_sample, temperature, top_k, top_p: draw tokens instead of taking the most probable.
            return_dict_in_generate, output_trajectory: return a `YanGenerateOutput`, with all states.
            compile, compile_config: encoder and everything after it as one graph each, for shapes rounded up and
                masked; the first call of every shape compiles. Drafts for a streamer are written uncompiled.

        Returns:
            ids (B * num_return_sequences, L), or `YanGenerateOutput` with `return_dict_in_generate=True`.

        Raises:
            ValueError: for unknown arguments and for every input that cannot be answered, naming it.
        """
        # 1.
        if "inputs" in kwargs and input_ids is None:
            input_ids = kwargs.pop("inputs")
        take_library_arguments(kwargs)
        options = self.generation_options(generation_config, **kwargs)
        # 2.
        refuse_stock_pipeline()
        attention_mask = self._mask_of_padding(input_ids, attention_mask)
        encoder_outputs = check_source(self.config, input_ids, attention_mask, inputs_embeds, encoder_outputs)
        for own in generator if isinstance(generator, list) else [generator]:
            check_generator(own)
        check_streamer(streamer)
        if prior_noise is not None:
            check_finite("prior_noise", prior_noise)
        # 3.
        states, length_logits, mask = self._read(input_ids, attention_mask, inputs_embeds, encoder_outputs, options)
        if isinstance(generator, list) and len(generator) != len(states):
            raise ValueError(f"generator holds {len(generator)} generators for {len(states)} rows; pass one for each")
        if streamer is not None and len(states) * options.num_return_sequences > 1:
            raise ValueError(
                f"a streamer takes one text, got {len(states)} rows x {options.num_return_sequences} return sequences"
            )
        # 4.
        lengths = self._canvas_lengths(options, states, mask, length_logits, target_lengths, prior_noise)
        # 5. to 7.
        seeds = row_seeds(input_ids, attention_mask, len(states), generator)
        sources = Sources(states, mask, input_ids, seeds, lengths, prior_noise)
        written = self._write_rows(sources, options, self._draft_writer(streamer, sources, options))
        # 8.
        row_lengths = written.lengths.flatten()
        positions = self._text_positions(written.ids.flatten(0, 1), row_lengths, options)
        sequences = take_positions(written.ids.flatten(0, 1), positions, options.pad_token_id)
        if streamer is not None:
            if getattr(streamer, "skip_prompt", False):
                # It takes the first thing put for the prompt, which YAN does not repeat.
                streamer.put(sequences[0, :0].cpu())
            streamer.put(sequences[0].cpu())
            streamer.end()
        if not options.return_dict:
            return sequences
        return YanGenerateOutput(
            sequences=sequences,
            sequences_scores=written.scores.flatten(),
            token_scores=take_positions(written.log_probs.flatten(0, 1), positions, 0.0),
            target_lengths=row_lengths,
            num_evaluations=options.num_evaluations,
            trajectory=written.states,
        )

    def _mask_of_padding(self, input_ids, attention_mask) -> torch.Tensor | None:
        """The mask; where none is given, as in transformers that of `input_ids` with padding in them."""
        pad = self.config.pad_token_id
        if attention_mask is not None or not torch.is_tensor(input_ids) or pad in (None, *self.config.end_token_ids):
            return attention_mask
        tokens = input_ids != pad
        return None if bool(tokens.all()) else tokens.long()

    def _read(
        self, input_ids, attention_mask, inputs_embeds, encoder_outputs, options: GenerationOptions
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Source states (B, Lx', d), logits over lengths, and the mask; padded to a bucket where this is compiled."""
        table = self.config.max_position_embeddings
        # No mask where it masks nothing.
        mask = None if attention_mask is None or bool(attention_mask.all()) else attention_mask
        plain = options.compile_options is None or encoder_outputs is not None or inputs_embeds is not None
        if plain or input_ids.shape[1] > table or self.config.encoder_config is not None:
            return (*self.encode_source(input_ids, mask, inputs_embeds, encoder_outputs), mask)
        rows = len(input_ids)
        padded = pad_source(input_ids, attention_mask, table)
        states, length_logits = call_compiled(self, "encode_source", padded, options.compile_options)
        return states[:rows], None if length_logits is None else length_logits[:rows], padded[1][:rows]

    def _canvas_lengths(
        self, options: GenerationOptions, source, source_mask, length_logits, target_lengths, prior_noise
    ) -> torch.LongTensor:
        """Candidate canvas lengths (B, number of candidates), the most probable first."""
        batch_size, device = len(source), source.device
        ratio, table = self.config.canvas_ratio, self.config.max_position_embeddings
        longest = options.longest
        if prior_noise is not None and prior_noise.dim() in (3, 4):
            longest = min(longest, text_room(prior_noise.shape[-2], ratio))
        if target_lengths is not None:
            lengths = self._given_lengths(target_lengths, options, batch_size, device)
        elif options.length_mode == "source":
            lengths = source_lengths(source, source_mask).unsqueeze(1)
        else:
            lengths = self._text_lengths(options, batch_size, length_logits, longest, device)
        if ratio == 1:
            return lengths
        return canvas_lengths(lengths, ratio, table if prior_noise is None else min(table, prior_noise.shape[-2]))

    def _given_lengths(self, target_lengths, options: GenerationOptions, batch_size: int, device) -> torch.LongTensor:
        """`target_lengths` as (B, 1)."""
        # With blanks a canvas may be longer than its text.
        longest = self.config.max_position_embeddings
        longest = min(options.longest, longest) if self.config.canvas_ratio == 1 else longest
        shortest = max(options.sampling.min_new_tokens, 1)
        try:
            lengths = torch.as_tensor(target_lengths, device=device)
        except (TypeError, ValueError, RuntimeError):
            lengths = torch.zeros(0)
        whole = not (lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool)
        if not whole or lengths.dim() > 1 or lengths.numel() not in (1, batch_size):
            raise ValueError(
                f"target_lengths must be a whole number or one per row ({batch_size}), got {target_lengths}"
            )
        lengths = lengths.reshape(-1).expand(batch_size)
        low, high = int(lengths.min()), int(lengths.max())
        if low < shortest or high > longest:
            raise ValueError(
                f"target_lengths holds {low} to {high}, must be between {shortest} and {longest} (min_new_tokens, "
                "max_new_tokens or max_length, max_position_embeddings)"
            )
        return lengths.unsqueeze(1)

    def _text_lengths(
        self, options: GenerationOptions, batch_size: int, length_logits, longest: int, device
    ) -> torch.LongTensor:
        """Candidate lengths in tokens (B, number of candidates), the most probable first."""
        table, shortest = self.config.max_position_embeddings, max(options.sampling.min_new_tokens, 1)
        if not 1 <= options.longest <= table:
            raise ValueError(
                f"max_new_tokens / max_length={options.longest} must be between 1 and max_position_embeddings={table}"
            )
        if shortest > longest:
            raise ValueError(
                f"min_new_tokens={shortest} is more than the {longest} positions that max_new_tokens, max_length or "
                "prior_noise allow"
            )
        if options.length_mode == "canvas":
            return torch.full((batch_size, 1), longest, device=device)
        logits = length_logits[:, shortest - 1 : longest]
        return logits.topk(min(options.num_length_candidates, logits.shape[1]), dim=1).indices + shortest

    def _text_positions(
        self, ids: torch.LongTensor, lengths: torch.LongTensor, options: GenerationOptions
    ) -> torch.LongTensor:
        """`text_positions` of ids (N, L) written on canvases of these lengths (N,)."""
        # A canvas with blanks may hold more tokens than were asked for.
        most = lengths if self.config.canvas_ratio == 1 else lengths.clamp(max=options.longest)
        return text_positions(ids, most, options)

    def _draft_writer(self, streamer, sources: Sources, options: GenerationOptions):
        """What is called with each step's endpoint, where a streamer wants drafts: those of the first candidate."""
        if streamer is None or not hasattr(streamer, "put_draft"):
            return None
        # Drawn drafts would flicker.
        sampling = replace(options.sampling, do_sample=False)

        def write(latents: torch.Tensor) -> None:
            length, own = latents.shape[1], sources.lengths[0, :1]
            copied_ids = self.copied_ids(length, sources.input_ids, sources.mask)
            copied = self.copy_source(copied_ids, sources.states, sources.mask)
            ids, *_ = self.decode_latents(latents[:1], length_mask(own, length), options=sampling, copied=copied)
            positions = self._text_positions(ids, own, options)
            streamer.put_draft(take_positions(ids, positions, options.pad_token_id)[0].cpu())

        return write

    def _write_rows(self, sources: Sources, options: GenerationOptions, on_draft=None) -> WrittenRows:
        """Steps 5 to 7 of `generate` for all rows, in groups of similar canvases."""
        rows, device = len(sources.lengths), sources.lengths.device
        longest = sources.lengths.amax(1)
        groups = [] if rows == 1 or options.sampling.output_trajectory else group_by_bucket(longest)
        if len(groups) < 2:
            return self._write_group(sources, options, on_draft)
        shape = (rows, options.num_return_sequences)
        written = WrittenRows(
            ids=torch.zeros(*shape, int(longest.max()), dtype=torch.long, device=device),
            scores=torch.zeros(shape, device=device),
            lengths=torch.zeros(shape, dtype=torch.long, device=device),
            log_probs=torch.zeros(*shape, int(longest.max()), device=device),
            states=None,
        )
        for chosen in groups:
            part = self._write_group(sources.select(chosen), options, on_draft)
            written.ids[chosen, :, : part.ids.shape[-1]] = part.ids
            written.log_probs[chosen, :, : part.ids.shape[-1]] = part.log_probs
            written.scores[chosen], written.lengths[chosen] = part.scores, part.lengths
        return written

    def _write_group(self, sources: Sources, options: GenerationOptions, on_draft=None) -> WrittenRows:
        """Rows on canvases of one size (n,); everything that is drawn belongs to its row."""
        device, (batch_size, num_lengths) = sources.states.device, sources.lengths.shape
        priors, returned = options.num_priors, options.num_return_sequences
        # 5.
        longest = sources.lengths.amax(1).tolist()
        std = self.config.prior_std * options.prior_temperature
        x_0, uniform = draw_noise(sources.seeds, longest, priors, self.config.hidden_size, std=std, device=device)
        if sources.prior_noise is not None:
            x_0 = given_noise(sources.prior_noise, x_0, longest)
        # Every length of a prior begins from the same noise: (n, priors, lengths, L, …) -> (N, L, …).
        x_0 = x_0.unsqueeze(2).expand(-1, -1, num_lengths, -1, -1).flatten(0, 2)
        uniform = uniform.unsqueeze(3).expand(-1, -1, -1, num_lengths, -1).flatten(1, 3)
        lengths = sources.lengths.unsqueeze(1).expand(-1, priors, -1).flatten()
        copied_ids = self.copied_ids(max(longest), sources.input_ids, sources.mask)
        # 6. and 7.
        if options.compile_options is not None and on_draft is None:
            ids, scores, log_probs, states = self._write_compiled(x_0, uniform, sources, lengths, copied_ids, options)
        else:
            canvas_mask = None
            if num_lengths > 1 or min(longest) < max(longest):
                canvas_mask = length_mask(lengths, max(longest))
            ids, scores, log_probs, states = self.write_canvas(
                x_0, uniform, sources.states, sources.mask, canvas_mask, copied_ids, options.sampling, on_draft
            )
        if priors * num_lengths == 1:
            shape = (batch_size, 1)
            return WrittenRows(
                ids=ids.view(*shape, -1),
                scores=scores.view(shape),
                lengths=lengths.view(shape),
                log_probs=log_probs.view(*shape, -1),
                states=states if options.sampling.output_trajectory else None,
            )
        first = torch.arange(batch_size * priors, device=device) * num_lengths
        best_length = scores.view(-1, num_lengths).argmax(-1) + first
        best_length = best_length.view(batch_size, priors)
        candidates = best_length.flatten()
        positions = self._text_positions(ids[candidates], lengths[candidates], options)
        texts = take_positions(ids[candidates], positions, -1).view(batch_size, priors, -1)
        by_prior, repeated = best_distinct(texts, scores[best_length], returned)
        if returned > 1 and bool(repeated.any()):
            logger.warning_once(
                f"num_return_sequences={returned}, but some of the texts are equal: {priors} priors led to no more "
                "different ones. Raise num_candidates or prior_temperature, or set do_sample=True with a higher "
                "temperature"
            )
        chosen = best_length.gather(1, by_prior)
        return WrittenRows(
            ids=ids[chosen],
            scores=scores[chosen],
            lengths=lengths[chosen],
            log_probs=log_probs[chosen],
            states=states[:, chosen.flatten()] if options.sampling.output_trajectory else None,
        )

    def _write_compiled(
        self,
        x_0: torch.Tensor,
        uniform: torch.Tensor,
        sources: Sources,
        lengths: torch.LongTensor,
        copied_ids: torch.LongTensor | None,
        options: GenerationOptions,
    ) -> tuple[torch.LongTensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """`write_canvas` on shapes rounded up: more rows, longer canvases and sources, all of it masked."""
        canvases, length = x_0.shape[:2]
        table = self.config.max_position_embeddings
        states, mask = pad_source(sources.states, sources.mask, max(table, sources.states.shape[1]))
        x_0, uniform, canvas_mask = pad_canvases(
            x_0, uniform, lengths, canvases // len(sources.states) * len(states), table
        )
        if copied_ids is not None:
            width = states.shape[1] if self.config.copy_mechanism else x_0.shape[1]
            copied_ids = F.pad(copied_ids, (0, width - copied_ids.shape[1], 0, len(states) - len(copied_ids)))
        ids, scores, log_probs, ends = call_compiled(
            self,
            "write_canvas",
            (x_0, uniform, states, mask, canvas_mask, copied_ids),
            options.compile_options,
            rest=(options.sampling,),
        )
        return (
            ids[:canvases, :length],
            scores[:canvases],
            log_probs[:canvases, :length],
            ends[..., :canvases, :length, :],
        )
