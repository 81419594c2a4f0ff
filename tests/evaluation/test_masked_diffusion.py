"""The masked diffusion peer: both directions, its loss, its schedule, and blocks with a cache that changes nothing."""

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config

from modeling_yan.evaluation.masked_diffusion import MaskedDiffusionLM


def tiny(block_length=None) -> MaskedDiffusionLM:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=40,
        n_positions=64,
        n_embd=16,
        n_layer=2,
        n_head=2,
        pad_token_id=0,
        eos_token_id=2,
        initializer_range=0.3,
    )
    config.mask_token_id = 3
    config.block_length = block_length
    return MaskedDiffusionLM(config).eval()


def sources() -> tuple[torch.Tensor, torch.Tensor]:
    """Two sources, the second shorter and padded on the left."""
    ids = torch.randint(4, 40, (2, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1] * 6, [0] * 2 + [1] * 4])
    return ids * mask, mask


@torch.no_grad()
def test_attention_goes_both_ways_and_by_blocks():
    ids = torch.randint(4, 40, (1, 10))
    changed = ids.clone()
    changed[0, 9] = 4 + (ids[0, 9] - 3) % 36
    valid = torch.ones_like(ids)
    model = tiny()
    assert not torch.allclose(model.predict(ids, valid, 4)[0, 0], model.predict(changed, valid, 4)[0, 0])
    model = tiny(block_length=3)
    before, after = model.predict(ids, valid, 4), model.predict(changed, valid, 4)
    torch.testing.assert_close(before[0, :7], after[0, :7])
    assert not torch.allclose(before[0, 7], after[0, 7])  # its own block: 7, 8, 9


@torch.no_grad()
def test_loss_is_the_weighted_cross_entropy_at_masked_positions():
    model, (ids, mask) = tiny(), sources()
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :3] = -100
    t = torch.tensor([0.5, 1.0])
    loss = model(ids, mask, labels=labels, timesteps=t, generator=torch.Generator().manual_seed(4)).loss
    drawn = torch.rand(ids.shape, generator=torch.Generator().manual_seed(4))
    masked = (labels != -100) & (drawn < t[:, None])
    logits = model.predict(ids.masked_fill(masked, 3), mask, 3)
    rows, places = masked.nonzero(as_tuple=True)
    each = F.cross_entropy(logits[rows, places], labels[rows, places], reduction="none") / t[rows]
    torch.testing.assert_close(loss, each.sum() / (labels != -100).sum())
    assert masked[1].sum() == 3  # everything at t = 1


@pytest.mark.parametrize("steps", [1, 2, 3, 9])
def test_every_step_is_one_evaluation_and_nothing_stays_masked(steps, monkeypatch):
    model, (ids, mask) = tiny(), sources()
    calls, predict = [], model.predict
    monkeypatch.setattr(model, "predict", lambda *a: calls.append(1) or predict(*a))
    out = model.generate(ids, mask, max_new_tokens=9, num_inference_steps=steps)
    assert len(calls) == steps
    assert out.shape == (2, 15)
    assert not (out == 3).any()
    assert torch.equal(out[:, :6], ids)


def test_the_most_confident_guess_is_kept_first():
    model, (ids, mask) = tiny(), sources()
    with torch.no_grad():
        padded = F.pad(ids, (0, 4), value=3)
        logits = model.predict(padded, F.pad(mask, (0, 4), value=1), 6)[:, 6:]
        logits[..., 3] = -torch.inf
        confidence, guess = logits.softmax(-1).max(-1)
    out = model.generate(ids, mask, max_new_tokens=4, num_inference_steps=4)
    for row in range(2):
        first = confidence[row].argmax()
        assert out[row, 6 + first] == guess[row, first]


@pytest.mark.parametrize(("length", "steps"), [(9, 9), (8, 4), (10, 4), (3, 1)])
def test_cached_blocks_write_what_whole_evaluations_write(length, steps):
    model, (ids, mask) = tiny(block_length=3), sources()
    options = {"max_new_tokens": length, "num_inference_steps": steps}
    assert torch.equal(model.generate(ids, mask, use_cache=True, **options), model.generate(ids, mask, **options))
    with pytest.raises(ValueError, match=r"config\.block_length=None"):
        tiny().generate(ids, mask, use_cache=True, block_length=3)


def test_rows_do_not_depend_on_padding_and_end_at_eos():
    model, (ids, mask) = tiny(), sources()
    together = model.generate(ids, mask, max_new_tokens=7, num_inference_steps=3)
    alone = model.generate(ids[1:, 2:], max_new_tokens=7, num_inference_steps=3)
    assert torch.equal(together[1, 6:], alone[0, 4:])
    ends = int(alone[0, 5])
    cut = model.generate(ids[1:, 2:], max_new_tokens=7, num_inference_steps=3, eos_token_id=ends)[0, 4:]
    first = alone[0, 4:].tolist().index(ends)
    assert torch.equal(cut[: first + 1], alone[0, 4 : 5 + first])
    assert (cut[first + 1 :] == 0).all()


def test_saved_and_loaded(tmp_path):
    model, (ids, mask) = tiny(block_length=3), sources()
    model.save_pretrained(tmp_path)
    loaded = MaskedDiffusionLM.from_pretrained(tmp_path)
    assert loaded.config.masked_diffusion
    assert torch.equal(loaded.generate(ids, mask, max_new_tokens=5), model.generate(ids, mask, max_new_tokens=5))
