"""
Targets for a canvas of the source's tokens, with a tokenizer that knows whole words and letters: what the source holds
letter by letter, the target holds so, too. A position then copies its letter or mends it, and a run of letters is never
one token of the answer, which no position could decide alone.

    source  Ġwhere | Ġis | Ġ t h e | Ġ s t a i t o n        ("the" had no entry of its own, as little as "staiton")
    target  ĠWhere | Ġis | Ġ t h e | Ġ s t a t i o n | ?
"""

import json
from collections.abc import Iterator
from difflib import SequenceMatcher

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

# Share of letters that a word must have in common with the one it is taken for.
LIKENESS = 0.4
SPACE = "Ġ"


def knows_words_and_letters(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer is one of `train_tokenizer(…, whole_words=True)`: a word is one token or its bytes."""
    if not tokenizer.is_fast:
        return False
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    return model.get("ignore_merges", False) and not model["merges"]


def spelled_ids(tokenizer: PreTrainedTokenizerBase, source: str, target: str) -> list[int]:
    """Ids of a target beside its source, without special tokens."""
    backend = tokenizer.backend_tokenizer
    read, written = _words(backend, source), _words(backend, target)
    in_letters = [backend.token_to_id(word) is None for word in read]
    ids = []
    for word, place in zip(written, _places(read, written), strict=True):
        whole = backend.token_to_id(word)
        if whole is None or (place is not None and in_letters[place]):
            ids += [backend.token_to_id(letter) for letter in word]
        else:
            ids.append(whole)
    return ids


def _words(backend: Tokenizer, text: str) -> list[str]:
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


def _places(read: list[str], written: list[str]) -> Iterator[int | None]:
    """Of each word that is written, which word that was read it stands for; None for one that is new."""
    before, after = ([word.removeprefix(SPACE).lower() for word in words] for words in (read, written))
    for kind, start, end, first, last in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        for place in range(first, last):
            if kind == "equal":
                yield start + place - first
            else:
                yield _most_like(after[place], before, range(start, end))


def _most_like(word: str, words: list[str], places: range) -> int | None:
    """The place of the word that has most letters in common; None where none has enough."""
    likeness = {place: SequenceMatcher(None, word, words[place], autojunk=False).ratio() for place in places}
    best = max(likeness, key=likeness.__getitem__, default=None)
    return best if best is not None and likeness[best] >= LIKENESS else None
