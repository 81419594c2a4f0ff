"""What any model writes, and the models that cannot: no room, another tokenizer."""

import json

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, GPT2Config, GPT2LMHeadModel, T5Config
from transformers import T5ForConditionalGeneration as T5

from modeling_yan.data.tokenization import train_tokenizer
from modeling_yan.evaluation.text_generation import generate_texts

from ..helpers import TEXTS, copies, refused

IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
BART = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 20, 300, 64)


def gpt2(vocab_size: int = 300, positions: int = 32) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=vocab_size, n_positions=positions, n_embd=16, n_layer=1, n_head=2, **IDS)
    ).eval()


def bart(positions: int) -> BartForConditionalGeneration:
    sizes = {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "vocab_size": 300, **BART, **IDS}
    return BartForConditionalGeneration(BartConfig(max_position_embeddings=positions, **sizes)).eval()


def test_answers_that_do_not_fit_are_refused_before_the_first(tokenizer, monkeypatch):
    model = gpt2(positions=32)
    longest = max(len(ids) for ids in tokenizer(TEXTS)["input_ids"])
    options = {"max_new_tokens": 32 - longest, "do_sample": False}
    assert len(generate_texts(model, tokenizer, TEXTS, **options)) == len(TEXTS)
    monkeypatch.setattr(model, "generate", lambda **_: pytest.fail("it has begun"))
    options["max_new_tokens"] += 1
    with pytest.raises(ValueError, match=f"32 positions; a source of {longest} tokens .* take 33. Pass smaller"):
        # Of a batch size that would answer the short ones first.
        generate_texts(model, tokenizer, sorted(TEXTS, key=len), batch_size=1, **options)


def test_a_decoder_of_its_own_counts_from_the_answers_beginning(tokenizer):
    options = {"max_new_tokens": 12, "do_sample": False, "num_beams": 1}
    assert len(generate_texts(bart(16), tokenizer, TEXTS[:1], **options)) == 1
    with pytest.raises(ValueError, match="has 16 positions"):
        generate_texts(bart(16), tokenizer, TEXTS[:1], **{**options, "max_new_tokens": 17})
    relative = T5(T5Config(vocab_size=300, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, **IDS)).eval()
    assert len(generate_texts(relative, tokenizer, TEXTS, **options)) == len(TEXTS)


def test_a_tokenizer_of_another_model_is_refused(tokenizer):
    with pytest.raises(ValueError, match="they do not belong together"):
        generate_texts(gpt2(vocab_size=20), tokenizer, TEXTS, max_new_tokens=2)


DISTILLATION = {
    "teacher": "teacher",
    "task": "e2e_nlg",
    "dataset_name": "data",
    "distilled_dir": "distilled",
    "model_name_or_path": "autoencoder",
    "output_dir": "out",
    "use_cpu": True,
}


def test_a_teacher_whose_answers_do_not_fit_ends_in_one_line(workspace, teacher):
    copies(workspace, teacher=teacher)
    line = refused("examples/run_distillation.py", cwd=workspace, max_target_length=190, **DISTILLATION)
    assert "teacher has 192 positions; a source of" in line
    assert not (workspace / "out").exists()


def test_a_teacher_that_answers_nothing_ends_in_one_line(workspace, teacher):
    copies(workspace, teacher=teacher)
    options = workspace / "teacher" / "generation_config.json"
    options.write_text(json.dumps({**json.loads(options.read_text()), "min_new_tokens": 0}))
    line = refused("examples/run_distillation.py", cwd=workspace, **DISTILLATION)
    assert "teacher answered every source with nothing" in line
    assert not (workspace / "out").exists()
