"""A race: who runs is told truthfully, both write their own answers, and each has a clock."""

import shutil

import pytest
import torch

from modeling_yan.evaluation import peers
from modeling_yan.evaluation.ctranslate2_baselines import convert
from modeling_yan.evaluation.masked_diffusion import MaskedDiffusionLM
from modeling_yan.evaluation.peers import race, read_peer
from modeling_yan.evaluation.text_generation import generate_texts, load_text_model

from ..helpers import save_tiny_peer, seeded, tiny_model, word_tokenizer

SOURCE = "w5 w6 w7"


@pytest.fixture(scope="module", params=["bart", "gpt2"])
def folder(request, tmp_path_factory):
    return save_tiny_peer(tmp_path_factory.mktemp("peer") / request.param, request.param)


def test_both_write_their_own_answers_and_are_timed(model, folder):
    tokenizer, peer = word_tokenizer(), read_peer(str(folder))
    yan, other = race(model, tokenizer, peer, SOURCE, steps=2, seed=3, calls=4)
    ids = model.generate(
        tokenizer(SOURCE, return_tensors="pt")["input_ids"], generator=seeded(3), num_inference_steps=2
    )
    assert yan.text == tokenizer.decode(ids[0], skip_special_tokens=True).strip()
    longest = model.config.max_position_embeddings
    options = {"max_new_tokens": longest, "do_sample": False}
    assert [other.text] == generate_texts(load_text_model(str(folder)), tokenizer, [SOURCE], **options)
    assert 0 < other.tokens <= longest
    for lane in (yan, other):
        assert lane.calls == 4
        assert 0 < lane.quartiles[0] <= lane.milliseconds <= lane.quartiles[1]
        assert "eager torch" in lane.runtime
    assert yan.parameters == model.num_parameters()
    assert other.name == folder.name
    assert yan.name == "YAN, 2 steps"


def test_ctranslate2_writes_the_same_and_says_what_it_is(folder, tmp_path):
    pytest.importorskip("ctranslate2")
    eager, tokenizer = read_peer(str(folder)), word_tokenizer()
    ids = tokenizer(SOURCE)["input_ids"]
    expected = eager.answer(ids, 12)
    fast = read_peer(str(folder), "float32")
    assert fast.answer(ids, 12) == expected
    assert fast.runtime.startswith("CTranslate2 float32")
    assert read_peer(str(folder), "int8").runtime.startswith("CTranslate2 int8")
    converted = tmp_path / "converted"
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    convert(load_text_model(str(folder)), str(converted), "float32", tokens)
    tokenizer.save_pretrained(converted)
    peer = read_peer(str(converted))
    assert peer.answer(ids, 12) == expected
    assert peer.parameters is None
    with pytest.raises(ValueError, match="is converted already"):
        read_peer(str(converted), "int8")


def test_an_answer_ends_where_the_baseline_ends_it(tmp_path):
    folder = save_tiny_peer(tmp_path / "bart")
    model = load_text_model(str(folder))
    with torch.no_grad():
        model.final_logits_bias[:] = 0
        model.final_logits_bias[:, 2] = 1e4
    model.save_pretrained(folder)
    assert read_peer(str(folder)).answer([5, 6, 2], 12) == [2]


def test_the_peer_writes_no_further_than_it_has_positions(folder):
    peer, tokenizer = read_peer(str(folder)), word_tokenizer()
    ids = tokenizer(" ".join(["w5"] * 120))["input_ids"]
    assert len(peer.answer(ids, 500)) <= (130 if folder.name == "bart" else 9)
    with pytest.raises(ValueError, match="source has 141 tokens of the baseline"):
        peer.read_source(" ".join(["w5"] * 140))


def test_bad_sources_are_refused_before_anything_runs(model, folder, monkeypatch):
    monkeypatch.setattr(peers, "measure_side_by_side", None)
    peer = read_peer(str(folder))
    with pytest.raises(ValueError, match="source is empty"):
        race(model, word_tokenizer(), peer, " ", steps=1)
    with pytest.raises(ValueError, match="seed=None"):
        race(model, word_tokenizer(), peer, SOURCE, steps=1, seed=None)


def test_what_is_no_left_to_right_model_is_refused(tmp_path, folder):
    with pytest.raises(ValueError, match="baseline_compute_type='int4' must be one of"):
        read_peer(str(folder), "int4")
    with pytest.raises(ValueError, match="that is no race"):
        read_peer(str(folder), "int8", device="cuda")
    yan, tokenizer = tmp_path / "yan", word_tokenizer()
    tiny_model().save_pretrained(yan)
    tokenizer.save_pretrained(yan)
    with pytest.raises(ValueError, match="does not write from left to right"):
        read_peer(str(yan))
    if folder.name == "gpt2":
        config = load_text_model(str(folder)).config
        config.mask_token_id = 3
        diffusion = tmp_path / "diffusion"
        MaskedDiffusionLM(config).save_pretrained(diffusion)
        tokenizer.save_pretrained(diffusion)
        with pytest.raises(ValueError, match="does not write from left to right"):
            read_peer(str(diffusion))
    small = shutil.copytree(folder, tmp_path / "small")
    tokenizer.add_tokens(["one", "more"])
    tokenizer.save_pretrained(small)
    with pytest.raises(ValueError, match="do not belong together"):
        read_peer(str(small))
