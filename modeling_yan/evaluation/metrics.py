"""Quality of generated text, by sacrebleu, rouge-score and SQuAD's answer normalisation."""

import itertools
import re
import string
from collections import Counter
from collections.abc import Sequence

from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU


def normalize_answer(text: str) -> str:
    """Lower case without punctuation, articles and repeated white space (SQuAD v1.1 evaluation)."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def token_f1(prediction: str, reference: str) -> float:
    """Harmonic mean of precision and recall over normalised words, in [0, 1]; 1 when both are empty."""
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(reference).split()
    common = sum((Counter(predicted) & Counter(expected)).values())
    if not predicted or not expected:
        return float(predicted == expected)
    return 2 * common / (len(predicted) + len(expected))


def score_texts(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """
    Scores predictions against one or more references each.

    Args:
        predictions: N texts.
        references: N non-empty lists of acceptable texts; the best counts for ROUGE, exact match and F1.

    Returns:
        In percent: `bleu` (corpus BLEU-4, sacrebleu 13a, cased), `rouge1`, `rouge2`, `rougeL` (F-measure, stemmed),
        `exact_match`, `f1`; and `distinct_2`, the share of word bigrams that are distinct within their own text,
        which falls when text repeats itself.

    Raises:
        ValueError: if the two have different lengths or nothing is to be scored.
    """
    if not predictions or len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions and {len(references)} references: need as many, and at least one"
        )
    most = max(len(r) for r in references)
    streams = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
    rouge = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    totals: Counter = Counter()
    for prediction, accepted in zip(predictions, references, strict=True):
        best = rouge.score_multi(list(accepted), prediction)
        totals.update({name: score.fmeasure for name, score in best.items()})
        totals["exact_match"] += max(normalize_answer(prediction) == normalize_answer(r) for r in accepted)
        totals["f1"] += max(token_f1(prediction, r) for r in accepted)
        words = prediction.split()
        bigrams = list(itertools.pairwise(words))
        totals["distinct_2"] += len(set(bigrams)) / len(bigrams) if bigrams else 1.0
    scores = {name: 100 * total / len(predictions) for name, total in totals.items()}
    return {"bleu": BLEU().corpus_score(list(predictions), streams).score, **scores}
