"""Heads on the encoder alone: classification of texts and of tokens, extractive question answering."""

import torch
from torch import nn
from transformers.modeling_outputs import (
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .base_model_yan import FLOW_KEYS, YanModel
from .configuration_yan import YanConfig
from .layers_yan import masked_mean_pool
from .outputs_yan import YanModelOutput
from .pretrained_yan import YanPreTrainedModel


class _YanEncoderWithHead(YanPreTrainedModel):
    """
    Shared by the classes that put a head on the encoder alone. Their `forward` names `token_type_ids`, which a hosted
    encoder may read: Trainer drops columns that a signature does not name.
    """

    _keys_to_ignore_on_load_unexpected = [*FLOW_KEYS, r"^length_head\.", r"^decoder\."]

    def __init__(self, config: YanConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = YanModel(config, add_velocity_field=False)
        self.dropout = nn.Dropout(config.classifier_dropout)

    def _read(self, *source, **kwargs) -> YanModelOutput:
        """What the encoder makes of a source, by name whatever `config.return_dict` says."""
        return self.model(*source, return_dict=True, **kwargs)


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
        token_type_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """
        `labels`: (B,) class ids, or floats for regression and multi-label problems, as `config.problem_type` says.
        """
        outputs = self._read(input_ids, attention_mask, inputs_embeds, token_type_ids=token_type_ids, **kwargs)
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
        token_type_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """`labels`: (B, L) class ids, -100 ignored."""
        outputs = self._read(input_ids, attention_mask, inputs_embeds, token_type_ids=token_type_ids, **kwargs)
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
        token_type_ids: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringModelOutput:
        """`start_positions`, `end_positions`: (B,) token indices of the answer's ends."""
        outputs = self._read(input_ids, attention_mask, inputs_embeds, token_type_ids=token_type_ids, **kwargs)
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


__all__ = ["YanForQuestionAnswering", "YanForSequenceClassification", "YanForTokenClassification"]
