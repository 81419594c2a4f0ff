"""Words and their counts: what was meant, what stays, and how the file goes along with a model."""

import pytest

from modeling_yan import restore
from modeling_yan.data.tokenization import train_tokenizer
from modeling_yan.lexicon_yan import FILE, Lexicon, TokenizerWords, copy_lexicon
from modeling_yan.text_changes_yan import Change, Limits, safe_changes

from .helpers import tiny_model

WORDS = {"the": 90, "where": 40, "there": 50, "station": 20, "nation": 30, "is": 80, "rare": 2, "cafe": 9}


@pytest.fixture
def lexicon() -> Lexicon:
    return Lexicon(WORDS)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("statoin", "station"),  # two letters that changed places
        ("staion", "station"),
        ("stationn", "station"),
        ("statiom", "station"),
        ("tation", "nation"),  # the more frequent of two
        ("there", None),
        ("stoitan", None),  # two errors
        ("teh", "the"),
        ("si", None),  # short
        ("nations", None),  # inflected
        ("theres", None),
        ("rarer", None),  # what is rare itself stands for nothing
        ("café", None),
        ("stat1on", None),
        ("isthe", "is the"),  # two words
        ("israre", "is rare"),
        ("isno", None),
    ],
)
def test_the_most_frequent_word_one_error_away_is_meant(lexicon, word, meant):
    assert lexicon.meant(word) == meant


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        ("where is the statoin", "where is the station"),
        ('"where is the statoin?', '"where is the station?'),
        # What may be a name, and a text most of whose words are unknown.
        ("where is Statoin", "where is Statoin"),
        # No name begins a sentence as often as a very frequent word does.
        ("Teh station is there. Wheer", "The station is there. Where"),
        ("STATOIN is there", "STATOIN is there"),
        ("wo ist der statoin the", "wo ist der statoin the"),
        ("where  is the statoin", "where  is the station"),
        ("where is the statoin's, isthe?", "where is the station's, is the?"),
        ("statoin_2 is there", "statoin_2 is there"),
        ("", ""),
    ],
)
def test_unknown_words_of_a_known_language_are_mended(lexicon, text, mended):
    assert lexicon.mended(text) == mended


@pytest.mark.parametrize(
    ("text", "known"),
    [("", True), ("statoin", True), ("the statoin", True), ("xyz statoin", False), ("where is teh statoin the", True)],
)
def test_which_texts_are_of_its_language(lexicon, text, known):
    assert lexicon.knows(text) == known


def test_three_letters_stand_for_a_very_frequent_word_or_none():
    assert Lexicon({"the": 10**6, "fir": 45}).meant("fri") is None
    assert Lexicon({"the": 10**6, "for": 55}).meant("fro") == "for"
    assert Lexicon({"the": 10**6, "fire": 45}).meant("fier") == "fire"


def test_rare_words_are_not_taken_for_halves():
    assert Lexicon({"the": 10**6, "rare": 4}).meant("therare") is None
    assert Lexicon({"the": 10**6, "rare": 6}).meant("therare") == "the rare"


def test_a_word_of_two_letters_stands_for_one_of_the_most_frequent():
    assert Lexicon({"the": 10**6, "to": 999}).meant("ot") is None
    assert Lexicon({"the": 10**6, "to": 1000}).meant("ot") == "to"


def test_a_known_word_is_misspelled_where_another_is_thousands_of_times_as_frequent():
    assert Lexicon({"are": 2000, "aare": 2}).meant("aare") == "are"
    assert Lexicon({"are": 1999, "aare": 2}).meant("aare") is None
    assert Lexicon({"are": 2000, "aare": 2}).mended("are aare we") == "are are we"


def test_neighbours_decide_between_several_words():
    words = {"for": 900, "of": 1000, "out": 500, "them": 500}
    assert Lexicon(words).meant("ofr", "out", "them") == "of"
    assert Lexicon(words, {("for", "them"): 50}).meant("ofr", "out", "them") == "for"
    assert Lexicon(words, {("out", "for"): 50}).mended("out ofr them") == "out for them"
    assert Lexicon(words, {("for", "them"): 50}).meant("ofr", "them", "out") == "of"


def test_how_probable_a_word_is_between_two_others():
    """p(word | before) p(behind | word), by hand: 20 occurrences of what single words say are added to the pairs'."""
    lexicon = Lexicon({"a": 60, "b": 30, "c": 10}, {("a", "b"): 12, ("b", "c"): 5})
    before = {word: (12 * (word == "b") + 20 * lexicon.counts[word] / 100) / (60 + 20) for word in "bc"}
    behind = {word: (5 * (word == "b") + 20 * 10 / 100) / (lexicon.counts[word] + 20) for word in "bc"}
    expected = before["b"] * behind["b"] / (before["c"] * behind["c"])
    assert lexicon._fit("b", "a", "c") / lexicon._fit("c", "a", "c") == pytest.approx(expected)


def test_words_are_counted_without_case_and_marks():
    lexicon = Lexicon.count(["The station, 42 times.", "the STATION!", "once"], least_pairs=2)
    assert lexicon.counts == {"the": 2, "station": 2}
    assert lexicon.pairs == {("the", "station"): 2}
    assert Lexicon.count(["The station."] * 9).pairs == {}
    assert "station" in lexicon
    assert "once" not in lexicon
    assert len(lexicon) == 2


def test_a_lexicon_is_saved_and_read_and_goes_along_with_its_model(lexicon, tmp_path):
    (tmp_path / "second").mkdir()
    lexicon.save_pretrained(tmp_path / "first")
    assert Lexicon.from_pretrained(tmp_path / "first").counts == WORDS
    assert Lexicon.from_pretrained(tmp_path / "second") is None
    model = tiny_model()
    assert Lexicon.of_model(model) is None
    copy_lexicon(model, tmp_path / "second")
    assert not (tmp_path / "second" / FILE).exists()
    model.save_pretrained(tmp_path / "first")
    loaded = type(model).from_pretrained(tmp_path / "first")
    assert Lexicon.of_model(loaded).counts == WORDS
    loaded.save_pretrained(tmp_path / "second")
    assert Lexicon.from_pretrained(tmp_path / "second").counts == WORDS


def test_a_lexicon_that_was_written_anew_is_read_anew(lexicon, tmp_path):
    lexicon.save_pretrained(tmp_path)
    assert "kublai" not in Lexicon.from_pretrained(tmp_path)
    more = lexicon + Lexicon.count(["Kublai is there."], least=1)
    assert more.counts == {**WORDS, "kublai": 1, "is": 81, "there": 51}
    more.save_pretrained(tmp_path)
    assert "kublai" in Lexicon.from_pretrained(tmp_path)


def test_words_of_other_texts_count_as_much_as_the_own_ones(tmp_path):
    path = tmp_path / "english.txt"
    path.write_text("\ufeffThe 9000\nO'Clock 900\nthe 90\nx-ray 7\nswerve 3\nof the 30\nan x-ray 4\n", encoding="utf-8")
    other = Lexicon.from_counts(path)
    assert other.counts == {"the": 9090, "oclock": 900, "swerve": 3}
    assert other.pairs == {("of", "the"): 30}
    scaled = other.scaled(100)
    assert scaled.counts == {"the": 91, "oclock": 9, "swerve": 1}
    assert scaled.pairs == {("of", "the"): 1}
    # A rare word stays, which would be another one's misspelling without them.
    own = Lexicon({"the": 90, "serve": 10})
    assert own.meant("swerve") == "serve"
    assert (own + scaled).meant("swerve") is None
    assert Lexicon({}).scaled(100).counts == {}
    path.write_text("swerve\n")
    with pytest.raises(ValueError, match=r"english\.txt must hold one or two words and how often they occur a line"):
        Lexicon.from_counts(path)


def test_words_of_ones_own_are_known_and_meant(lexicon):
    assert lexicon.meant("karakorm") is None
    more = lexicon.with_words(["Karakorum", "Kublai"])
    assert more.meant("karakorm") == "karakorum"
    assert more.counts == {**WORDS, "karakorum": 5, "kublai": 5}
    with pytest.raises(ValueError, match=r"words=\['New York', '9th'\].*give each word by itself"):
        lexicon.with_words(["New York", "Rome", "9th"])
    with pytest.raises(ValueError, match=r"words='Kublai' is one text, .*; pass a list of words"):
        lexicon.with_words("Kublai")
    with pytest.raises(ValueError, match="texts='who is it' is one text"):
        Lexicon.count("who is it")


@pytest.mark.parametrize("line", ["station", "station many", "at the station 3", ""])
def test_a_file_that_is_no_lexicon_is_named(tmp_path, line):
    (tmp_path / FILE).write_text(f"the 3\n{line}\n")
    with pytest.raises(ValueError, match=r"lexicon\.txt must hold one or two words and how often they occur"):
        Lexicon.from_pretrained(tmp_path)


def test_the_words_of_a_tokenizer():
    words = TokenizerWords(train_tokenizer(["where is the Station"] * 20, 400, 32))
    assert "where" not in words  # it begins the text and has no space before it
    assert "is" in words
    assert "station" in words
    assert "nation" not in words


class Copies:
    """A model that writes what it reads, or what a function makes of that."""

    def __init__(self, tokenizer, rewrite=str):
        self.tokenizer, self.rewrite, self.read = tokenizer, rewrite, []

    def generate(self, input_ids, attention_mask, **options):
        texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in input_ids]
        self.read += texts
        return self.tokenizer([self.rewrite(text) for text in texts], return_tensors="pt", padding=True)["input_ids"]


def test_restore_mends_what_the_model_reads_and_makes_edits_of_it(lexicon):
    tokenizer = train_tokenizer([], 260, 64)
    model = Copies(tokenizer, lambda text: text[:1].upper() + text[1:])
    restored = restore(model, tokenizer, "where is the statoin\n\nthe Statoin", lexicon=lexicon)
    assert restored.text == "Where is the station\n\nThe Statoin"
    assert sorted(text.split("</s>")[0].strip() for text in model.read) == ["the Statoin", "where is the station"]
    assert [edit.replacement for edit in restored.edits] == ["Where", "station", "The"]
    assert restore(model, tokenizer, "where is the statoin", lexicon=None).text == "Where is the statoin"


def test_other_white_space_than_spaces_stays_and_shifts_nothing(lexicon):
    tokenizer = train_tokenizer([], 260, 64)
    model = Copies(tokenizer, lambda text: text.replace("there", "their."))
    text = "where\u00a0is\u2003the  statoin rare there"
    assert restore(model, tokenizer, text, lexicon=lexicon).text == "where\u00a0is\u2003the  station rare there."
    assert restore(model, tokenizer, text, lexicon=Lexicon({})).text == "where\u00a0is\u2003the  statoin rare there."


def test_restore_lets_changes_of_letters_write_known_words_alone(lexicon):
    tokenizer = train_tokenizer([], 260, 64)

    def mend(text: str) -> str:
        return text.replace("where", "There,").replace("kubali", "Kublai.").replace("thee", "zee")

    text = "where is thee kubali the station Kublai is there"
    restored = restore(Copies(tokenizer, mend), tokenizer, text, lexicon=Lexicon({**WORDS, "thee": 1}))
    # "there" is a word, "kublai" one of the text, "zee" none.
    assert restored.text == "There, is thee Kublai. The station Kublai is there"
    unknown = restore(Copies(tokenizer, lambda text: text.replace("where", "Weer,")), tokenizer, text, lexicon=lexicon)
    assert unknown.text.startswith("Where, is the")


def test_no_letter_of_another_language_changes(lexicon):
    tokenizer = train_tokenizer([], 260, 64)
    model = Copies(tokenizer, lambda text: text.replace("wo ist", "Wo is").replace("zug", "zug?"))
    assert restore(model, tokenizer, "wo ist der zug", lexicon=lexicon).text == "Wo ist der zug?"
    assert restore(model, tokenizer, "wo ist der zug", lexicon=None).text == "Wo is der zug?"


def test_no_word_becomes_two_others(lexicon):
    tokenizer = train_tokenizer([], 260, 64)
    model = Copies(tokenizer, lambda text: text.replace("rarely", "rare is").replace("isthe", "is the"))
    assert (
        restore(model, tokenizer, "isthe station rarely there", lexicon=lexicon).text == "is the station rarely there"
    )


def test_a_word_beside_one_that_is_parted_is_mended_on_its_own(lexicon):
    tokenizer = train_tokenizer([], 260, 256)
    model = Copies(tokenizer, lambda text: text.replace("nation", "Nation"))
    restored = restore(
        model, tokenizer, "where isthe statoin where the rare natoin isthe there where the", lexicon=lexicon
    )
    assert restored.text == "where is the station where the rare Nation is the there where the"
    assert [edit.replacement for edit in restored.edits] == ["is the", "station", "Nation", "is the"]


def test_links_get_no_marks_of_a_refused_change(lexicon):
    tokenizer = train_tokenizer([], 260, 64)
    model = Copies(tokenizer, lambda text: text.replace("https://a.org", "Htps://b.org."))
    text = "where is the station https://a.org"
    assert restore(model, tokenizer, text, lexicon=lexicon).text == text


@pytest.mark.parametrize(
    ("confidence", "made"),
    [(0.9, "Nation,"), (0.3, "Station,")],
)
def test_the_lexicons_letters_are_made_where_a_change_is_refused(lexicon, confidence, made):
    limits = Limits(None, None, None, 0.8, None, None, is_word=lexicon.__contains__)
    change = Change(0, 1, "Nation,", confidence)
    assert safe_changes(["statoin"], ["station"], [change], limits) == [Change(0, 1, made, confidence)]


def test_a_lexicon_that_is_none_is_refused():
    tokenizer = train_tokenizer([], 260, 64)
    with pytest.raises(ValueError, match=r"lexicon=\['the'\] must be a Lexicon, 'model'"):
        restore(Copies(tokenizer), tokenizer, "where", lexicon=["the"])
