"""A tokenizer of words and letters, and targets that are spelled as their sources are."""

import pytest
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from modeling_yan.data.redrawn_pairs import RedrawnPairs
from modeling_yan.data.spelling import knows_words_and_letters, spelled_ids
from modeling_yan.data.tasks import Task
from modeling_yan.data.tokenization import tokenize_pairs, train_tokenizer

TEXTS = ["where is the station", "Where is the station? It is there, of course."] * 5


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, 300, 64, whole_words=True)


def tokens(tokenizer, source: str, target: str) -> str:
    return " ".join(tokenizer.convert_ids_to_tokens(spelled_ids(tokenizer, source, target)))


def test_known_words_are_one_token_and_others_their_bytes(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    for t in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert t.tokenize("where is teh station?") == ["where", "Ġis", "Ġ", "t", "e", "h", "Ġstation", "?"]
        ids = t("é – 😀\n\tstaition").input_ids
        assert t.decode(ids, skip_special_tokens=True) == "é – 😀\n\tstaition"
        assert ids[-1] == t.eos_token_id == 2
        assert (t.pad_token_id, t.bos_token_id, t.mask_token_id) == (0, 1, 3)
        assert t.mask_token_id in t("where <mask>").input_ids
    assert len(tokenizer) <= 300


def test_the_most_frequent_words_have_entries():
    texts = ["often often often rare"] * 3
    frequent = train_tokenizer(texts, 4 + 256 + 1, 64, whole_words=True)
    assert frequent.tokenize("often often rare")[-6:] == ["Ġoften", "Ġ", "r", "a", "r", "e"]
    assert len(train_tokenizer(texts, 10, 64, whole_words=True)) == 260


def test_which_tokenizers_know_words_and_letters(tokenizer):
    assert knows_words_and_letters(tokenizer)
    assert not knows_words_and_letters(train_tokenizer(TEXTS, 300, 64))
    assert not knows_words_and_letters(train_tokenizer([], 260, 64))


@pytest.mark.parametrize(
    ("source", "target", "written"),
    [
        # Equal words as the source has them, in whatever case.
        ("where is the station", "Where is the station?", "Where Ġis Ġthe Ġstation ?"),
        # A word that is read in letters is written in letters, though it has an entry.
        ("where teh station", "where the station", "where Ġ t h e Ġstation"),
        ("where is the staition", "Where is the station?", "Where Ġis Ġthe Ġ s t a t i o n ?"),
        # What the source does not hold is whole where it can be.
        ("where the station", "where there station", "where Ġthere Ġstation"),
        ("where station", "where is Zoe station", "where Ġis Ġ Z o e Ġstation"),
        # Two words that were one, and one that was two.
        ("where isthe station", "where is the station", "where Ġ i s Ġ t h e Ġstation"),
        ("where there of", "where thereof", "where Ġ t h e r e o f"),
        ("", "where is", "where Ġis"),
    ],
)
def test_words_are_spelled_as_the_source_spells_them(tokenizer, source, target, written):
    assert tokens(tokenizer, source, target) == written
    assert tokenizer.decode(spelled_ids(tokenizer, source, target)) == target


def test_pairs_are_spelled_where_this_is_asked_for(tokenizer):
    row = {"source": "where teh", "target": "where the", "references": ["where the"]}
    plain, spelled = (
        tokenize_pairs(Dataset.from_list([row]), tokenizer, 8, 5, spelled=spelled)[0] for spelled in (False, True)
    )
    assert plain["input_ids"] == spelled["input_ids"]
    assert tokenizer.convert_ids_to_tokens(plain["labels"]) == ["where", "Ġthe", "</s>"]
    # Cut at five tokens, the end among them.
    assert tokenizer.convert_ids_to_tokens(spelled["labels"]) == ["where", "Ġ", "t", "h", "</s>"]


def test_redrawn_pairs_are_spelled_where_this_is_asked_for(tokenizer):
    task = Task("mend", "{typed}", "{text}", redraw=True)
    rows = task.build(Dataset.from_list([{"typed": "where teh", "text": "where the"}]))
    labels = [RedrawnPairs(rows, task, tokenizer, spelled=spelled)[0]["labels"] for spelled in (False, True)]
    assert [tokenizer.convert_ids_to_tokens(ids)[1:-1] for ids in labels] == [["Ġthe"], ["Ġ", "t", "h", "e"]]
