"""YAN models: the encoder and its heads, the autoencoder (stage 1) and the flow (stages 2 and 3)."""

import torch
from torch import nn
from transformers.modeling_outputs import (
    BaseModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .alignment_yan import (
    alignment_bigram_distance,
    alignment_nll,
    best_alignment,
    canvas_lengths,
    needed_positions,
)
from .configuration_yan import YanConfig
from .encoder_yan import YanPreTrainedModel, build_encoder
from .flow_matching_yan import (
    add_latent_noise,
    gate_entropy,
    linear_path,
    load_balance,
    masked_mean,
    mixture_nll,
    mmd_to_standard_normal,
    ngram_distance,
    responsibilities,
    sample_timesteps,
    select_experts,
    select_shown,
    solve_ode,
    target_velocity,
    token_cross_entropy,
)
from .generation_yan import YanGenerationMixin
from .layers_yan import (
    FlowCondition,
    YanDecoder,
    YanLengthHead,
    YanVelocityField,
    masked_mean_pool,
    route_tokens,
)
from .outputs_yan import YanMaskedLMOutput, YanModelOutput, YanSeq2SeqLMOutput

# What classes without a flow pass over in a checkpoint that has one. YAN's own position table is the encoder's too.
FLOW_KEYS = [r"^model\.flow\.", r"^model\.encoder\.embeddings\.position_embeddings\."]

# Loss terms of the flow at the drawn times, and those that read the latents of the target.
AT_DRAWN_TIMES = ("nll_loss", "denoising_ce_loss", "gate_entropy", "load_balance")
OF_TARGET_LATENTS = ("mse_loss", "mmd_loss", "latent_l2")

# In training, canvases with room for blanks are up to this much shorter or longer than `canvas_ratio` says: a predicted length is off, too.
CANVAS_JITTER = 0.15


class YanModel(YanPreTrainedModel):
    """
    Encoder and velocity field without decoder.

    Args:
        add_velocity_field: classification heads use the encoder alone.
    """

    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^length_head\.", r"^classifier\.", r"^qa_outputs\."]

    def __init__(self, config: YanConfig, add_velocity_field: bool = True):
        super().__init__(config)
        self.encoder = build_encoder(config, has_flow=add_velocity_field)
        self.flow = YanVelocityField(config) if add_velocity_field else None
        self.post_init()

    def get_input_embeddings(self):
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.encoder.set_input_embeddings(value)

    def condition(
        self,
        canvas_length: int,
        canvas_mask: torch.Tensor | None,
        encoder_hidden_states: torch.Tensor,
        encoder_attention_mask: torch.Tensor | None,
    ) -> FlowCondition:
        """Everything that does not change along a trajectory on a canvas of this length and mask (B, L)."""
        positions = self.encoder.positions(canvas_length, canvas_mask)
        return self.flow.condition(positions, encoder_hidden_states, encoder_attention_mask, canvas_mask)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        x_t: torch.FloatTensor | None = None,
        timesteps: torch.FloatTensor | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        encoder_outputs: BaseModelOutput | tuple | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> YanModelOutput:
        """
        Args:
            input_ids, inputs_embeds, attention_mask: the source (B, Lx).
            x_t: canvas states (B, Ly, d); with them the velocity field is evaluated, at `timesteps` (B,).
            decoder_attention_mask: (B, Ly), 1 at canvas positions.
            encoder_outputs: instead of a source.
        """
        if encoder_outputs is None:
            encoder_outputs = self.encoder(input_ids, attention_mask, inputs_embeds=inputs_embeds, **kwargs)
        elif not isinstance(encoder_outputs, BaseModelOutput):
            encoder_outputs = BaseModelOutput(*encoder_outputs[:3])
        velocities = gate_probs = None
        if x_t is not None:
            if self.flow is None:
                raise ValueError("x_t was given to a model without velocity field")
            if timesteps is None:
                raise ValueError("x_t needs timesteps of shape (batch_size,)")
            condition = self.condition(
                x_t.shape[1], decoder_attention_mask, encoder_outputs.last_hidden_state, attention_mask
            )
            velocities, gate_log_probs = self.flow(x_t, timesteps, condition)
            gate_probs = gate_log_probs.exp()
        return YanModelOutput(
            last_hidden_state=encoder_outputs.last_hidden_state,
            velocities=velocities,
            gate_probs=gate_probs,
            hidden_states=encoder_outputs.hidden_states,
            attentions=encoder_outputs.attentions,
        )


class YanForMaskedLM(YanPreTrainedModel):
    """Stage 1, the autoencoder: reads corrupted text, gives back clean text position by position."""

    _keys_to_ignore_on_load_unexpected = [*FLOW_KEYS, r"^length_head\."]
    accepts_loss_kwargs = True

    def __init__(self, config: YanConfig):
        super().__init__(config)
        self.model = YanModel(config, add_velocity_field=False)
        self.decoder = YanDecoder(config)
        self.post_init()
        self._start_head_from_embeddings()

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

        The MMD term is a statistic of the micro-batch, not a sum over tokens: micro-batches give the mean of their own
        statistics, which is not the whole batch's. All other terms add up exactly.
        """
        outputs = self.model(input_ids, attention_mask, inputs_embeds=inputs_embeds, **kwargs)
        latents = outputs.last_hidden_state
        noisy = add_latent_noise(latents, self.config.latent_noise, generator) if self.training else latents
        states = self.decoder.states(noisy)
        chunked = self.training and labels is not None and self.config.loss_chunk_size is not None
        logits = None if chunked else self.decoder.lm_head(states)
        loss, terms = None, {}
        if labels is not None:
            valid = labels != -100
            count = valid.sum().clamp_min(1) if num_items_in_batch is None else num_items_in_batch
            if self.config.mmd_loss_weight:
                share = valid.sum() / count
                terms["mmd_loss"] = mmd_to_standard_normal(latents[valid], generator=generator) * share
            if self.config.latent_l2_weight:
                terms["latent_l2"] = masked_mean(latents.float().square().mean(-1), valid, count)
            per_token = self.decoder.cross_entropy(states, labels, self.config.label_smoothing, logits)
            terms["ce_loss"] = masked_mean(per_token, valid, count)
            loss = terms["ce_loss"] + sum(
                getattr(self.config, f"{name}_weight") * terms[name] for name in terms if name != "ce_loss"
            )
        return YanMaskedLMOutput(
            loss=loss,
            logits=logits,
            latents=latents,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{name: value.detach() for name, value in terms.items()},
        )


class YanForConditionalGeneration(YanPreTrainedModel, YanGenerationMixin):
    """Stages 2 and 3: source -> target through the mixture of learned velocity fields."""

    accepts_loss_kwargs = True

    def __init__(self, config: YanConfig):
        super().__init__(config)
        # transformers would choose the shifted causal loss by the class name.
        self.loss_type = "YanFlow"
        self.model = YanModel(config)
        self.decoder = YanDecoder(config)
        self.length_head = YanLengthHead(config) if config.length_head else None
        self.post_init()
        self._start_head_from_embeddings()
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
        `decoder_attention_mask`, else as long as the source; the prior is `prior_noise`, else its mean (zeros), and
        experts are the gate's argmax, so that nothing random is drawn.

        Args:
            input_ids, attention_mask: source (B, Lx); or `inputs_embeds` (B, Lx, d); or `encoder_outputs`.
            labels: target ids (B, Ly), EOS included; -100 is padding.
            decoder_attention_mask: (B, Ly), 1 at canvas positions, where labels do not say it. With `config.canvas_ratio` above 1 the
                canvas is longer than the labels, and this decides how long.
            prior_noise: x_0 (B, Ly, d), as long as the canvas; drawn from N(0, prior_std^2 I) if absent.
            timesteps: t of the likelihood term (B,); drawn from the config's Beta distribution if absent.
            expert_indices: expert of each position for the unrolled endpoint (B, Ly); drawn from the gate at t = 0 if absent.
            generator: for what is drawn. In evaluation mode, draws without a generator use a fixed seed, so that
                evaluation losses are comparable.
            num_items_in_batch: target tokens in the whole batch, when this is one of its micro-batches.

        Training computes no more than its weights ask for. Without one on the endpoint (`mse_loss_weight`, `ce_loss_weight`,
        `ngram_loss_weight`) there are no `logits` and no `latents`; without one on what is predicted at the drawn times (`nll_loss_weight`,
        `denoising_ce_loss_weight`, `gate_entropy_weight`, `load_balance_weight`) the statistics of the gate are those at t = 0.

        Every term is a sum over target tokens divided by `num_items_in_batch` (a row's length and n-gram losses count by its
        tokens), so that micro-batches add up to the whole batch. Two terms, off by default, are statistics of a batch
        and give the mean over micro-batches instead: `load_balance` and `mmd_loss`.
        """
        config = self.config
        outputs = self.model(input_ids, attention_mask, inputs_embeds, encoder_outputs=encoder_outputs, **kwargs)
        source = outputs.last_hidden_state
        if generator is None and not self.training:
            generator = torch.Generator(source.device).manual_seed(0)
        canvas_mask = self._canvas_mask(labels, decoder_attention_mask, prior_noise, attention_mask, source, generator)
        length = canvas_mask.shape[1]
        if length > config.max_position_embeddings and canvas_mask.sum(-1).max() > config.max_position_embeddings:
            raise ValueError(
                f"the target has {length} positions, more than max_position_embeddings={config.max_position_embeddings}; "
                "tokenize it with truncation=True"
            )

        shape = (len(source), length, config.hidden_size)
        if prior_noise is not None:
            if prior_noise.shape != shape:
                raise ValueError(f"prior_noise has shape {tuple(prior_noise.shape)}, expected {shape}")
            x_0 = prior_noise.float()
        elif labels is not None:
            x_0 = config.prior_std * torch.randn(shape, generator=generator, device=source.device)
        else:
            x_0 = torch.zeros(shape, device=source.device)
        condition = self.model.condition(length, canvas_mask, source, attention_mask)
        training = self.training and labels is not None
        chunked = training and config.loss_chunk_size is not None
        endpoint = states = logits = gate = None
        if not training or config.mse_loss_weight or config.ce_loss_weight or config.ngram_loss_weight:
            start = x_0
            if training and config.glancing_ratio:
                start = self._show_targets(x_0, condition, labels, expert_indices, generator)
            endpoint, gate = self._unroll(start, condition, expert_indices, generator, sample=labels is not None)
            states = self.decoder.states(endpoint)
            logits = None if chunked else self.decoder.lm_head(states)
        length_logits = None if self.length_head is None else self.length_head(source, attention_mask)

        loss, terms = None, {}
        if labels is not None:
            latents = x_1 = velocities = gate_log_probs = nll = None
            placed = config.canvas_ratio == 1
            at_drawn_times = any(getattr(config, f"{name}_weight") for name in AT_DRAWN_TIMES)
            at_drawn_times = at_drawn_times or (placed and not training)
            if at_drawn_times or any(getattr(config, f"{name}_weight") for name in OF_TARGET_LATENTS):
                # A gradient into its own target would teach the encoder latents that are easy to predict: all alike.
                with torch.set_grad_enabled(
                    torch.is_grad_enabled() and bool(config.mmd_loss_weight or config.latent_l2_weight)
                ):
                    latents = self.model.encoder(
                        labels.masked_fill(~canvas_mask, 0), canvas_mask.long()
                    ).last_hidden_state
                x_1 = latents.detach().float()
                if self.training:
                    x_1 = add_latent_noise(x_1, config.latent_noise, generator)
            if at_drawn_times:
                if timesteps is None:
                    timesteps = sample_timesteps(
                        len(source),
                        config.time_sampling_alpha,
                        config.time_sampling_beta,
                        generator=generator,
                        device=x_0.device,
                    )
                x_t, per_token_experts = linear_path(x_0, x_1, timesteps), config.num_experts_per_token
                if self.training and per_token_experts is not None:
                    velocities, gate_log_probs, gate = self.model.flow.most_probable(
                        x_t, timesteps, condition, per_token_experts
                    )
                else:
                    velocities, gate_log_probs = self.model.flow(x_t, timesteps, condition)
                    gate = gate_log_probs
                nll = mixture_nll(target_velocity(x_0, x_1), velocities, gate_log_probs, config.velocity_std)
            token_mask = canvas_mask if placed else labels != -100
            lengths, tokens = token_mask.sum(-1), token_mask.sum()
            count = tokens.clamp_min(1) if num_items_in_batch is None else num_items_in_batch
            share = tokens / count

            def per_token(values: torch.Tensor) -> torch.Tensor:
                return masked_mean(values, token_mask, count)

            def per_position(values: torch.Tensor) -> torch.Tensor:
                return masked_mean(values, canvas_mask) * share

            def cross_entropy() -> torch.Tensor:
                if placed:
                    return per_token(self.decoder.cross_entropy(states, targets, config.label_smoothing, logits))
                nll = alignment_nll(logits, targets, canvas_mask, config.pad_token_id)
                # A row without labels is no empty text to be learned.
                return masked_mean(nll, lengths > 0, count)

            def ngrams() -> torch.Tensor:
                if placed:
                    return ngram_distance(logits, targets, config.ngram_size)
                return alignment_bigram_distance(logits, targets, canvas_mask, config.pad_token_id)

            targets = labels.masked_fill(~token_mask, -100)
            builders = {
                "nll_loss": lambda: per_token(nll),
                "mse_loss": lambda: per_token((endpoint - x_1).square().mean(-1)),
                "ce_loss": cross_entropy,
                "ngram_loss": lambda: self._per_row(ngrams(), lengths, count),
                "denoising_ce_loss": lambda: per_token(
                    self.decoder.cross_entropy(
                        self.decoder.states(self._one_step_endpoint(x_0, x_1, timesteps, velocities, gate_log_probs)),
                        targets,
                    )
                ),
                "length_loss": lambda: self._per_row(
                    token_cross_entropy(length_logits, (lengths - 1).clamp_min(0)), lengths, count
                ),
                "gate_entropy": lambda: per_position(gate_entropy(gate)),
                "load_balance": lambda: load_balance(gate.exp(), canvas_mask) * share,
                "mmd_loss": lambda: mmd_to_standard_normal(latents[canvas_mask], generator=generator) * share,
                "latent_l2": lambda: per_token(latents.float().square().mean(-1)),
            }
            loss = x_0.new_zeros(())
            for name, build in builders.items():
                weight = getattr(config, f"{name}_weight")
                if weight and not (name == "length_loss" and length_logits is None):
                    terms[name] = build()
                    # The gate's entropy is the one term that is maximised.
                    loss = loss + (-weight if name == "gate_entropy" else weight) * terms[name]
            if gate is not None:
                with torch.no_grad():
                    terms.setdefault("gate_entropy", per_position(gate_entropy(gate)))
                    usage = gate.exp() * canvas_mask.unsqueeze(-1)
                    terms["expert_usage"] = usage.sum((0, 1)) / canvas_mask.sum().clamp_min(1) * share
        return YanSeq2SeqLMOutput(
            loss=loss,
            logits=logits,
            length_logits=length_logits,
            latents=endpoint,
            encoder_last_hidden_state=source,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            **{name: value.detach() for name, value in terms.items()},
        )

    def _canvas_mask(
        self, labels, decoder_attention_mask, prior_noise, attention_mask, source, generator
    ) -> torch.Tensor:
        """(B, Ly) bool: which positions are to be written."""
        masks = []
        if labels is not None and self.config.canvas_ratio == 1:
            masks.append(labels != -100)
        elif labels is not None and decoder_attention_mask is None and prior_noise is None:
            masks.append(self._canvas_for(labels, generator))
        if decoder_attention_mask is not None:
            masks.append(decoder_attention_mask.bool())
        if not masks:
            if prior_noise is not None:
                masks.append(torch.ones(prior_noise.shape[:2], dtype=torch.bool, device=source.device))
            elif attention_mask is not None:
                masks.append(attention_mask.bool())
            else:
                masks.append(torch.ones(source.shape[:2], dtype=torch.bool, device=source.device))
        if any(mask.shape != masks[0].shape for mask in masks) or len(masks[0]) != len(source):
            raise ValueError(
                f"target shapes {[tuple(m.shape) for m in masks]} (labels, decoder_attention_mask) must agree with each "
                f"other and with the {len(source)} source rows"
            )
        return masks[0] if len(masks) == 1 else masks[0] & masks[1]

    def _canvas_for(self, labels: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """(B, C) bool: canvases with room for blanks; their lengths are jittered in training."""
        ratio, longest = self.config.canvas_ratio, self.config.max_position_embeddings
        needed = needed_positions(labels)
        if int(needed.max()) > longest:
            raise ValueError(
                f"labels hold a text that needs {int(needed.max())} positions, more than max_position_embeddings={longest}; tokenize it "
                "with truncation=True"
            )
        lengths = (labels != -100).sum(-1)
        if self.training:
            draws = torch.rand(len(labels), generator=generator, device=labels.device)
            ratio = ratio * (1 + CANVAS_JITTER * (2 * draws - 1))
        positions = torch.maximum(canvas_lengths(lengths, ratio, longest), needed)
        return torch.arange(int(positions.max()), device=labels.device) < positions.unsqueeze(1)

    def _unroll(self, x_0, condition: FlowCondition, expert_indices, generator, sample: bool):
        """
        The few-step endpoint (B, L, d) in float32, differentiable, computing only the drawn expert of each token; and the gate at t = 0
        (B, L, K) that it was drawn from, None where experts are given.
        """
        flow = self.model.flow
        times = torch.linspace(0, 1, self.config.unroll_steps + 1, device=x_0.device)
        time_embeddings = flow.time_embedding(times[:-1])
        modulations = flow.modulate(time_embeddings)
        hidden_states = flow.trunk(x_0, [m[:1] for m in modulations], condition)
        gate = None
        if expert_indices is None:
            with torch.no_grad():
                gate = flow.gate(hidden_states, condition.pooled, time_embeddings[:1], condition.canvas_mask)
                expert_indices = select_experts(gate.exp(), generator=generator) if sample else gate.argmax(-1)
        routing = route_tokens(expert_indices, self.config.num_experts)
        steps = iter(range(self.config.unroll_steps))

        def velocity(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            step = next(steps)
            # The gate's trunk pass at t = 0 is also the first step's.
            states = (
                hidden_states if step == 0 else flow.trunk(x_t, [m[step : step + 1] for m in modulations], condition)
            )
            return flow.velocity(flow.experts(states, routing), x_t, t)

        return solve_ode(velocity, x_0, time_grid=times), gate

    @torch.no_grad()
    def _show_targets(self, x_0, condition: FlowCondition, labels, expert_indices, generator) -> torch.Tensor:
        """
        The prior (B, L, d) with token embeddings in the place of noise at some positions: the more, the more the endpoint from `x_0`
        alone gets wrong.
        """
        canvas_mask = condition.canvas_mask
        endpoint, _ = self._unroll(x_0, condition, expert_indices, generator, sample=True)
        logits = self.decoder.lm_head(self.decoder.states(endpoint))
        if self.config.canvas_ratio == 1:
            placed = labels.masked_fill(~canvas_mask, 0)
        else:
            placed = best_alignment(logits, labels, canvas_mask, self.config.pad_token_id)
        shown = select_shown(logits.argmax(-1) != placed, canvas_mask, self.config.glancing_ratio, generator=generator)
        embeddings = self.get_input_embeddings()(placed).to(x_0.dtype)
        return torch.where(shown.unsqueeze(-1), embeddings, x_0)

    def _one_step_endpoint(self, x_0, x_1, timesteps, velocities, gate_log_probs) -> torch.Tensor:
        """`x_t + (1 - t) v_k` (B, L, d) for the expert k most responsible for the true velocity of each token."""
        u = target_velocity(x_0, x_1)
        with torch.no_grad():
            expert = responsibilities(u, velocities, gate_log_probs, self.config.velocity_std).argmax(-1)
        index = expert[..., None, None].expand(-1, -1, 1, velocities.shape[-1])
        chosen = velocities.gather(2, index).squeeze(2).float()
        return linear_path(x_0, x_1, timesteps) + (1 - timesteps)[:, None, None] * chosen

    @staticmethod
    def _per_row(values: torch.Tensor, lengths: torch.Tensor, count) -> torch.Tensor:
        """A row's value (B,) counts by its tokens (B,)."""
        return (values * lengths).sum() / count


class _YanEncoderWithHead(YanPreTrainedModel):
    """Shared by the classes that put a head on the encoder alone."""

    _keys_to_ignore_on_load_unexpected = [*FLOW_KEYS, r"^length_head\.", r"^decoder\."]

    def __init__(self, config: YanConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = YanModel(config, add_velocity_field=False)
        self.dropout = nn.Dropout(config.classifier_dropout)


class YanForSequenceClassification(_YanEncoderWithHead):
    """A linear head on the mean of the encoder's states over the tokens."""

    def __init__(self, config: YanConfig):
        super().__init__(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """`labels`: (B,) class ids, or floats for regression and multi-label problems, as `config.problem_type` says."""
        outputs = self.model(input_ids, attention_mask, inputs_embeds, **kwargs)
        logits = self.classifier(self.dropout(masked_mean_pool(outputs.last_hidden_state, attention_mask)))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config, **kwargs)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class YanForTokenClassification(_YanEncoderWithHead):
    """A linear head on every state of the encoder."""

    def __init__(self, config: YanConfig):
        super().__init__(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """`labels`: (B, L) class ids, -100 ignored."""
        outputs = self.model(input_ids, attention_mask, inputs_embeds, **kwargs)
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None if labels is None else self.loss_function(logits, labels, self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class YanForQuestionAnswering(_YanEncoderWithHead):
    """Start and end logits of an extractive answer."""

    def __init__(self, config: YanConfig):
        super().__init__(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringModelOutput:
        """`start_positions`, `end_positions`: (B,) token indices of the answer's ends."""
        outputs = self.model(input_ids, attention_mask, inputs_embeds, **kwargs)
        start_logits, end_logits = self.qa_outputs(self.dropout(outputs.last_hidden_state)).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions, **kwargs)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = [
    "YanForConditionalGeneration",
    "YanForMaskedLM",
    "YanForQuestionAnswering",
    "YanForSequenceClassification",
    "YanForTokenClassification",
    "YanModel",
    "YanPreTrainedModel",
]
