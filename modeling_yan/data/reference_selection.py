"""
Chooses one reference for each source, where data has several: a few-step flow would average over all of them. No model
takes part.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable

from datasets import Dataset
from sacrebleu.metrics import BLEU

from modeling_yan.data.tasks import group_references

# Weight of a word's mean log-probability, in nats, beside sentence BLEU from 0 to 1.
TYPICALITY = 0.4


class NgramModel:
    """
    Probability of a text's words given the three before them, interpolated with shorter contexts: a context that was
    seen n times counts n / (n + 5).

    Args:
        texts: as words.
    """

    ORDER, DISCOUNT = 4, 5

    def __init__(self, texts: Iterable[list[str]]):
        self._counts: Counter[tuple] = Counter()
        self._contexts: Counter[tuple] = Counter()
        for words in texts:
            for context, word in self._grams(words):
                for size in range(self.ORDER):
                    shorter = context[len(context) - size :]
                    self._counts[(*shorter, word)] += 1
                    self._contexts[shorter] += 1
        self._vocabulary = 1 + sum(len(gram) == 1 for gram in self._counts)

    @classmethod
    def _grams(cls, words: list[str]) -> Iterable[tuple[tuple, str]]:
        padded = ["<s>"] * (cls.ORDER - 1) + words + ["</s>"]
        for end in range(cls.ORDER - 1, len(padded)):
            yield tuple(padded[end - cls.ORDER + 1 : end]), padded[end]

    def probability(self, word: str, context: tuple[str, ...]) -> float:
        """Of a word after the three before it; a text begins behind three times "<s>" and ends with "</s>"."""
        p = 1 / self._vocabulary
        for size in range(self.ORDER):
            shorter = context[len(context) - size :]
            seen = self._contexts[shorter]
            if not seen:
                break
            p = (self._counts[(*shorter, word)] + self.DISCOUNT * p) / (seen + self.DISCOUNT)
        return p

    def log_probability(self, words: list[str]) -> float:
        """Mean over the words and the end of the text, in nats."""
        logs = [math.log(self.probability(word, context)) for context, word in self._grams(words)]
        return sum(logs) / len(logs)


def _agreement(texts: list[str], scorer: BLEU) -> list[float]:
    """Sentence BLEU of each reference against the others, from 0 to 1; 0 where there are none."""
    others = (texts[:index] + texts[index + 1 :] for index in range(len(texts)))
    return [scorer.sentence_score(t, rest).score / 100 if rest else 0.0 for t, rest in zip(texts, others)]


def typical_targets(dataset: Dataset, rounds: int = 3) -> Dataset:
    """
    One row per source: its target is the reference that agrees with the source's others and is worded as the targets of
    other sources are, so that all are of one manner. The score is sentence BLEU + `TYPICALITY` x mean log-probability
    of a word.

    Args:
        dataset: columns `source`, `target`, `references`.
        rounds: probabilities are counted on all references first, then on those that the round before has chosen.
    """
    grouped, scorer = group_references(dataset), BLEU(effective_order=True)
    agreement = [_agreement(texts, scorer) for texts in grouped["references"]]
    words = [[re.findall(r"\w+|[^\w\s]", text) for text in texts] for texts in grouped["references"]]
    counted, chosen = [text for texts in words for text in texts], []
    for _ in range(rounds):
        model, chosen = NgramModel(counted), []
        for agreed, texts in zip(agreement, words, strict=True):
            scores = [a + TYPICALITY * model.log_probability(text) for a, text in zip(agreed, texts, strict=True)]
            chosen.append(scores.index(max(scores)))
        counted = [texts[index] for index, texts in zip(chosen, words, strict=True)]
    targets = [texts[index] for index, texts in zip(chosen, grouped["references"], strict=True)]
    return grouped.remove_columns("target").add_column("target", targets)
