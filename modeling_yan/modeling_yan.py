"""
The classes that write text: the autoencoder (stage 1) and the flow (stages 2 and 3). All classes of `auto_map` are
found here.
"""

import functools
import math

import torch
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .base_model_yan import FLOW_KEYS, YanModel
from .canvas_yan import canvas_lengths, length_mask, source_lengths, target_canvas
from .configuration_yan import YanConfig
from .ctc_yan import ctc_viterbi, needed_positions
from .encoder_heads_yan import YanForQuestionAnswering, YanForSequenceClassification, YanForTokenClassification
from .flow_matching_yan import (
    add_latent_noise,
    gate_entropy,
    linear_path,
    responsibilities,
    sample_categorical,
    sample_timesteps,
    select_shown,
    target_velocity,
    time_grid,
)
from .from_encoder_yan import YanFromEncoderMixin
from .generation_yan import YanGenerationMixin
from .input_checks_yan import check_choice, check_labels, may_look_at
from .layers_yan import YanDecoder, YanLengthHead
from .likelihood_yan import YanLikelihoodMixin
from .losses_yan import (
    AUTOENCODER_TERMS,
    DENOISED,
    DRAWN_TIMES,
    ENDPOINT,
    TARGET_LATENTS,
    TRAINED_LATENTS,
    LossInputs,
    reads,
    weighted_sum,
)
from .outputs_yan import YanMaskedLMOutput, YanSeq2SeqLMOutput
from .pretrained_yan import YanPreTrainedModel
from .velocity_field_yan import FlowCondition


class YanForMaskedLM(YanPreTrainedModel, YanFromEncoderMixin):
    """Stage 1, the autoencoder: reads corrupted text, gives back clean text position by position."""

    _keys_to_ignore_on_load_unexpected = [*FLOW_KEYS, r"^length_head\.", r"^decoder\.copy_head\."]
    accepts_loss_kwargs = True

    def __init__(self, config: YanConfig):
        super().__init__(config)
        self.model = YanModel(config, add_velocity_field=False)
        self.decoder = YanDecoder(config)
        self.tie_head()
        self.post_init()

    def get_output_embeddings(self):
        return self.decoder.lm_head

    def set_output_embeddings(self, new_embeddings):
        self.decoder.lm_head = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        generator: torch.Generator | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> YanMaskedLMOutput:
        """
        Args:
            input_ids: corrupted text (B, L).
            labels: clean text (B, L), -100 where nothing is asked.
            generator: for latent noise (training) and the regulariser's samples.
            num_items_in_batch: labels in the whole batch, when this is one of its micro-batches.

        The loss is the cross-entropy and, with the weights of `config.training_config`, `mmd_loss` and `latent_l2`.
        """
        settings = self.config.training_config
        if labels is not None and may_look_at(labels):
            check_labels(labels, self.config.vocab_size)
        outputs = self.model(input_ids, attention_mask, inputs_embeds=inputs_embeds, return_dict=True, **kwargs)
        latents = outputs.last_hidden_state
        noisy = add_latent_noise(latents, settings.latent_noise, generator) if self.training else latents
        states = self.decoder.states(noisy)
        chunked = self.training and labels is not None and settings.loss_chunk_size is not None
        logits = None if chunked else self.decoder.lm_head(states)
        loss, terms = None, {}
        if labels is not None:
            valid = labels != -100
            inputs = LossInputs(
                labels=labels,
                canvas_mask=valid,
                count=valid.sum().clamp_min(1) if num_items_in_batch is None else num_items_in_batch,
                placed=True,
                cross_entropy=self.decoder.cross_entropy,
                label_smoothing=settings.label_smoothing,
                generator=generator,
                states=states,
                logits=logits,
                target_latents=latents,
            )
            weights = {name: settings.weights[name] for name in AUTOENCODER_TERMS}
            loss, terms = weighted_sum(inputs, {**weights, "ce_loss": 1.0})
        return YanMaskedLMOutput(
            loss=loss,
            logits=logits,
            latents=latents,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **terms,
        )


class YanForConditionalGeneration(YanPreTrainedModel, YanGenerationMixin, YanLikelihoodMixin, YanFromEncoderMixin):
    """Stages 2 and 3: source -> target through the mixture of learned velocity fields."""

    accepts_loss_kwargs = True

    def __init__(self, config: YanConfig):
        super().__init__(config)
        # transformers would choose the shifted causal loss by the class name.
        self.loss_type = "YanFlow"
        self.model = YanModel(config)
        self.decoder = YanDecoder(config, copies=True)
        self.length_head = YanLengthHead(config) if config.predicts_length else None
        self.tie_head()
        self.post_init()
        self.generation_config = self.default_generation_config()

    def get_output_embeddings(self):
        return self.decoder.lm_head

    def set_output_embeddings(self, new_embeddings):
        self.decoder.lm_head = new_embeddings

    def get_encoder(self, *args, **kwargs):
        return self.model.encoder

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        prior_noise: torch.FloatTensor | None = None,
        timesteps: torch.FloatTensor | None = None,
        expert_indices: torch.LongTensor | None = None,
        generator: torch.Generator | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> YanSeq2SeqLMOutput:
        r"""
        Endpoint logits, and with `labels` the training loss. Without labels the canvas is that of `prior_noise` or
        `decoder_attention_mask`, else that of a text as long as the source; the prior is `prior_noise`, else its mean
        (zeros), and experts are the gate's argmax, so that nothing random is drawn.

        Args:
            input_ids, attention_mask: source (B, Lx); or `inputs_embeds` (B, Lx, d); or `encoder_outputs`. With
                `config.copy_mechanism` or `length_head="source"` the answer copies from `input_ids`, which are needed.
            labels: target ids (B, Ly), EOS included; -100 is padding.
            decoder_attention_mask: (B, Ly), 1 at canvas positions, where labels do not say it. With
                `config.canvas_ratio` above 1 the canvas is longer than the labels, and this decides how long.
            prior_noise: x_0 (B, Ly, d), as long as the canvas; drawn from N(0, prior_std^2 I) if absent.
            timesteps: t of the terms at drawn times (B,); drawn from the settings' Beta distribution if absent.
            expert_indices: expert of each position for the unrolled endpoint (B, Ly); drawn from the gate at t = 0 if
                absent.
            generator: for what is drawn. In evaluation mode, draws without a generator use a fixed seed, so that
                evaluation losses are comparable.
            num_items_in_batch: target tokens in the whole batch, when this is one of its micro-batches.

        The terms of the loss are the table in `losses_yan.py`, their weights `config.training_config`. Training
        computes no more than they read: without a term on the endpoint there are no `logits` and no `latents`; without
        one at the drawn times the statistics of the gate are those at t = 0.
        """
        settings = self.config.training_config
        # `generate` passes over them, too: a source is one text, in training (Trainer drops the column) as afterwards.
        kwargs.pop("token_type_ids", None)
        # 1. Read the source.
        outputs = self.model(
            input_ids, attention_mask, inputs_embeds, encoder_outputs=encoder_outputs, return_dict=True, **kwargs
        )
        source = outputs.last_hidden_state
        if generator is None and not self.training and labels is not None:
            generator = torch.Generator(source.device).manual_seed(0)
        # 2. Lay out the canvas and draw the prior on it.
        canvas_mask = self._canvas(labels, decoder_attention_mask, prior_noise, attention_mask, source, generator)
        self._check_choices(labels, canvas_mask, timesteps, expert_indices)
        condition = self.model.condition(canvas_mask.shape[1], canvas_mask, source, attention_mask)
        copied = self.copy_source(
            self.copied_ids(canvas_mask.shape[1], input_ids, attention_mask), source, attention_mask
        )
        if self.config.copy_mechanism:
            copied.first = canvas_mask.long().argmax(-1)
        x_0 = self._prior(prior_noise, canvas_mask, generator, draw=labels is not None)
        # 3. Follow the experts from the prior to the endpoint in a few steps, and decode it.
        needed = reads(settings.weights) if labels is not None else frozenset()
        endpoint = states = logits = gate = None
        if ENDPOINT in needed or labels is None or not self.training:
            start = x_0
            if settings.glancing_ratio and labels is not None and self.training:
                start = self._show_targets(x_0, condition, labels, copied, expert_indices, generator)
            endpoint, gate = self._unroll(start, condition, expert_indices, generator, draw=labels is not None)
            states = self.decoder.states(endpoint)
            # Chunks hold no logits of all positions, and a mixture over quotations is not read off those of one.
            unread = settings.loss_chunk_size is not None or self.config.copy_mechanism
            if not (unread and labels is not None and self.training):
                logits = self.decoder.logits(states, self.decoder.copies(states, copied))
        length_logits = None if self.length_head is None else self.length_head(source, attention_mask)
        # 4. With labels: what else the terms of the loss read, and their weighted sum.
        loss, terms = None, {}
        if labels is not None:
            inputs = self._loss_inputs(labels, canvas_mask, copied, num_items_in_batch, generator)
            inputs.x_0, inputs.endpoint, inputs.states, inputs.logits = x_0, endpoint, states, logits
            inputs.length_logits = length_logits
            if needed & {TARGET_LATENTS, TRAINED_LATENTS}:
                self._read_target(inputs, TRAINED_LATENTS in needed, generator)
            if DRAWN_TIMES in needed:
                gate = self._evaluate_at_drawn_times(inputs, condition, timesteps, DENOISED in needed, generator)
            loss, terms = weighted_sum(inputs, settings.weights)
            terms = {**self._gate_statistics(gate, inputs), **terms}
        return YanSeq2SeqLMOutput(
            loss=loss,
            logits=logits,
            length_logits=length_logits,
            latents=endpoint,
            encoder_last_hidden_state=source,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **terms,
        )

    def _canvas(self, labels, decoder_attention_mask, prior_noise, attention_mask, source, generator) -> torch.Tensor:
        """(B, L) bool: the positions to be written, as labels and masks say, else the prior, else the source."""
        settings, table, ratio = (
            self.config.training_config,
            self.config.max_position_embeddings,
            self.config.canvas_ratio,
        )
        masks = []
        if labels is not None and (ratio == 1 or (decoder_attention_mask is None and prior_noise is None)):
            jitter = settings.canvas_jitter if self.training else 0.0
            read = source_lengths(source, attention_mask) if self.config.canvas_from_source else None
            masks.append(target_canvas(labels, ratio, table, read=read, jitter=jitter, generator=generator))
        if decoder_attention_mask is not None:
            masks.append(decoder_attention_mask.bool())
        if not masks and prior_noise is not None:
            masks.append(torch.ones(prior_noise.shape[:2], dtype=torch.bool, device=source.device))
        elif not masks and attention_mask is not None and not self.config.copies_source and ratio == 1:
            masks.append(attention_mask.bool())
        elif not masks:
            lengths = canvas_lengths(source_lengths(source, attention_mask), ratio, table)
            masks.append(length_mask(lengths, min(math.ceil(source.shape[1] * ratio), table)))
        if any(mask.shape != masks[0].shape for mask in masks) or len(masks[0]) != len(source):
            raise ValueError(
                f"target shapes {[tuple(m.shape) for m in masks]} (labels, decoder_attention_mask) must agree with "
                f"each other and with the {len(source)} source rows"
            )
        canvas = masks[0] if len(masks) == 1 else masks[0] & masks[1]
        if canvas.shape[1] > table and canvas.sum(-1).max() > table:
            raise ValueError(
                f"the target has {canvas.shape[1]} positions, more than max_position_embeddings={table}; "
                "tokenize it with truncation=True"
            )
        return canvas

    def _check_choices(self, labels, canvas_mask, timesteps, expert_indices) -> None:
        """
        What would be an error of the device, or an infinite loss, is named here where looking at it costs nothing.
        """
        if not may_look_at(canvas_mask):
            return
        config, placed = self.config, self.config.canvas_ratio == 1
        if not placed and bool((canvas_mask[:, 1:] > canvas_mask[:, :-1]).any()):
            raise ValueError(
                f"decoder_attention_mask begins with 0 or has gaps; with canvas_ratio={config.canvas_ratio} a canvas "
                "is the first positions of its row"
            )
        if labels is not None:
            check_labels(labels, config.vocab_size, None if placed else config.pad_token_id)
            missing = needed_positions(labels) - canvas_mask.sum(-1)
            if not placed and int(missing.max()) > 0:
                raise ValueError(
                    f"decoder_attention_mask is {int(missing.max())} positions too short for its labels: equal "
                    "neighbours need a blank between them"
                )
        if timesteps is not None:
            check_choice("timesteps", timesteps, canvas_mask.shape[:1], 1 + 1e-6)
        if expert_indices is not None:
            check_choice("expert_indices", expert_indices, canvas_mask.shape, config.num_experts)

    def _prior(
        self, prior_noise: torch.Tensor | None, canvas_mask: torch.Tensor, generator, draw: bool
    ) -> torch.Tensor:
        """x_0 (B, L, d) in float32: given, drawn, or the prior's mean."""
        shape = (*canvas_mask.shape, self.config.hidden_size)
        if prior_noise is None:
            if not draw:
                return torch.zeros(shape, device=canvas_mask.device)
            return self.config.prior_std * torch.randn(shape, generator=generator, device=canvas_mask.device)
        if prior_noise.shape != shape:
            raise ValueError(f"prior_noise has shape {tuple(prior_noise.shape)}, expected {shape}")
        return prior_noise.float()

    def _unroll(
        self, x_0: torch.Tensor, condition: FlowCondition, expert_indices, generator, draw: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The few-step endpoint (B, L, d) in float32, differentiable, and the gate at t = 0 (B, L, K). Experts are given,
        drawn from that gate, or its argmax.
        """

        def choose(gate: torch.Tensor) -> torch.Tensor:
            if expert_indices is not None:
                return expert_indices
            return sample_categorical(gate.exp(), generator=generator) if draw else gate.argmax(-1)

        grid = time_grid(self.config.training_config.unroll_steps, device=x_0.device)
        return self.model.flow.solve(x_0, condition, choose, time_grid=grid)

    @torch.no_grad()
    def _show_targets(self, x_0, condition: FlowCondition, labels, copied, expert_indices, generator) -> torch.Tensor:
        """
        The prior (B, L, d) with token embeddings in the place of noise at some positions: the more, the more the
        endpoint from `x_0` alone gets wrong (glancing, arXiv 2008.07905).
        """
        canvas_mask, ratio = condition.canvas_mask, self.config.training_config.glancing_ratio
        endpoint, _ = self._unroll(x_0, condition, expert_indices, generator, draw=True)
        logits = self.decoder(endpoint, copied)
        if self.config.canvas_ratio == 1:
            tokens = labels.masked_fill(~canvas_mask, 0)
        else:
            tokens = ctc_viterbi(logits, labels, canvas_mask, self.config.pad_token_id)
        shown = select_shown(logits.argmax(-1) != tokens, canvas_mask, ratio, generator=generator)
        embeddings = self.get_input_embeddings()(tokens).to(x_0.dtype)
        return torch.where(shown.unsqueeze(-1), embeddings, x_0)

    def _loss_inputs(self, labels, canvas_mask, copied, num_items_in_batch, generator) -> LossInputs:
        """What the terms read of labels and settings; a label off the canvas does not count."""
        settings, placed = self.config.training_config, self.config.canvas_ratio == 1
        labels = labels.masked_fill(~canvas_mask, -100) if placed else labels
        count = (labels != -100).sum().clamp_min(1) if num_items_in_batch is None else num_items_in_batch
        return LossInputs(
            labels=labels,
            canvas_mask=canvas_mask,
            count=count,
            placed=placed,
            cross_entropy=functools.partial(self.decoder.cross_entropy, copied=copied),
            blank_id=self.config.pad_token_id,
            velocity_std=settings.velocity_std,
            label_smoothing=settings.label_smoothing,
            generator=generator,
        )

    def _read_target(self, inputs: LossInputs, trained: bool, generator) -> None:
        """
        The encoder's latents of the target, and x_1 (B, L, d): the same without gradient, with latent noise in
        training.
        """
        settings = self.config.training_config
        # A gradient into its own target would teach the encoder latents that are easy to predict: all alike.
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            ids = inputs.labels.masked_fill(~inputs.canvas_mask, 0)
            inputs.target_latents = self.model.encoder(ids, inputs.canvas_mask.long())[0]
        inputs.x_1 = inputs.target_latents.detach().float()
        if self.training:
            inputs.x_1 = add_latent_noise(inputs.x_1, settings.latent_noise, generator)

    def _evaluate_at_drawn_times(
        self, inputs: LossInputs, condition: FlowCondition, timesteps, denoise: bool, generator
    ) -> torch.Tensor:
        """
        Velocities of all experts on the straight path to x_1 at one time a row, and what one step from there decodes
        to.
        """
        settings, x_0, x_1 = self.config.training_config, inputs.x_0, inputs.x_1
        if timesteps is None:
            alpha, beta = settings.time_sampling_alpha, settings.time_sampling_beta
            timesteps = sample_timesteps(len(x_0), alpha, beta, generator=generator, device=x_0.device)
        x_t = linear_path(x_0, x_1, timesteps)
        inputs.velocities, inputs.gate_log_probs = self.model.flow(x_t, timesteps, condition)
        if denoise:
            # The expert most responsible for the true velocity of each token.
            with torch.no_grad():
                u = target_velocity(x_0, x_1)
                expert = responsibilities(u, inputs.velocities, inputs.gate_log_probs, settings.velocity_std).argmax(-1)
            index = expert[..., None, None].expand(-1, -1, 1, x_t.shape[-1])
            velocity = inputs.velocities.gather(2, index).squeeze(2).float()
            inputs.denoised_states = self.decoder.states(x_t + (1 - timesteps)[:, None, None] * velocity)
        return inputs.gate_log_probs

    @staticmethod
    @torch.no_grad()
    def _gate_statistics(gate: torch.Tensor | None, inputs: LossInputs) -> dict[str, torch.Tensor]:
        """Entropy of the gate (B, L, K) and the use of each expert, for the log."""
        if gate is None:
            return {}
        usage = gate.exp() * inputs.canvas_mask.unsqueeze(-1)
        return {
            "gate_entropy": inputs.per_position(gate_entropy(gate)),
            "expert_usage": usage.sum((0, 1)) / inputs.canvas_mask.sum().clamp_min(1) * inputs.share,
        }


__all__ = [
    "YanForConditionalGeneration",
    "YanForMaskedLM",
    "YanForQuestionAnswering",
    "YanForSequenceClassification",
    "YanForTokenClassification",
    "YanModel",
    "YanPreTrainedModel",
]
