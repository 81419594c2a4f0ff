"""Folders with an adapter alone: read as the model that both make, or refused by name."""

import json

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import BartConfig, BartForConditionalGeneration

from modeling_yan import YanForConditionalGeneration
from modeling_yan.common import adapters
from modeling_yan.common.arguments import ModelArguments
from modeling_yan.common.building import build_model, check_adaptable, check_model_arguments
from modeling_yan.common.hub import read_config, read_model, read_tokenizer
from modeling_yan.evaluation.text_generation import load_text_model

from ..helpers import seeded, source_batch, tiny_model, word_tokenizer

WEIGHTS = "adapter_model.safetensors"


def save_adapter(base, folder, config=None):
    """Saves a model as `base` and an adapter of it, with random weights, as `adapter`."""
    base.save_pretrained(folder / "base")
    config = config or LoraConfig(task_type="SEQ_2_SEQ_LM", r=4, target_modules=["q_proj", "v_proj"])
    adapted = get_peft_model(type(base).from_pretrained(folder / "base"), config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, generator=seeded())
    adapted.save_pretrained(folder / "adapter")


@pytest.fixture
def folder(tmp_path):
    save_adapter(tiny_model(), tmp_path)
    return tmp_path


def change(folder, **fields):
    file = folder / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_an_adapter_is_read_as_the_model_that_it_makes(folder):
    base = read_model(YanForConditionalGeneration, folder / "base")
    merged = read_model(YanForConditionalGeneration, folder / "adapter")
    assert type(merged) is YanForConditionalGeneration
    assert not merged.training
    assert read_config(folder / "adapter").to_dict() == read_config(folder / "base").to_dict()
    # By hand: W + (alpha / r) B A.
    update = load_file(folder / "adapter" / WEIGHTS)
    name = next(n for n in update if n.endswith("q_proj.lora_A.weight")).removesuffix(".lora_A.weight")
    product = update[f"{name}.lora_B.weight"] @ update[f"{name}.lora_A.weight"] * 8 / 4
    weight = f"{name.removeprefix('base_model.model.')}.weight"
    torch.testing.assert_close(merged.state_dict()[weight], base.state_dict()[weight] + product)
    ids, mask = source_batch()
    answers = [
        model.generate(ids, mask, generator=seeded(), target_lengths=torch.tensor([5, 3, 4]))
        for model in (base, merged)
    ]
    assert not torch.equal(*answers)


def test_training_goes_on_from_the_model_that_an_adapter_makes(folder):
    arguments = ModelArguments(model_name_or_path=str(folder / "adapter"), config_overrides="{unroll_steps: 2}")
    config = check_model_arguments(arguments)
    assert (config.vocab_size, config.training_config.unroll_steps) == (53, 2)
    built = build_model(YanForConditionalGeneration, arguments, word_tokenizer())
    merged = read_model(YanForConditionalGeneration, folder / "adapter").state_dict()
    assert all(torch.equal(weight, merged[name]) for name, weight in built.state_dict().items())
    assert all(parameter.requires_grad for parameter in built.parameters())
    with pytest.raises(ValueError, match=r"use_lora begins an adapter, .*adapter is one, of .*base; leave use_lora"):
        check_adaptable(arguments)
    check_adaptable(ModelArguments(model_name_or_path=str(folder / "base")))


def test_generation_options_beside_an_adapter_are_its_own(folder):
    base = YanForConditionalGeneration.from_pretrained(folder / "base")
    base.generation_config.update(length_mode="canvas", max_new_tokens=6)
    base.generation_config.save_pretrained(folder / "adapter")
    options = read_model(YanForConditionalGeneration, folder / "adapter").generation_config
    assert (options.length_mode, options.max_new_tokens) == ("canvas", 6)


def test_an_adapter_of_another_model_is_read_too(tmp_path):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 40, "max_position_embeddings": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    save_adapter(BartForConditionalGeneration(BartConfig(**sizes, **heads)), tmp_path)
    assert type(load_text_model(str(tmp_path / "adapter"))) is BartForConditionalGeneration


def test_a_model_that_is_gone_is_named(folder):
    (folder / "base").rename(folder / "elsewhere")
    for read in (read_config, lambda name: read_model(YanForConditionalGeneration, name), read_tokenizer):
        with pytest.raises(
            (ValueError, OSError), match=r"adapter is an adapter of .*base, and .*bring the model there"
        ):
            read(folder / "adapter")


def test_an_adapter_that_names_no_model_is_refused(folder):
    change(folder, base_model_name_or_path=None)
    with pytest.raises(ValueError, match=r"adapter cannot be read: .* no base_model_name_or_path"):
        read_model(YanForConditionalGeneration, folder / "adapter")


def test_an_adapter_of_itself_is_refused(folder):
    change(folder, base_model_name_or_path=str(folder / "adapter"))
    with pytest.raises(OSError, match="is an adapter of"):
        read_model(YanForConditionalGeneration, folder / "adapter")


def test_an_adapter_that_lacks_weights_is_refused(folder):
    weights = load_file(folder / "adapter" / WEIGHTS)
    lost = sorted(weights)[0]
    save_file({n: w for n, w in weights.items() if n != lost}, folder / "adapter" / WEIGHTS, {"format": "pt"})
    with pytest.raises(ValueError, match="weights of the adapter are missing"):
        read_model(YanForConditionalGeneration, folder / "adapter")


def test_an_adapter_without_weights_is_refused(folder):
    (folder / "adapter" / WEIGHTS).unlink()
    with pytest.raises((ValueError, OSError), match="adapter cannot be read"):
        read_model(YanForConditionalGeneration, folder / "adapter")


def test_an_adapter_that_cannot_be_merged_is_refused(tmp_path):
    config = PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=2, token_dim=16, num_layers=1,
                                num_attention_heads=2)  # fmt: skip
    save_adapter(tiny_model(), tmp_path, config)
    with pytest.raises(ValueError, match="type PROMPT_TUNING cannot be merged"):
        read_model(YanForConditionalGeneration, tmp_path / "adapter")


def test_without_peft_an_adapter_is_refused_with_the_remedy(folder, monkeypatch):
    monkeypatch.setattr(adapters, "is_peft_available", lambda: False)
    with pytest.raises(
        ValueError, match=r"adapter cannot be read: it is an adapter, which needs PEFT: pip install peft"
    ):
        read_model(YanForConditionalGeneration, folder / "adapter")
