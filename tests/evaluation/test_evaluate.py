"""Lengths of references, and how results are named in the tables of `yan evaluate`."""

import argparse
from types import SimpleNamespace

import pytest
from datasets import Dataset
from rich.console import Console
from tokenizers import processors

from modeling_yan.data.tasks import Task
from modeling_yan.evaluation.evaluate import TABLE_WIDTH, Evaluation, describe_setting, make_table

from ..helpers import tiny_config, word_piece_tokenizer, word_tokenizer

SCORES = dict.fromkeys(("bleu", "rougeL", "exact_match", "f1", "self_bleu", "mean_words", "seconds"), 64.25)
YAN = {"system": "YAN", "length": "predicted", "num_inference_steps": 1}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"system": "bart"}, "bart"),
        (YAN, "YAN, 1 step, predicted length"),
        ({**YAN, "length": "canvas", "num_inference_steps": 3}, "YAN, 3 steps, fixed canvas"),
        ({**YAN, "num_length_candidates": 5}, "YAN, 1 step, best of 5 lengths"),
        ({**YAN, "num_candidates": 8}, "YAN, 1 step, predicted length, best of 8 priors"),
        ({**YAN, "num_candidates": 8, "num_length_candidates": 5}, "YAN, 1 step, best of 5 lengths, of 8 priors"),
        ({**YAN, "variant": "time_shift=2"}, "YAN, 1 step, predicted length, time_shift=2"),
    ],
)
def test_a_setting_is_named_in_words(row, words):
    assert describe_setting(row) == words


@pytest.mark.parametrize("kind", ["cls_and_sep", "no_eos"])
def test_lengths_of_references_are_those_of_what_the_model_writes(kind):
    """Words and an end, which is neither CLS before them nor left out where the tokenizer does."""
    tokenizer = word_piece_tokenizer() if kind == "cls_and_sep" else word_tokenizer()
    if kind == "no_eos":
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A")
    model = SimpleNamespace(config=tiny_config(eos_token_id=3 if kind == "cls_and_sep" else 2))
    rows = Dataset.from_dict({"target": ["pub", "near pub river", "river " * 9]})
    task = Task("rows", "{source}", "{target}", max_target_length=6)
    assert Evaluation(argparse.Namespace(), task, model, tokenizer, rows).oracle_lengths == [2, 4, 6]


def test_a_table_is_readable_at_its_width():
    console = Console(width=TABLE_WIDTH, record=True, quiet=False)
    with console.capture() as captured:
        console.print(make_table([{**YAN, **SCORES}]))
    lines = captured.get().splitlines()
    assert len(lines) == 5
    assert "YAN, 1 step, predicted length" in lines[3]
    assert max(map(len, lines)) <= TABLE_WIDTH
