"""Arguments from flags or one file, config overrides, and exits with one line."""

import sys
from argparse import Namespace
from dataclasses import dataclass

import pytest
from transformers import HfArgumentParser, Seq2SeqTrainingArguments

from modeling_yan import YanForConditionalGeneration
from modeling_yan.common.arguments import (
    ModelArguments,
    as_flags,
    check_positive,
    default_options,
    parse_arguments,
    run_script,
)
from modeling_yan.common.building import check_model_arguments
from modeling_yan.common.overrides import load_preset, merge_options, parse_overrides

from ..helpers import tiny_bert, tiny_model


@dataclass
class Sizes:
    width: int = 1
    names: list[str] | None = None


def parse(monkeypatch, *arguments) -> tuple:
    monkeypatch.setattr(sys, "argv", ["script.py", *map(str, arguments)])
    return parse_arguments(HfArgumentParser((ModelArguments, Sizes)))


@pytest.mark.parametrize("name", ["recipe.yaml", "recipe.json"])
def test_flags_override_a_file(monkeypatch, tmp_path, name):
    # JSON is YAML, too.
    text = '{"width": 3, "names": ["a", "b"], "config_overrides": {"flow_layers": 2}, "preset": "yan-small"}'
    (tmp_path / name).write_text(text)
    model, sizes = parse(monkeypatch, tmp_path / name, "--width", 4)
    assert (sizes.width, sizes.names, model.preset) == (4, ["a", "b"], "yan-small")
    assert model.overrides == {"flow_layers": 2}


@pytest.mark.parametrize(
    ("text", "message"), [("widht: 3", r"unknown keys \['widht'\]"), ("- 3", "must hold keys and values")]
)
def test_files_that_hold_anything_else_are_refused(monkeypatch, tmp_path, text, message):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        parse(monkeypatch, tmp_path / "recipe.yaml")
    with pytest.raises(ValueError, match="no file"):
        parse(monkeypatch, tmp_path / "absent.yaml")


def test_options_become_flags_and_come_back(monkeypatch):
    flags = as_flags({"width": 2, "names": ["a", "b"], "config_overrides": {"flow_layers": 2}, "tokenizer_name": None})
    assert flags[:5] == ["--width", "2", "--names", "a", "b"]
    model, sizes = parse(monkeypatch, *flags)
    assert (sizes, model.overrides) == (Sizes(2, ["a", "b"]), {"flow_layers": 2})


def test_overrides_of_training_may_stand_at_the_top_level():
    nested = {"flow_layers": 2, "training_config": {"unroll_steps": 1, "ce_loss_weight": 2.0}}
    text = "{flow_layers: 2, unroll_steps: 1, training_config: {ce_loss_weight: 2.0}}"
    assert parse_overrides(text) == nested
    assert parse_overrides(None) == {}
    config = load_preset("yan-tiny", **nested)
    assert (config.flow_layers, config.training_config.unroll_steps) == (2, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{flow_layer: 2}", "flow_layer"),
        ("{training_config: {unroll: 2}}", "unroll"),
        ("{unroll_steps: 1, training_config: {unroll_steps: 2}}", "twice"),
        ("[flow_layers]", "keys and values"),
    ],
)
def test_overrides_that_no_config_has_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_overrides(text)


@pytest.mark.parametrize("overrides", ["{flow_layers: many}", "{flow_layers: 0}", "{unroll_steps: 0}"])
def test_values_that_do_not_fit_are_refused_before_there_is_a_model(overrides):
    with pytest.raises(ValueError, match=r"flow_layers|unroll_steps"):
        check_model_arguments(ModelArguments(config_overrides=overrides))


def test_unknown_presets_are_answered_with_those_there_are():
    with pytest.raises(FileNotFoundError, match=r"yan-tiny\.json"):
        load_preset("yan-huge")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"embedding_learning_rate": 0.03}),
        ({"freeze": "decoder, embeddings"}, {}),
        ({"freeze": "encoder"}, {}),
        ({"encoder": "bert"}, {"encoder_learning_rate": 5e-5}),
        ({"encoder": "bert", "freeze": "decoder, encoder"}, {}),
        ({"encoder": "bert", "freeze": "embeddings"}, {"encoder_learning_rate": 5e-5}),
        ({"model_name_or_path": "hosted"}, {"encoder_learning_rate": 5e-5}),
        ({"model_name_or_path": "hosted", "use_lora": "true"}, {}),
        ({"model_name_or_path": "plain"}, {}),
    ],
)
def test_parts_have_a_default_rate_where_they_are_trained(monkeypatch, tmp_path, given, expected):
    monkeypatch.chdir(tmp_path)
    YanForConditionalGeneration.from_encoder(tiny_bert(), pad_token_id=0, eos_token_id=3).config.save_pretrained(
        "hosted"
    )
    tiny_model().config.save_pretrained("plain")
    options = default_options(HfArgumentParser((ModelArguments, Seq2SeqTrainingArguments)), given)
    rates = {name: rate for name, rate in options.items() if name.endswith("g_learning_rate") or "encoder_l" in name}
    assert rates == expected


def test_later_options_win_key_by_key():
    assert merge_options({"a": 1, "b": {"c": 1, "d": 2}}, {"b": {"c": 3}}, {"a": 2}) == {"a": 2, "b": {"c": 3, "d": 2}}


def test_only_positive_numbers_are():
    check_positive(Namespace(steps=[1, 3], rows=None), "steps", "rows")
    with pytest.raises(ValueError, match="--steps 0 must be greater than 0"):
        check_positive(Namespace(steps=[3, 0]), "steps")


@pytest.mark.parametrize("error", [ValueError("a  thing\nof two lines"), OSError("a thing of two lines")])
def test_bad_input_ends_a_script_with_status_2_and_one_line(capsys, error):
    def main():
        raise error

    with pytest.raises(SystemExit) as end:
        run_script(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: a thing of two lines\n"


def test_mistakes_of_the_program_are_not_hidden():
    with pytest.raises(KeyError):
        run_script(lambda: {}["key"])
