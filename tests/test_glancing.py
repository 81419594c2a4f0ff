"""Targets shown in training (`training_config.glancing_ratio`): which, in what place, and that nothing else changes."""

import itertools

import pytest
import torch

from modeling_yan import YanConfig, YanForConditionalGeneration
from modeling_yan.ctc_yan import ctc_collapse, ctc_viterbi, needed_positions
from modeling_yan.flow_matching_yan import select_shown

from .helpers import source_batch, tiny_model
from .test_ctc import BLANK, BLANKS, labels_batch, seeded, text_of


@pytest.mark.parametrize("text", [[1], [1, 1], [2, 1], [1, 2, 1], [2, 2, 1], []])
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_ctc_viterbi_is_the_best_of_all(text, side):
    canvas = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()
    labels = torch.full((2, 4), -100)
    labels[:, slice(0, len(text)) if side == "right" else slice(4 - len(text), None)] = torch.tensor(text).long()
    for seed in range(5):
        logits = 2 * torch.randn(2, 5, 3, generator=seeded(seed))
        placed = ctc_viterbi(logits, labels, canvas, BLANK)
        assert placed[~canvas].eq(BLANK).all()
        for row, log_probs in enumerate(logits.log_softmax(-1)):
            positions = range(int(canvas[row].sum()))
            paths = [path for path in itertools.product(range(3), repeat=len(positions)) if text_of(path) == text]
            best = max(paths, key=lambda path: float(log_probs[positions, path].sum()))
            assert placed[row, : len(positions)].tolist() == list(best)


def test_the_ctc_viterbi_holds_the_text_on_the_shortest_canvas():
    labels = labels_batch()
    canvas = torch.arange(int(needed_positions(labels).max())) < needed_positions(labels).unsqueeze(1)
    placed = ctc_viterbi(torch.randn(*canvas.shape, 12, generator=seeded()), labels, canvas, BLANK)
    texts = ctc_collapse(placed, canvas, BLANK, -100)
    assert torch.equal(texts[:, : labels.shape[1]], labels)


@pytest.mark.parametrize("ratio", [0.3, 1.0, 9.0])
def test_as_many_are_shown_as_wrong_ones_ask_for(ratio):
    canvas = torch.arange(10) < torch.tensor([[10], [7], [4], [0]])
    wrong = torch.rand(4, 10, generator=seeded()) < 0.6
    shown = select_shown(wrong, canvas, ratio, generator=seeded(1))
    errors, room = (wrong & canvas).sum(-1), canvas.sum(-1)
    assert torch.equal(shown.sum(-1), torch.minimum((ratio * errors).long(), room))
    assert not (shown & ~canvas).any()
    assert torch.equal(shown, select_shown(wrong, canvas, ratio, generator=seeded(1)))


def test_shown_positions_are_drawn_from_the_whole_canvas():
    canvas = torch.ones(4000, 6, dtype=torch.bool)
    wrong = torch.zeros_like(canvas)
    wrong[:, 0] = True
    share = select_shown(wrong, canvas, 1.0, generator=seeded()).float().mean(0)
    torch.testing.assert_close(share, torch.full((6,), 1 / 6), atol=0.03, rtol=0)


def inputs_for(model: YanForConditionalGeneration, positions: int) -> dict:
    (ids, mask), labels = source_batch(), labels_batch()
    shape = (len(labels), positions)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "prior_noise": torch.randn(*shape, model.config.hidden_size, generator=seeded(2)),
        "expert_indices": torch.randint(model.config.num_experts, shape, generator=seeded(3)),
        "timesteps": torch.full((len(labels),), 0.5),
    }


@pytest.mark.parametrize(("options", "positions"), [({}, 6), (BLANKS, 12)])
def test_the_endpoint_begins_at_the_embeddings_of_what_is_shown(options, positions):
    model = tiny_model(glancing_ratio=0.5, latent_noise=0.0, **options).train()
    inputs = inputs_for(model, positions)
    canvas = inputs["labels"] != -100 if not options else torch.ones(3, positions, dtype=torch.bool)
    starts, unroll = [], model._unroll

    def watched(x_0, *arguments, **keywords):
        starts.append((x_0, torch.is_grad_enabled()))
        return unroll(x_0, *arguments, **keywords)

    model._unroll = watched
    model(**inputs, generator=seeded(4)).loss.backward()
    (first, with_gradient), (second, second_with_gradient) = starts
    assert not with_gradient
    assert second_with_gradient
    assert not second.requires_grad
    assert torch.equal(first, inputs["prior_noise"])
    shown = (first != second).any(-1)
    assert shown.any()
    assert not (shown & ~canvas).any()
    assert not shown.all()
    equal = (second[shown].unsqueeze(1) == model.get_input_embeddings().weight).all(-1)
    assert equal.any(-1).all()
    if not options:
        assert torch.equal(equal.long().argmax(-1), inputs["labels"][shown])


@pytest.mark.parametrize(("options", "positions"), [({}, 6), (BLANKS, 12)])
@pytest.mark.parametrize(("training", "ratio"), [(False, 0.5), (True, 1e-6)])
def test_nothing_is_shown_in_evaluation_or_for_less_than_one_position(options, positions, training, ratio):
    plain = tiny_model(latent_noise=0.0, **options).train(training)
    glancing = tiny_model(latent_noise=0.0, glancing_ratio=ratio, **options).train(training)
    glancing.load_state_dict(plain.state_dict())
    inputs = inputs_for(plain, positions)
    assert torch.equal(plain(**inputs).loss, glancing(**inputs).loss)


def test_the_same_generator_shows_the_same():
    model = tiny_model(glancing_ratio=0.5, **BLANKS).train()
    (ids, mask), labels = source_batch(), labels_batch()
    losses = [
        model(input_ids=ids, attention_mask=mask, labels=labels, generator=seeded(seed)).loss for seed in (5, 5, 6)
    ]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"glancing_ratio": -0.1}, "glancing_ratio=-0.1"),
        ({"glancing_ratio": 0.5, "loss_chunk_size": 8}, "loss_chunk_size"),
        ({"glancing_ratio": 0.5, "encoder_config": {"model_type": "modernbert", "hidden_size": 512}}, "encoder_config"),
    ],
)
def test_options_that_do_not_fit_are_named(overrides, named):
    with pytest.raises(ValueError, match=named):
        YanConfig(**overrides)


def test_autocast_does_not_keep_the_weights_of_the_pass_without_gradients():
    """
    Older releases of torch did (pytorch/pytorch#165068): weights cast in the first pass had no gradient in the second.
    """

    def learned(ratio: float) -> set[str]:
        model = tiny_model(glancing_ratio=ratio, **BLANKS).train()
        (ids, mask), labels = source_batch(), labels_batch()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(input_ids=ids, attention_mask=mask, labels=labels, generator=seeded()).loss.backward()
        return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}

    assert learned(0.5) == learned(0.0)
