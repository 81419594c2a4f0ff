"""Pretrained encoders of transformers inside a YAN: the same hidden states, padding, training, remote code."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BartConfig,
    BertConfig,
    GPT2Config,
    ModernBertConfig,
    RobertaConfig,
    T5Config,
)

from modeling_yan import YanConfig, YanForMaskedLM, YanForSequenceClassification
from modeling_yan.data.tokenization import train_tokenizer

from ..helpers import ran, refused, seeded

SCRIPT = "conversion/convert_encoder_to_yan.py"
TEXTS = ["the eagle is a pub near the river", "a cheap coffee shop in the city centre"]
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    **IDS,
}
SEQ2SEQ = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
CONFIGS = {
    "bert": BertConfig(max_position_embeddings=24, **SIZES),
    "roberta": RobertaConfig(max_position_embeddings=25, **SIZES),
    "modernbert": ModernBertConfig(
        max_position_embeddings=24, local_attention=4, cls_token_id=1, sep_token_id=2, **SIZES
    ),
    "bart": BartConfig(
        vocab_size=300,
        d_model=16,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=24,
        forced_eos_token_id=None,
        decoder_start_token_id=2,
        **SEQ2SEQ,
        **IDS,
    ),
    "t5": T5Config(
        vocab_size=300, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, pad_token_id=0, eos_token_id=2
    ),
}


@pytest.fixture(scope="module", params=list(CONFIGS))
def folders(request, tmp_path_factory) -> tuple[Path, Path]:
    """A randomly initialised original with a tokenizer, and the YAN around it."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = AutoModel.from_config(CONFIGS[request.param])
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape))
    model.save_pretrained(folder / "original")
    train_tokenizer(TEXTS, 300, 20).save_pretrained(folder / "original")
    ran(SCRIPT, cwd=folder, encoder="original", output_dir="yan", preset="yan-small")
    return folder / "original", folder / "yan"


@pytest.fixture(scope="module")
def original(folders):
    model = AutoModel.from_pretrained(folders[0]).eval()
    return model.get_encoder() if model.config.is_encoder_decoder else model


@pytest.fixture(scope="module")
def model(folders):
    return AutoModelForSeq2SeqLM.from_pretrained(folders[1]).eval()


def batch(folder: Path, side: str = "right"):
    return AutoTokenizer.from_pretrained(folder, padding_side=side)(TEXTS, return_tensors="pt", padding=True)


@torch.no_grad()
def test_hidden_states_are_the_originals_on_either_padding_side(folders, original, model):
    right, left = batch(folders[0]), batch(folders[0], "left")
    theirs = original(**right).last_hidden_state
    ours = model.get_encoder()(right["input_ids"], right["attention_mask"], output_hidden_states=True)
    flipped = model.get_encoder()(left["input_ids"], left["attention_mask"]).last_hidden_state
    for row in range(2):
        tokens = right["attention_mask"][row].bool()
        torch.testing.assert_close(ours[0][row, tokens], theirs[row, tokens], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(
            flipped[row, left["attention_mask"][row].bool()], theirs[row, tokens], atol=1e-5, rtol=1e-5
        )
        alone = original(input_ids=right["input_ids"][row, tokens][None]).last_hidden_state[0]
        torch.testing.assert_close(ours[0][row, tokens], alone, atol=1e-5, rtol=1e-5)
    assert len(ours.hidden_states) == 3


@torch.no_grad()
def test_rows_keep_their_order_whatever_the_mask(folders, original, model):
    """Padding in the middle, too: tokens move to the left edge in their order, and back."""
    ids = torch.randint(4, 300, (6, 11), generator=seeded(1))
    mask = torch.randint(0, 2, (6, 11), generator=seeded(2))
    mask[0] = 1
    states = model.get_encoder()(ids, mask).last_hidden_state
    for row in range(6):
        tokens = mask[row].bool()
        alone = original(input_ids=ids[row, tokens][None]).last_hidden_state[0]
        torch.testing.assert_close(states[row, tokens], alone, atol=1e-5, rtol=1e-5)


def test_tokenizer_embeddings_and_sizes_are_in_place(folders, original, model):
    assert torch.equal(model.get_input_embeddings().weight, original.get_input_embeddings().weight)
    assert AutoTokenizer.from_pretrained(folders[1])(TEXTS[0]) == AutoTokenizer.from_pretrained(folders[0])(TEXTS[0])
    config = model.config
    assert (config.eos_token_id, config.pad_token_id, config.num_hidden_layers, config.flow_layers) == (2, 0, 2, 4)
    assert config.max_position_embeddings == (1024 if config.encoder_config.model_type == "t5" else 24)
    assert "untrained" in (folders[1] / "README.md").read_text()


def test_it_trains_generates_saves_and_loads(folders, tmp_path):
    model = AutoModelForSeq2SeqLM.from_pretrained(folders[1]).train()
    source = batch(folders[0])
    labels = source["input_ids"].masked_fill(source["attention_mask"] == 0, -100)
    model(**source, labels=labels, generator=seeded()).loss.backward()
    # A relative bias or a table row that nothing used has no gradient; a parameter without one at all would stop DDP.
    trained = [(name, p) for name, p in model.named_parameters() if ".gate." not in name]
    assert [name for name, p in trained if p.grad is None] == []
    with torch.no_grad():
        for _, parameter in trained:
            parameter.sub_(0.01 * parameter.grad)
    model.eval().save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    weights = again.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    texts = [m.generate(**source, generator=seeded(), target_lengths=6) for m in (model, again)]
    assert torch.equal(*texts)


def test_autoencoder_and_heads_start_from_it_and_a_flow_from_them(folders, tmp_path):
    source = batch(folders[0])
    autoencoder = YanForMaskedLM.from_pretrained(folders[1])
    loss = autoencoder(**source, labels=source["input_ids"]).loss
    assert loss.isfinite()
    loss.backward()
    assert [name for name, p in autoencoder.named_parameters() if p.grad is None] == []
    autoencoder.save_pretrained(tmp_path)
    flow = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert torch.equal(flow.get_input_embeddings().weight, autoencoder.get_input_embeddings().weight)
    assert 0.5 < flow.model.encoder.embeddings.position_embeddings.weight.std() < 1.5
    classifier = YanForSequenceClassification.from_pretrained(folders[1], num_labels=3)
    assert classifier(**source).logits.shape == (2, 3)


def test_resized_vocabulary_survives_saving(folders, tmp_path):
    model = AutoModelForMaskedLM.from_pretrained(folders[1])
    model.resize_token_embeddings(311)
    model.save_pretrained(tmp_path)
    again = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert again.get_input_embeddings().weight.shape[0] == again.get_output_embeddings().weight.shape[0] == 311
    again(torch.tensor([[310, 5]]))


def test_it_loads_as_remote_code_without_the_package(folders, tmp_path, stranger):
    code = f"""
        import torch
        from transformers import AutoModelForSeq2SeqLM
        model = AutoModelForSeq2SeqLM.from_pretrained({str(folders[1])!r}, trust_remote_code=True).eval()
        assert type(model).__module__.startswith("transformers_modules")
        print(model.get_encoder()(torch.arange(3, 11).view(2, 4))[0].double().abs().sum().item())
    """
    local = AutoModelForSeq2SeqLM.from_pretrained(folders[1]).eval()
    expected = local.get_encoder()(torch.arange(3, 11).view(2, 4))[0].double().abs().sum().item()
    assert float(stranger.run(code, tmp_path)) == pytest.approx(expected)


def test_left_to_right_models_and_other_widths_are_refused(tmp_path):
    AutoModel.from_config(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=60)).save_pretrained(tmp_path / "gpt2")
    train_tokenizer(TEXTS, 300, 20).save_pretrained(tmp_path / "gpt2")
    assert "one direction" in refused(SCRIPT, cwd=tmp_path, encoder="gpt2", output_dir="out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="model_type='gpt2'"):
        YanConfig(hidden_size=16, num_attention_heads=2, encoder_config={"model_type": "gpt2"})
    with pytest.raises(ValueError, match="hidden_size=32"):
        YanConfig(hidden_size=32, encoder_config=CONFIGS["bert"])
