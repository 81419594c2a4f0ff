"""The encoder: YAN's own, or a pretrained one of transformers in its place."""

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_yan import YanConfig
from .input_checks_yan import check_mask, may_look_at
from .layers_yan import YanEmbeddings, YanEncoderLayer, YanPositionEmbeddings
from .mixers_yan import mixer_mask
from .pretrained_yan import YanPreTrainedModel


def check_source(input_ids, attention_mask, inputs_embeds, max_length: int) -> None:
    """
    Raises:
        ValueError: unless exactly one input is given, with at most `max_length` tokens.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("pass exactly one of input_ids and inputs_embeds")
    given = input_ids if inputs_embeds is None else inputs_embeds
    if attention_mask is not None and may_look_at(given):
        check_mask("attention_mask", attention_mask, given.shape[:2], "the source")
    length = given.shape[1]
    if length > max_length and (attention_mask is None or attention_mask.sum(-1).max() > max_length):
        raise ValueError(
            f"input_ids has {length} tokens, more than max_position_embeddings={max_length}; "
            "pass truncation=True to the tokenizer or the pipeline"
        )


class YanEncoder(YanPreTrainedModel):
    """Embeddings, bidirectional blocks and a final layer norm; its output is both condition and latent."""

    def __init__(self, config: YanConfig):
        super().__init__(config)
        self.embeddings = YanEmbeddings(config)
        self.layers = nn.ModuleList([YanEncoderLayer(config) for _ in range(config.encoder_layers)])
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    def positions(self, length: int, mask: torch.Tensor | None) -> torch.Tensor:
        """Position embeddings of a canvas (B or 1, L, d), counted over the valid positions of its mask (B, L)."""
        return self.embeddings.positions(length, mask)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """
        Args:
            input_ids: (B, L); or `inputs_embeds` (B, L, d).
            attention_mask: (B, L), 1 at tokens, 0 at padding on either side; all tokens if absent.

        Raises:
            ValueError: unless exactly one input is given, no longer than the position table.
        """
        check_source(input_ids, attention_mask, inputs_embeds, self.config.max_position_embeddings)
        if inputs_embeds is None:
            inputs_embeds = self.embeddings.word_embeddings(input_ids)
        hidden_states = self.embeddings(inputs_embeds, attention_mask)
        mask = mixer_mask(self.config.encoder_mixer, self.config, hidden_states, attention_mask)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask)
        return BaseModelOutput(last_hidden_state=self.final_norm(hidden_states))


def encoder_within(model: PreTrainedModel) -> PreTrainedModel:
    """The encoder of any model that has one, without heads and decoder; an encoder as it is."""
    model = model.base_model
    # In BERT what has this name is no model of its own: embeddings are not part of it. The config does not tell: the
    # one of an encoder that was saved alone says that there is no decoder, for a class that adds one.
    encoder = getattr(model, "encoder", None)
    return encoder if isinstance(encoder, PreTrainedModel) else model


class YanHostedEncoder(YanPreTrainedModel):
    """
    A pretrained encoder of transformers (`config.encoder_config`) in the place of `YanEncoder`. It keeps its own
    position scheme and gives its own outputs; the canvas of the flow has a position table of its own.

    Args:
        add_canvas_positions: without a flow that table would never be used, and never get a gradient.
    """

    def __init__(self, config: YanConfig, add_canvas_positions: bool = True):
        super().__init__(config)
        # The vocabulary is that of the whole, which may have been changed since.
        config.encoder_config.vocab_size = config.vocab_size
        # The config of a model that was saved in half precision says so, too; this one's weights are all of one type.
        backbone = encoder_within(AutoModel.from_config(config.encoder_config, dtype=torch.get_default_dtype()))
        if getattr(backbone, "pooler", None) is not None:
            # YAN never reads it, and a parameter without gradient stops data-parallel training.
            backbone.pooler = None
        self.backbone = backbone
        self.embeddings = YanPositionEmbeddings(config) if add_canvas_positions else None
        self.post_init()

    def get_input_embeddings(self):
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.backbone.set_input_embeddings(value)

    def positions(self, length: int, mask: torch.Tensor | None) -> torch.Tensor:
        """As `YanEncoder.positions`."""
        return self.embeddings.positions(length, mask)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """
        Args and errors as those of `YanEncoder`, and `token_type_ids` (B, L) for a backbone that has them. Rows are
        moved to the left edge for the backbone, which counts positions from there, and back again; a row padded on the
        right, or not at all, is passed on as it is.
        """
        check_source(input_ids, attention_mask, inputs_embeds, self.config.max_position_embeddings)
        if attention_mask is None:
            if token_type_ids is not None:
                kwargs["token_type_ids"] = token_type_ids
            outputs = self.backbone(input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)
            return BaseModelOutput(
                *(outputs.get(name) for name in ("last_hidden_state", "hidden_states", "attentions"))
            )
        attention_mask = attention_mask.long()
        # Where each position goes, tokens first, and from there which position stands where: a stable sort by the mask,
        # which ONNX does not have.
        tokens, padding = attention_mask.cumsum(1), (1 - attention_mask).cumsum(1)
        places = torch.where(attention_mask == 1, tokens, tokens[:, -1:] + padding) - 1
        positions = torch.arange(attention_mask.shape[1], device=attention_mask.device).expand_as(attention_mask)
        order = torch.zeros_like(attention_mask).scatter(1, places, positions)
        # The longest row decides, so that padding never reaches past the backbone's last position.
        order = order[:, : self.config.max_position_embeddings]
        mask = attention_mask.gather(1, order)
        if input_ids is not None:
            # RoBERTa tells padding by its id.
            padding = getattr(self.backbone.config, "pad_token_id", None)
            input_ids = input_ids.gather(1, order).masked_fill(mask == 0, 0 if padding is None else padding)
        else:
            inputs_embeds = inputs_embeds.gather(1, order.unsqueeze(-1).expand(-1, -1, inputs_embeds.shape[-1]))
        if token_type_ids is not None:
            kwargs["token_type_ids"] = token_type_ids.gather(1, order)
        outputs = self.backbone(input_ids=input_ids, attention_mask=mask, inputs_embeds=inputs_embeds, **kwargs)

        def back(states: torch.Tensor | None, axis: int = 1) -> torch.Tensor | None:
            # None for a layer that was not asked for.
            if states is None:
                return None
            states = states.movedim(axis, 1)
            index = order[(..., *[None] * (states.dim() - 2))].expand_as(states)
            placed = states.new_zeros(*attention_mask.shape, *states.shape[2:]).scatter(1, index, states)
            return placed.movedim(1, axis)

        hidden_states, attentions = outputs.get("hidden_states"), outputs.get("attentions")
        return BaseModelOutput(
            last_hidden_state=back(outputs.last_hidden_state),
            hidden_states=None if hidden_states is None else tuple(map(back, hidden_states)),
            attentions=None if attentions is None else tuple(back(back(weights, 2), 3) for weights in attentions),
        )


def build_encoder(config: YanConfig, has_flow: bool) -> YanEncoder | YanHostedEncoder:
    """YAN's own encoder, or the pretrained one that `config.encoder_config` describes."""
    if config.encoder_config is None:
        return YanEncoder(config)
    return YanHostedEncoder(config, add_canvas_positions=has_flow)
