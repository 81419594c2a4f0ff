"""
Words and pairs of neighbours, and how often they occur: which words a text may hold, and which one was meant where it
holds another.

    lexicon = Lexicon.count(texts)
    "station" in lexicon                # True
    lexicon.meant("staition")           # "station"
    lexicon.mended("the new staition")  # "the new station"
    lexicon.save_pretrained(folder)     # beside the model that restores such texts

A word is in lower case, without the marks around it and without apostrophes (`word_key`).
"""

import functools
import itertools
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from transformers.utils import cached_file

from .words_yan import EDGES, word_key

FILE = "lexicon.txt"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Words of so few letters have many neighbours, of which a very frequent one is meant or none.
SHORT = 3
# Share of all words that this neighbour has at least, and that each of two words has which were written as one.
VERY_FREQUENT, FREQUENT = 5e-5, 5e-6
# A known word is taken for a misspelled one where a neighbour occurs so many times as often.
RATIO = 1000
# How many words behind another its pairs are worth: with fewer, a word's own frequency tells more.
PRIOR = 20
# Share of unknown words up to which a text is misspelled, and beyond which it is of another language.
MOST_UNKNOWN = 0.4
# What a sentence ends with.
SENTENCE_ENDS = tuple(".!?")


class Lexicon:
    """
    Args:
        counts: how often each word occurs.
        pairs: how often the second word of a pair follows the first.
        least_meant: fewest occurrences of a word that stands for a misspelled one.
    """

    def __init__(self, counts: Mapping[str, int], pairs: Mapping[tuple[str, str], int] = {}, least_meant: int = 5):
        self.counts, self.pairs = dict(counts), dict(pairs)
        self.total, self._most = sum(self.counts.values()), max(self.counts.values(), default=0)
        self.least_meant = least_meant

    @classmethod
    def count(cls, texts: Iterable[str], least: int = 2, least_pairs: int = 10) -> "Lexicon":
        """
        The words of clean texts that consist of letters.

        Args:
            least: fewest occurrences of a word.
            least_pairs: fewest occurrences of a pair of neighbours.

        Raises:
            ValueError: for one text in the place of a list.
        """
        _check_several("texts", texts)
        counts, pairs = Counter(), Counter()
        for text in texts:
            keys = [word_key(word) for word in text.split()]
            counts.update(keys)
            pairs.update(itertools.pairwise(keys))
        words = {word: count for word, count in counts.most_common() if count >= least and word.isalpha()}
        kept = {pair: count for pair, count in pairs.most_common() if count >= least_pairs and words.keys() >= {*pair}}
        return cls(words, kept)

    @classmethod
    def from_counts(cls, path: str | os.PathLike) -> "Lexicon":
        """
        The words of letters, and pairs of such, in a file with a word or a pair and its count a line, as those of
        other programs that mend spelling.

        Raises:
            ValueError: for a file of something else.
        """
        found = _parse(Path(path))
        counts, pairs = Counter(), Counter()
        for word, count in found.counts.items():
            counts[word_key(word)] += count
        for pair, count in found.pairs.items():
            pairs[tuple(map(word_key, pair))] += count
        return cls(
            {word: count for word, count in counts.items() if word.isalpha()},
            {pair: count for pair, count in pairs.items() if all(map(str.isalpha, pair))},
        )

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
        pairs = Counter(self.pairs) + Counter(other.pairs)
        return Lexicon(Counter(self.counts) + Counter(other.counts), pairs, self.least_meant)

    def scaled(self, total: int) -> "Lexicon":
        """The same words, each as often as texts of `total` words hold it, but once at least; pairs likewise."""
        share = total / max(self.total, 1)
        counts, pairs = (
            {key: max(round(count * share), 1) for key, count in of.items()} for of in (self.counts, self.pairs)
        )
        return Lexicon(counts, pairs, self.least_meant)

    def with_words(self, words: Iterable[str]) -> "Lexicon":
        """
        The same lexicon with words of one's own, such as names: as frequent as one has to be that stands for a
        misspelled one.

        Raises:
            ValueError: for one text in the place of a list, for a word with other signs than letters, and for several
                words in one.
        """
        _check_several("words", words)
        keys = {word: word_key(word) for word in words}
        wrong = [word for word, key in keys.items() if not key.isalpha()]
        if wrong:
            raise ValueError(f"words={wrong}: a lexicon holds single words of letters; give each word by itself")
        return self + Lexicon(dict.fromkeys(keys.values(), self.least_meant))

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """
        Writes lexicon.txt, a word or a pair of words and its count a line, into a folder that is made where it is
        missing.
        """
        lines = [f"{word} {count}\n" for word, count in self.counts.items()]
        lines += [f"{first} {second} {count}\n" for (first, second), count in self.pairs.items()]
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, FILE).write_text("".join(lines), encoding="utf-8")

    def __contains__(self, word: str) -> bool:
        return word in self.counts

    def __len__(self) -> int:
        return len(self.counts)

    def meant(self, word: str, before: str = "", behind: str = "") -> str | None:
        """
        What one typing error made into this word (after Norvig 2007, How to write a spelling corrector): a letter too
        many, too few, another one, or two that changed places. Of several such words the one that is most probable
        between its neighbours. Where there is none, the two frequent words that it is made of.

        Args:
            word: as `word_key` gives it.
            before, behind: its neighbours, too.

        Returns:
            None for a word that nothing else is more probable than, and for one with other signs than letters.
        """
        if not (word.isalpha() and word.isascii()) or len(word) == 1:
            return None
        return self._nearest(word, self.least_meant, before, behind) or self._parted(word)

    def _nearest(self, word: str, least: float, before: str, behind: str) -> str | None:
        """The most probable of the words, one error from another, that occur so often. Inflection is no error."""
        if len(word) <= SHORT:
            least = max(least, VERY_FREQUENT * self.total)
        if word in self or len(word) < SHORT:
            least = max(least, RATIO * self.counts.get(word, 1))
        if least > self._most:
            return None
        near = {other for other in one_edit_from(word) if self.counts.get(other, 0) >= least}
        near -= {word, word + "s", word.removesuffix("s")}
        return max(near, key=lambda other: (self._fit(other, before, behind), other), default=None)

    def _fit(self, word: str, before: str, behind: str) -> float:
        """
        Probability of a word between two others, up to what does not depend on it: p(word | before) p(behind | word),
        each from counts of pairs and, with the weight of `PRIOR` of them, of single words.
        """
        share = self.counts[word] / self.total
        of_next = self.counts.get(behind, 1) / self.total
        first = self.pairs.get((before, word), 0) + PRIOR * share
        return first * (self.pairs.get((word, behind), 0) + PRIOR * of_next) / (self.counts[word] + PRIOR)

    def _parted(self, word: str) -> str | None:
        if word in self:
            return None
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
        The words of a text of this language (`knows`) as they were meant; a word may be two. Words with a capital may
        be names: only at the beginning of a sentence such a word, where it is unknown, becomes a very frequent one.
        """
        if not self.knows(" ".join(words)):
            return list(words)
        keys = ["", *map(word_key, words), ""]
        begins = [True, *(word.endswith(SENTENCE_ENDS) for word in words)]
        around = zip(words, keys, keys[2:], begins, strict=False)
        return [self._mended_word(word, before, behind, first) for word, before, behind, first in around]

    def _mended_word(self, word: str, before: str, behind: str, begins: bool) -> str:
        core = word.strip(EDGES).removesuffix("'s")
        if core.islower():
            meant = self.meant(core, before, behind)
        elif begins and core.istitle() and core.isascii() and core.lower() not in self:
            near = self._nearest(core.lower(), VERY_FREQUENT * self.total, before, behind)
            meant = near and near.capitalize()
        else:
            meant = None
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
    return _parse(path)


def _parse(path: Path) -> Lexicon:
    try:
        found: dict[int, dict] = {1: {}, 2: {}}
        # Files that Windows wrote may begin with a byte order mark.
        for line in path.read_text(encoding="utf-8-sig").splitlines():
            *words, count = line.split()
            found[len(words)][tuple(words)] = int(count)
        return Lexicon({word: count for (word,), count in found[1].items()}, found[2])
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} must hold one or two words and how often they occur a line: {error}") from error


def _check_several(name: str, value: object) -> None:
    if isinstance(value, str):
        raise ValueError(f"{name}={value!r:.60} is one text, and would be read letter by letter; pass a list of {name}")


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
