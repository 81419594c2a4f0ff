"""A new model around a pretrained encoder in one call."""

import inspect

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartModel,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    GPT2Config,
    GPT2Model,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from modeling_yan import (
    YanConfig,
    YanForConditionalGeneration,
    YanForMaskedLM,
    YanForQuestionAnswering,
    YanForSequenceClassification,
    YanForTokenClassification,
)
from modeling_yan.from_encoder_yan import HOSTED_DEFAULTS
from modeling_yan.training.adapters import lora_config

from .helpers import randomize, seeded, source_batch, tiny_bert, word_piece_tokenizer

IDS, MASK = torch.tensor([[2, 5, 8, 6, 3], [2, 6, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
LABELS = torch.tensor([[5, 8, 3], [6, 3, -100]])


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    tiny_bert(folder)
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["fresh flow", "flow from encoder"])
def model(request, bert):
    torch.manual_seed(0)
    return YanForConditionalGeneration.from_encoder(bert, flow_from_encoder=request.param, flow_layers=2)


@torch.no_grad()
def test_it_reads_as_the_original_and_takes_its_token_ids(bert, model):
    theirs = BertModel.from_pretrained(bert).eval()(IDS, MASK).last_hidden_state
    torch.testing.assert_close(model.get_encoder()(IDS, MASK).last_hidden_state[0], theirs[0])
    config = model.config
    ids = (config.pad_token_id, config.bos_token_id, config.eos_token_id, config.mask_token_id)
    assert ids == (0, 2, 3, 4)
    assert {name: getattr(config, name) for name in HOSTED_DEFAULTS} == {**HOSTED_DEFAULTS, "flow_layers": 2}


def test_head_and_embeddings_are_one_table_before_and_after_saving(model, tmp_path):
    assert model.decoder.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    # Where the encoder's folder lay is not told.
    assert "pytest" not in (tmp_path / "config.json").read_text()
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert again.decoder.lm_head.weight is again.get_input_embeddings().weight
    weights = again.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    again.resize_token_embeddings(13)
    assert again.decoder.lm_head.weight is again.get_input_embeddings().weight
    assert again.decoder.lm_head.weight.shape == (13, 16)


def test_wrong_tokens_begin_with_logits_of_standard_deviation_one(bert):
    large = tiny_bert(vocab_size=500, hidden_size=64)
    large.embeddings.word_embeddings.weight.data.mul_(7.0)
    model = YanForConditionalGeneration.from_encoder(large, word_piece_tokenizer(), eos_token_id=3)
    logits = model.decoder(torch.randn(400, 64, generator=seeded()))
    assert 0.8 < logits.std() < 1.25


def test_every_weight_learns(model):
    model = YanForConditionalGeneration.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    model.train()(IDS, MASK, LABELS, generator=seeded()).loss.backward()
    silent = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    # With the endpoint's terms alone nothing trains the gate; see the table of loss terms.
    assert [name for name in silent if ".gate." not in name] == []


@torch.no_grad()
def test_padding_and_batch_mates_change_no_row(model):
    """The joint softmax, too, sees neither padding of the source nor of the canvas."""
    noise = torch.randn(2, 3, 16, generator=seeded(3))
    both = model(IDS, MASK, LABELS, prior_noise=noise, expert_indices=torch.zeros(2, 3, dtype=torch.long)).logits
    alone = model(
        IDS[1:, :3], None, LABELS[1:, :2], prior_noise=noise[1:, :2], expert_indices=torch.zeros(1, 2, dtype=torch.long)
    ).logits
    torch.testing.assert_close(both[1:, :2], alone, atol=1e-5, rtol=1e-5)
    ids, mask = IDS.flip(0), MASK.flip(0)
    texts = model.generate(IDS, attention_mask=MASK, max_new_tokens=5, generator=seeded())
    mirrored = model.generate(ids, attention_mask=mask, max_new_tokens=5, generator=seeded())
    assert torch.equal(texts, mirrored.flip(0))


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_flow_layers_begin_as_the_encoders(attention):
    """A canvas of mask tokens without noise and without a source goes through them as through the encoder."""
    bert = tiny_bert()
    model = YanForConditionalGeneration.from_encoder(
        bert, word_piece_tokenizer(), flow_from_encoder=True, flow_layers=2, attn_implementation=attention
    )
    flow = model.model.flow
    positions = model.get_encoder().positions(6, None)
    source = torch.zeros(1, 1, 16)
    # The source is there, but masked; the canvas is longer than it.
    condition = flow.condition(positions, source, torch.tensor([[False]]), torch.ones(1, 6, dtype=torch.bool))
    hidden = flow.input_norm(positions)
    for layer, (key, value) in zip(flow.layers, condition.cross_key_values, strict=True):
        table = layer.modulate(torch.randn(1, 16, generator=seeded()))
        hidden = layer(hidden, table, None, key, value, condition.cross_attention_mask)
    masks = torch.full((1, 6), model.config.mask_token_id)
    theirs = bert(masks, token_type_ids=torch.ones_like(masks)).last_hidden_state
    torch.testing.assert_close(hidden, theirs, atol=2e-3, rtol=2e-3)


def test_fast_and_plain_trajectories_agree(model):
    ids, mask = source_batch((5, 3))
    ids = ids.clamp(max=8)
    source, _ = model.encode_source(ids, mask)
    condition = model.model.condition(4, None, source, mask)
    x_0 = torch.randn(2, 4, 16, generator=seeded(1))
    options = model.generation_options(num_inference_steps=3).sampling
    uniform = torch.rand(2, 4, generator=seeded(2))
    with torch.no_grad():
        fast, plain = (solve(x_0, condition, uniform, options) for solve in (model.solve, model.solve_plain))
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)


def test_fields_reach_the_config_and_other_classes_begin_so_too(bert):
    model = YanForConditionalGeneration.from_encoder(
        bert,
        flow_layers=1,
        num_experts=3,
        tie_word_embeddings=False,
        unroll_steps=2,
        training_config={"latent_noise": 0},
    )
    config = model.config
    assert (config.flow_layers, config.num_experts, config.training_config.unroll_steps) == (1, 3, 2)
    assert model.decoder.lm_head.weight is not model.get_input_embeddings().weight
    autoencoder = YanForMaskedLM.from_encoder(bert)
    assert torch.equal(autoencoder.get_input_embeddings().weight, model.get_input_embeddings().weight)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"flow_layer": 1}, r"\['flow_layer'\] are no fields"),
        ({"hidden_size": 32}, r"\['hidden_size'\] are the encoder's"),
        ({"max_position_embeddings": 99}, "max_position_embeddings=99 is more than the 24 positions"),
        ({"flow_from_encoder": True, "flow_layers": 3}, "flow_layers=3 is more than the encoder's 2 layers"),
        ({"flow_from_encoder": True, "flow_layers": 2, "flow_mixer": "mamba"}, "leave out flow_mixer='mamba'"),
        ({"flow_from_encoder": True, "flow_layers": 2, "cross_attention_layers": [0]}, r"cross_attention_layers=\[0\]"),
    ],
)
def test_fields_that_do_not_fit_are_refused(bert, fields, message):
    with pytest.raises(ValueError, match=message):
        YanForConditionalGeneration.from_encoder(bert, **fields)


T5 = {"vocab_size": 9, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "pad_token_id": 0}
BART = {"vocab_size": 9, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 24}
BART |= {"decoder_ffn_dim": 24, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "pad_token_id": 0}


@torch.no_grad()
@pytest.mark.parametrize("saved", [False, True], ids=["object", "folder"])
@pytest.mark.parametrize(
    ("build", "encoder"),
    [
        (lambda: BertForMaskedLM(tiny_bert().config), lambda model: model.bert),
        (lambda: BartModel(BartConfig(max_position_embeddings=24, **BART)), lambda model: model.encoder),
        (lambda: T5ForConditionalGeneration(T5Config(**T5)), lambda model: model.encoder),
        (lambda: T5EncoderModel(T5Config(**T5)), lambda model: model),
    ],
    ids=["bert with head", "bart", "t5 with head", "t5 encoder"],
)
def test_of_any_model_the_encoder_is_taken(build, encoder, saved, tmp_path):
    torch.manual_seed(0)
    theirs = randomize(build()).eval()
    expected = encoder(theirs)(input_ids=IDS, attention_mask=MASK).last_hidden_state
    if saved:
        theirs.save_pretrained(tmp_path)
    model = YanForConditionalGeneration.from_encoder(
        tmp_path if saved else theirs, word_piece_tokenizer(), flow_layers=1
    )
    found = model.get_encoder()(IDS, MASK).last_hidden_state
    torch.testing.assert_close(found[MASK.bool()], expected[MASK.bool()])
    assert model.generate(IDS, MASK, max_new_tokens=4, generator=seeded()).shape[0] == 2
    model.save_pretrained(tmp_path / "yan")
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "yan")
    assert torch.equal(again.get_encoder()(IDS, MASK).last_hidden_state, found)


def test_an_encoder_with_changed_layers_is_refused():
    bert = tiny_bert()
    bert.add_adapter(LoraConfig(r=2, target_modules=["query"]))
    with pytest.raises(ValueError, match=r"BertModel lacks 4 weights .*query.bias; merge adapters"):
        YanForConditionalGeneration.from_encoder(bert, word_piece_tokenizer())


def test_encoders_and_tokenizers_that_do_not_fit_are_refused(bert, tmp_path):
    tiny = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 60}
    with pytest.raises(ValueError, match=r"type 'gpt2'.*one direction"):
        YanForConditionalGeneration.from_encoder(GPT2Model(GPT2Config(**tiny)), word_piece_tokenizer())
    with pytest.raises(ValueError, match="model_type='distilbert'"):
        YanConfig(hidden_size=16, num_attention_heads=2, encoder_config=DistilBertConfig(dim=16))
    tokenizer = word_piece_tokenizer()
    tokenizer.add_tokens([f"w{i}" for i in range(9)])
    with pytest.raises(ValueError, match="18 entries, the encoder embeddings for 9"):
        YanForConditionalGeneration.from_encoder(bert, tokenizer)
    endless = word_piece_tokenizer()
    endless.sep_token = None
    with pytest.raises(ValueError, match="a token for eos_token_id"):
        YanForConditionalGeneration.from_encoder(bert, endless)
    unpadded = word_piece_tokenizer()
    unpadded.pad_token = None
    with pytest.raises(ValueError, match="a token for pad_token_id"):
        YanForConditionalGeneration.from_encoder(bert, unpadded)
    with pytest.raises(ValueError, match=r"flow_from_encoder=True needs .*'t5'"):
        YanConfig(hidden_size=16, num_attention_heads=2, flow_from_encoder=True, encoder_config=T5Config(d_model=16))
    weights = BertModel.from_pretrained(bert).state_dict()
    kept = {name: value for name, value in weights.items() if "layer.1.output" not in name}
    BertModel.from_pretrained(bert).save_pretrained(tmp_path, state_dict=kept)
    with pytest.raises(ValueError, match="lacks 4 weights of the encoder"):
        YanForConditionalGeneration.from_encoder(tmp_path, word_piece_tokenizer())


LEFT_IDS, LEFT_MASK = torch.tensor([[2, 5, 8, 6, 3], [0, 0, 2, 6, 3]]), torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])


@torch.no_grad()
def test_weights_of_attention_stand_where_the_tokens_do(bert):
    model = YanForConditionalGeneration.from_encoder(bert, flow_layers=1, attn_implementation="eager")
    right = model.get_encoder()(IDS, MASK, output_attentions=True).attentions
    left = model.get_encoder()(LEFT_IDS, LEFT_MASK, output_attentions=True).attentions
    assert len(left) == 2
    for ours, theirs in zip(left, right, strict=True):
        torch.testing.assert_close(ours[0], theirs[0])
        torch.testing.assert_close(ours[1, :, 2:, 2:], theirs[1, :, :3, :3])
        assert not ours[1, :, 2:, :2].any()


@torch.no_grad()
def test_token_types_stand_where_the_tokens_do(bert):
    encoder = YanForConditionalGeneration.from_encoder(bert, flow_layers=1).get_encoder()
    types = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 1, 0, 0]])
    left_types = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]])
    right = encoder(IDS, MASK, token_type_ids=types).last_hidden_state
    left = encoder(LEFT_IDS, LEFT_MASK, token_type_ids=left_types).last_hidden_state
    torch.testing.assert_close(left[1, 2:], right[1, :3])
    theirs = BertModel.from_pretrained(bert).eval()(IDS, MASK, token_type_ids=types).last_hidden_state
    torch.testing.assert_close(right[MASK.bool()], theirs[MASK.bool()])
    alone = encoder(IDS[:1], token_type_ids=types[:1]).last_hidden_state
    torch.testing.assert_close(alone, theirs[:1])


@torch.no_grad()
@pytest.mark.parametrize(
    "model_class", [YanForSequenceClassification, YanForTokenClassification, YanForQuestionAnswering]
)
def test_heads_read_the_token_types_that_trainer_leaves_in_a_batch(model, model_class):
    head = model_class(model.config).eval()
    batch = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": MASK, "text": "dropped"}
    kept = {name: batch[name] for name in inspect.signature(head.forward).parameters if name in batch}
    with_types, without = head(**kept)[0], head(IDS, MASK)[0]
    assert not torch.allclose(with_types, without, atol=1e-4)


@torch.no_grad()
def test_writing_and_training_pass_over_token_types(model):
    batch = {"input_ids": IDS, "attention_mask": MASK}
    types = {"token_type_ids": torch.ones_like(IDS)}
    assert torch.equal(model(**batch, **types).logits, model(**batch).logits)
    texts = [model.generate(**batch, **more, generator=seeded()) for more in ({}, types)]
    assert torch.equal(*texts)


def test_an_adapter_reaches_the_encoder(bert):
    model = YanForConditionalGeneration.from_encoder(bert, flow_layers=1)
    adapted = get_peft_model(model, lora_config(model, 4))
    names = [name for name, p in adapted.named_parameters() if p.requires_grad]
    assert any("backbone.encoder.layer.0.attention.self.query.lora_A" in name for name in names)
    assert any("flow.layers.0.mixer.q_proj.lora_A" in name for name in names)
    assert not any("lm_head" in name or "embeddings" in name for name in names)
