"""Quality of generated text, by sacrebleu, rouge-score and SQuAD's answer normalisation."""

import itertools
import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
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


def score_texts(
    predictions: Sequence[str], references: Sequence[Sequence[str]], *, num_bootstrap: int = 0, seed: int = 0
) -> dict[str, float | list[float]]:
    """
    Scores predictions against one or more references each.

    Args:
        predictions: N texts.
        references: N non-empty lists of acceptable texts; the best counts for ROUGE, exact match and F1.
        num_bootstrap: resamplings of the rows behind the 95 % intervals `<score>_interval`, [low, high]; none by
            default.
        seed: of the resamplings.

    Returns:
        In percent: `bleu` (corpus BLEU-4, sacrebleu 13a, cased), `rouge1`, `rouge2`, `rougeL` (F-measure, stemmed),
        `exact_match`, `f1`; and `distinct_2`, the share of word bigrams that are distinct within their own text,
        which falls when text repeats itself.

    Raises:
        ValueError: if the two have different lengths or nothing is to be scored, and for a row that has no list of
            references.
    """
    if not predictions or len(predictions) != len(references):
        raise ValueError(
            f"{len(predictions)} predictions and {len(references)} references: need as many, and at least one"
        )
    for index, accepted in enumerate(references):
        if isinstance(accepted, str) or not len(accepted):
            raise ValueError(
                f"references[{index}]={accepted!r:.60} must be a list of at least one text; put the text into a list"
            )
    most = max(len(r) for r in references)
    streams = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
    rouge = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    rows = []
    for prediction, accepted in zip(predictions, references, strict=True):
        best = rouge.score_multi(list(accepted), prediction)
        bigrams = list(itertools.pairwise(prediction.split()))
        rows.append(
            {name: score.fmeasure for name, score in best.items()}
            | {
                "exact_match": max(normalize_answer(prediction) == normalize_answer(r) for r in accepted),
                "f1": max(token_f1(prediction, r) for r in accepted),
                "distinct_2": len(set(bigrams)) / len(bigrams) if bigrams else 1.0,
            }
        )
    table = 100 * np.array([[float(value) for value in row.values()] for row in rows])
    bleu = BLEU()
    scores = {"bleu": bleu.corpus_score(list(predictions), streams).score}
    scores |= dict(zip(rows[0], table.mean(0).tolist()))
    if num_bootstrap:
        draws = np.random.default_rng(seed).integers(len(rows), size=(num_bootstrap, len(rows)))
        # sacrebleu's own counts of n-grams, row by row, so that a resampling is a sum.
        counts = np.array(bleu._extract_corpus_statistics(list(predictions), streams))
        resampled = {"bleu": [bleu._compute_score_from_stats(counts[draw].sum(0).tolist()).score for draw in draws]}
        resampled |= dict(zip(rows[0], np.array([table[draw].mean(0) for draw in draws]).T))
        scores |= {f"{name}_interval": np.percentile(v, [2.5, 97.5]).tolist() for name, v in resampled.items()}
    return scores


def diversity(texts: Sequence[str], *, max_self_bleu: int = 100) -> dict[str, float]:
    """
    How much texts differ from each other; a model that writes one safe text for all scores low here.

    Args:
        max_self_bleu: texts that Self-BLEU compares, the first ones: its cost grows with the square.

    Returns:
        `distinct_1_corpus`, `distinct_2_corpus`: distinct words and word bigrams over all of them, in percent.
        `self_bleu`: mean sentence BLEU of a text with the others as references, in percent. `word_entropy`: entropy of
        the distribution of words over all texts, in bits.
    """
    if not texts:
        raise ValueError("no texts: need at least one")
    words = [text.split() for text in texts]
    pairs = [pair for text in words for pair in itertools.pairwise(text)]
    counts = np.array(list(Counter(word for text in words for word in text).values()), dtype=float)
    shares = counts / counts.sum() if counts.sum() else counts
    compared, scorer = list(texts[:max_self_bleu]), BLEU(effective_order=True)
    each = [
        scorer.sentence_score(text, [*compared[:index], *compared[index + 1 :]]).score
        for index, text in enumerate(compared)
        if len(compared) > 1
    ]
    return {
        "distinct_1_corpus": 100 * len(counts) / max(counts.sum(), 1),
        "distinct_2_corpus": 100 * len(set(pairs)) / max(len(pairs), 1),
        "self_bleu": float(np.mean(each)) if each else 0.0,
        "word_entropy": max(0.0, float(-(shares * np.log2(shares)).sum())) if len(shares) else 0.0,
    }
