"""Pairs as ids: what is cut, what is kept, what is filled."""

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from modeling_yan.data.tokenization import (
    model_end_id,
    set_truncation_side,
    target_ids,
    tokenize_pairs,
    tokenize_sources,
    train_tokenizer,
)

from ..helpers import tiny_config, word_piece_tokenizer

LETTERS = "abcdefghij"


@pytest.fixture
def tokenizer():
    # No merges: a token is a byte.
    return train_tokenizer([], 260, 32)


def rows(source: str, target: str) -> Dataset:
    return Dataset.from_list([{"source": source, "target": target, "references": [target]}])


@pytest.mark.parametrize(("side", "kept"), [("right", "abcd"), ("left", "ghij")])
def test_long_sources_are_cut_on_the_side_that_the_tokenizer_says_and_answers_at_their_end(
    tokenizer, side, kept, tmp_path
):
    set_truncation_side(tokenizer, side)
    tokenizer.save_pretrained(tmp_path)
    for t in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        pair = tokenize_pairs(rows(LETTERS, LETTERS), t, 5, 4)[0]
        assert t.decode(pair["input_ids"]) == f"{kept}</s>"
        assert t.decode(pair["labels"]) == "abc</s>"
        source = tokenize_sources(rows(LETTERS, "x"), t, 5)[0]
        assert source["input_ids"] == pair["input_ids"]
        assert source["references"] == ["x"]


def test_filled_labels_all_have_the_longest_length(tokenizer):
    pairs = tokenize_pairs(rows("a", "bc"), tokenizer, 8, 6, fill_canvas=True)
    assert tokenizer.decode(pairs[0]["labels"]) == "bc</s></s></s></s>"
    assert tokenize_pairs(rows("a", "bc"), tokenizer, 8, 6)[0]["labels"] == pairs[0]["labels"][:3]


@pytest.mark.parametrize(
    ("configured", "new", "end_id"), [(7, False, 7), ([7, 8], False, 7), (None, False, 3), (7, True, 3)]
)
def test_the_end_is_the_configs_or_else_the_tokenizers(configured, new, end_id):
    assert model_end_id(tiny_config(eos_token_id=configured), word_piece_tokenizer(), new=new) == end_id


def test_targets_without_an_end_are_refused(tokenizer):
    with pytest.raises(ValueError, match="neither EOS nor SEP"):
        target_ids(tokenizer, ["a"], None)
