"""log_likelihood: probabilities that add up, padding and batch-mates that change nothing, and what it refuses."""

import itertools
import math

import pytest
import torch

from .helpers import seeded, source_batch, target_labels, tiny_model

BLANKS = {"canvas_ratio": 2.0, "nll_loss_weight": 0.0, "mse_loss_weight": 0.0}
SMALL = {"vocab_size": 7, "encoder_layers": 1, "flow_layers": 1, "cross_attention_layers": [0]}
EOS = 2
# Tokens of SMALL that a text may hold: neither padding nor mask.
WRITABLE = [1, 2, 4, 5, 6]


@pytest.mark.parametrize("options", [{}, BLANKS, {"copy_mechanism": True}], ids=["placed", "blanks", "copied"])
def test_probabilities_of_all_texts_of_a_length_add_up_to_that_of_the_length(options):
    """Under one noise; with blanks, whose canvas also holds shorter and longer texts, to less."""
    model = tiny_model(**SMALL, **options)
    source = torch.tensor([[4, 5, 6, 2]])
    texts = torch.tensor(list(itertools.product(WRITABLE, repeat=2)))
    found = likelihoods(model, source, texts).exp().sum()
    length = model.encode_source(source)[1].softmax(-1)[0, 1]
    if options == BLANKS:
        assert 0 < found < length
    else:
        torch.testing.assert_close(found, length, atol=1e-5, rtol=1e-5)


def test_probabilities_of_all_texts_on_a_fixed_canvas_add_up_to_one():
    """As generate() cuts them: up to the first EOS, or as long as the canvas."""
    model = tiny_model(**SMALL, length_head=False)
    model.generation_config.max_new_tokens = 3
    words = [token for token in WRITABLE if token != EOS]
    total = 0.0
    for ended in range(3):
        texts = torch.tensor([[*text, EOS] for text in itertools.product(words, repeat=ended)])
        total += likelihoods(model, torch.tensor([[4, 5, 6, 2]]), texts).exp().sum()
    filled = torch.tensor(list(itertools.product(words, repeat=3)))
    total += likelihoods(model, torch.tensor([[4, 5, 6, 2]]), filled).exp().sum()
    assert total == pytest.approx(1, abs=1e-5)


def likelihoods(model, source: torch.Tensor, texts: torch.Tensor, **options) -> torch.Tensor:
    """Of several answers to one source (1, Lx)."""
    given = {"num_priors": 2, "generator": seeded(), **options}
    return model.log_likelihood(source.expand(len(texts), -1), labels=texts, **given)


def written_texts(model, source: torch.Tensor, positions: int, noise: torch.Tensor, uniform: torch.Tensor):
    """
    What the model writes under one noise on one canvas, by brute force: every choice of a token at every position, as
    `generate` reads it. Text -> its probability, and that of all texts that begin with it.
    """
    blanks = model.config.canvas_ratio > 1
    options = model.generation_options()
    canvas = torch.ones(1, positions, dtype=torch.bool)
    encoded = model.encode_source(source)[0]
    condition = model.model.condition(positions, canvas, encoded, None)
    with torch.no_grad():
        states = model.solve(noise[:, :positions], condition, uniform[:, :positions], options.sampling)
        copied = model.copy_source(model.copied_ids(positions, source, None), encoded, None)
        logits = model.decoder(states, copied)[0]
    held = [0, *WRITABLE] if blanks else WRITABLE
    probs = torch.zeros_like(logits)
    probs[:, held] = logits[:, held].softmax(-1)
    whole, begun = {}, {}
    for choice in itertools.product(held, repeat=positions):
        p = math.prod(probs[i, token].item() for i, token in enumerate(choice))
        text = [token for token, _ in itertools.groupby(choice)] if blanks else list(choice)
        text = tuple(token for token in text if token != 0)
        whole[text] = whole.get(text, 0) + p
        for length in range(1, len(text) + 1):
            begun[text[:length]] = begun.get(text[:length], 0) + p
    return whole, begun


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, "predicted"),
        ({}, "canvas"),
        (BLANKS, "predicted"),
        (BLANKS, "canvas"),
        ({**BLANKS, "length_head": "source"}, "source"),
    ],
    ids=["placed", "placed on a fixed canvas", "blanks", "blanks on a fixed canvas", "blanks beside the source"],
)
def test_it_is_what_enumeration_of_every_position_gives(options, mode):
    model = tiny_model(**SMALL, **options)
    model.generation_config.expert_selection = "argmax"
    fixed = mode != "predicted"
    if mode == "canvas":
        model.generation_config.update(length_mode="canvas", max_new_tokens=2)
    # Two tokens, four positions.
    source = torch.tensor([[4, 2]])
    noise = torch.randn(1, 2, 8, 16, generator=seeded(3))
    for text in ((5, EOS), (5, 5), (EOS,), (6, 4)):
        answer = torch.tensor([text])
        found = model.log_likelihood(source, labels=answer, prior_noise=noise)
        positions = (2 if fixed else len(text)) * int(model.config.canvas_ratio)
        probability = 0.0
        for prior in range(2):
            whole, begun = written_texts(model, source, positions, noise[:, prior], torch.zeros(1, positions))
            probability += (begun if fixed else whole)[text] / 2
        if not fixed:
            probability *= model.encode_source(source)[1].softmax(-1)[0, len(text) - 1].item()
        assert found.item() == pytest.approx(math.log(probability), abs=1e-4)


def test_what_stands_behind_the_first_end_of_a_fixed_canvas_counts_for_nothing():
    model = tiny_model(length_head=False)
    model.generation_config.max_new_tokens = 6
    ids, mask = source_batch((7,))
    plain, filled = torch.tensor([[9, 8, EOS]]), torch.tensor([[9, 8, EOS, EOS, EOS, EOS]])
    found = [model.log_likelihood(ids, mask, labels, generator=seeded()) for labels in (plain, filled)]
    assert torch.equal(*found)
    with pytest.raises(ValueError, match="labels have 7 tokens, more than the 6 that the model writes"):
        model.log_likelihood(ids, mask, torch.full((1, 7), 5))


def test_noise_that_is_given_takes_the_place_of_the_draw():
    model = tiny_model()
    model.generation_config.expert_selection = "argmax"
    ids, mask = source_batch()
    labels = target_labels()
    noise = torch.randn(3, 2, 9, 16, generator=seeded(5))
    both = model.log_likelihood(ids, mask, labels, prior_noise=noise)
    each = [model.log_likelihood(ids, mask, labels, prior_noise=noise[:, prior]) for prior in range(2)]
    torch.testing.assert_close(both, torch.stack(each).logsumexp(0) - math.log(2))
    # Nothing else is random, and no canvas reaches what stands behind it.
    assert torch.equal(both, model.log_likelihood(ids, mask, labels, prior_noise=noise, generator=seeded(1)))
    assert torch.equal(both, model.log_likelihood(ids, mask, labels, prior_noise=noise[:, :, :6]))
    alone = model.log_likelihood(ids[1:2, :4], None, labels[1:2, :3], prior_noise=noise[1:2])
    torch.testing.assert_close(alone, both[1:2], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, BLANKS, {"reverse_positions": True}, {"copy_mechanism": True}],
    ids=["placed", "blanks", "reverse", "copied"],
)
def test_neither_padding_nor_batch_mates_change_a_probability(options):
    model = tiny_model(**options)
    ids, mask = source_batch()
    labels = target_labels()
    whole = model.log_likelihood(ids, mask, labels, num_priors=3, generator=seeded())
    left, left_mask = source_batch(side="left")
    padded = model.log_likelihood(left, left_mask, target_labels(side="left"), num_priors=3, generator=seeded())
    torch.testing.assert_close(padded, whole, atol=1e-4, rtol=1e-5)
    for row, length in enumerate(mask.sum(-1).tolist()):
        answer = labels[row][labels[row] != -100].unsqueeze(0)
        alone = model.log_likelihood(ids[row : row + 1, :length], None, answer, num_priors=3, generator=seeded())
        torch.testing.assert_close(alone, whole[row : row + 1], atol=1e-4, rtol=1e-5)


def test_more_priors_are_the_mean_of_their_probabilities():
    model = tiny_model()
    ids, mask = source_batch((7,))
    labels = target_labels((6,))
    # The first prior of a row is the same however many follow it.
    one = model.log_likelihood(ids, mask, labels, num_priors=1, generator=seeded())
    many = model.log_likelihood(ids, mask, labels, num_priors=64, generator=seeded())
    assert one != many
    assert torch.equal(one, model.log_likelihood(ids, mask, labels, num_priors=1, generator=seeded()))
    assert many > one - torch.log(torch.tensor(64.0))


def test_what_the_model_writes_is_more_probable_than_other_texts():
    model = tiny_model()
    ids, mask = source_batch()
    written = model.generate(ids, mask, target_lengths=6, eos_token_id=None, generator=seeded())
    other = (written + 1).clamp(max=52).clamp(min=4)
    own, changed = (
        model.log_likelihood(ids, mask, labels, num_priors=8, generator=seeded()) for labels in (written, other)
    )
    assert (own > changed).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": None}, "labels is of type NoneType; pass token ids of the answers"),
        ({"labels": torch.full((2, 4), 5)}, r"labels have shape \(2, 4\), must be a tensor of 3 rows"),
        ({"labels": torch.full((3, 4), -100)}, "labels have a row without any token"),
        ({"labels": torch.full((3, 4), 99)}, "labels hold ids"),
        ({"labels": torch.full((3, 40), 5)}, "labels have 40 tokens, more than max_position_embeddings=32"),
        ({"num_priors": 0}, "num_priors=0 must be a whole number above 0"),
        ({"generator": 1}, "generator is of type int"),
        ({"prior_noise": torch.zeros(3, 4, 16)}, r"prior_noise has shape \(3, 4, 16\), expected"),
        ({"prior_noise": torch.zeros(3, 2, 6, 15)}, r"prior_noise has shape \(3, 2, 6, 15\), expected"),
        ({"prior_noise": torch.full((3, 6, 16), torch.nan)}, "prior_noise holds values that are not finite"),
    ],
    ids=["none", "rows", "empty", "ids", "long", "priors", "generator", "short noise", "narrow noise", "no numbers"],
)
def test_what_is_refused(model, options, message):
    ids, mask = source_batch()
    with pytest.raises(ValueError, match=message):
        model.log_likelihood(ids, mask, **{"labels": target_labels(), **options})
