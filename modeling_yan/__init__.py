"""YAN: mixture-of-experts flow matching for text, as transformers models."""

from importlib.metadata import PackageNotFoundError, version

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
from modeling_yan.lexicon_yan import Lexicon
from modeling_yan.modeling_yan import (
    YanForConditionalGeneration,
    YanForMaskedLM,
    YanForQuestionAnswering,
    YanForSequenceClassification,
    YanForTokenClassification,
    YanModel,
)
from modeling_yan.pipeline_yan import YanTextGenerationPipeline
from modeling_yan.restoration_yan import Restoration, restore
from modeling_yan.training_config_yan import YanTrainingConfig

try:
    __version__ = version("modeling-yan")
except PackageNotFoundError:
    # A checkout that is not installed.
    __version__ = "unknown"

# A folder of a YAN then loads through the Auto classes without remote code.
AutoConfig.register("yan", YanConfig, exist_ok=True)
AutoModel.register(YanConfig, YanModel, exist_ok=True)
AutoModelForMaskedLM.register(YanConfig, YanForMaskedLM, exist_ok=True)
AutoModelForSeq2SeqLM.register(YanConfig, YanForConditionalGeneration, exist_ok=True)
AutoModelForSequenceClassification.register(YanConfig, YanForSequenceClassification, exist_ok=True)
AutoModelForTokenClassification.register(YanConfig, YanForTokenClassification, exist_ok=True)
AutoModelForQuestionAnswering.register(YanConfig, YanForQuestionAnswering, exist_ok=True)

__all__ = [
    "Lexicon",
    "Restoration",
    "YanConfig",
    "YanForConditionalGeneration",
    "YanForMaskedLM",
    "YanForQuestionAnswering",
    "YanForSequenceClassification",
    "YanForTokenClassification",
    "YanGenerateOutput",
    "YanModel",
    "YanTextGenerationPipeline",
    "YanTrainingConfig",
    "restore",
]
