"""The common tests of transformers, which every model of the library has to pass, on this package's classes."""

import unittest
from unittest.mock import patch

import pytest
import torch
from transformers.models.auto import modeling_auto
from transformers.testing_utils import torch_device

from modeling_yan import (
    YanConfig,
    YanForConditionalGeneration,
    YanForMaskedLM,
    YanForQuestionAnswering,
    YanForSequenceClassification,
    YanForTokenClassification,
    YanModel,
)

from ..conftest import VOCAB_SIZE, tiny_config
from .library import ConfigTester, ModelTesterMixin, TrainingTesterMixin

pytestmark = pytest.mark.slow

# The library's own models are in these tables: by them its tests choose labels, and which checks apply to a class.
TABLES = {
    "MODEL_MAPPING_NAMES": YanModel,
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES": YanForMaskedLM,
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES": YanForConditionalGeneration,
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": YanForSequenceClassification,
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": YanForTokenClassification,
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES": YanForQuestionAnswering,
}


class YanModelTester:
    """Sizes, configuration and inputs under the names that the library's tests read."""

    def __init__(self, **options):
        self.options = options
        self.batch_size = 5
        self.seq_length = 7
        self.canvas_length = 6
        self.is_training = True
        config = self.get_config()
        self.vocab_size = config.vocab_size
        self.hidden_size = config.hidden_size
        self.num_hidden_layers = config.num_hidden_layers
        self.num_attention_heads = config.num_attention_heads

    def get_config(self) -> YanConfig:
        return tiny_config(**self.options)

    def prepare_config_and_inputs_for_common(self) -> tuple[YanConfig, dict[str, torch.Tensor]]:
        generator = torch.Generator().manual_seed(0)
        shape = (self.batch_size, self.seq_length)
        # With holes: padding may stand anywhere.
        attention_mask = torch.randint(2, shape, generator=generator)
        attention_mask[:, 0] = 1
        input_ids = torch.randint(4, VOCAB_SIZE, shape, generator=generator)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        return self.get_config(), {name: value.to(torch_device) for name, value in inputs.items()}


class YanModelTest(ModelTesterMixin, TrainingTesterMixin, unittest.TestCase):
    all_model_classes = tuple(TABLES.values())
    # Asked of models added since 2023, which the library tells by a copyright line that this package does not have.
    test_can_init_all_missing_weights_before_2023 = True
    training_overfit_seq_length = 32
    options = {}

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for table, model_class in TABLES.items():
            cls.enterClassContext(patch.dict(getattr(modeling_auto, table), yan=model_class.__name__))

    def setUp(self):
        self.model_tester = YanModelTester(**self.options)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if model_class is YanModel and "input_ids" in inputs:
            # The velocity field takes part where there is a state to evaluate it at.
            generator = torch.Generator().manual_seed(0)
            rows, tester = len(inputs["input_ids"]), self.model_tester
            x_t = torch.randn(rows, tester.canvas_length, tester.hidden_size, generator=generator)
            inputs["x_t"] = x_t.to(torch_device)
            inputs["timesteps"] = torch.rand(rows, generator=generator).to(torch_device)
        return inputs

    def _get_trainable_model_class(self):
        # A class without `generate`, of which the test expects the rest of a text whose first token it gives.
        return YanForMaskedLM

    def test_config(self):
        sizes = ["hidden_size", "num_attention_heads", "num_hidden_layers"]
        ConfigTester(self, config_class=YanConfig, common_properties=sizes, hidden_size=64).run_common_tests()

    @unittest.skip(
        reason="generate() writes all positions at once; GenerationTesterMixin tests decoding token by token"
    )
    def test_generation_tester_mixin_inheritance(self):
        pass

    @unittest.skip(reason="YAN has no resize_position_embeddings")
    def test_resize_position_vector_embeddings(self):
        pass


class YanConvAttentionModelTest(YanModelTest):
    """Also with positions counted from both ends, and experts that predict the endpoint."""

    options = {
        "encoder_mixer": "conv_attention",
        "flow_mixer": "conv_attention",
        "end_positions": True,
        "prediction_type": "data",
    }


class YanMambaModelTest(YanModelTest):
    has_attentions = False
    options = {"encoder_mixer": "mamba", "flow_mixer": "mamba"}


class YanBlanksModelTest(YanModelTest):
    # The gate learns from the likelihood, which needs a place for every token (docs/training.md).
    test_all_params_have_gradient = False
    options = {"canvas_ratio": 2.0, "nll_loss_weight": 0.0, "mse_loss_weight": 0.0}

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        """The library labels every token 0, which is the blank here."""
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        if "labels" in inputs and model_class is YanForConditionalGeneration:
            inputs["labels"] = torch.full_like(inputs["labels"], 5)
        return inputs

    @unittest.skip(reason="the pad token is the blank; without its id there is no such configuration")
    def test_model_forward_default_config_values(self):
        pass


class YanHostedEncoderModelTest(YanModelTest):
    _is_composite = True
    options = {
        "encoder_config": {
            "model_type": "bert",
            "vocab_size": VOCAB_SIZE,
            "hidden_size": 16,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "max_position_embeddings": 32,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        }
    }

    def _prepare_config_and_inputs_for_retain_grad_hidden_states_attentions(self):
        # With a mask, rows are moved to the left edge and back: the states that are returned are then copies.
        config, inputs = super()._prepare_config_and_inputs_for_retain_grad_hidden_states_attentions()
        return config, {"input_ids": inputs["input_ids"]}

    def test_inputs_embeds_matches_input_ids(self):
        # At padding, ids are replaced by the pad id (RoBERTa counts positions by it) and embeddings are not.
        shape = (self.model_tester.batch_size, self.model_tester.seq_length)
        mask = torch.ones(shape, dtype=torch.long, device=torch_device)
        super().test_inputs_embeds_matches_input_ids(attention_mask=mask)
