"""log_likelihood: probabilities that add up, padding and batch-mates that change nothing, and what it refuses."""

import itertools

import pytest
import torch

from .helpers import seeded, source_batch, target_labels, tiny_model

BLANKS = {"canvas_ratio": 2.0, "nll_loss_weight": 0.0, "mse_loss_weight": 0.0}
SMALL = {"vocab_size": 7, "encoder_layers": 1, "flow_layers": 1, "cross_attention_layers": [0]}


@pytest.mark.parametrize("options", [{}, {"length_head": False}, BLANKS], ids=["placed", "no length head", "blanks"])
def test_probabilities_of_all_texts_add_up(options):
    """
    Under one noise: to the probability of their length; with blanks, whose texts may be shorter, canvas by canvas.
    """
    model = tiny_model(**SMALL, **options)
    source = torch.tensor([[4, 5, 6, 2]])
    blanks = "canvas_ratio" in options
    # With blanks a canvas of 4 positions also holds the texts of one and of three or four tokens.
    writable = [i for i in range(7) if i not in (0, 3)]
    texts = torch.tensor(list(itertools.product(writable, repeat=2)))
    sources = source.expand(len(texts), -1)
    found = model.log_likelihood(sources, labels=texts, num_priors=2, generator=seeded()).exp().sum()
    length = 1.0
    if model.length_head is not None:
        length = model.encode_source(source)[1].softmax(-1)[0, 1]
    if blanks:
        assert 0 < found < length
    else:
        torch.testing.assert_close(found, torch.as_tensor(length), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, BLANKS, {"reverse_positions": True}], ids=["placed", "blanks", "reverse"])
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
        ({"labels": None}, "labels must be a tensor of 3 rows"),
        ({"labels": torch.full((2, 4), 5)}, "labels must be a tensor of 3 rows"),
        ({"labels": torch.full((3, 4), -100)}, "labels have a row without any token"),
        ({"labels": torch.full((3, 4), 99)}, "labels hold ids"),
        ({"labels": torch.full((3, 40), 5)}, "labels have 40 tokens, more than max_position_embeddings=32"),
        ({"num_priors": 0}, "num_priors=0 must be a whole number above 0"),
        ({"generator": 1}, "generator is of type int"),
    ],
    ids=["none", "rows", "empty", "ids", "long", "priors", "generator"],
)
def test_what_is_refused(model, options, message):
    ids, mask = source_batch()
    with pytest.raises(ValueError, match=message):
        model.log_likelihood(ids, mask, **{"labels": target_labels(), **options})
