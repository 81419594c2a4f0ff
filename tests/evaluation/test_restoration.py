import json
import random

import numpy as np
import pytest
from rapidfuzz.distance import Levenshtein

from modeling_yan.evaluation.restoration import (
    MARK_NAMES,
    compare_restorations,
    count_row,
    score_restoration,
    split_words,
    word_forms,
)
from modeling_yan.words_yan import align_words, edit_distance

SOURCES = ["where is teh station", "i dont know john said", "the the cat sat on 3.50 euros", "see https://x.org now"]
PREDICTIONS = [
    "Where is the station.",
    "I don't know, john said.",
    "The cat sat on 350 euros.",
    "See https://x.org now",
]
REFERENCES = [
    "Where is the station?",
    "I don't know, John said.",
    "The cat sat on 3.50 euros.",
    "See https://x.org now!",
]


def random_rows(number: int, seed: int = 0) -> tuple[list[str], list[str], list[str]]:
    """References, and two texts of each in which words were dropped, doubled, turned around, or bared of marks."""
    choose = random.Random(seed)
    text = "The station, where is a \"very\" good? don't I know: Paris - costs 3.50 and foo_bar… Cats' end."
    words = text.split()
    changes = [lambda w: [], lambda w: [w, w], lambda w: [w[::-1]], lambda w: [w.lower().strip('.,?:"…'), "uh,"]]
    changes += [lambda w: [w]] * 8

    def spoil(text: str) -> str:
        return " ".join(part for word in text.split() for part in choose.choice(changes)(word))

    references = [" ".join(choose.choices(words, k=choose.randrange(12))) for _ in range(number)]
    return [spoil(text) for text in references], [spoil(text) for text in references], references


def test_words_and_the_marks_between_them():
    words = split_words('"Well," he said ... it\'s (very) 3.50; ok ?!')
    assert words.keys == ["well", "he", "said", "its", "very", "3.50", "ok"]
    assert words.letters == ["Well", "he", "said", "its", "very", "3.50", "ok"]
    assert words.written == ['"Well,"', "he", "said ...", "it's", "(very)", "3.50;", "ok ?!"]
    assert words.apostrophes == [0, 0, 0, 1, 0, 0, 0]
    period, comma, question, exclamation, colon, quotation = (1 << bit for bit in range(6))
    assert words.gaps == [quotation, comma | quotation, 0, period, 0, 0, colon, question | exclamation]


def test_scores_of_four_rows_counted_by_hand():
    scores = score_restoration(SOURCES, PREDICTIONS, REFERENCES)
    expected = {
        # Periods: two of two right, and one where a question mark belongs.
        "num_period": 2,
        "period_precision": 100 * 2 / 3,
        "period_recall": 100,
        "period_f1": 80,
        "comma_f1": 100,
        "apostrophe_f1": 100,
        "question_mark_recall": 0,
        "question_mark_precision": None,
        # Right: two periods, a comma, an apostrophe. Wrong: a period. Missing: "?" and "!".
        "punctuation_precision": 100 * 4 / 5,
        "punctuation_recall": 100 * 4 / 6,
        "punctuation_f1": 100 * 8 / 11,
        # Of the 18 words 3.50 is not 350 and has no letters, and john is in the wrong case.
        "capital_accuracy": 100 * 16 / 17,
        "capital_precision": 100,
        "capital_recall": 100 * 4 / 5,
        # station., john, 350 and now against station?, John, 3.50 and now!.
        "word_error_rate": 100 * 4 / 18,
        "plain_word_error_rate": 100 * 1 / 18,
        # Where the station? | I don't know, John said. | The (twice) euros. | See now!
        "num_corrupted": 12,
        "correction_recall": 100 * 9 / 12,
        # Two more were changed: to "station." and "350", of which the last had been right.
        "correction_precision": 100 * 9 / 11,
        "correction_f05": 100 * 1.25 * 9 / (0.25 * 12 + 11),
        "harmed": 100 * 1 / 6,
        "source_plain_word_error_rate": 100 * 2 / 18,
        "plain_word_error_reduction": 50,
        "num_corrupted_spelling": 2,
        "spelling_recall": 100,
        "spelling_harmed": 100 * 1 / 16,
        "spelling_precision": 100 * 2 / 3,
        "spelling_f05": 100 * 1.25 * 2 / (0.25 * 2 + 3),
        "exact_match": 0,
        "num_number": 1,
        "number_kept": 0,
        "number_harmed": 100,
        "link_kept": 100,
        "link_harmed": 0,
        "protected_kept": 50,
        "protected_harmed": 50,
        "email_kept": None,
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    json.dumps(scores, allow_nan=False)


def test_clean_text_is_perfect_and_doing_nothing_corrects_and_harms_nothing():
    sources, _, references = random_rows(60)
    perfect, idle = (score_restoration(sources, texts, references) for texts in (references, sources))
    for name, value in perfect.items():
        if name.startswith(("num_", "source_")) or value is None:
            continue
        assert value == (0 if name.endswith(("_rate", "harmed")) else 100), name
    assert idle["correction_recall"] == idle["harmed"] == idle["spelling_recall"] == idle["spelling_harmed"] == 0
    assert idle["correction_precision"] is None
    for level in ("word", "character", "plain_word"):
        assert idle[f"{level}_error_reduction"] == 0 < idle[f"{level}_error_rate"]
        assert idle[f"{level}_error_rate"] == idle[f"source_{level}_error_rate"]


def test_counts_add_up_on_random_rows():
    for texts in zip(*random_rows(300)):
        counts, clean = count_row(*texts), split_words(texts[2])
        for level in ("correction", "spelling"):
            assert counts[f"{level}_corrupted"] + counts[f"{level}_intact"] == len(clean.keys)
            # What is right now was right before or was corrected; what was changed is one of three.
            assert counts[f"{level}_right"] + counts[f"{level}_harmed"] <= counts[f"{level}_changed"]
        assert sum(counts[f"{name}_true"] + counts[f"{name}_missing"] for name in MARK_NAMES) == sum(
            mask.bit_count() for mask in _folded(clean, texts[1])
        ) + sum(clean.apostrophes)


def _folded(clean, text):
    """Marks of the reference between two words that both have, found by pairing again."""
    ends = [i for i, _ in align_words(clean.keys, split_words(text).keys)] + [len(clean.keys)]
    start = 0
    for end in ends:
        yield int(np.bitwise_or.reduce(clean.gaps[start : end + 1]))
        start = end + 1


def test_error_rates_are_sums_over_rows():
    sources, predictions, references = random_rows(80)
    scores = score_restoration(sources, predictions, references)
    words = sum(edit_distance(p.split(), r.split()) for p, r in zip(predictions, references))
    characters = sum(Levenshtein.distance(s, r) for s, r in zip(sources, references))
    assert scores["word_error_rate"] == pytest.approx(100 * words / sum(len(r.split()) for r in references))
    assert scores["source_character_error_rate"] == pytest.approx(100 * characters / sum(map(len, references)))


def test_neither_the_order_of_rows_nor_white_space_nor_their_number_matters():
    texts = random_rows(30)
    plain = score_restoration(*texts)
    assert score_restoration(*[rows[::-1] for rows in texts]) == plain
    assert score_restoration(*[[f"  {row} ".replace(" ", "\n ") for row in rows] for rows in texts]) == plain
    twice = score_restoration(*[rows * 2 for rows in texts])
    assert {n: v for n, v in twice.items() if n[:4] != "num_"} == {n: v for n, v in plain.items() if n[:4] != "num_"}


def test_every_word_of_a_text_is_in_exactly_one_form():
    assert word_forms(["uh", "the", "the", "cat", "now"], [(0, 1), (2, 3)], 3) == [
        ("uh", "the", "the"),
        (),
        ("cat", "now"),
    ]
    assert word_forms(["a", "b"], [], 2) == [("a", "b"), ()]
    assert word_forms([], [], 2) == [(), ()]
    assert word_forms(["a"], [], 0) == []


def test_marks_beside_a_missing_word_are_not_counted_twice():
    counts = count_row("", "I like it very.", "I like it very much.")
    assert (counts["period_true"], counts["period_false"], counts["period_missing"]) == (1, 0, 0)
    counts = count_row("", "Wait... what?!", "Wait. What?")
    assert (counts["period_true"], counts["question_mark_true"], counts["exclamation_mark_false"]) == (1, 1, 1)


def test_empty_texts_count_as_what_they_lack():
    nothing = score_restoration(["", " "], ["", ""], ["", "\n"])
    assert nothing["exact_match"] == 100
    assert nothing["word_error_rate"] is None
    lost = score_restoration(["go home"], [""], ["Go home."])
    assert (lost["word_error_rate"], lost["period_recall"], lost["correction_recall"]) == (100, 0, 0)
    invented = score_restoration([""], ["Hello."], [""])
    assert (invented["word_error_rate"], invented["period_precision"], invented["num_words"]) == (None, 0, 0)


def test_intervals_hold_the_score_and_shrink_with_rows():
    few, many = (score_restoration(*random_rows(number), num_bootstrap=300) for number in (60, 960))
    for name in ("punctuation_f1", "capital_accuracy", "word_error_rate", "word_error_reduction", "correction_recall"):
        for scores in (few, many):
            low, high = scores[f"{name}_interval"]
            assert low < scores[name] < high
        width = [high - low for low, high in (few[f"{name}_interval"], many[f"{name}_interval"])]
        assert 0 < width[1] < 0.5 * width[0]
    assert few == score_restoration(*random_rows(60), num_bootstrap=300)
    assert few["email_kept_interval"] is None


def test_differences_are_paired():
    sources, predictions, references = random_rows(100)
    same = compare_restorations(sources, predictions, predictions, references, num_bootstrap=50)
    assert all(value in (0, None, [0, 0]) for value in same.values())
    better = compare_restorations(sources, references, predictions, references, num_bootstrap=200)
    scores = score_restoration(sources, predictions, references)
    assert better["word_error_rate"] == pytest.approx(-scores["word_error_rate"])
    assert better["word_error_rate_interval"][1] < 0 < better["punctuation_f1_interval"][0]


def test_what_cannot_be_scored_is_an_error():
    with pytest.raises(ValueError, match="0 sources, 0 predictions, 0 references: need as many"):
        score_restoration([], [], [])
    with pytest.raises(ValueError, match="1 sources, 2 predictions, 1 references"):
        score_restoration(["a"], ["a", "b"], ["a"])
    with pytest.raises(ValueError, match=r"predictions\[0\]=None is of type NoneType"):
        score_restoration(["a"], [None], ["a"])
    with pytest.raises(ValueError, match="num_bootstrap=-1 must be at least 0"):
        score_restoration(["a"], ["a"], ["a"], num_bootstrap=-1)
