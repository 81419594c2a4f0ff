"""BERTScore and MAUVE with a tiny local encoder, against the packages themselves and on texts with known answers."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset
from transformers import AutoTokenizer, BertConfig, BertModel

from modeling_yan.data.tokenization import train_tokenizer
from modeling_yan.evaluation.encoder_metrics import bert_f1, mauve_score, text_features

from ..helpers import E2E_DATA

ROOM = 64
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    """A random BERT; mauve-text takes only folders with a name like this one."""
    folder = tmp_path_factory.mktemp("encoders") / "tiny-bert"
    torch.manual_seed(0)
    train_tokenizer(["a b c"], 300, ROOM).save_pretrained(folder)
    BertModel(BertConfig(vocab_size=300, max_position_embeddings=ROOM, **SIZES)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Real sentences about restaurants."""
    return load_dataset(str(E2E_DATA))["test"]["human_reference"][:400:4]


def test_bert_f1_takes_the_best_reference_and_asks_for_a_layer(encoder):
    texts = ["a pub by the river", "cheap food"]
    exact = bert_f1(texts, [["no", texts[0]], [texts[1]]], encoder, layer=2)
    other = bert_f1(texts, [["no"], ["a cat"]], encoder, layer=2)
    assert exact == pytest.approx(100, abs=1e-3)
    assert other < exact - 1
    with pytest.raises(ValueError, match="bertscore_layer"):
        bert_f1(texts, [["a"], ["b"]], encoder)
    with pytest.raises(ValueError, match="bertscore_layer=3 must be 0 to 2"):
        bert_f1(texts, [["a"], ["b"]], encoder, layer=3)


def test_features_are_those_of_mauve_text_whatever_the_batches(encoder, texts):
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), BertModel.from_pretrained(encoder).eval()
    alone = []
    for text in texts[:7]:
        ids = torch.tensor([tokenizer(text, truncation=True, max_length=ROOM)["input_ids"]])
        with torch.no_grad():
            alone.append(model(ids).last_hidden_state[0, -1].numpy())
    for batch_size in (1, 3, 32):
        np.testing.assert_allclose(text_features(texts[:7], encoder, batch_size=batch_size), alone, atol=1e-5)


def test_mauve_compares_the_features_of_both_sides(mauve_stand_in, encoder, texts):
    half, rest = texts[:50], texts[50:]
    distance = text_features(half, encoder).mean(0) - text_features(rest, encoder).mean(0)
    found = mauve_score(half, rest, encoder, batch_size=1)
    assert found == pytest.approx(100 * np.exp(-np.linalg.norm(distance)), abs=1e-3)
    assert mauve_score(half, text_features(rest, encoder), encoder) == pytest.approx(found, abs=1e-3)
    assert mauve_score(half, half, encoder) == pytest.approx(100, abs=1e-3)


def test_mauve_is_what_the_package_gives_and_tells_texts_apart(encoder, texts):
    mauve = pytest.importorskip("mauve", reason='mauve-text is not installed: pip install -e ".[mauve]" (GPL)')
    half, rest = texts[:50], texts[50:]
    whole = mauve.compute_mauve(p_text=half, q_text=rest, featurize_model_name=encoder, max_text_length=ROOM)
    # Clusters of few texts turn on the last bits of their features.
    found = mauve_score(half, rest, encoder, batch_size=1)
    assert found == pytest.approx(100 * whole.mauve, abs=1e-3)
    assert mauve_score(["no"] * 50, rest, encoder) < found - 20


def test_longer_texts_are_cut_or_refused(encoder, texts, tmp_path):
    long = " ".join(texts[:9])
    assert np.isfinite(text_features([long, "a"], encoder)).all()
    assert bert_f1([long], [[long]], encoder, layer=1) == pytest.approx(100, abs=1e-3)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    tokenizer.model_max_length = 10**6
    tokenizer.save_pretrained(tmp_path)
    BertModel.from_pretrained(encoder).save_pretrained(tmp_path)
    assert np.isfinite(text_features([long, "a"], str(tmp_path))).all()
    with pytest.raises(ValueError, match=f"reads {ROOM} tokens, a text has .* set tokenizer.model_max_length = {ROOM}"):
        bert_f1([long], [["a"]], str(tmp_path), layer=1)


def test_what_cannot_be_compared_is_refused(mauve_stand_in, encoder, texts, tmp_path):
    with pytest.raises(ValueError, match="at least 20 predictions, got 3"):
        mauve_score(texts[:3], texts, encoder)
    with pytest.raises(ValueError, match="at least 20 references, got 0"):
        mauve_score(texts, [], encoder)
    for score in (
        lambda: mauve_score(texts, texts, str(Path(tmp_path) / "absent")),
        lambda: bert_f1(["a"], [["a"]], str(Path(tmp_path) / "absent"), layer=1),
    ):
        with pytest.raises((ValueError, OSError), match="absent cannot be read"):
            score()


@pytest.mark.parametrize(
    ("module", "package", "score"),
    [
        ("bert_score", "bert-score", lambda model: bert_f1(["a"], [["a"]], model, layer=1)),
        ("mauve", "mauve-text", lambda model: mauve_score(["a"] * 20, ["a"] * 20, model)),
    ],
    ids=["bert_score", "mauve"],
)
def test_a_missing_package_is_named(module, package, score, encoder, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"pip install {package}"):
        score(encoder)
