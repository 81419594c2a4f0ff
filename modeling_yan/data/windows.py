"""Documents -> short clean texts of whole sentences, split by document."""

import random
import re
import unicodedata
from collections.abc import Iterable, Iterator

# A sentence ends behind these, and its next begins with a capital, a number or a quotation mark.
SENTENCE_END = re.compile(r"(?<=[.!?])([\"')\]]*)\s+(?=[\"'(\[]?[A-Z0-9])")
NO_END = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Prof|Gen|Col|Capt|Sgt|Rev|Jr|Sr|vs|etc|No|Fig|e\.g|i\.e|cf|al)|\b[A-Z])\.$"
)
PLAIN = {"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "…": "...", "–": "-", "—": " - ", "−": "-", "\u2060": ""}
# Marks that a clean text ends with.
FINAL = re.compile(r"[.!?][\"')\]]*$")


def plain_text(text: str) -> str:
    """Typewriter's quotation marks and dashes, and one space for every run of white space."""
    text = unicodedata.normalize("NFC", text).translate(str.maketrans(PLAIN))
    return " ".join(text.split())


def sentences(text: str) -> list[str]:
    """The sentences of a text; a period behind a title or an initial ends none."""
    found, start = [], 0
    for match in SENTENCE_END.finditer(text):
        sentence = text[start : match.end(1)]
        if NO_END.search(sentence):
            continue
        found.append(sentence.strip())
        start = match.end()
    return [*found, text[start:].strip()]


def is_clean(text: str, fewest_words: int, most_words: int) -> bool:
    """Whether a text is prose of so many words, begins and ends as one and has small letters and capitals."""
    letters = [letter for letter in text if letter.isalpha()]
    return (
        fewest_words <= len(text.split()) <= most_words
        and FINAL.search(text) is not None
        and (text[0].isupper() or text[0] in "\"'(0123456789")
        and bool(letters)
        and sum(letter.isascii() for letter in text) > 0.97 * len(text)
        and sum(letter.islower() for letter in letters) > 0.7 * len(letters)
        and not re.search(r"\s[.,?!;:]|[<>{}\\]|@-@", text)
    )


def windows(document: str, draw: random.Random, *, fewest_words: int = 4, most_words: int = 48) -> Iterator[str]:
    """
    Texts of one or more sentences that stand next to each other, none of them in two texts; their lengths are drawn
    anew for each. Sentences that are no clean prose end a text and are left out.

    Args:
        document: paragraphs are lines.
        draw: of the lengths.
    """
    for paragraph in document.splitlines():
        window: list[str] = []
        room = draw.randint(fewest_words, most_words)
        for sentence in sentences(plain_text(paragraph)):
            joined = " ".join([*window, sentence])
            if window and (len(joined.split()) > room or not is_clean(sentence, 1, most_words)):
                yield from _kept(window, fewest_words, most_words)
                window, room = [], draw.randint(fewest_words, most_words)
            window.append(sentence)
        yield from _kept(window, fewest_words, most_words)


def _kept(window: list[str], fewest_words: int, most_words: int) -> Iterator[str]:
    text = " ".join(window)
    if is_clean(text, fewest_words, most_words):
        yield text


def split_of(document: str, shares: dict[str, float]) -> str:
    """
    The split of a document, by its text alone: wherever it stands, it is in the same one.

    Args:
        shares: name of a split -> its share; "train" has the rest.
    """
    place = random.Random(document).random()
    for name, share in shares.items():
        if place < share:
            return name
        place -= share
    return "train"


def split_windows(
    documents: Iterable[str], shares: dict[str, float], seed: int = 0, **lengths: int
) -> dict[str, list[str]]:
    """
    Windows of all documents by split, each text once.

    Args:
        shares: as `split_of` takes them; none put all into "train".
        seed: of the windows' lengths.
        lengths: `fewest_words` and `most_words` of a window.
    """
    found: dict[str, dict[str, None]] = {}
    for document in dict.fromkeys(documents):
        rows = found.setdefault(split_of(document, shares), {})
        rows.update(dict.fromkeys(windows(document, random.Random(f"{seed} {document}"), **lengths)))
    return {name: list(rows) for name, rows in found.items()}
