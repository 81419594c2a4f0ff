"""Words of a text and of its corrected form: which belong together, how far they differ, and what must not change."""

import re
from collections.abc import Hashable, Sequence

# What may stand around a word and is no part of it.
EDGES = ".,?!:;\"'`()[]{}<>«»“”„‟‘’‚‹›…-–—*_~¿¡、。，？！：；「」『』（）"
APOSTROPHES = str.maketrans("", "", "'’ʼ")
# A substitution of words costs as much as an insertion or a deletion; letters decide among equal numbers of them.
ONE_WORD = 2**20

_DOMAINS = "com|org|net|edu|gov|info|io|dev|ai|eu|uk|de|fr|es|it|nl|ch|at|us|ca|au|jp|cn|in|ru|br"
_FILES = (
    "py|ipynb|js|ts|c|h|cc|cpp|hpp|cs|go|rs|rb|java|sh|json|ya?ml|toml|ini|cfg|csv|tsv|txt|md|html?|css|xml|sql|exe"
)
# Tried in this order; every alternative begins where the one before cannot have, so that no text takes long.
PROTECTED = re.compile(
    "|".join(
        [
            r"""(?P<link>(?i:(?:https?|ftp)://|(?<![\w.])www\.)[^\s<>"]*[^\s<>".,;:!?')\]}])""",
            r"(?P<email>(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+)",
            rf"(?P<domain>(?<![\w@./-])(?:[a-z0-9-]+\.)+(?:{_DOMAINS})(?![\w-])(?:/[^\s<>\"]*[\w/])?)",
            r"(?P<code>`[^`\n]+`|</?[A-Za-z][^<>\n]*>|0[xX][0-9a-fA-F]+"
            r"|(?<![\w.:])[A-Za-z_][\w.:]*\(\)"
            r"|(?<!\w)\w*[^\W_]_+[^\W_]\w*"
            r"|(?<!\w)[a-z]{2,}(?:[A-Z][a-z]{2,})+(?!\w)"
            rf"|(?<![\w./-])[\w./-]+\.(?:{_FILES})(?!\w)"
            r"|(?<![\w/.~])~?/[\w.-]*[\w-](?:/[\w.-]*[\w-])*|(?<!\w)[A-Za-z]:\\[^\s<>\"]+"
            r"|(?<!\S)--[A-Za-z][\w-]*|(?<!\w)[@#$][A-Za-z_]\w*|(?<!\w)[A-Za-z](?:\+\+|#)(?!\w)"
            r"|::|->|=>|==|!=|<=|>=|:=|&&|\|\|)",
            r"(?P<number>(?:(?<![\w-])[-+])?\d+(?:[.,:/-]\d+)*)",
        ]
    )
)
KINDS = {"link": "link", "domain": "link", "email": "email", "code": "code", "number": "number"}


def protected_strings(text: str) -> list[tuple[int, int, str]]:
    """
    What a corrected text must hold as it was.

    Returns:
        (start, end, kind) of each, from left to right, none over another; kinds are "link" (with a scheme, "www." or a
        frequent top-level domain), "email", "code" (quoted by backticks, a tag, a call, snake_case, camelCase, a path,
        a file name, a flag, a handle, an operator of two signs) and "number" (digits with separators between them).
    """
    return [(match.start(), match.end(), KINDS[match.lastgroup]) for match in PROTECTED.finditer(text)]


def word_key(word: str) -> str:
    """
    What a word is recognised by: its letters and digits, case folded, without the punctuation around it and without
    apostrophes. The word itself where nothing else is left.
    """
    return word.strip(EDGES).translate(APOSTROPHES).casefold() or word


def edit_distance(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Levenshtein's distance: fewest insertions, deletions and substitutions that make `a` into `b`."""
    start, end = _common(a, b)
    a, b = a[start : len(a) - end], b[start : len(b) - end]
    if not a or not b:
        return len(a) + len(b)
    before = list(range(len(b) + 1))
    for row, item in enumerate(a, 1):
        now = [row]
        for column, other in enumerate(b):
            now.append(min(before[column] + (item != other), before[column + 1] + 1, now[column] + 1))
        before = now
    return before[-1]


def align_words(a: Sequence[str], b: Sequence[str]) -> list[tuple[int, int]]:
    """
    Which words belong together, by an alignment of the fewest insertions, deletions and substitutions. Among such the
    one whose substituted pairs have the fewest letters that only one of the two has; of those left, pairs as early as
    possible, after equal words at both ends.

    Args:
        a, b: words as they are compared, see `word_key`.

    Returns:
        Pairs of indices, rising in both; a word in no pair was inserted or deleted.
    """
    start, end = _common(a, b)
    inner_a, inner_b = a[start : len(a) - end], b[start : len(b) - end]
    pairs = [(i, i) for i in range(start)]
    pairs += [(start + i, start + j) for i, j in _align(inner_a, inner_b)]
    return pairs + [(len(a) - i, len(b) - i) for i in range(end, 0, -1)]


def _common(a: Sequence, b: Sequence) -> tuple[int, int]:
    """How many items are equal at the beginning, and at the end of what is left."""
    start, most = 0, min(len(a), len(b))
    while start < most and a[start] == b[start]:
        start += 1
    end = 0
    while end < most - start and a[-1 - end] == b[-1 - end]:
        end += 1
    return start, end


def _align(a: Sequence[str], b: Sequence[str]) -> list[tuple[int, int]]:
    if not a or not b:
        return []
    edits, longer = abs(len(a) - len(b)) + 4, len(b) - len(a)
    while True:
        # An alignment of so many edits strays no further from the diagonal (Ukkonen 1985).
        costs = _costs(a, b, (longer - edits) // 2, (longer + edits + 1) // 2)
        if costs[0][0] < ONE_WORD * (edits + 1):
            return _cheapest(a, b, costs)
        edits *= 2


def _costs(a: Sequence[str], b: Sequence[str], lowest: int, highest: int) -> list[list[int]]:
    """What it costs to align the rest from `a[i]` and `b[j]` on, by i and j; only for j - i from lowest to highest."""
    out_of_reach = ONE_WORD * (len(a) + len(b) + 1)
    letters_a, letters_b = [frozenset(word) for word in a], [frozenset(word) for word in b]
    length = len(b)
    rows = [[ONE_WORD * (length - j) for j in range(length + 1)]]
    for i in range(len(a) - 1, -1, -1):
        below, row = rows[-1], [out_of_reach] * (length + 1)
        word, letters, last = a[i], letters_a[i], min(i + highest, length)
        if last == length:
            row[length] = ONE_WORD * (len(a) - i)
        for j in range(min(last, length - 1), max(i + lowest, 0) - 1, -1):
            pair = below[j + 1] if word == b[j] else below[j + 1] + ONE_WORD + len(letters ^ letters_b[j])
            single = (below[j] if below[j] < row[j + 1] else row[j + 1]) + ONE_WORD
            row[j] = pair if pair < single else single
        rows.append(row)
    return rows[::-1]


def _cheapest(a: Sequence[str], b: Sequence[str], costs: list[list[int]]) -> list[tuple[int, int]]:
    pairs, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        left = costs[i][j]
        pair = 0 if a[i] == b[j] else ONE_WORD + len(set(a[i]) ^ set(b[j]))
        if left == costs[i + 1][j + 1] + pair:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif left == costs[i + 1][j] + ONE_WORD:
            i += 1
        else:
            j += 1
    return pairs


__all__ = ["align_words", "edit_distance", "protected_strings", "word_key"]
