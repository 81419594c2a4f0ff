"""Canvases whose positions belong to the tokens of the source (`length_head="source"`)."""

import math

import pytest
import torch

from modeling_yan import YanConfig, YanForConditionalGeneration, YanForMaskedLM
from modeling_yan.canvas_yan import copied_tokens, source_indices
from modeling_yan.copying_yan import CopySource

from .helpers import VOCAB_SIZE, WITH_BLANKS, seeded, source_batch, target_labels, tiny_config, tiny_model

FROM_SOURCE = {**WITH_BLANKS, "length_head": "source", "prediction_type": "data"}


@pytest.fixture(scope="module")
def model() -> YanForConditionalGeneration:
    return tiny_model(**FROM_SOURCE)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("ratio", [1.5, 2.0])
def test_positions_belong_to_tokens_in_their_order(side, ratio):
    ids, mask = source_batch((7, 4, 1), side=side)
    own = ids.gather(1, source_indices(14, ratio, ids, mask))
    for row in range(3):
        tokens = ids[row][mask[row].bool()].tolist()
        expected = [tokens[min(int(j / ratio), len(tokens) - 1)] for j in range(14)]
        assert own[row].tolist() == expected


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("ratio", [1.5, 2.0])
def test_each_token_is_copied_once(side, ratio):
    ids, mask = source_batch((7, 4, 1), side=side)
    copied = copied_tokens(14, ratio, ids, mask, blank=0)
    for row, length in enumerate((7, 4, 1)):
        assert copied[row, : math.ceil(ratio * length)].tolist() == [
            ids[row][mask[row].bool()][int(j / ratio)].item() if j == math.ceil(ratio * int(j / ratio)) else 0
            for j in range(math.ceil(ratio * length))
        ]
        assert not copied[row, math.ceil(ratio * length) :].any()


@pytest.mark.parametrize("tied", [False, True])
def test_a_new_model_copies_its_source(tied):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "flow_layers": 1, "cross_attention_layers": []}
    config = tiny_config(**FROM_SOURCE, **sizes, prior_std=0.1)
    config.tie_word_embeddings = tied
    model = YanForConditionalGeneration(config).eval()
    ids = torch.randint(4, VOCAB_SIZE, (8, 12), generator=seeded())
    logits = model(ids, decoder_attention_mask=torch.ones(8, 24)).logits
    assert (logits[:, ::2].argmax(-1) == ids).float().mean() > 0.95
    # Without the bias every position gives its token back, so that this is the states' doing.
    torch.nn.init.zeros_(model.decoder.copy_head.bias)
    logits = model(ids, decoder_attention_mask=torch.ones(8, 24)).logits
    assert (logits.argmax(-1) == ids.repeat_interleave(2, 1)).float().mean() > 0.8
    assert (model.decoder.lm_head.weight is model.get_input_embeddings().weight) == tied


def test_canvases_are_as_long_as_their_sources(model):
    ids, mask = source_batch((7, 4, 5))
    written = model.generate(ids, mask, generator=seeded(), return_dict_in_generate=True)
    assert written.target_lengths.tolist() == [14, 8, 10]
    given = model.generate(ids, mask, target_lengths=3, generator=seeded(), return_dict_in_generate=True)
    assert given.target_lengths.tolist() == [6, 6, 6]


def test_neither_padding_nor_batch_changes_a_row(model):
    ids, mask = source_batch((7, 4, 5))
    left, left_mask = source_batch((7, 4, 5), side="left")
    noise = torch.randn(3, 14, 16, generator=seeded())
    options = {"expert_selection": "argmax"}
    together = model.generate(ids, mask, prior_noise=noise, **options)
    moved = model.generate(left, left_mask, prior_noise=noise, **options)
    assert together.tolist() == moved.tolist()
    for row, length in enumerate((7, 4, 5)):
        alone = model.generate(ids[row : row + 1, :length], prior_noise=noise[row : row + 1], **options)[0]
        assert together[row, : len(alone)].tolist() == alone.tolist()
        assert not together[row, len(alone) :].any()


def test_without_labels_the_canvas_is_that_of_the_source_on_either_side(model):
    ids, mask = source_batch((7, 4, 5))
    right, left = model(ids, mask).logits, model(*source_batch((7, 4, 5), side="left")).logits
    assert right.shape[1] == 14
    for row, length in enumerate((14, 8, 10)):
        torch.testing.assert_close(right[row, :length], left[row, :length], atol=1e-5, rtol=1e-4)


def test_canvases_with_gaps_or_sources_with_gaps_are_refused(model):
    ids, mask = source_batch((7, 4, 5))
    with pytest.raises(ValueError, match="decoder_attention_mask begins with 0 or has gaps"):
        model(ids, mask, target_labels((3, 3, 3)), decoder_attention_mask=torch.ones(3, 12).tril(9).flip(1))
    mask[0, 3] = 0
    with pytest.raises(ValueError, match=r"attention_mask has padding between the tokens of rows \[0\]"):
        model.generate(ids, mask)


def test_a_target_that_is_longer_than_its_source_gets_room(model):
    ids, mask = source_batch((2, 2, 2))
    labels = target_labels((9, 3, 5))
    outputs = model(ids, mask, labels)
    assert outputs.loss.isfinite()
    assert outputs.logits.shape[1] >= 9


def test_gradients_reach_the_source_through_the_canvas():
    model = tiny_model(**FROM_SOURCE, cross_attention_layers=[]).train()
    ids, mask = source_batch((7, 4, 5))
    model(ids, mask, target_labels((6, 3, 5)), generator=seeded()).loss.backward()
    assert model.model.encoder.layers[0].feed_forward.up_proj.weight.grad.norm() > 0


def test_the_bias_towards_the_source_is_that_of_its_formula():
    model = tiny_model(**FROM_SOURCE).eval()
    torch.nn.init.normal_(model.decoder.copy_head.weight, generator=seeded())
    ids, mask = source_batch((7, 4, 5))
    states = torch.randn(3, 14, 16, generator=seeded())
    copied = CopySource(model.copied_ids(14, ids, mask))
    bias = model.decoder.copy_head(states)
    expected = model.decoder.lm_head(states) + bias * torch.nn.functional.one_hot(copied.ids, VOCAB_SIZE)
    assert torch.allclose(model.decoder.logits(states, model.decoder.copies(states, copied)), expected, atol=1e-6)
    model.train()(ids, mask, target_labels((6, 3, 5)), generator=seeded()).loss.backward()
    assert model.decoder.copy_head.bias.grad.abs() > 0


def test_without_ids_there_is_nothing_to_copy(model):
    ids, mask = source_batch((7, 4, 5))
    embeds = model.get_input_embeddings()(ids)
    encoded = model.get_encoder()(ids, mask)
    for given in ({"inputs_embeds": embeds}, {"encoder_outputs": encoded}):
        with pytest.raises(ValueError, match="input_ids are missing"):
            model.generate(attention_mask=mask, **given)
        with pytest.raises(ValueError, match="input_ids are missing"):
            model(attention_mask=mask, **given)
    written = model.generate(ids, mask, encoder_outputs=encoded, generator=seeded())
    assert torch.equal(written, model.generate(ids, mask, generator=seeded()))


def test_an_autoencoder_of_the_same_config_copies_nothing(model, tmp_path):
    model.save_pretrained(tmp_path)
    _, report = YanForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["unexpected_keys"]
    assert not report["missing_keys"]


def test_what_is_saved_loads(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = YanForConditionalGeneration.from_pretrained(tmp_path)
    ids, mask = source_batch((7, 4, 5))
    assert loaded.generation_config.length_mode == "source"
    assert torch.equal(loaded.generate(ids, mask, generator=seeded()), model.generate(ids, mask, generator=seeded()))


def test_a_canvas_of_its_source_needs_room_for_more():
    with pytest.raises(ValueError, match="set canvas_ratio above 1"):
        YanConfig(length_head="source")


def test_other_lengths_are_refused(model):
    ids, _ = source_batch((7, 4, 5))
    with pytest.raises(ValueError, match="use length_mode='source'"):
        model.generate(ids, length_mode="predicted")
    with pytest.raises(ValueError, match="length_mode='source' needs a model"):
        tiny_model().generate(ids, length_mode="source")
