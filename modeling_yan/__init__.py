"""YAN: mixture-of-experts flow matching for text, as transformers models."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from modeling_yan.configuration_yan import YanConfig
from modeling_yan.generation_yan import YanGenerateOutput
from modeling_yan.modeling_yan import (
    YanForConditionalGeneration,
    YanForMaskedLM,
    YanForQuestionAnswering,
    YanForSequenceClassification,
    YanForTokenClassification,
    YanModel,
)

AutoConfig.register("yan", YanConfig, exist_ok=True)
for _auto, _model in (
    (AutoModel, YanModel),
    (AutoModelForMaskedLM, YanForMaskedLM),
    (AutoModelForSeq2SeqLM, YanForConditionalGeneration),
    (AutoModelForSequenceClassification, YanForSequenceClassification),
    (AutoModelForTokenClassification, YanForTokenClassification),
    (AutoModelForQuestionAnswering, YanForQuestionAnswering),
):
    _auto.register(YanConfig, _model, exist_ok=True)

__all__ = [
    "YanConfig",
    "YanForConditionalGeneration",
    "YanForMaskedLM",
    "YanForQuestionAnswering",
    "YanForSequenceClassification",
    "YanForTokenClassification",
    "YanGenerateOutput",
    "YanModel",
]
