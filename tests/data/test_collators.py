"""Text infilling: what is covered, what stays, reproducibility."""

import itertools

import pytest
import torch
from datasets import Dataset

from modeling_yan.data.collators import DataCollatorForTextInfilling, infill
from modeling_yan.data.tokenization import tokenize_pairs, train_tokenizer

from ..helpers import seeded

IDS = {"mask_token_id": 3, "pad_token_id": 0}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the quick brown fox jumps over the lazy dog"] * 3, 280, 64)


def test_rate_zero_changes_nothing():
    ids = torch.randint(4, 99, (4, 20), generator=seeded())
    assert torch.equal(infill(ids, torch.ones_like(ids), rate=0.0, **IDS), ids)


@pytest.mark.parametrize(("rate", "max_span"), [(0.08, 3), (0.3, 1), (0.2, 5)])
def test_the_covered_share_is_the_rate(rate, max_span):
    ids = torch.arange(4, 2004).repeat(50, 1)
    out = infill(ids, torch.ones_like(ids), rate=rate, max_span=max_span, generator=seeded(), **IDS)
    kept = sum(len(set(row.tolist()) - {0, 3}) for row in out)
    assert 1 - kept / ids.numel() == pytest.approx(rate, rel=0.06)


def test_spans_collapse_to_one_mask_and_the_rest_keeps_its_order():
    ids = torch.arange(4, 44).repeat(30, 1)
    out = infill(ids, torch.ones_like(ids), rate=0.3, generator=seeded(), **IDS)
    assert out.shape == ids.shape
    for row in out.tolist():
        text = [t for t in row if t != 0]
        assert row == text + [0] * (40 - len(text))
        survivors = [t for t in text if t != 3]
        assert survivors == sorted(survivors)
        # Masks never touch: touching spans are one.
        assert not any(a == b == 3 for a, b in itertools.pairwise(text))
        gaps = sum(1 for a, b in zip([3, *survivors], [*survivors, 44], strict=True) if b - a > 1)
        assert text.count(3) == gaps


def test_only_maskable_tokens_are_covered():
    ids = torch.arange(4, 24).repeat(200, 1)
    maskable = torch.zeros_like(ids)
    maskable[:, 5:9] = 1
    out = infill(ids, maskable, rate=0.5, generator=seeded(), **IDS)
    for row in out.tolist():
        assert set(range(4, 9)) | set(range(13, 24)) <= set(row)


def test_collator_keeps_eos_pads_and_asks_for_the_clean_text(tokenizer):
    texts = ["the quick brown fox", "the lazy dog jumps over the quick brown fox"]
    features = [{"input_ids": tokenizer(t)["input_ids"]} for t in texts]
    collator = DataCollatorForTextInfilling(tokenizer, rate=0.4, generator=seeded())
    batch = collator(features)
    for row, feature in enumerate(features):
        length = len(feature["input_ids"])
        assert batch["attention_mask"][row].sum() == length
        assert batch["labels"][row, :length].tolist() == feature["input_ids"]
        assert (batch["labels"][row, length:] == -100).all()
        assert tokenizer.eos_token_id in batch["input_ids"][row]
    assert (batch["input_ids"] == tokenizer.mask_token_id).any()


def test_same_generator_same_corruption(tokenizer):
    features = [{"input_ids": tokenizer("the quick brown fox jumps over the lazy dog")["input_ids"]}] * 8
    a, b, c = (
        DataCollatorForTextInfilling(tokenizer, rate=0.3, generator=seeded(s))(features)["input_ids"] for s in (0, 0, 1)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"rate=1\.0"):
        infill(torch.ones(1, 2), torch.ones(1, 2), rate=1.0, **IDS)


def test_tokenizer_round_trip_and_pairs(tokenizer):
    text = "The fox costs £10 – naïve, isn't it?"
    ids = tokenizer(text)["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    pairs = tokenize_pairs(Dataset.from_dict({"source": [text], "target": ["dog " * 50]}), tokenizer, 10, 5)
    assert len(pairs[0]["input_ids"]) == 10
    assert len(pairs[0]["labels"]) == 5
    assert pairs[0]["input_ids"][-1] == pairs[0]["labels"][-1] == tokenizer.eos_token_id
