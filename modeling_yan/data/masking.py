"""Which words a source hides from the model."""

import re
from collections.abc import Collection


def mask_words(text: str, masked: Collection[int], mask_token: str) -> str:
    """
    A text in which each run of words becomes one mask token. White space between the other words is kept.

    Args:
        masked: places of the words, from 0.
    """
    pieces = re.split(r"(\s+)", text.strip())
    shown = ""
    for index, (gap, word) in enumerate(zip(["", *pieces[1::2]], pieces[::2], strict=True)):
        if index not in masked:
            shown += gap + word
        elif index - 1 not in masked:
            shown += gap + mask_token
    return shown
