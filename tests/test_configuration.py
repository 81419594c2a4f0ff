"""YanConfig: what older folders hold, the nested settings of training, and what is refused when."""

import dataclasses
import json
import pickle

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from modeling_yan import YanConfig, YanForConditionalGeneration, YanTrainingConfig

from .helpers import tiny_config, tiny_model


def test_the_top_level_has_less_than_forty_fields():
    assert len(YanConfig.__annotations__) < 40


def test_training_settings_at_the_top_level_are_read_as_older_folders_have_them(tmp_path):
    old = {
        "model_type": "yan",
        "vocab_size": 53,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "pad_token_id": 0,
        "eos_token_id": 2,
        "end_positions": True,
        "attention_conv_size": 5,
        "num_experts_per_token": None,
        "ngram_size": 2,
        "canvas_ratio": 2.0,
        "nll_loss_weight": 0.0,
        "mse_loss_weight": 0.0,
        "ngram_loss_weight": 5.0,
        "glancing_ratio": 0.5,
        "unroll_steps": 1,
        "time_sampling_beta": 3.0,
    }
    (tmp_path / "config.json").write_text(json.dumps(old))
    config = YanConfig.from_pretrained(tmp_path)
    assert config.reverse_positions
    settings = config.training_config
    assert (settings.bigram_loss_weight, settings.glancing_ratio, settings.unroll_steps) == (5.0, 0.5, 1)
    assert (settings.time_sampling_beta, settings.nll_loss_weight, settings.ce_loss_weight) == (3.0, 0.0, 1.0)
    saved = config.to_dict()
    assert not {"unroll_steps", "ngram_loss_weight", "end_positions", "attention_conv_size"} & set(saved)
    assert saved["training_config"]["unroll_steps"] == 1
    assert YanConfig(**saved).to_dict() == saved


def test_bigrams_of_an_older_folder_without_blanks_are_left_out(caplog):
    assert tiny_config(ngram_loss_weight=5.0).training_config.bigram_loss_weight == 0
    assert "ngram_loss_weight is left out" in caplog.text


def test_a_dict_changes_the_settings_that_it_names():
    config = tiny_config(training_config={"unroll_steps": 1, "ce_loss_weight": 2.0})
    assert config.training_config == YanTrainingConfig(unroll_steps=1, ce_loss_weight=2.0)
    config.training_config = {"ce_loss_weight": 3}
    assert config.training_config == YanTrainingConfig(unroll_steps=1, ce_loss_weight=3)
    with pytest.raises(ValueError, match="training_config has no"):
        config.training_config = {"ce_loss": 3}
    with pytest.raises(StrictDataclassError, match="unroll_steps"):
        config.training_config = {"unroll_steps": "3"}


def test_two_configs_never_share_their_settings():
    one, other = tiny_config(), tiny_config()
    one.training_config.unroll_steps = 7
    assert other.training_config.unroll_steps == 3
    assert tiny_config().training_config.unroll_steps == 3


def test_overrides_at_loading_are_checked_before_any_work(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    changed = YanForConditionalGeneration.from_pretrained(
        tmp_path, training_config={"unroll_steps": 1}, hidden_dropout_prob=0.3
    )
    assert changed.config.training_config.unroll_steps == 1
    assert changed.config.training_config.ce_loss_weight == 1.0
    assert changed.config.hidden_dropout_prob == 0.3
    for overrides, named in (
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob=1.5"),
        ({"canvas_ratio": 2.0}, "nll_loss_weight=1.0"),
        ({"training_config": {"unroll_steps": 0}}, "unroll_steps=0"),
        ({"prior_std": float("nan")}, "prior_std=nan"),
    ):
        with pytest.raises(ValueError, match=named):
            YanForConditionalGeneration.from_pretrained(tmp_path, **overrides)


def test_settings_survive_saving_copying_and_pickling(tmp_path):
    config = tiny_config(training_config={"label_smoothing": 0.2, "latent_noise": 0.0})
    config.save_pretrained(tmp_path)
    for again in (YanConfig.from_pretrained(tmp_path), pickle.loads(pickle.dumps(config))):
        assert again.training_config == config.training_config
        assert again.to_dict() == config.to_dict()
    assert dataclasses.asdict(config.training_config)["label_smoothing"] == 0.2


def test_a_checkpoint_without_a_head_gets_the_head_of_a_new_model(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path, state_dict={k: v for k, v in model.state_dict().items() if "lm_head" not in k})
    again = YanForConditionalGeneration.from_pretrained(tmp_path)
    scale = model.config.hidden_size**0.5
    torch.testing.assert_close(again.decoder.lm_head.weight, model.get_input_embeddings().weight / scale)
