"""
A whole document given back restored: `restore(model, tokenizer, text)` for a model that restores pieces of text.

    restored = restore(model, tokenizer, "where is teh station\n\ni dont know")
    restored.text                      # "Where is the station?\n\nI don't know."
    restored.edits[0]                  # Edit(start=0, end=5, replacement="Where", confidence=0.99)
    apply_edits(text, chosen_edits)    # what an editor keeps of them

A model's answer never replaces the text. It is compared with what the model read, word by word, and only differences
that keep what must be kept become edits of the text. All else stands as it was, white space included, to the byte.
"""

import math
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace

import torch

from .canvas_yan import text_room
from .input_checks_yan import check_number
from .lexicon_yan import Lexicon, TokenizerWords
from .text_changes_yan import (
    OTHER_SIGNS,
    Answer,
    Change,
    Limits,
    compare_words,
    join_windows,
    letters_of,
    plain_signs,
    safe_changes,
    with_signs_of,
    without_lone_quotes,
)
from .text_windows_yan import LINE_BREAK, Window, breaks_before, cut_windows, fenced_spans, list_marks, word_spans
from .words_yan import edit_distance, word_key

SURROGATE = re.compile(r"[\ud800-\udfff]")
# A tokenizer with fewer entries knows letters and parts of words, and is no lexicon.
MOST_LETTERS = 1000


@dataclass(frozen=True)
class Edit:
    """
    Args:
        start, end: characters of the source text that are replaced; whole words, and never white space around them.
        replacement: one or more words.
        confidence: probability of the least probable token of the replacement; None where the model tells none.
    """

    start: int
    end: int
    replacement: str
    confidence: float | None = None


@dataclass(frozen=True)
class Piece:
    """
    Args:
        start, end: characters of the source text that this piece decided.
        confidence: geometric mean of the probabilities of the tokens that the model wrote; None where it tells none.
        kept: why the piece stands as it was, "no letters", "length" (no room for it after all), "characters" (the
            tokenizer does not give it back), "max_edit" or "min_confidence"; None where edits could be made.
    """

    start: int
    end: int
    confidence: float | None = None
    kept: str | None = None


@dataclass(frozen=True)
class Restoration:
    """
    Args:
        text: the source text with all edits made.
        edits: from left to right, none over another.
        pieces: what the model read, from left to right. Text in none of them stands as it was: white space, marks of
            lists, headings and quotations at the beginning of a line, code between lines of ```, and words that are
            longer than a window.
    """

    text: str
    edits: list[Edit] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)


@dataclass(frozen=True)
class Written:
    """
    What a model made of a piece.

    Args:
        text: its answer.
        ids, log_probs: tokens of it, and their log-probabilities in nats where the model tells them.
    """

    text: str
    ids: list[int]
    log_probs: list[float] | None


def apply_edits(text: str, edits: Sequence[Edit]) -> str:
    """
    The text with these edits, in any order.

    Raises:
        ValueError: for edits that overlap or reach beyond the text.
    """
    parts, end = [], 0
    for edit in sorted(edits, key=lambda edit: edit.start):
        if not end <= edit.start <= edit.end <= len(text):
            raise ValueError(f"{edit} overlaps the edit before it or does not lie in a text of {len(text)} characters")
        parts += [text[end : edit.start], edit.replacement]
        end = edit.end
    return "".join([*parts, text[end:]])


def restore(
    model,
    tokenizer,
    text: str,
    *,
    max_edit: float | None = 0.4,
    max_word_edit: float | None = 0.7,
    min_confidence: float | None = None,
    min_spelling_confidence: float | None = 0.8,
    min_comma_confidence: float | None = 0.6,
    lexicon: str | Lexicon | None = "model",
    keep: str | re.Pattern | None = OTHER_SIGNS,
    window: int | None = None,
    overlap: int | None = None,
    split_lines: bool = False,
    batch_size: int = 32,
    seed: int = 0,
    **generate_kwargs,
) -> Restoration:
    r"""
    Restores a text of any length with a model that writes what it reads in its right form.

    1. Cut the text into windows: paragraphs, else at the ends of sentences, else between words, overlapping.
    2. Let the model write each window, different ones once, in batches of similar length.
    3. Compare each answer with what was read, and keep the changes that are safe.
    4. Where windows overlap, pass from one to the next between two words that both write alike, near the middle.
    5. Make the changes edits of the text.

    An edit is left out if it loses, adds or changes a number, a link, an e-mail address or a code-like string
    (`protected_strings`) or a sign of `keep`, if it would close a line break, and for the limits below. The model reads
    the quotation marks, apostrophes, dashes and dots of a keyboard for those of print, which the text keeps. A window
    gets quotation marks in pairs or none. Same arguments give the same text; a window's answer depends on nothing else
    but its words.

    Args:
        model: YAN or what has its `generate()`, such as `YanOrtForConditionalGeneration`; another model with
            `generate()` has no confidences.
        tokenizer: the model's.
        text: of any length, any script, and any line breaks.
        max_edit: a window of whose letters and digits more than this share would change (Levenshtein distances of its
            changes by its length, case, marks and spaces aside) stays as it was; None allows all.
        max_word_edit: the same for a single change, by the longer of both sides.
        min_confidence: between 0 and 1; a window whose mean token (`Piece.confidence`) and a change whose least
            probable token is less probable stays as it was.
        min_spelling_confidence: the same for a change of letters, not of case, marks and spaces alone; without effect
            for a model that tells no confidences.
        min_comma_confidence: a change that is less probable adds no commas; what else it changes is made.
        lexicon: which words there are. A word that is none, and one typing error away from one, is mended before the
            model reads it (`Lexicon.meant`). A change of letters may write words of the lexicon and words that the
            text holds, as many as there were. Of a piece of another language (`Lexicon.knows`) no letters change.
            "model" stands for the lexicon beside the model (lexicon.txt), and where there is none for the words that
            the tokenizer has whole, if it is one of words (`MOST_LETTERS`), which mend nothing by themselves. None:
            no lexicon.
        keep: a regular expression for strings that no change may lose, add or alter. By default signs beyond Latin
            letters and usual punctuation; pass None for a model of another script.
        window: most tokens that the model reads at once, EOS included; by default three quarters of what it has room
            for, so that an answer may be longer.
        overlap: most tokens that two windows share where no sentence ends; a quarter of `window` by default.
        split_lines: every line is a text of its own: a chat, subtitles, verse. By default single line breaks inside of
            sentences are those of wrapped text.
        batch_size: windows that are written together.
        seed: of the noise of every window.
        **generate_kwargs: options of `generate()`, but for the number and the length of answers; a `generator` among
            them takes the place of `seed`.

    Raises:
        ValueError: for what is no text, limits that are out of range, a window that the model has no room for, and
            options that would cut an answer off or give several.
    """
    _check_parts(model, tokenizer, text, generate_kwargs)
    limits = Limits(
        max_edit, max_word_edit, min_confidence, min_spelling_confidence, min_comma_confidence, _pattern(keep)
    )
    lexicon, allowed = _find_lexicon(lexicon, model, tokenizer)
    if allowed is not None:
        of_text = {word_key(word) for word in plain_signs(text).split()}
        limits = replace(limits, is_word=lambda word: word in of_text or word in allowed)
    fitting = "a whole number from 0 to below 2**63"
    check_number("seed", seed, allowed=lambda x: 0 <= x < 2**63, expected=fitting, whole=True)
    window, overlap = _check(model, tokenizer, limits, window, overlap, batch_size)
    # 1.
    spans = word_spans(text)
    sizes = _word_sizes(tokenizer, text, spans)
    room = window - tokenizer.num_special_tokens_to_add()
    runs = cut_windows(
        sizes, breaks_before(text, spans, split_lines=split_lines), longest=max(room, 1), overlap=min(overlap, room)
    )
    # 2.
    words = [plain_signs(text[start:end]) for start, end in spans]
    sources = {part: " ".join(words[part.start : part.end]) for run in runs for part in run}
    options = {"batch_size": batch_size, "seed": seed, **generate_kwargs}
    read = {source: _mend(source, lexicon) for source in sources.values()}
    written = _write(model, tokenizer, sorted({mended for mended, _ in read.values()}), **options)
    # 3.
    # Of another language no model knows the letters.
    unspelled = replace(limits, is_word=lambda word: False)
    answers = {}
    for source, (mended, meant) in read.items():
        known = lexicon is None or lexicon.knows(source)
        answers[source] = _answer(tokenizer, source, meant, written[mended], limits if known else unspelled)
    # 4. and 5.
    edits, pieces = [], []
    for run in runs:
        found = [answers[sources[part]] for part in run]
        for part, answer, (start, end) in zip(run, found, join_windows(run, found), strict=True):
            pieces.append(Piece(spans[start][0], spans[end - 1][1], answer.confidence, answer.kept))
            edits += _edits(text, spans, part, answer.changes, start, end)
    return Restoration(apply_edits(text, edits), edits, pieces)


def _check_parts(model, tokenizer, text, generate_kwargs: dict) -> None:
    """Whether they are what they are passed as, and every answer comes back whole."""
    if not hasattr(model, "generate"):
        raise ValueError(f"model is of type {type(model).__name__}; pass a model with generate(), then its tokenizer")
    if not hasattr(tokenizer, "num_special_tokens_to_add"):
        raise ValueError(f"tokenizer is of type {type(tokenizer).__name__}; pass the model's tokenizer")
    if not isinstance(text, str):
        raise ValueError(f"text is of type {type(text).__name__}: {text!r:.60}; pass one text")
    config = generate_kwargs.get("generation_config")
    for returned in (generate_kwargs.get("num_return_sequences"), getattr(config, "num_return_sequences", None)):
        if returned not in (None, 1):
            raise ValueError(
                f"num_return_sequences={returned}: a window has one answer; use num_candidates to choose the best of "
                "several"
            )
    for name in ("max_new_tokens", "max_length"):
        if generate_kwargs.get(name) is not None:
            raise ValueError(f"{name}={generate_kwargs[name]} would cut answers off; pass window for shorter pieces")
    longest, room = _longest_answer(config), model_room(model, tokenizer)
    # A copy of the model's own config has a limit, too, and cuts nothing off.
    if longest is not None and (room is None or longest < room):
        raise ValueError(
            f"generation_config allows answers of {longest} tokens, which would cut them off; leave max_new_tokens and "
            "max_length out of it, and pass window for shorter pieces"
        )


def _pattern(keep: object) -> re.Pattern | None:
    if keep is None or isinstance(keep, re.Pattern):
        return keep
    if not isinstance(keep, str):
        raise ValueError(f"keep={keep!r} must be a regular expression or None")
    try:
        return re.compile(keep)
    except re.error as error:
        raise ValueError(f"keep={keep!r} is no regular expression: {error}") from error


def _find_lexicon(given: object, model, tokenizer) -> tuple[Lexicon | None, Container[str] | None]:
    """What mends words, and which words a change of letters may write; None for no limit."""
    if given is None or isinstance(given, Lexicon):
        return given, given
    if given != "model":
        raise ValueError(f"lexicon={given!r:.60} must be a Lexicon, 'model' for that beside the model, or None")
    found = Lexicon.of_model(model)
    if found is None and len(tokenizer) >= MOST_LETTERS:
        return None, TokenizerWords(tokenizer)
    return found, found


def _mend(source: str, lexicon: Lexicon | None) -> tuple[str, list[str]]:
    """What the model reads in the place of a window, and what is meant by each of its words."""
    words = source.split()
    meant = words if lexicon is None else lexicon.mended_words(words)
    return source if meant == words else " ".join(meant), meant


def _check(model, tokenizer, limits: Limits, window, overlap, batch_size) -> tuple[int, int]:
    """Window and overlap in tokens."""
    shares = ("max_edit", "max_word_edit", "min_confidence", "min_spelling_confidence", "min_comma_confidence")
    for name in shares:
        if getattr(limits, name) is not None:
            share = "a share between 0 and 1, or None for no limit"
            check_number(name, getattr(limits, name), allowed=lambda x: 0 <= x <= 1, expected=share)
    check_number("batch_size", batch_size, allowed=lambda x: x >= 1, expected="a whole number above 0", whole=True)
    room, special = model_room(model, tokenizer), tokenizer.num_special_tokens_to_add()
    if window is None and room is None:
        raise ValueError("window=None: neither the model nor its tokenizer tells how long a source may be; pass window")
    window = max(3 * room // 4, special + 1) if window is None else window
    most = math.inf if room is None else room
    fitting = f"a whole number from {special + 1} to {most}, tokens that the model has room for"
    check_number("window", window, allowed=lambda x: special < x <= most, expected=fitting, whole=True)
    overlap = window // 4 if overlap is None else overlap
    fitting = f"a whole number from 0 to below window={window}"
    check_number("overlap", overlap, allowed=lambda x: 0 <= x < window, expected=fitting, whole=True)
    return window, overlap


def model_room(model, tokenizer) -> int | None:
    """Tokens that a text may have to be read and written whole; None where nothing tells."""
    config, options = getattr(model, "config", None), getattr(model, "generation_config", None)
    rooms = [getattr(tokenizer, "model_max_length", None), _longest_answer(options)]
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None:
        rooms.append(text_room(positions, getattr(config, "canvas_ratio", 1)))
    # What a tokenizer that knows no limit says is a very large number.
    known = [room for room in rooms if room is not None and room < 1e6]
    return min(known, default=None)


def _longest_answer(generation_config: object) -> int | None:
    """Tokens that it lets an answer have; None for no limit, and for what is no config."""
    longest = getattr(generation_config, "max_new_tokens", None)
    return getattr(generation_config, "max_length", None) if longest is None else longest


def _word_sizes(tokenizer, text: str, spans: list[tuple[int, int]]) -> list[int | None]:
    """Tokens of each word, wherever in a window it stands; None where no model may read it: code, marks of lists."""
    words = [None if SURROGATE.search(text[start:end]) else plain_signs(text[start:end]) for start, end in spans]
    different = [word for word in dict.fromkeys(words) if word is not None]
    if not different:
        return [None] * len(words)
    sizes = {None: None}
    options = {"add_special_tokens": False, "verbose": False}
    alone, behind = (tokenizer([space + word for word in different], **options)["input_ids"] for space in ("", " "))
    sizes |= {word: max(len(first), len(other), 1) for word, first, other in zip(different, alone, behind, strict=True)}
    fenced, found, block = fenced_spans(text), [], 0
    for word, mark, (start, end) in zip(words, list_marks(text, spans), spans, strict=True):
        while block < len(fenced) and fenced[block][1] <= start:
            block += 1
        in_code = block < len(fenced) and end > fenced[block][0]
        found.append(None if mark or in_code else sizes[word])
    return found


@torch.no_grad()
def _write(
    model, tokenizer, sources: list[str], *, batch_size: int, seed: int, **generate_kwargs
) -> dict[str, Written | str]:
    """What the model makes of each source; or why it was not asked."""
    found: dict[str, Written | str] = {}
    lengths, room = {}, model_room(model, tokenizer) or math.inf
    for source in sources:
        ids = tokenizer(source, verbose=False)["input_ids"]
        if not any(map(str.isalpha, source)):
            found[source] = "no letters"
        elif len(ids) > room:
            found[source] = "length"
        elif _decode(tokenizer, ids) != source:
            found[source] = "characters"
        else:
            lengths[source] = len(ids)
    waiting = sorted(lengths, key=lengths.__getitem__)
    for start in range(0, len(waiting), batch_size):
        batch = waiting[start : start + batch_size]
        inputs = tokenizer(batch, return_tensors="pt", padding=True)
        inputs = {name: inputs[name].to(getattr(model, "device", "cpu")) for name in ("input_ids", "attention_mask")}
        options = {**generate_kwargs, "return_dict_in_generate": True}
        if getattr(getattr(model, "config", None), "model_type", None) == "yan" and options.get("generator") is None:
            # One for each row, so that its answer does not depend on the batch.
            options["generator"] = [torch.Generator().manual_seed(seed) for _ in batch]
        output = model.generate(**inputs, **options)
        found |= zip(batch, _rows(tokenizer, output), strict=True)
    return found


def _rows(tokenizer, output) -> list[Written]:
    rows = (output if torch.is_tensor(output) else output.sequences).tolist()
    scores = getattr(output, "token_scores", None)
    scores = [None] * len(rows) if scores is None else scores.tolist()
    found = []
    for ids, log_probs in zip(rows, scores, strict=True):
        length = len(ids) - next((n for n, i in enumerate(reversed(ids)) if i != tokenizer.pad_token_id), len(ids))
        kept = None if log_probs is None else log_probs[:length]
        found.append(Written(_decode(tokenizer, ids), ids[:length], kept))
    return found


def _decode(tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _answer(tokenizer, source: str, meant: list[str], written: Written | str, limits: Limits) -> Answer:
    """The changes to a window that are safe; `meant` are its words as they were read."""
    if isinstance(written, str):
        return Answer([], None, written)
    log_probs, before, after = written.log_probs, source.split(), written.text.split()
    confidence = math.exp(sum(log_probs) / len(log_probs)) if log_probs else None
    if limits.min_confidence is not None:
        if log_probs is None:
            raise ValueError(
                f"min_confidence={limits.min_confidence}: this model tells no token_scores; pass min_confidence=None"
            )
        if confidence is None or confidence < limits.min_confidence:
            return Answer([], confidence, "min_confidence")
    differences = compare_words(before, after)
    edited = sum(
        edit_distance(letters_of("".join(before[start:end])), letters_of("".join(after[first:last])))
        for start, end, first, last in differences
    )
    if limits.max_edit is not None and edited > limits.max_edit * len(letters_of(source)):
        return Answer([], confidence, "max_edit")
    sure = word_confidences(tokenizer, written) if differences else []
    changes = []
    for start, end, first, last in differences:
        least = min(sure[first:last], default=None) if sure else None
        changes.append(Change(start, end, " ".join(after[first:last]), least))
    return Answer(without_lone_quotes(before, safe_changes(before, meant, changes, limits)), confidence)


def word_confidences(tokenizer, written: Written) -> list[float]:
    """Probability of the least probable token of each word of an answer; empty where the model tells none."""
    if written.log_probs is None:
        return []
    ends = [len(_decode(tokenizer, written.ids[: n + 1])) for n in range(len(written.ids))]
    spans, least = word_spans(written.text), []
    token = 0
    for start, end in spans:
        while token < len(ends) and ends[token] <= start:
            token += 1
        last = token
        while last < len(ends) and ends[last] < end:
            last += 1
        least.append(math.exp(min(written.log_probs[token : last + 1], default=-math.inf)))
    return least


def _edits(
    text: str, spans: Sequence[tuple[int, int]], window: Window, changes: Sequence[Change], start: int, end: int
) -> list[Edit]:
    """Edits of the text for a window's changes to words from `start` to below `end`."""
    found = []
    for change in changes:
        first, last = window.start + change.start, window.start + change.end
        if not start <= first < last <= end:
            continue
        place = spans[first][0], spans[last - 1][1]
        if LINE_BREAK.search(text, *place) is None:
            replacement = with_signs_of(text[slice(*place)], change.replacement)
            found.append(Edit(*place, replacement, change.confidence))
    return found


__all__ = ["Edit", "Piece", "Restoration", "apply_edits", "restore"]
