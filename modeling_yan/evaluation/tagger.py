"""
What people restore punctuation with today: an encoder that gives every word of a text its capitals and the mark behind
it. It adds no words and mends none.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_yan.data.redrawn_pairs import RedrawnTexts
from modeling_yan.words_yan import EDGES, align_words, word_key

CASES = ("lower", "capital", "upper", "kept")
MARKS = ("", ".", ",", "?", "!", ":", ";")
LABELS = [f"{case} {mark}".strip() for case in CASES for mark in MARKS]


def core(word: str) -> str:
    """A word without what stands around it; the word itself where nothing else is left."""
    return word.strip(EDGES) or word


def case_of(word: str) -> str:
    """Which of `CASES` a word is written in; "kept" is mixed, such as McDonald, or has no letters."""
    if word == word.lower() == word.upper():
        return "kept"
    if word == word.lower():
        return "lower"
    if len(word) > 1 and word == word.upper():
        return "upper"
    return "capital" if word[0].isupper() and word[1:] == word[1:].lower() else "kept"


def mark_behind(word: str) -> str:
    """The first of `MARKS` behind a word."""
    behind = word[len(word.rstrip(EDGES)) :]
    return next((sign for sign in behind if sign in MARKS), "")


def labels_of(source: list[str], target: list[str]) -> list[int]:
    """A label of each word of the source; -100 where the target has none for it."""
    labels = [-100] * len(source)
    for i, j in align_words([word_key(w) for w in source], [word_key(w) for w in target]):
        case, mark = case_of(core(target[j])), mark_behind(target[j])
        labels[i] = CASES.index(case) * len(MARKS) + MARKS.index(mark)
    return labels


def apply_labels(source: list[str], labels: Sequence[int]) -> str:
    """The words with their labels' capitals and marks."""
    written = []
    for word, label in zip(source, labels, strict=True):
        case, mark = CASES[label // len(MARKS)], MARKS[label % len(MARKS)]
        plain = core(word)
        forms = {"lower": plain.lower(), "capital": plain[:1].upper() + plain[1:].lower(), "upper": plain.upper()}
        written.append(forms.get(case, plain) + mark)
    return " ".join(written)


class TaggedTexts(RedrawnTexts):
    """Pairs of a task, drawn anew at every access, as ids and the labels of words at their first tokens."""

    def encode(self, source: str, target: str) -> tuple[list[int], list[int]]:
        words = source.split()
        input_ids, first = tokenize_words(words, self.tokenizer, self.task.max_source_length)
        own = [-100] * len(input_ids)
        for place, label in zip(first, labels_of(words, target.split())):
            own[place] = label
        return input_ids, own


def tokenize_words(words: list[str], tokenizer: PreTrainedTokenizerBase, longest: int) -> tuple[list[int], list[int]]:
    """Ids of a text, and where the first token of each word stands, as far as there is room."""
    ids, first = [], []
    for number, word in enumerate(words):
        own = tokenizer(f" {word}" if number else word, add_special_tokens=False)["input_ids"]
        if len(ids) + len(own) > longest - 1:
            break
        first.append(len(ids))
        ids += own
    return [*ids, tokenizer.eos_token_id], first


@torch.no_grad()
def tag_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sources: Sequence[str], longest: int
) -> list[str]:
    """The texts with capitals and marks; words for which there is no room stay as they are."""
    split = [source.split() for source in sources]
    tokenized = [tokenize_words(words, tokenizer, longest) for words in split]
    batch = tokenizer.pad({"input_ids": [ids for ids, _ in tokenized]}, return_tensors="pt")
    predicted = model(**batch.to(model.device)).logits.argmax(-1).cpu()
    written = []
    for words, (_, first), row in zip(split, tokenized, predicted, strict=True):
        text = apply_labels(words[: len(first)], row[first].tolist())
        written.append(" ".join([text, *words[len(first) :]]))
    return written
