"""
Scores of restored text: punctuation, capitals, words, and what had to stay as it was.

    scores = score_restoration(sources, predictions, references, num_bootstrap=1000)

Three texts a row: the source (corrupted), the prediction (restored) and the reference (clean). Source and prediction
are aligned to the reference word by word (`align_words`, Levenshtein over words without case, apostrophes and
surrounding punctuation), so that words that are missing or doubled shift nothing. All scores are ratios of counts
summed over the rows (micro averages). Pass the sources as predictions to score doing nothing.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rapidfuzz.distance import Levenshtein

from modeling_yan.words_yan import APOSTROPHES, EDGES, align_words, protected_strings, word_key

# Marks between words, by the characters that stand for them; runs of one ("...", "!!") are one mark.
MARKS = {
    "period": ".…。",
    "comma": ",，、",
    "question_mark": "?？",
    "exclamation_mark": "!！",
    "colon": ":;：；",
    "quotation_mark": '"“”„‟«»',
}
MARK_NAMES = [*MARKS, "apostrophe"]
MARK_BITS = {character: 1 << bit for bit, characters in enumerate(MARKS.values()) for character in characters}
APOSTROPHE_SIGNS = frozenset(map(chr, APOSTROPHES))
KINDS = ("number", "link", "email", "code")


@dataclass(frozen=True)
class Words:
    """
    A text as its words and what stands between them.

    Args:
        written: each word as it was written, punctuation included.
        keys: what each is recognised by, see `word_key`.
        letters: each without surrounding punctuation and apostrophes, in its own case.
        apostrophes: how many each has.
        gaps: marks before the first, between, and after the last word, as bits of `MARK_BITS`; one more than words.
    """

    written: list[str]
    keys: list[str]
    letters: list[str]
    apostrophes: list[int]
    gaps: list[int]


def split_words(text: str) -> Words:
    """Words are parted by white space; punctuation that stands alone belongs to the word before it."""
    words = Words([], [], [], [], [0])
    for token in text.split():
        core = token.strip(EDGES)
        if not core:
            words.gaps[-1] |= _marks(token)
            if words.written:
                words.written[-1] += f" {token}"
            continue
        before, _, after = token.partition(core)
        words.gaps[-1] |= _marks(before)
        words.gaps.append(_marks(after))
        words.written.append(token)
        words.keys.append(word_key(token))
        words.letters.append(core.translate(APOSTROPHES))
        words.apostrophes.append(sum(character in APOSTROPHE_SIGNS for character in token))
    return words


def _marks(characters: str) -> int:
    found = 0
    for character in characters:
        found |= MARK_BITS.get(character, 0)
    return found


def score_restoration(
    sources: Sequence[str],
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    num_bootstrap: int = 0,
    seed: int = 0,
) -> dict[str, float | int | list[float] | None]:
    """
    Scores restored texts. Everything but `num_…` is in percent; None where there is nothing to divide by.

    **Punctuation**, for period (also "…"), comma, question_mark, exclamation_mark, colon (with the semicolon),
    quotation_mark and apostrophe, and their micro average `punctuation`: `<mark>_precision`, `<mark>_recall`,
    `<mark>_f1` (Tilk and Alumäe 2016, on IWSLT 2011's marks) and `num_<mark>`, how many the references hold. A mark
    counts once in the gap between two words that both texts have; marks beside a word that only one has count in the
    gap around it. Apostrophes are counted word by word, wherever in the word they stand.

    **Capitals**, over aligned words with equal letters but for case: `capital_accuracy`, words whose case is right in
    all letters; `capital_precision`, `capital_recall`, `capital_f1` of words that have a capital (truecasing: Lita et
    al. 2003; the F1 of Susanto et al. 2016).

    **Error rates**: `word_error_rate`, Levenshtein distance over words as they are written, punctuation and case
    included, by the number of reference words, and `character_error_rate` over characters, white space as one space
    each (jiwer's definitions, summed over rows); `plain_word_error_rate` over words without case, apostrophes and
    surrounding punctuation, which spelling alone decides. `source_…` is the source's, and `…_reduction` the share of
    the source's errors that is gone, negative where errors were added.

    **Corrections**, over reference words, each with the words of the other text that are aligned to it or inserted
    behind it. A word is corrupted where the source's form of it is not the reference's. `correction_recall`: corrupted
    words that the prediction has right (the correction rate of NeuSpell, arXiv 2010.11085). `harmed`: words that the
    source had right and the prediction has not. `correction_precision`: of the words that the prediction changed, those
    that it has right; `correction_f05` weighs precision twice as much as recall (grammatical error correction: Ng et
    al. 2014). `spelling_recall`, `spelling_harmed`, `spelling_precision`, `spelling_f05`: the same without case,
    apostrophes and surrounding punctuation. `num_corrupted`, `num_corrupted_spelling`: how many there are.

    **Whole texts**: `exact_match`, equal but for the amount of white space; `source_exact_match`.

    **Protected strings** (`protected_strings`), all and by kind (number, link, email, code): `<kind>_kept`, of those in
    the reference the share that stands in the prediction; `<kind>_harmed`, of those that the source has in common with
    the reference the share that the prediction lacks; `num_<kind>` of the references.

    Args:
        sources, predictions, references: N texts each.
        num_bootstrap: resamplings of the rows behind the 95 % intervals `<score>_interval`, [low, high]; none by
            default. The source's scores and the reductions are of the same resamplings.
        seed: of the resamplings.

    Raises:
        ValueError: for no rows, different numbers of them, what is no text, and a negative `num_bootstrap`.
    """
    table = _count_table(sources, predictions, references)
    scores: dict = _plain(_scores(table.sum(0)))
    for name, values in _scores(_resample(table, num_bootstrap, seed)).items() if num_bootstrap else ():
        scores[f"{name}_interval"] = _interval(values)
    totals = dict(zip(COLUMNS, table.sum(0).astype(int).tolist()))
    scores |= {f"num_{name}": totals[f"{name}_true"] + totals[f"{name}_missing"] for name in MARK_NAMES}
    scores |= {f"num_{kind}": totals[f"{kind}_all"] for kind in KINDS}
    scores |= {"num_corrupted": totals["correction_corrupted"], "num_corrupted_spelling": totals["spelling_corrupted"]}
    return scores | {"num_words": totals["words"], "num_rows": len(table)}


def compare_restorations(
    sources: Sequence[str],
    predictions: Sequence[str],
    others: Sequence[str],
    references: Sequence[str],
    *,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, float | list[float] | None]:
    """
    By how much the scores of predictions are above those of others for the same rows, in percentage points, with the
    95 % intervals `<score>_interval` of a paired bootstrap (Koehn 2004). Names, arguments and errors are those of
    `score_restoration`.
    """
    tables = [_count_table(sources, texts, references) for texts in (predictions, others)]
    first, second = (_scores(table.sum(0)) for table in tables)
    differences: dict = _plain({name: first[name] - second[name] for name in first})
    if num_bootstrap:
        first, second = (_scores(_resample(table, num_bootstrap, seed)) for table in tables)
        differences |= {f"{name}_interval": _interval(first[name] - second[name]) for name in first}
    return differences


def _check_rows(sources: Sequence[str], predictions: Sequence[str], references: Sequence[str]) -> None:
    named = {"sources": sources, "predictions": predictions, "references": references}
    if not len(sources) or len({len(texts) for texts in named.values()}) > 1:
        sizes = ", ".join(f"{len(texts)} {name}" for name, texts in named.items())
        raise ValueError(f"{sizes}: need as many of each, and at least one")
    for name, texts in named.items():
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"{name}[{row}]={text!r:.60} is of type {type(text).__name__}; pass texts")


def _count_table(sources: Sequence[str], predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Counts (N, columns), which every score is a ratio of."""
    _check_rows(sources, predictions, references)
    rows = [count_row(*texts) for texts in zip(sources, predictions, references, strict=True)]
    return np.array([[row[name] for name in COLUMNS] for row in rows], dtype=float)


def count_row(source: str, prediction: str, reference: str) -> Counter[str]:
    """What one row adds to the counts behind `score_restoration`."""
    counts: Counter[str] = Counter()
    before, after, clean = split_words(source), split_words(prediction), split_words(reference)
    of_source, of_prediction = align_words(clean.keys, before.keys), align_words(clean.keys, after.keys)
    _count_marks(counts, clean, after, of_prediction)
    _count_capitals(counts, clean, after, of_prediction)
    _count_errors(counts, (source, before), (prediction, after), (reference, clean))
    for name, level in (("correction", "written"), ("spelling", "keys")):
        wanted = getattr(clean, level)
        forms = [
            word_forms(getattr(text, level), pairs, len(wanted))
            for text, pairs in ((before, of_source), (after, of_prediction))
        ]
        _count_corrections(counts, name, *forms, [(word,) for word in wanted])
    _count_protected(counts, source, prediction, reference)
    return counts


def _count_marks(counts: Counter[str], clean: Words, text: Words, pairs: list[tuple[int, int]]) -> None:
    start_clean = start_text = 0
    for i, j in [*pairs, (len(clean.keys), len(text.keys))]:
        wanted = written = 0
        for mask in clean.gaps[start_clean : i + 1]:
            wanted |= mask
        for mask in text.gaps[start_text : j + 1]:
            written |= mask
        start_clean, start_text = i + 1, j + 1
        if not wanted | written:
            continue
        for bit, name in enumerate(MARKS):
            _count_mark(counts, name, wanted >> bit & 1, written >> bit & 1)
    partner = dict(pairs)
    for i, number in enumerate(clean.apostrophes):
        _count_mark(counts, "apostrophe", number, text.apostrophes[partner[i]] if i in partner else 0)
    aligned = set(partner.values())
    counts["apostrophe_false"] += sum(number for j, number in enumerate(text.apostrophes) if j not in aligned)


def _count_mark(counts: Counter[str], name: str, wanted: int, written: int) -> None:
    right = min(wanted, written)
    counts[f"{name}_true"] += right
    counts[f"{name}_false"] += written - right
    counts[f"{name}_missing"] += wanted - right


def _count_capitals(counts: Counter[str], clean: Words, text: Words, pairs: list[tuple[int, int]]) -> None:
    for i, j in pairs:
        if clean.keys[i] != text.keys[j] or not any(map(str.isalpha, clean.letters[i])):
            continue
        wanted, written = clean.letters[i], text.letters[j]
        right = wanted == written
        has, got = (any(map(str.isupper, letters)) for letters in (wanted, written))
        counts["cased_words"] += 1
        counts["cased_right"] += right
        counts["capital_true"] += has and right
        counts["capital_false"] += got and not right
        counts["capital_missing"] += has and not right


def _count_errors(counts: Counter[str], source: tuple, prediction: tuple, reference: tuple) -> None:
    (clean_text, clean), levels = reference, {"word": str.split, "character": lambda text: " ".join(text.split())}
    for level, split in levels.items():
        wanted = split(clean_text)
        counts[f"{level}s"] += len(wanted)
        counts[f"{level}_errors"] += Levenshtein.distance(wanted, split(prediction[0]))
        counts[f"source_{level}_errors"] += Levenshtein.distance(wanted, split(source[0]))
    counts["plain_words"] += len(clean.keys)
    counts["plain_word_errors"] += Levenshtein.distance(clean.keys, prediction[1].keys)
    counts["source_plain_word_errors"] += Levenshtein.distance(clean.keys, source[1].keys)
    counts["rows"] += 1
    counts["exact"] += clean_text.split() == prediction[0].split()
    counts["source_exact"] += clean_text.split() == source[0].split()


def word_forms(words: list[str], pairs: list[tuple[int, int]], number: int) -> list[tuple[str, ...]]:
    """What a text has of each reference word: the word aligned to it, and those behind it up to the next one."""
    forms: list[tuple[str, ...]] = [()] * number
    if not number:
        return forms
    starts = [(0, 0), *pairs] if pairs and pairs[0] != (0, 0) else pairs or [(0, 0)]
    for (i, start), (_, end) in zip(starts, [*starts[1:], (number, len(words))]):
        forms[i] += tuple(words[start:end])
    return forms


def _count_corrections(counts: Counter[str], name: str, before: list, after: list, clean: list) -> None:
    for source, prediction, reference in zip(before, after, clean, strict=True):
        corrupted, changed, right = source != reference, prediction != source, prediction == reference
        counts[f"{name}_corrupted"] += corrupted
        counts[f"{name}_intact"] += not corrupted
        counts[f"{name}_changed"] += changed
        counts[f"{name}_right"] += corrupted and right
        counts[f"{name}_harmed"] += not corrupted and not right


def _count_protected(counts: Counter[str], source: str, prediction: str, reference: str) -> None:
    before, after, clean = (
        Counter((kind, text[start:end]) for start, end, kind in protected_strings(text))
        for text in (source, prediction, reference)
    )
    for (kind, string), number in clean.items():
        right = min(number, before[kind, string])
        counts[f"{kind}_all"] += number
        counts[f"{kind}_kept"] += min(number, after[kind, string])
        counts[f"{kind}_right_before"] += right
        counts[f"{kind}_lost"] += max(0, right - after[kind, string])


COLUMNS = [
    *(f"{name}_{part}" for name in [*MARK_NAMES, "capital"] for part in ("true", "false", "missing")),
    *("cased_words", "cased_right", "rows", "exact", "source_exact"),
    *(f"{level}s" for level in ("word", "character", "plain_word")),
    *(f"{text}{level}_errors" for level in ("word", "character", "plain_word") for text in ("", "source_")),
    *(
        f"{n}_{part}"
        for n in ("correction", "spelling")
        for part in ("corrupted", "intact", "changed", "right", "harmed")
    ),
    *(f"{kind}_{part}" for kind in KINDS for part in ("all", "kept", "right_before", "lost")),
]


def _scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Scores (...) in percent, NaN where undefined, from counts (..., columns)."""
    of = {name: counts[..., column] for column, name in enumerate(COLUMNS)}
    for part in ("true", "false", "missing"):
        of[f"punctuation_{part}"] = sum(of[f"{name}_{part}"] for name in MARK_NAMES)
    for part in ("all", "kept", "right_before", "lost"):
        of[f"protected_{part}"] = sum(of[f"{kind}_{part}"] for kind in KINDS)
    scores = {}
    for name in (*MARK_NAMES, "punctuation", "capital"):
        true, false, missing = (of[f"{name}_{part}"] for part in ("true", "false", "missing"))
        scores[f"{name}_precision"] = _percent(true, true + false)
        scores[f"{name}_recall"] = _percent(true, true + missing)
        scores[f"{name}_f1"] = _percent(2 * true, 2 * true + false + missing)
    scores["capital_accuracy"] = _percent(of["cased_right"], of["cased_words"])
    for level in ("word", "character", "plain_word"):
        errors, before = of[f"{level}_errors"], of[f"source_{level}_errors"]
        scores[f"{level}_error_rate"] = _percent(errors, of[f"{level}s"])
        scores[f"source_{level}_error_rate"] = _percent(before, of[f"{level}s"])
        scores[f"{level}_error_reduction"] = _percent(before - errors, before)
    for name in ("correction", "spelling"):
        right, corrupted, changed = (of[f"{name}_{part}"] for part in ("right", "corrupted", "changed"))
        scores[f"{name}_recall"] = _percent(right, corrupted)
        scores[f"{name}_precision"] = _percent(right, changed)
        # (1 + 0.5²) right / (0.5² corrupted + changed), which is F0.5 of the two above.
        scores[f"{name}_f05"] = _percent(1.25 * right, 0.25 * corrupted + changed)
        harmed = "harmed" if name == "correction" else f"{name}_harmed"
        scores[harmed] = _percent(of[f"{name}_harmed"], of[f"{name}_intact"])
    scores["exact_match"] = _percent(of["exact"], of["rows"])
    scores["source_exact_match"] = _percent(of["source_exact"], of["rows"])
    for kind in ("protected", *KINDS):
        scores[f"{kind}_kept"] = _percent(of[f"{kind}_kept"], of[f"{kind}_all"])
        scores[f"{kind}_harmed"] = _percent(of[f"{kind}_lost"], of[f"{kind}_right_before"])
    return scores


def _percent(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return 100 * np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=np.asarray(whole) > 0)


def _resample(table: np.ndarray, num_bootstrap: int, seed: int) -> np.ndarray:
    """Counts (num_bootstrap, columns) summed over rows that were drawn with replacement."""
    if num_bootstrap < 0:
        raise ValueError(f"num_bootstrap={num_bootstrap} must be at least 0, which is no intervals")
    rows, generator = len(table), np.random.default_rng(seed)
    draws = (np.bincount(generator.integers(rows, size=rows), minlength=rows) for _ in range(num_bootstrap))
    return np.stack([draw @ table for draw in draws])


def _interval(values: np.ndarray) -> list[float] | None:
    """Where 95 % of the values that are defined lie."""
    values = values[~np.isnan(values)]
    return np.percentile(values, [2.5, 97.5]).tolist() if len(values) else None


def _plain(scores: dict[str, np.ndarray]) -> dict[str, float | None]:
    return {name: None if np.isnan(value) else float(value) for name, value in scores.items()}
