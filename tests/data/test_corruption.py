"""Errors in clean texts: which are made, how often, and what they leave alone."""

import random

import pytest

from modeling_yan.data.corruption import MARKS, NEIGHBOURS, Corruption, corrupt, is_protected, mistype

NONE = {name: 0.0 for name in Corruption.__dataclass_fields__}
TEXT = 'Mr. Holmes came at 9:30, and said: "We can\'t stay; see www.example.com (or mail a.b@example.org)!" Did he?'


def words_after(text: str = TEXT, seeds: int = 20, **rates: float) -> list[list[str]]:
    return [corrupt(text, Corruption(**{**NONE, **rates}), random.Random(seed)).split() for seed in range(seeds)]


def test_without_rates_nothing_changes_but_white_space():
    assert corrupt(" a  b\n\tC. ", Corruption(**NONE), random.Random(0)) == "a b C."


def test_all_capitals_go():
    for words in words_after(lower_case=1.0):
        assert " ".join(words) == TEXT.lower()


def test_all_marks_go_but_those_of_numbers_links_and_words():
    for words in words_after(without_marks=1.0):
        assert words == (
            "Mr Holmes came at 9:30 and said We can't stay see www.example.com or mail a.b@example.org Did he".split()
        )


@pytest.mark.parametrize("word", ["3.14", "1,024", "9:30", "www.a.org", "a.b@c.de", "https://x.y", "x_1", "a/b", "$5"])
def test_numbers_links_and_code_are_left_alone(word):
    assert is_protected(word)
    rates = {"most_typos": 1.0, "with_typos": 1.0, "confusion_rate": 1.0, "lower_case": 1.0, "without_marks": 1.0}
    for words in words_after(f"Look at {word}, please.", **rates, split_rate=1.0, join_rate=1.0):
        assert word in words


@pytest.mark.parametrize("rate", [0.25, 0.75])
def test_rates_are_those_of_words(rate):
    text = "Every Word Begins Large " * 2000
    words = corrupt(text, Corruption(**{**NONE, "capital_rate": rate}), random.Random(0)).split()
    assert sum(word.islower() for word in words) / len(words) == pytest.approx(rate, abs=0.03)


def test_typing_errors_are_one_edit_each_or_a_swap():
    for seed in range(300):
        draw = random.Random(seed)
        wrong = mistype("Restaurant", draw)
        assert abs(len(wrong) - len("Restaurant")) <= 1
        assert wrong[0].isupper()
        if len(wrong) == len("Restaurant"):
            assert sum(a != b for a, b in zip(wrong, "Restaurant", strict=True)) <= 2
    assert mistype("at", random.Random(0)) == "at"


def test_neighbours_are_mutual():
    assert set(NEIGHBOURS["g"]) == set("fhtyvb")
    assert all(key in NEIGHBOURS[other] for key, others in NEIGHBOURS.items() for other in others)


def test_confusions_keep_their_capital():
    rates = {"with_typos": 1.0, "confusion_rate": 1.0}
    for words in words_after("Their friend is definitely there.", **rates):
        assert words[0] in ("There", "They're") and words[1] == "freind" and words[3] == "definately"


def test_spaces_go_and_come():
    assert words_after("one two", join_rate=1.0, seeds=1) == [["onetwo"]]
    assert "".join(words_after("longer", split_rate=1.0, seeds=1)[0]) == "longer"
    assert corrupt("a b", Corruption(**{**NONE, "space_rate": 1.0}), random.Random(0)) == "a  b"


def test_a_seed_repeats_its_errors():
    texts = {corrupt(TEXT * 4, Corruption(), random.Random(seed % 5)) for seed in range(20)}
    assert 1 < len(texts) <= 5


@pytest.mark.parametrize("name", ["untouched", "join_rate"])
def test_rates_beyond_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=1.5"):
        Corruption(**{name: 1.5})


def test_marks_alone_may_leave_nothing():
    assert corrupt(MARKS, Corruption(**{**NONE, "without_marks": 1.0}), random.Random(0)) == ""
