"""Documents cut into short clean texts."""

import random

import pytest

from modeling_yan.data.windows import is_clean, plain_text, sentences, split_of, split_windows, windows

DOCUMENT = """Dr. Watson met S. Holmes in 1881. "Is it you?" he asked. They talked… and left!

The U.S. team won 3.5 points (of 10). Next came Mr. B. Smith, who lost. <b>Markup</b> is no prose. It ends here."""


def test_sentences_end_at_marks_and_not_at_titles():
    assert sentences("Dr. Watson met S. Holmes in 1881. \"Is it you?\" he asked. They left!") == [
        "Dr. Watson met S. Holmes in 1881.",
        '"Is it you?" he asked.',
        "They left!",
    ]


def test_plain_text_is_what_a_keyboard_writes():
    assert plain_text("“It’s”\u00a0—\n…") == "\"It's\" - ..."


@pytest.mark.parametrize(
    "text", ["no capital.", "No end", "SHOUTED WORDS ONLY.", "A <b>tag</b> is in it.", "Spaced , out.", "Ελλάδα είναι."]
)
def test_what_is_no_prose_is_left_out(text):
    assert not is_clean(text, 1, 48)


@pytest.mark.parametrize("seed", range(20))
def test_windows_are_whole_sentences_that_follow_each_other(seed):
    found = list(windows(DOCUMENT, random.Random(seed), fewest_words=2, most_words=12))
    text = plain_text(DOCUMENT)
    places = [text.index(window) for window in found]
    assert places == sorted(places) and all(is_clean(window, 2, 12) for window in found)
    assert all(start + len(window) <= after for start, window, after in zip(places, found, places[1:], strict=False))
    assert not any("Markup" in window for window in found)


def test_a_document_is_in_one_split():
    shares = {"validation": 0.2, "test": 0.1}
    splits = [split_of(f"document {number}", shares) for number in range(2000)]
    for name, share in {**shares, "train": 0.7}.items():
        assert splits.count(name) / len(splits) == pytest.approx(share, abs=0.03)
    found = split_windows([f"The number of this text is {number}." for number in range(200)] * 2, shares)
    texts = [text for rows in found.values() for text in rows]
    assert len(texts) == len(set(texts)) == 200
