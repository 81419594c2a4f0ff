"""
Words and how often they occur: which words a text may hold, and which one was meant where it holds another.

    lexicon = Lexicon.count(texts)
    "station" in lexicon                # True
    lexicon.meant("staition")           # "station"
    lexicon.mended("the new staition")  # "the new station"
    lexicon.save_pretrained(folder)     # beside the model that restores such texts

A word is in lower case, without the marks around it and without apostrophes (`word_key`).
"""

import functools
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from transformers.utils import cached_file

from .words_yan import EDGES, word_key

FILE = "lexicon.txt"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Shorter words are left alone. Those of three letters have many neighbours, of which a frequent one is meant or none.
SHORTEST = 3
# Share of all words that this neighbour has at least, and that each of two words has which were written as one.
VERY_FREQUENT, FREQUENT = 2e-4, 2e-5
# Share of unknown words up to which a text is misspelled, and beyond which it is of another language.
MOST_UNKNOWN = 0.4


class Lexicon:
    """
    Args:
        counts: how often each word occurs.
        least_meant: fewest occurrences of a word that stands for a misspelled one.
    """

    def __init__(self, counts: Mapping[str, int], least_meant: int = 5):
        self.counts = dict(counts)
        self.total = sum(self.counts.values())
        self.least_meant = least_meant

    @classmethod
    def count(cls, texts: Iterable[str], least: int = 2) -> "Lexicon":
        """The words of clean texts that occur `least` times at least, and consist of letters."""
        counts = Counter(word_key(word) for text in texts for word in text.split())
        return cls({word: count for word, count in counts.most_common() if count >= least and word.isalpha()})

    @staticmethod
    def from_pretrained(name_or_path: str | os.PathLike, **options) -> "Lexicon | None":
        """
        The lexicon beside a model; None where there is none.

        Args:
            name_or_path: folder or Hub name.
            **options: of `cached_file`, such as `revision` or `token`.

        Raises:
            ValueError: for a file that is no lexicon.
        """
        path = lexicon_file(name_or_path, **options)
        return None if path is None else _read(path, path.stat().st_mtime_ns)

    @staticmethod
    def of_model(model) -> "Lexicon | None":
        """The lexicon beside the folder or repository that a model was loaded from."""
        found = place_of(model)
        return None if found is None else Lexicon.from_pretrained(found[0], revision=found[1])

    def __add__(self, other: "Lexicon") -> "Lexicon":
        """The words of both, as often as both hold them."""
        return Lexicon(Counter(self.counts) + Counter(other.counts), self.least_meant)

    def with_words(self, words: Iterable[str]) -> "Lexicon":
        """
        The same lexicon with words of one's own, such as names: as frequent as one has to be that stands for a
        misspelled one.

        Raises:
            ValueError: for a word with other signs than letters, or for several words in one.
        """
        keys = {word: word_key(word) for word in words}
        wrong = [word for word, key in keys.items() if not key.isalpha()]
        if wrong:
            raise ValueError(f"words={wrong}: a lexicon holds single words of letters; give each word by itself")
        return self + Lexicon(dict.fromkeys(keys.values(), self.least_meant))

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Writes lexicon.txt, a word and its count a line, into a folder that is made where it is missing."""
        lines = "".join(f"{word} {count}\n" for word, count in self.counts.items())
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, FILE).write_text(lines, encoding="utf-8")

    def __contains__(self, word: str) -> bool:
        return word in self.counts

    def __len__(self) -> int:
        return len(self.counts)

    def meant(self, word: str) -> str | None:
        """
        The most frequent word that one typing error makes into this one: a letter too many, too few, another one, or
        two that changed places (after Norvig 2007, How to write a spelling corrector). Where there is none, the two
        frequent words that it is made of. None for a word that is known, has fewer than three letters or other
        signs than letters.
        """
        if word in self or len(word) < SHORTEST or not (word.isalpha() and word.isascii()):
            return None
        best = max(one_edit_from(word), key=lambda near: self.counts.get(near, 0))
        least = VERY_FREQUENT * self.total if len(word) == SHORTEST else 0
        return best if self.counts.get(best, 0) >= max(self.least_meant, least) else self._parted(word)

    def _parted(self, word: str) -> str | None:
        halves = [(word[:place], word[place:]) for place in range(2, len(word) - 1)]
        frequency, best = max(
            ((min(self.counts.get(half, 0) for half in pair), pair) for pair in halves), default=(0, ())
        )
        return " ".join(best) if frequency > 0 and frequency >= FREQUENT * self.total else None

    def knows(self, text: str) -> bool:
        """Whether a text is of this lexicon's language: all of its words but one, or three of five, are in it."""
        keys = [key for key in map(word_key, text.split()) if key.isalpha()]
        unknown = sum(key not in self for key in keys)
        return unknown <= max(1, MOST_UNKNOWN * len(keys))

    def mended(self, text: str) -> str:
        """A text with `mended_words`; words are parted by single spaces."""
        return " ".join(self.mended_words(text.split(" ")))

    def mended_words(self, words: Sequence[str]) -> list[str]:
        """
        The words of a text of this language (`knows`), the unknown ones as they were meant; a word may be two. Words
        with a capital stay, which may be names.
        """
        return list(map(self._mended_word, words)) if self.knows(" ".join(words)) else list(words)

    def _mended_word(self, word: str) -> str:
        core = word.strip(EDGES).removesuffix("'s")
        meant = self.meant(core) if core.islower() else None
        return word if meant is None else word.replace(core, meant, 1)


class TokenizerWords:
    """The words that a tokenizer has whole, in lower case or with a capital."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.known: dict[str, bool] = {}

    def __contains__(self, word: str) -> bool:
        if word not in self.known:
            forms = (f" {word}", f" {word.capitalize()}")
            self.known[word] = any(len(self.tokenizer.tokenize(form)) == 1 for form in forms)
        return self.known[word]


@functools.lru_cache(maxsize=8)
def _read(path: Path, modified: int) -> Lexicon:
    """The lexicon in a file, one for all who ask; it is read again when the file was modified."""
    try:
        lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
        return Lexicon({word: int(count) for word, count in lines})
    except ValueError as error:
        raise ValueError(f"{path} must hold a word and its number of occurrences a line: {error}") from error


def place_of(model) -> tuple[str, str | None] | None:
    """Folder, or name and revision on the Hub, that a model was loaded from; None for one that is new."""
    config = getattr(model, "config", None)
    name = str(getattr(model, "name_or_path", None) or getattr(config, "_name_or_path", None) or "")
    revision = getattr(config, "_commit_hash", None)
    # A name that is no folder is one of the Hub's only if the model came from there.
    return (name, revision) if name and (os.path.isdir(name) or revision) else None


def lexicon_file(name_or_path: str | os.PathLike, **options) -> Path | None:
    """The file of the lexicon beside a model; `options` are those of `cached_file`."""
    quiet = {f"_raise_exceptions_for_{kind}": False for kind in ("missing_entries", "connection_errors", "gated_repo")}
    path = cached_file(name_or_path, FILE, **quiet, **options)
    return None if path is None else Path(path)


def copy_lexicon(model, folder: Path) -> None:
    """Puts the lexicon beside a model into a folder that the model is saved to, where there is one."""
    found = place_of(model)
    file = None if found is None else lexicon_file(found[0], revision=found[1])
    if file is not None and file.resolve() != (folder / FILE).resolve():
        shutil.copyfile(file, folder / FILE)


def one_edit_from(word: str) -> Iterator[str]:
    """All that one letter more, less or another makes of a word, or two neighbours that change places."""
    for place in range(len(word) + 1):
        before, after = word[:place], word[place:]
        if after:
            yield before + after[1:]
            yield from (before + letter + after[1:] for letter in LETTERS)
        if len(after) > 1:
            yield before + after[1] + after[0] + after[2:]
        yield from (before + letter + after for letter in LETTERS)


__all__ = ["Lexicon", "TokenizerWords", "copy_lexicon"]
