"""The model that arguments ask for, and what does not fit it."""

import pytest

from modeling_yan import YanForConditionalGeneration
from modeling_yan.common.arguments import ModelArguments
from modeling_yan.common.building import build_model

from ..helpers import tiny_model, word_tokenizer


def test_a_tokenizer_with_more_entries_than_a_loaded_model_has_embeddings_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tokenizer = word_tokenizer()
    arguments = ModelArguments(model_name_or_path=str(tmp_path))
    assert build_model(YanForConditionalGeneration, arguments, tokenizer).config.vocab_size == len(tokenizer) == 53
    tokenizer.add_tokens(["w90"])
    with pytest.raises(ValueError, match="the tokenizer has 54 entries, the model embeddings for 53"):
        build_model(YanForConditionalGeneration, arguments, tokenizer)
