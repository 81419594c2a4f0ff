"""YAN: mixture-of-experts flow matching for text, as transformers models."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    pipelines,
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
from modeling_yan.pipeline_yan import YanTextGenerationPipeline

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

# transformers 5 removed this task's name; a registered one answers again, without remote code.
getattr(pipelines, "REMOVED_TASKS", {}).pop("text2text-generation", None)
pipelines.PIPELINE_REGISTRY.register_pipeline(
    "text2text-generation", YanTextGenerationPipeline, pt_model=AutoModelForSeq2SeqLM, type="text"
)
YanConfig.registered_pipelines = ("text2text-generation",)

__all__ = [
    "YanConfig",
    "YanForConditionalGeneration",
    "YanForMaskedLM",
    "YanForQuestionAnswering",
    "YanForSequenceClassification",
    "YanForTokenClassification",
    "YanGenerateOutput",
    "YanModel",
    "YanTextGenerationPipeline",
]
