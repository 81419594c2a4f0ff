"""
What differs between a text that was read and its corrected form, which of it may change, and how windows over one text
are joined. Pure functions on words.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .text_windows_yan import Window
from .words_yan import EDGES, align_words, edit_distance, protected_strings, word_key

# Signs that a model for Latin letters does not write: other scripts, emoji, control characters.
OTHER_SIGNS = re.compile(r"[^\u0020-\u007e\u00a0-\u024f\u2010-\u2027\u2030-\u205e\u20a0-\u20bf\u2122]")
# Signs that printed text has and keyboards have not, and what stands for them in what models learn from.
PLAIN_SIGNS = str.maketrans(
    {**dict.fromkeys("’‘ʼ", "'"), **dict.fromkeys("“”„", '"'), **dict.fromkeys("–—−", "-"), "…": "..."}
)
SIGN = re.compile(r"\.\.\.|[-'\"’‘ʼ“”„–—−…]")
# Marks that a change may bring to a word whose letters it may not change.
SENTENCE_MARKS = frozenset(".,?!:;'\"")
# Those of them that end a sentence.
ENDS = tuple(".?!")
# What bytes are decoded to that are no character.
BROKEN = "\ufffd"


@dataclass(frozen=True)
class Limits:
    """What a piece and an edit must keep; see `restore`. `is_word` is asked of words without case and marks."""

    max_edit: float | None
    max_word_edit: float | None
    min_confidence: float | None
    min_spelling_confidence: float | None
    min_comma_confidence: float | None
    keep: re.Pattern | None
    is_word: Callable[[str], bool] | None = None


@dataclass(frozen=True)
class Change:
    """Words from `start` to below `end` of what was read, and the words that take their place."""

    start: int
    end: int
    replacement: str
    confidence: float | None = None


@dataclass(frozen=True)
class Answer:
    """Changes to a piece by the index of its words, with the fields of `Piece`."""

    changes: list[Change]
    confidence: float | None = None
    kept: str | None = None


def letters_of(text: str) -> str:
    """Letters and digits of a text, case folded: what restoring capitals, marks and spaces leaves alone."""
    return "".join(filter(str.isalnum, text.casefold()))


def plain_signs(text: str) -> str:
    """The text with the quotation marks, apostrophes, dashes and dots of a keyboard."""
    return text.translate(PLAIN_SIGNS)


def with_signs_of(source: str, replacement: str) -> str:
    """The replacement with the source's own quotation marks, apostrophes, dashes and dots, where both have the same."""
    own, new = SIGN.findall(source), SIGN.findall(replacement)
    if [plain_signs(sign) for sign in own] != [plain_signs(sign) for sign in new]:
        return replacement
    signs = iter(own)
    return SIGN.sub(lambda match: next(signs), replacement)


def compare_words(before: Sequence[str], after: Sequence[str]) -> list[tuple[int, int, int, int]]:
    """
    Where two texts differ: words `before[start:end]` became `after[first:last]`, as (start, end, first, last), from
    left to right, with at least one word on both sides.

    Words that are aligned one to one differ each on its own. Where some are not, all between two words that both texts
    have differ together, and with the word before them where one side has none.
    """
    keys, other_keys = ([word_key(word) for word in words] for words in (before, after))
    spans: list[tuple[int, int, int, int]] = []
    start = first = 0
    for i, j in [*align_words(keys, other_keys), (len(keys), len(other_keys))]:
        spans += [(start, i, first, j), (i, i + 1, j, j + 1)]
        start, first = i + 1, j + 1
    # The last pair is none, and most pairs have nothing between them.
    spans = [span for span in spans[:-1] if span[:3:2] != span[1::2]]
    groups: list[tuple[int, int, int, int]] = []
    for same, run in itertools.groupby(spans, lambda x: keys[x[0] : x[1]] == other_keys[x[2] : x[3]]):
        parts = list(run)
        one_to_one = all(end - start == last - first == 1 for start, end, first, last in parts)
        for part in parts if same or one_to_one else [_hull(parts[0], parts[-1])]:
            if groups and (_has_an_empty_side(part) or _has_an_empty_side(groups[-1])):
                groups[-1] = _hull(groups[-1], part)
            else:
                groups.append(part)
    return [x for x in groups if not _has_an_empty_side(x) and before[x[0] : x[1]] != after[x[2] : x[3]]]


def _hull(left: tuple[int, int, int, int], right: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    return left[0], right[1], left[2], right[3]


def _has_an_empty_side(span: tuple[int, int, int, int]) -> bool:
    return span[0] == span[1] or span[2] == span[3]


def safe_changes(words: Sequence[str], meant: Sequence[str], changes: Sequence[Change], limits: Limits) -> list[Change]:
    """
    Those of the changes to these words that alter nothing that must stay, and are within the limits. Of a change whose
    letters are not, capitals and marks are made, with the letters of what was `meant` by each word. What stands behind
    a sentence's new end begins with a capital.
    """
    no_spelling = replace(limits, min_spelling_confidence=None)
    source, starts = " ".join(words), [0]
    for word in words:
        starts.append(starts[-1] + len(word) + 1)
    protected = {(start, end) for start, end, _ in protected_strings(source)}
    kept = []
    for change in itertools.chain.from_iterable(_word_by_word(meant, change) for change in changes):
        start, end = starts[change.start], starts[change.end] - 1
        change = _without_unsure_commas(source[start:end], change, limits.min_comma_confidence)
        touched = [(max(a, start), min(b, end)) for a, b in protected if a < end and b > start]
        old = sorted(source[a:b] for a, b in touched)
        attempts = [(change, limits)]
        if not touched:
            attempts.append((without_new_letters(meant[change.start : change.end], change), no_spelling))
        for attempt, own_limits in attempts:
            new = sorted(attempt.replacement[a:b] for a, b, _ in protected_strings(attempt.replacement))
            # A string that goes on in the words around a change cannot be compared.
            if protected.issuperset(touched) and old == new and _within(source[start:end], attempt, own_limits):
                kept.append(attempt)
                break
    return with_capitals_behind_ends(words, kept, limits.keep)


def _without_unsure_commas(source: str, change: Change, least: float | None) -> Change:
    """A change without the commas that it adds, where it is less probable than `least`."""
    if least is None or change.confidence is None or change.confidence >= least or "," in source:
        return change
    return replace(change, replacement=change.replacement.replace(",", ""))


def with_capitals_behind_ends(
    words: Sequence[str], changes: Sequence[Change], keep: re.Pattern | None = None
) -> list[Change]:
    """
    Changes to these words, from left to right, and a capital for the word behind each sentence that they end, where it
    is one of small letters and `keep` holds none of them. A capital that is added is as sure as the end before it.
    """
    by_start = {change.start: change for change in changes}
    for change in changes:
        behind = by_start.get(change.end)
        if change.end == len(words) or words[change.end - 1].endswith(ENDS) or not change.replacement.endswith(ENDS):
            continue
        text = words[change.end] if behind is None else behind.replacement
        first = text.split()[0]
        core = first.strip(EDGES)
        capital = core[:1].upper() + core[1:]
        small = core.islower() and word_key(core).isalpha() and not protected_strings(first)
        if small and _keeps(keep, core, capital):
            text = text.replace(core, capital, 1)
            by_start[change.end] = (
                Change(change.end, change.end + 1, text, change.confidence)
                if behind is None
                else replace(behind, replacement=text)
            )
    return [by_start[start] for start in sorted(by_start)]


def _word_by_word(meant: Sequence[str], change: Change) -> list[Change]:
    """A change that has as many words as were meant, of each word on its own where one of them was meant as two."""
    sizes, words = [len(word.split()) for word in meant[change.start : change.end]], change.replacement.split()
    if len(sizes) == 1 or max(sizes) == 1 or sum(sizes) != len(words):
        return [change]
    ends = list(itertools.accumulate(sizes))
    return [
        replace(change, start=start, end=start + 1, replacement=" ".join(words[end - size : end]))
        for start, size, end in zip(range(change.start, change.end), sizes, ends, strict=True)
    ]


def without_new_letters(meant: Sequence[str], change: Change) -> Change:
    """The words that were meant, with the capitals and marks of a change where it neither joins nor parts words."""
    replacements = change.replacement.split()
    if len(meant) != len(replacements):
        return replace(change, replacement=" ".join(meant))
    return replace(change, replacement=" ".join(map(_with_letters_of, meant, replacements)))


def _with_letters_of(word: str, replacement: str) -> str:
    core, new = word.strip(EDGES), replacement.strip(EDGES)
    if not core or not new:
        return word
    before, _, after = replacement.partition(new)
    if not SENTENCE_MARKS.issuperset(before + after + word.replace(core, "", 1)):
        return word
    return before + (core[0].upper() + core[1:] if new[0].isupper() else core) + after


def _keeps(keep: re.Pattern | None, source: str, replacement: str) -> bool:
    """Whether both hold the same strings of `keep`."""
    before, after = (sorted(match[0] for match in keep.finditer(x)) if keep else [] for x in (source, replacement))
    return before == after


def _within(source: str, change: Change, limits: Limits) -> bool:
    if change.replacement == source:
        return False
    if limits.min_confidence is not None and (change.confidence or 0.0) < limits.min_confidence:
        return False
    if change.replacement.count(BROKEN) > source.count(BROKEN):
        return False
    if not _keeps(limits.keep, source, change.replacement):
        return False
    letters = [letters_of(x) for x in (source, change.replacement)]
    if not letters[0]:
        # A dash or a list's mark between words.
        return False
    if letters[0] == letters[1]:
        return True
    least = limits.min_spelling_confidence
    if least is not None and change.confidence is not None and change.confidence < least:
        return False
    if limits.is_word is not None:
        words = change.replacement.split()
        # Letters that change where words part or join are others by accident.
        if len(words) != len(source.split()) or not all(map(limits.is_word, map(word_key, words))):
            return False
    return limits.max_word_edit is None or edit_distance(*letters) <= limits.max_word_edit * max(map(len, letters))


def without_lone_quotes(words: Sequence[str], changes: Sequence[Change]) -> list[Change]:
    """
    Changes to these words that add quotation marks in pairs, with those that stand there, or not at all: where all
    changes together would leave one without its pair, none is added.
    """
    sources = [" ".join(words[change.start : change.end]) for change in changes]
    added = [x.replacement.count('"') - source.count('"') for x, source in zip(changes, sources, strict=True)]
    if sum(added) % 2 == 0 or " ".join(words).count('"') % 2:
        return list(changes)
    kept = []
    for change, source, more in zip(changes, sources, added, strict=True):
        plain = change.replacement.replace('"', "") if more > 0 and '"' not in source else change.replacement
        if plain.split() != source.split():
            kept.append(replace(change, replacement=plain))
    return kept


def join_windows(windows: Sequence[Window], answers: Sequence[Answer]) -> list[tuple[int, int]]:
    """
    Which words each window decides, as (start, end): a partition of all. Where two windows overlap, they part between
    two words that both have the same changes for, and of such places at the one nearest to the middle; in the middle
    where there is none.
    """
    parts, start = [], windows[0].start
    for index in range(1, len(windows)):
        (left, right), both = windows[index - 1 : index + 1], answers[index - 1 : index + 1]
        lowest, middle = max(right.start, start + 1), (right.start + left.end) / 2
        places = sorted(range(lowest, left.end + 1), key=lambda place: abs(place - middle))
        agreed = (place for place in places if _agree(place, (left, right), both))
        end = next(agreed, places[0])
        parts.append((start, end))
        start = end
    return [*parts, (start, windows[-1].end)]


def _agree(place: int, windows: Sequence[Window], answers: Sequence[Answer]) -> bool:
    """Whether both windows have the same changes for the words before and behind this place, and none across it."""
    if not windows[1].start < place < windows[0].end:
        return False
    seen = []
    for window, answer in zip(windows, answers, strict=True):
        shifted = [(window.start + x.start, window.start + x.end, x.replacement) for x in answer.changes]
        seen.append([x for x in shifted if x[0] <= place and x[1] >= place])
    return seen[0] == seen[1] and all(place in (start, end) for start, end, _ in seen[0])


__all__ = [
    "OTHER_SIGNS",
    "Answer",
    "Change",
    "Limits",
    "compare_words",
    "join_windows",
    "letters_of",
    "plain_signs",
    "safe_changes",
    "with_capitals_behind_ends",
    "with_signs_of",
    "without_lone_quotes",
    "without_new_letters",
]
