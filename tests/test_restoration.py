import copy
import itertools
import random
import re
from types import SimpleNamespace

import pytest
import torch
from transformers import GenerationConfig

from modeling_yan.data.tokenization import train_tokenizer
from modeling_yan.restoration_yan import Edit, apply_edits, model_room, restore
from modeling_yan.text_changes_yan import (
    Answer,
    Change,
    compare_words,
    join_windows,
    with_capitals_behind_ends,
    without_lone_quotes,
)
from modeling_yan.text_windows_yan import (
    NOTHING,
    PARAGRAPH,
    SENTENCE,
    Window,
    breaks_before,
    cut_windows,
    fenced_spans,
    word_spans,
)

from .helpers import tiny_model

WORDS = "where is the station and who can tell me how far it may be from here to there".split()  # noqa: SIM905
ROOM = 64


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join(WORDS)] * 3, 400, ROOM)


class FakeModel:
    """Answers what `rewrite` makes of each source; each token has the log-probability that `score` gives its text."""

    def __init__(self, tokenizer, rewrite, score=None):
        self.tokenizer, self.rewrite, self.score = tokenizer, rewrite, score
        self.read: list[str] = []
        self.rows: list[int] = []

    def generate(self, input_ids, attention_mask, return_dict_in_generate):
        assert return_dict_in_generate
        assert input_ids.shape == attention_mask.shape
        sources = self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        self.read += sources
        self.rows.append(len(sources))
        answers = [self.tokenizer(self.rewrite(source))["input_ids"] for source in sources]
        longest = max(map(len, answers))
        ids = torch.tensor([row + [self.tokenizer.pad_token_id] * (longest - len(row)) for row in answers])
        if self.score is None:
            return ids
        scores = [[self.score(self.tokenizer.decode(i)) for i in row] for row in ids.tolist()]
        return SimpleNamespace(sequences=ids, token_scores=torch.tensor(scores))


def restored(tokenizer, rewrite, text: str, **options):
    return restore(FakeModel(tokenizer, rewrite), tokenizer, text, **options)


def sentence(text: str) -> str:
    """What a model that knows sentences makes of a window: a capital at its beginning, and a period at its end."""
    text = text[:1].upper() + text[1:]
    return text if text[-1] in ".?!" else text + "."


def each_word(text: str) -> str:
    return re.sub(r"\S+", lambda match: match[0].capitalize() + ",", text)


def random_text(choose: random.Random) -> str:
    """Anything that a text may hold, and some of what none should."""
    letters = [
        *"aZé. ,\"'(-_/\\@#<>`~5%",
        "😀",
        "👩\u200d👧",
        "北",
        "я",
        "ـ",
        "\u0301",
        "\x00",
        "\x1b",
        "\u200b",
        "\ud800",
    ]
    words = [*WORDS, "</s>", "<pad>", "a" * 300, "x@y.org", "https://a.b/c", "3.50", "foo_bar()", "Don't", "```", "~~~"]
    spaces = [" ", " ", " ", "  ", "\n", "\n\n", "\r\n", "\t", "\n    ", "\xa0", "\u2028", "\x0b", "\n```\n"]
    text = choose.choice(["", *spaces])
    for _ in range(choose.randrange(60)):
        text += "".join(choose.choices(letters, k=choose.randrange(1, 6))) if choose.random() < 0.3 else ""
        text += choose.choice(words) + (choose.choice(spaces) if choose.random() < 0.9 else "")
    return text


# Cutting


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("", {}, []),
        ("a", {}, [PARAGRAPH]),
        ("a b. c", {}, [PARAGRAPH, NOTHING, SENTENCE]),
        ('a?" b', {}, [PARAGRAPH, SENTENCE]),
        ("a\nb", {}, [PARAGRAPH, NOTHING]),
        ("a\nb", {"split_lines": True}, [PARAGRAPH, PARAGRAPH]),
        ("a\n\nb", {}, [PARAGRAPH, PARAGRAPH]),
        ("a\r\n \r\nb", {}, [PARAGRAPH, PARAGRAPH]),
        ("a\r\nb", {}, [PARAGRAPH, NOTHING]),
        ("a.\nb", {}, [PARAGRAPH, PARAGRAPH]),
        ("a:\nb", {}, [PARAGRAPH, PARAGRAPH]),
        ("a\n  b", {}, [PARAGRAPH, PARAGRAPH]),
        ("a\n- b\n2. c", {}, [PARAGRAPH, PARAGRAPH, NOTHING, PARAGRAPH, SENTENCE]),
    ],
)
def test_paragraphs_and_sentences_are_found(text, options, expected):
    assert breaks_before(text, word_spans(text), **options) == expected


def test_code_between_fences_is_found():
    text = "a\n```py\nb\n```\nc ``` d\n~~~\ne"
    assert [text[start:end] for start, end in fenced_spans(text)] == ["```py\nb\n```", "~~~\ne"]


def test_a_long_sentence_is_cut_with_overlap_and_the_last_window_is_full():
    windows = cut_windows([2] * 12, [PARAGRAPH] + [NOTHING] * 11, longest=10, overlap=4)
    assert windows == [[Window(0, 5), Window(3, 8), Window(6, 11), Window(7, 12)]]


def test_cuts_prefer_ends_of_sentences_that_waste_little():
    breaks = [PARAGRAPH, NOTHING, NOTHING, SENTENCE, NOTHING, NOTHING, NOTHING]
    assert cut_windows([1] * 7, breaks, longest=5, overlap=2) == [[Window(0, 3), Window(3, 7)]]
    assert cut_windows([1] * 7, breaks, longest=6, overlap=2) == [[Window(0, 6), Window(1, 7)]]


@pytest.mark.parametrize("seed", range(4))
def test_windows_hold_every_word_that_fits_and_move_on(seed):
    choose = random.Random(seed)
    for _ in range(200):
        sizes = [choose.choice([1, 1, 2, 3, 7, 20, None]) for _ in range(choose.randrange(40))]
        breaks = [choose.choices([NOTHING, SENTENCE, PARAGRAPH], [8, 2, 1])[0] for _ in sizes]
        breaks[:1] = [PARAGRAPH] * len(breaks[:1])
        longest = choose.randrange(1, 12)
        windows = cut_windows(sizes, breaks, longest=longest, overlap=choose.randrange(longest + 1))
        held = set()
        for run in windows:
            for window in run:
                assert sum(sizes[window.start : window.end]) <= longest
                assert PARAGRAPH not in breaks[window.start + 1 : window.end]
                held |= set(range(window.start, window.end))
            for left, right in itertools.pairwise(run):
                assert left.start < right.start <= left.end < right.end
        assert held == {i for i, size in enumerate(sizes) if size is not None and size <= longest}


# Comparing and joining


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("where is teh station", "Where is the station?", ["where>Where", "teh>the", "station>station?"]),
        ("i like alot of it", "I like a lot of it", ["i>I", "alot>a lot"]),
        ("the the cat", "The cat.", ["the the>The", "cat>cat."]),
        ("no thing here", "nothing here", ["no thing>nothing"]),
        ("cat", "uh cat", ["cat>uh cat"]),
        ("uh cat", "cat", ["uh cat>cat"]),
        ("a b c", "", []),
        ("", "a b c", []),
        ("a - b", "a, b", ["a ->a,"]),
    ],
)
def test_differences_are_those_of_words(before, after, expected):
    words, others = before.split(), after.split()
    found = compare_words(words, others)
    assert [f"{' '.join(words[a:b])}>{' '.join(others[c:d])}" for a, b, c, d in found] == expected


def test_differences_make_one_text_the_other():
    choose = random.Random(0)
    for _ in range(500):
        before, after = (choose.choices(["a", "b", "A.", "c-", "-", "d"], k=choose.randrange(7)) for _ in range(2))
        made, end = [], 0
        for start, stop, first, last in compare_words(before, after):
            assert end <= start < stop
            made += [*before[end:start], *after[first:last]]
            end = stop
        assert not before or not after or made + before[end:] == after


def test_windows_part_where_both_agree():
    def changes(*words):
        return Answer([Change(i, i + 1, text) for i, text in words])

    windows = [Window(0, 8), Window(4, 12)]
    nothing = changes()
    assert join_windows(windows, [nothing, nothing]) == [(0, 6), (6, 12)]
    # Word 6 is a sentence's end for the left one only, word 5 for both.
    left, right = changes((5, "five."), (6, "six.")), changes((1, "five."))
    assert join_windows(windows, [left, right]) == [(0, 5), (5, 12)]
    never = changes(*[(i, "no") for i in range(8)])
    assert join_windows(windows, [never, nothing]) == [(0, 6), (6, 12)]
    across = Answer([Change(5, 7, "one")]), Answer([Change(1, 3, "one")])
    assert join_windows(windows, across) == [(0, 5), (5, 12)]
    beside = [Window(0, 3), Window(3, 5)]
    assert join_windows(beside, [nothing, nothing]) == [(0, 3), (3, 5)]


def test_edits_are_applied_in_any_order_and_refused_over_each_other():
    edits = [Edit(4, 7, "dog"), Edit(0, 3, "A")]
    assert apply_edits("the cat", edits) == "A dog"
    with pytest.raises(ValueError, match="overlaps the edit before it"):
        apply_edits("the cat", [Edit(0, 3, "a"), Edit(2, 4, "b")])
    with pytest.raises(ValueError, match="a text of 7 characters"):
        apply_edits("the cat", [Edit(4, 8, "dog")])


# Restoring


def test_a_text_is_restored_paragraph_by_paragraph_and_keeps_its_white_space(tokenizer):
    text = "\n where is\tthe station\n\n\n  - who can tell\n  - how far it\nmay be  \n"
    found = restored(tokenizer, sentence, text)
    assert found.text == "\n Where is\tthe station.\n\n\n  - Who can tell.\n  - How far it\nmay be.  \n"
    assert found.edits[0] == Edit(2, 7, "Where")
    assert [text[piece.start : piece.end] for piece in found.pieces] == [
        "where is\tthe station",
        "who can tell",
        "how far it\nmay be",
    ]
    assert apply_edits(text, found.edits) == found.text


@pytest.mark.parametrize("seed", range(6))
def test_what_a_model_leaves_alone_comes_back_to_the_byte(tokenizer, seed):
    choose = random.Random(seed)
    for _ in range(25):
        text, window = random_text(choose), choose.randrange(2, ROOM)
        found = restored(tokenizer, lambda source: source, text, window=window, split_lines=choose.random() < 0.3)
        assert found.text == text
        assert found.edits == []


@pytest.mark.parametrize(
    "rewrite", [each_word, sentence, str.upper, lambda s: s[::-1], lambda s: f"{s} {s}", lambda s: ""]
)
def test_whatever_a_model_writes_what_must_stay_does(tokenizer, rewrite):
    choose = random.Random(1)
    for _ in range(40):
        text = random_text(choose)
        found = restored(tokenizer, rewrite, text, window=choose.randrange(8, ROOM), max_edit=None, max_word_edit=None)
        assert apply_edits(text, found.edits) == found.text
        for kept in ("x@y.org", "https://a.b/c", "3.50", "foo_bar()", "😀", "北", "я", "\x00", "\ud800", "a" * 300):
            assert found.text.count(kept) == text.count(kept), kept
        assert re.findall(r"[\n\r\u2028\x0b]", found.text) == re.findall(r"[\n\r\u2028\x0b]", text)


@pytest.mark.parametrize("window", [6, 8, 13, 24, 40, 63])
@pytest.mark.parametrize("overlap", [0, 1, None])
def test_nothing_is_lost_or_doubled_whatever_the_window(tokenizer, window, overlap):
    choose = random.Random(window)
    text = "".join(choose.choice(WORDS) + choose.choice([" ", " ", "  ", "\n"]) for _ in range(300))
    found = restored(tokenizer, each_word, text, window=window, overlap=overlap, max_edit=None)
    assert found.text == each_word(text)
    assert [piece.kept for piece in found.pieces] == [None] * len(found.pieces)
    assert all(left.end < right.start for left, right in itertools.pairwise(found.pieces))


def test_ends_of_windows_are_not_taken_for_ends_of_sentences(tokenizer):
    text = " ".join(random.Random(0).choices(WORDS, k=200))
    found = restored(tokenizer, sentence, text, window=24)
    assert len(found.pieces) > 10
    assert found.text == sentence(text)


def test_dropped_and_repeated_words_stand_as_they_were(tokenizer):
    text = " ".join(random.Random(0).choices(WORDS, k=100))
    assert restored(tokenizer, lambda source: "", text).text == text
    for rewrite in (lambda s: " ".join(s.split()[:2]), lambda s: f"{s} {s}", lambda s: "no idea what"):
        found = restored(tokenizer, rewrite, text)
        assert found.text == text
        assert {piece.kept for piece in found.pieces} == {"max_edit"}


@pytest.mark.parametrize(
    "text", ["", " ", "\n\n", "a", "😀", "...", "12:30", "北京", "</s>", "\ud800", "a" * 10_000, "ß" * 10_000]
)
def test_texts_without_words_to_restore_come_back(tokenizer, text):
    found = restored(tokenizer, lambda source: source, text)
    assert (found.text, found.edits) == (text, [])


def test_code_between_fences_is_not_read(tokenizer):
    model = FakeModel(tokenizer, str.upper)
    found = restore(model, tokenizer, "who\n```\nwho = who\n```\nwho", max_edit=None)
    assert found.text == "WHO\n```\nwho = who\n```\nWHO"
    assert model.read == ["who"]


@pytest.mark.parametrize(
    ("text", "expected", "read"),
    [
        ("- who\n-\tcan tell - us", "- Who.\n-\tCan tell - us.", ["can tell - us", "who"]),
        (
            "# how far\n> > 1. may\n1) a\n\n* - be",
            "# How far.\n> > 1. May.\n1) A.\n\n* - Be.",
            ["a", "be", "how far", "may"],
        ),
        ("• who\r\n  - tell", "• Who.\r\n  - Tell.", ["tell", "who"]),
        ("- -", "- -", []),
    ],
)
def test_marks_of_lists_headings_and_quotations_are_not_read(tokenizer, text, expected, read):
    model = FakeModel(tokenizer, sentence)
    assert restore(model, tokenizer, text).text == expected
    assert sorted(model.read) == read


def test_limits_keep_what_changes_too_much(tokenizer):
    def replace(source):
        return source.replace("station", "harbour")

    text = "where is the station and who can tell"
    assert restored(tokenizer, replace, text).text == text
    assert restored(tokenizer, replace, text, max_word_edit=None).text == replace(text)
    tight = restored(tokenizer, replace, text, max_word_edit=None, max_edit=0.1)
    assert (tight.text, tight.pieces[0].kept) == (text, "max_edit")
    # Case and marks are no limit's business.
    assert restored(tokenizer, lambda source: source.upper() + "!!!", text, max_edit=0).text == text.upper() + "!!!"


def test_printed_signs_are_read_as_those_of_a_keyboard_and_stay(tokenizer):
    model = FakeModel(tokenizer, sentence)
    text = "“who can’t tell – it is…” is it"
    assert restore(model, tokenizer, "who\n\n" + text).text == "Who.\n\n" + text + "."
    assert sorted(model.read) == ['"who can\'t tell - it is..." is it', "who"]
    assert restored(tokenizer, lambda source: source.replace("can't", "Can't"), text).text == text.replace("can", "Can")
    assert restored(tokenizer, lambda source: source.replace("can't", "cant"), text).text == text.replace(
        "can’t", "cant"
    )


def test_signs_to_keep_can_be_chosen(tokenizer):
    def rewrite(source):
        return source.replace("я", "Я")

    assert restored(tokenizer, rewrite, "я am here").text == "я am here"
    assert restored(tokenizer, rewrite, "я am here", keep=None).text == "Я am here"
    assert restored(tokenizer, str.capitalize, "where is it", keep="w").text == "where is it"
    broken = restored(tokenizer, lambda source: source + "\ufffd", "where is it", keep=None)
    assert broken.text == "where is it"


def test_what_is_unsure_stays(tokenizer):
    def score(token):
        return -2.0 if "T" in token else -0.1

    text = "where is The station"
    model = FakeModel(tokenizer, lambda source: source.replace("The", "the").replace("where", "There"), score)
    # Of a change whose letters are unsure, the capital is made.
    assert restore(model, tokenizer, text).text == "Where is the station"
    found = restore(model, tokenizer, text, min_spelling_confidence=0.1)
    assert found == restore(model, tokenizer, text, min_spelling_confidence=None)
    assert found.text == "There is the station"
    first, second = (edit.confidence for edit in found.edits)
    assert first == pytest.approx(0.1353, abs=1e-4)
    assert second == pytest.approx(0.9048, abs=1e-4)
    assert 0.5 < found.pieces[0].confidence < 0.9048
    assert restore(model, tokenizer, text, min_confidence=0.2).text == "where is the station"
    # Case alone asks for no more than min_confidence.
    shouting = FakeModel(
        tokenizer, lambda source: source.replace("where", "There").replace("station", "STATION"), score
    )
    assert restore(shouting, tokenizer, "where is the station").text == "Where is the STATION"
    unsure = restore(model, tokenizer, text, min_confidence=0.91)
    assert (unsure.text, unsure.pieces[0].kept) == (text, "min_confidence")
    with pytest.raises(ValueError, match=r"min_confidence=0.2: this model tells no token_scores"):
        restored(tokenizer, str.upper, text, min_confidence=0.2)


def test_commas_that_are_unsure_are_left_out(tokenizer):
    def score(token):
        return -0.6 if "," in token else -0.1

    text = "where is the station and, well, 1,000 of it"
    model = FakeModel(tokenizer, lambda source: source.replace("where", "There,").replace("station", "station,"), score)
    # exp(-0.6) is 0.55. What else the change of a word holds is made.
    kept = restore(model, tokenizer, text, min_spelling_confidence=None)
    assert kept.text == "There is the station and, well, 1,000 of it"
    for least in (0.5, None):
        free = restore(model, tokenizer, text, min_spelling_confidence=None, min_comma_confidence=least)
        assert free.text == "There, is the station, and, well, 1,000 of it"
    # Commas that stand are nobody's to leave out, and a model that tells nothing is believed.
    louder = FakeModel(tokenizer, lambda source: source.replace("well,", "Well,"), score)
    assert restore(louder, tokenizer, text).text == text.replace("well", "Well")
    assert restored(tokenizer, lambda source: source.replace("station", "station,"), text).text.count(",") == 4


@pytest.mark.parametrize(
    ("words", "replacements", "expected"),
    [
        ("we left then it rained", {1: "left."}, {1: "left.", 2: "Then"}),
        ("we left then it rained", {1: "left?", 2: "then,"}, {1: "left?", 2: "Then,"}),
        ('we left "then it rained', {1: "left!"}, {1: "left!", 2: '"Then'}),
        ("we left dont go", {1: "left.", 2: "don't"}, {1: "left.", 2: "Don't"}),
        # The source's own ends, which may be those of abbreviations, commas, the last word, and what is no small word.
        ("it left. then i", {1: "Left."}, {1: "Left."}),
        ("we left then it rained", {1: "left,"}, {1: "left,"}),
        ("we left then it rained", {4: "rained."}, {4: "rained."}),
        ("we left iPhone", {1: "left."}, {1: "left."}),
        ("we left 9pm", {1: "left."}, {1: "left."}),
        ("we left `then`", {1: "left."}, {1: "left."}),
        ("we left a.org", {1: "left."}, {1: "left."}),
        ("we left - then", {1: "left."}, {1: "left."}),
    ],
)
def test_what_stands_behind_a_new_end_of_a_sentence_begins_with_a_capital(words, replacements, expected):
    changes = [Change(place, place + 1, text, 0.9) for place, text in replacements.items()]
    found = with_capitals_behind_ends(words.split(), changes)
    assert found == [Change(place, place + 1, text, 0.9) for place, text in expected.items()]


def test_a_capital_behind_a_new_end_alters_nothing_that_must_stay(tokenizer):
    def end(source):
        return source.replace("here", "here.")

    assert restored(tokenizer, end, "here я am").text == "here. я am"
    assert restored(tokenizer, end, "here я am", keep=None).text == "here. Я am"
    assert restored(tokenizer, end, "here who am", keep="w").text == "here. who am"
    assert restored(tokenizer, end, "here who am").text == "here. Who am"


def test_equal_windows_are_written_once_and_others_together(tokenizer):
    model = FakeModel(tokenizer, sentence)
    text = "\n\n".join(["who is it", "how far", "who is it", "where", "me"])
    assert restore(model, tokenizer, text, batch_size=2).text.count("Who is it.") == 2
    assert sorted(model.read) == ["how far", "me", "where", "who is it"]
    assert model.rows == [2, 2]


@pytest.mark.parametrize("blanks", [False, True])
def test_a_models_text_depends_neither_on_batches_nor_on_the_call(tokenizer, blanks):
    more = {"canvas_ratio": 2.0, "nll_loss_weight": 0.0, "mse_loss_weight": 0.0} if blanks else {}
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=ROOM, **more)
    # It writes whole characters only.
    letters = [id for id in range(4, len(tokenizer)) if tokenizer.decode(id).strip().isascii()]
    with torch.no_grad():
        model.decoder.lm_head.bias[letters] += 10
    assert model_room(model, tokenizer) == (32 if blanks else 64)
    text = "\n\n".join(" ".join(WORDS[n:]) for n in range(8))
    free = {"max_edit": None, "max_word_edit": None, "min_spelling_confidence": None, "keep": None}
    found = restore(model, tokenizer, text, **free)
    assert found.edits
    assert all(0 < edit.confidence <= 1 for edit in found.edits)
    again = restore(model, tokenizer, text, batch_size=3, **free)
    assert again.text == found.text
    assert [edit.confidence for edit in again.edits] == pytest.approx([edit.confidence for edit in found.edits])
    assert restore(model, tokenizer, text, seed=1, **free).text != found.text
    assert restore(model, tokenizer, text, generator=torch.Generator().manual_seed(7), **free).text != found.text
    assert apply_edits(text, found.edits) == found.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_edit": 2}, "max_edit=2 must be a share between 0 and 1"),
        ({"max_word_edit": -0.1}, "max_word_edit=-0.1 must be"),
        ({"min_confidence": "high"}, "min_confidence='high' must be"),
        ({"min_spelling_confidence": 7}, "min_spelling_confidence=7 must be"),
        ({"min_comma_confidence": -1}, "min_comma_confidence=-1 must be"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number above 0"),
        ({"window": 65}, "window=65 must be a whole number from 2 to 64"),
        ({"window": 1}, "window=1 must be"),
        ({"num_return_sequences": 2}, "num_return_sequences=2: a window has one answer"),
        ({"max_new_tokens": 5}, "max_new_tokens=5 would cut answers off; pass window for shorter pieces"),
        ({"max_length": 5}, "max_length=5 would cut answers off"),
        ({"keep": "["}, "keep='[' is no regular expression: unterminated character set"),
        ({"keep": 7}, "keep=7 must be a regular expression or None"),
        ({"seed": 1.5}, "seed=1.5 must be a whole number"),
        ({"seed": -1}, "seed=-1 must be a whole number from 0 to below 2**63"),
        ({"seed": 2**63}, f"seed={2**63} must be a whole number from 0 to below 2**63"),
        ({"generation_config": GenerationConfig(max_new_tokens=5)}, "generation_config allows answers of 5 tokens"),
        ({"generation_config": GenerationConfig(max_length=5)}, "leave max_new_tokens and max_length out of it"),
        ({"window": 8, "overlap": 8}, "overlap=8 must be a whole number from 0 to below window=8"),
    ],
)
def test_options_out_of_range_are_refused(tokenizer, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        restored(tokenizer, sentence, "who is it", **options)


def test_a_config_may_allow_answers_that_fit(tokenizer):
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=ROOM)
    own = copy.deepcopy(model.generation_config)
    assert own.max_length == model_room(model, tokenizer) == ROOM
    text = "where is the station"
    assert restore(model, tokenizer, text, generation_config=own) == restore(model, tokenizer, text)
    several = GenerationConfig(num_return_sequences=2, do_sample=True)
    with pytest.raises(ValueError, match="num_return_sequences=2: a window has one answer"):
        restore(model, tokenizer, text, generation_config=several)
    model.generation_config.max_length = 40
    assert model_room(model, tokenizer) == 40


def test_what_is_no_text_model_or_tokenizer_is_refused(tokenizer):
    with pytest.raises(ValueError, match="text is of type list"):
        restored(tokenizer, sentence, ["who is it"])
    model = FakeModel(tokenizer, sentence)
    for given in (("examples/models/yan-restore", tokenizer), (tokenizer, model)):
        with pytest.raises(ValueError, match=r"model is of type .*; pass a model with generate"):
            restore(*given, "who is it")
    with pytest.raises(ValueError, match="tokenizer is of type str; pass the model's tokenizer"):
        restore(model, "examples/models/yan-restore", "who is it")


@pytest.mark.parametrize(
    ("text", "replacements", "expected"),
    [
        # A pair, in one change and in two.
        ("stop he said", {0: '"Stop"'}, {0: '"Stop"'}),
        ("stop it", {0: '"Stop', 1: 'it."'}, {0: '"Stop', 1: 'it."'}),
        # One alone: what else the change does is left, and nothing of a change that did nothing else.
        ("stop it", {0: '"Stop', 1: "it."}, {0: "Stop", 1: "it."}),
        ("stop it", {0: '"stop', 1: "it."}, {1: "it."}),
        # The pair of one that stands there.
        ('"stop it', {1: 'it."'}, {1: 'it."'}),
        # One of a pair that is taken away is no reason to add one.
        ('"stop" it', {0: 'stop"', 1: '"it'}, {0: 'stop"', 1: '"it'}),
    ],
)
def test_quotation_marks_are_added_in_pairs(text, replacements, expected):
    changes = [Change(place, place + 1, new) for place, new in replacements.items()]
    kept = without_lone_quotes(text.split(), changes)
    assert {change.start: change.replacement for change in kept} == expected


def test_a_mark_between_words_stays(tokenizer):
    text = "  - where is it - there"
    assert restored(tokenizer, lambda source: source.replace("-", "- -,"), text).text == text
