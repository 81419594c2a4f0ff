"""How results are named in the tables of `yan evaluate`."""

import pytest
from rich.console import Console

from modeling_yan.evaluation.evaluate import TABLE_WIDTH, describe_setting, make_table

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


def test_a_table_is_readable_at_its_width():
    console = Console(width=TABLE_WIDTH, record=True, quiet=False)
    with console.capture() as captured:
        console.print(make_table([{**YAN, **SCORES}]))
    lines = captured.get().splitlines()
    assert len(lines) == 5
    assert "YAN, 1 step, predicted length" in lines[3]
    assert max(map(len, lines)) <= TABLE_WIDTH
