"""Encoder and velocity field, the base of every YAN."""

import torch
from transformers.modeling_outputs import BaseModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_yan import YanConfig
from .encoder_yan import build_encoder
from .outputs_yan import YanModelOutput
from .pretrained_yan import YanPreTrainedModel
from .velocity_field_yan import FlowCondition, YanVelocityField

# What classes without a flow pass over in a checkpoint that has one. YAN's own position table is the encoder's too.
FLOW_KEYS = [r"^model\.flow\.", r"^model\.encoder\.embeddings\.position_embeddings\."]


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
            encoder_outputs = self.encoder(
                input_ids, attention_mask, inputs_embeds=inputs_embeds, return_dict=True, **kwargs
            )
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


__all__ = ["YanModel"]
