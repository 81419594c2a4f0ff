"""The table of loss terms, and what derives from it: settings, checks, outputs, documentation."""

import dataclasses
from pathlib import Path

import pytest
import torch

from modeling_yan import YanTrainingConfig
from modeling_yan.losses_yan import (
    AUTOENCODER_TERMS,
    DENOISED,
    DRAWN_TIMES,
    ENDPOINT,
    LOSS_TERMS,
    TARGET_LATENTS,
    LossInputs,
    describe_terms,
    reads,
    weighted_sum,
)
from modeling_yan.outputs_yan import YanMaskedLMOutput, YanSeq2SeqLMOutput

from .helpers import tiny_config

ROOT = Path(__file__).parents[1]


def inputs(count: int | None = None, **fields) -> LossInputs:
    labels = torch.tensor([[5, 6, 2], [7, 2, -100]])
    canvas = labels != -100
    count = int(canvas.sum()) if count is None else count
    return LossInputs(labels=labels, canvas_mask=canvas, count=count, placed=True, cross_entropy=None, **fields)


def test_every_term_has_a_weight_a_field_and_a_line_in_the_documentation():
    settings = {field.name: field.default for field in dataclasses.fields(YanTrainingConfig)}
    for name, term in LOSS_TERMS.items():
        assert settings[f"{name}_weight"] == term.weight
        assert f"`{name}`" in describe_terms()
        assert f"{name}_weight" in YanTrainingConfig.__doc__
    assert set(LOSS_TERMS) <= {field.name for field in dataclasses.fields(YanSeq2SeqLMOutput)}
    assert set(AUTOENCODER_TERMS) <= {field.name for field in dataclasses.fields(YanMaskedLMOutput)}
    assert set(LOSS_TERMS) <= set(tiny_config().keys_to_ignore_at_inference)
    assert describe_terms() in (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [name for name, term in LOSS_TERMS.items() if term.needs_place])
def test_a_term_that_needs_a_place_is_refused_on_a_canvas_with_blanks(name):
    weights = {f"{term}_weight": 0.0 for term in LOSS_TERMS}
    with pytest.raises(ValueError, match=f"{name}_weight=0.5 needs a place"):
        tiny_config(canvas_ratio=2.0, training_config={**weights, f"{name}_weight": 0.5})


def test_what_is_read_follows_from_the_weights():
    assert reads({"length_loss": 1.0}) == frozenset()
    assert reads({"ce_loss": 1.0, "nll_loss": 0.0}) == {ENDPOINT}
    assert reads({"mse_loss": 0.1}) == {ENDPOINT, TARGET_LATENTS}
    assert reads({"denoising_ce_loss": 1.0, "ce_loss": 1.0}) == {ENDPOINT, DRAWN_TIMES, TARGET_LATENTS, DENOISED}


def test_the_sum_weighs_terms_by_their_sign_and_leaves_out_what_has_no_weight():
    gate = torch.tensor([0.7, 0.2, 0.1]).log().expand(2, 3, 3)
    weights = {"gate_entropy": 0.5, "load_balance": 2.0, "nll_loss": 0.0}
    loss, terms = weighted_sum(inputs(gate_log_probs=gate), weights)
    assert list(terms) == ["gate_entropy", "load_balance"]
    torch.testing.assert_close(loss, 2.0 * terms["load_balance"] - 0.5 * terms["gate_entropy"])
    entropy = -sum(p * torch.tensor(p).log() for p in (0.7, 0.2, 0.1))
    torch.testing.assert_close(terms["gate_entropy"], entropy)


def test_a_micro_batch_counts_by_its_share():
    values = torch.tensor([[1.0, 2.0, 3.0], [4.0, 6.0, 100.0]])
    assert inputs().per_token(values).item() == pytest.approx(16 / 5)
    assert inputs(count=10).per_token(values).item() == pytest.approx(16 / 10)
    assert inputs(count=10).per_position(values).item() == pytest.approx(16 / 10)
    assert inputs(count=10).per_row(torch.tensor([1.0, 5.0])).item() == pytest.approx((3 + 10) / 10)


def test_a_micro_batch_without_labels_adds_nothing_to_the_latents_terms():
    empty = inputs(count=7, target_latents=torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)))
    empty.labels = torch.full((2, 3), -100)
    loss, terms = weighted_sum(empty, {"mmd_loss": 1.0, "latent_l2": 1.0})
    assert loss == terms["mmd_loss"] == terms["latent_l2"] == 0
