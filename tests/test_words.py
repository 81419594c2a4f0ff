import itertools
import random

import pytest

from modeling_yan.words_yan import align_words, edit_distance, protected_strings, word_key


def every_alignment(rows: int, columns: int):
    """All ways to pair indices below `rows` with indices below `columns`, rising in both."""
    for size in range(min(rows, columns) + 1):
        for left in itertools.combinations(range(rows), size):
            for right in itertools.combinations(range(columns), size):
                yield list(zip(left, right))


def cost(a, b, pairs) -> tuple[int, int]:
    """Edits, and letters that only one word of a substituted pair has."""
    changed = [(a[i], b[j]) for i, j in pairs if a[i] != b[j]]
    edits = len(a) + len(b) - 2 * len(pairs) + len(changed)
    return edits, sum(len(set(word) ^ set(other)) for word, other in changed)


def test_no_alignment_is_better_than_the_one_that_is_returned():
    choose = random.Random(0)
    for _ in range(400):
        a, b = (choose.choices(["a", "ab", "abc", "the", "teh"], k=choose.randrange(5)) for _ in range(2))
        pairs = align_words(a, b)
        assert all(i < k and j < m for (i, j), (k, m) in itertools.pairwise(pairs))
        assert cost(a, b, pairs) == min(cost(a, b, other) for other in every_alignment(len(a), len(b))), (a, b)
        assert edit_distance(a, b) == cost(a, b, pairs)[0]


def test_long_texts_are_aligned_as_well_as_any():
    choose = random.Random(0)
    for number in (12, 30, 80):
        words = choose.choices(["a", "ab", "abc", "the", "teh", "cat"], k=number)
        for rate in (0.02, 0.2, 0.8):
            other = [
                w
                for word in words
                for w in choose.choice([[], [word, "x"], ["y"]] if choose.random() < rate else [[word]])
            ]
            pairs = align_words(words, other)
            assert cost(words, other, pairs)[0] == edit_distance(words, other)
            assert cost(words, other, pairs) == cost(other, words, align_words(other, words))


def test_letters_decide_and_then_the_earliest_place():
    assert align_words(["see", "the", "cat"], ["teh", "cat"]) == [(1, 0), (2, 1)]
    assert align_words(["notes"], ["can", "note"]) == [(0, 1)]
    assert align_words(["cannot"], ["can", "not"]) == [(0, 0)]
    assert align_words(["the", "the"], ["the"]) == [(0, 0)]
    assert align_words([], ["the"]) == align_words(["the"], []) == []


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("the", "teh", 2), ("ab", "ab", 0)],
)
def test_edit_distances_that_are_known(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


@pytest.mark.parametrize(
    ("word", "key"),
    [("The", "the"), ("“Don’t!”", "dont"), ("(U.S.),", "u.s"), ("Straße", "strasse"), ("...", "..."), ("C++", "c++")],
)
def test_words_are_recognised_without_case_and_punctuation(word, key):
    assert word_key(word) == key


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("mail a.b-c@mail.example.co.uk.", [("a.b-c@mail.example.co.uk", "email")]),
        ("see https://x.org/a?b=1, or www.foo.de!", [("https://x.org/a?b=1", "link"), ("www.foo.de", "link")]),
        ("on example.com. Then", [("example.com", "link")]),
        ("-5, 3.50, 10:30, 1990-1995", [(n, "number") for n in ("-5", "3.50", "10:30", "1990-1995")]),
        ("covid-19 and the 3rd b2b", [(n, "number") for n in ("19", "3", "2")]),
        ("`a b` <b>x</b> 0xFF", [(c, "code") for c in ("`a b`", "<b>", "</b>", "0xFF")]),
        ("foo_bar getName run() src/main.py", [(c, "code") for c in ("foo_bar", "getName", "run()", "src/main.py")]),
        (
            "/usr/bin --flag @user #tag C++ a->b",
            [(c, "code") for c in ["/usr/bin", "--flag", "@user", "#tag", "C++", "->"]],
        ),
        ("and/or well-known it's hELLO iPhone thIs U.S. a - b", []),
        ("the end.Then it", []),
    ],
)
def test_what_must_not_change_is_found(text, found):
    spans = protected_strings(text)
    assert [(text[start:end], kind) for start, end, kind in spans] == found


@pytest.mark.parametrize("part", ["a", "a.", "a_", "`", "<a", "/a", "1.", "http://", "a@", "www.", "A:\\", "a.b/", "é"])
def test_no_text_takes_long(part):
    # Quadratic time would take minutes here, and run into the limit of every test.
    spans = protected_strings(part * (300_000 // len(part)))
    assert all(end <= start for (_, end, _), (start, _, _) in itertools.pairwise(spans))
