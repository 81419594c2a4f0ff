"""Long texts cut into pieces that a model reads at once. Pure functions on strings and numbers."""

import bisect
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

# What parts words of a text: nothing between them, the end of a sentence, the end of a paragraph.
NOTHING, SENTENCE, PARAGRAPH = range(3)
SENTENCE_END = re.compile(r"[.?!…。？！][\"'”’»)\]]*$")
LIST_MARK = re.compile(r"(?:[-*+•–—>|]|#+|\(?(?:\d{1,3}|[A-Za-z])[.)])$")
LINE_BREAK = re.compile(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")
FENCED = re.compile(r"^[ \t]*(```|~~~)[^\n]*\n.*?(?:^[ \t]*\1[^\n]*$|\Z)", re.DOTALL | re.MULTILINE)
WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class Window:
    """Words from `start` to below `end`, which a model reads together."""

    start: int
    end: int


def word_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each word: characters between white space."""
    return [match.span() for match in WORD.finditer(text)]


def fenced_spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each block of code between lines of ``` or ~~~."""
    return [match.span() for match in FENCED.finditer(text)]


def list_marks(text: str, spans: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether each word is the mark of a list, a heading or a quotation: first in its line, or behind another mark."""
    found, mark = [], True
    for index, (start, end) in enumerate(spans):
        first = index == 0 or LINE_BREAK.search(text, spans[index - 1][1], start) is not None
        mark = (first or mark) and LIST_MARK.match(text, start, end) is not None
        found.append(mark)
    return found


def breaks_before(text: str, spans: Sequence[tuple[int, int]], *, split_lines: bool = False) -> list[int]:
    """
    What stands before each word: NOTHING, SENTENCE or PARAGRAPH.

    A paragraph ends at a blank line; and at a line break behind the end of a sentence or a colon, or before an
    indented line or a list's mark. Other line breaks are those of wrapped text.

    Args:
        spans: of `word_spans`.
        split_lines: every line is a paragraph: a chat, subtitles, verse.
    """
    found = [PARAGRAPH] * min(len(spans), 1)
    for (start, end), (begin, stop) in itertools.pairwise(spans):
        before, gap, after = text[start:end], text[end:begin], text[begin:stop]
        lines, ends = len(LINE_BREAK.findall(gap)), SENTENCE_END.search(before) is not None
        apart = lines > 1 or (lines and (split_lines or ends or before.endswith(":") or gap[-1] in " \t"))
        if apart or (lines and LIST_MARK.match(after)):
            found.append(PARAGRAPH)
        else:
            found.append(SENTENCE if ends else NOTHING)
    return found


def cut_windows(
    sizes: Sequence[int | None], breaks: Sequence[int], *, longest: int, overlap: int
) -> list[list[Window]]:
    """
    Windows over words of a text, as few as there can be.

    A paragraph that fits is one window. A longer one is cut behind the last sentence that fits, unless that wastes more
    than half of the window; otherwise between two words, and the next window begins before the cut.

    Args:
        sizes: tokens of each word; None for a word that no window may hold.
        breaks: what stands before each word, of `breaks_before`.
        longest: most tokens of a window.
        overlap: most tokens that two windows share.

    Returns:
        Windows of each paragraph, from left to right; each begins and ends behind the one before it, and together they
        hold every word that has a size of `longest` at most.
    """
    fits = [size is not None and size <= longest for size in sizes]
    runs, start = [], 0
    for end in range(1, len(sizes) + 1):
        if end == len(sizes) or breaks[end] == PARAGRAPH or not fits[end] or not fits[end - 1]:
            if fits[start]:
                runs.append((start, end))
            start = end
    totals = list(itertools.accumulate((size or 0 for size in sizes), initial=0))
    sentences = [index for index, strength in enumerate(breaks) if strength]
    return [_cut_run(*run, totals, sentences, longest, overlap) for run in runs]


def _cut_run(
    start: int, stop: int, totals: list[int], sentences: list[int], longest: int, overlap: int
) -> list[Window]:
    """Windows over words from `start` to below `stop`; `totals` are tokens before each word."""
    windows: list[Window] = []
    # Where the last window may begin at the earliest.
    earliest = start
    while True:
        end = bisect.bisect_right(totals, totals[start] + longest, start + 1, stop + 1) - 1
        if end == stop:
            first = bisect.bisect_left(totals, totals[stop] - longest, earliest, start + 1)
            return [*windows, Window(min(first, start), stop)]
        sentence = sentences[bisect.bisect_right(sentences, end) - 1]
        if totals[sentence] - totals[start] > longest / 2:
            windows.append(Window(start, sentence))
            start = earliest = sentence
            continue
        windows.append(Window(start, end))
        earliest = start + 1
        # Shared words leave room for one more at least.
        behind = max(totals[end] - overlap, totals[end + 1] - longest)
        start = max(bisect.bisect_left(totals, behind, start, end), start + 1)


__all__ = ["Window", "breaks_before", "cut_windows", "fenced_spans", "list_marks", "word_spans"]
