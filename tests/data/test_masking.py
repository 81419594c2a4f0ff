"""Words of a source that become masks."""

import pytest

from modeling_yan.data.masking import mask_words


@pytest.mark.parametrize(
    ("masked", "expected"),
    [
        ((), "one  two\nthree four"),
        ({0}, "<mask>  two\nthree four"),
        ({1, 2}, "one  <mask> four"),
        ({0, 3}, "<mask>  two\nthree <mask>"),
        ({0, 1, 2, 3}, "<mask>"),
    ],
    ids=["none", "first", "a_run", "two_runs", "all"],
)
def test_each_run_of_words_becomes_one_mask(masked, expected):
    assert mask_words(" one  two\nthree four ", masked, "<mask>") == expected
