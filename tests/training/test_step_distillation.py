"""Fewer steps: the teacher's endpoints from the same noise, and nothing of the teacher changed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import TrainingArguments

from modeling_yan import YanForConditionalGeneration
from modeling_yan.training.canvases import draw_canvases
from modeling_yan.training.step_distillation import YanStepDistillationTrainer, divergence
from modeling_yan.training.tokenization import train_tokenizer

from ..conftest import source_batch, tiny_model


def make_trainer(path, steps: int = 40, num_inference_steps: int = 1, **overrides) -> YanStepDistillationTrainer:
    rows = [{"input_ids": ids.tolist(), "attention_mask": [1] * len(ids)} for ids in source_batch((6,) * 8)[0]]
    arguments = TrainingArguments(
        path, max_steps=steps, learning_rate=1e-2, per_device_train_batch_size=8, logging_steps=5, report_to="none", use_cpu=True,
        disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    model = tiny_model(**overrides)
    with torch.no_grad():
        # Larger weights, for a field that is not the same everywhere.
        for parameter in model.model.flow.parameters():
            parameter.mul_(3)
    return YanStepDistillationTrainer(
        model,
        arguments,
        num_inference_steps=num_inference_steps,
        train_dataset=Dataset.from_list(rows),
        processing_class=train_tokenizer(["a b c"], 270, 16),
        generator=torch.Generator().manual_seed(0),
    )


def token_divergence(trainer, drawn: dict) -> torch.Tensor:
    """Of the student's tokens from the teacher's, at the same noise."""
    with torch.no_grad():
        wanted, written = (model.eval()(**drawn).logits for model in (trainer.teacher, trainer.model))
    return divergence(wanted, written).mean()


def test_one_step_comes_near_what_three_reached(tmp_path):
    trainer = make_trainer(tmp_path)
    kept = copy.deepcopy(trainer.teacher.state_dict())
    drawn, _ = draw_canvases(trainer.teacher, *source_batch(), generator=torch.Generator().manual_seed(5))
    before = token_divergence(trainer, drawn)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "token_kl" in entry]
    assert logs[-1]["token_kl"] < 0.5 * logs[0]["token_kl"]
    # The noise of this check was never trained on.
    assert token_divergence(trainer, drawn) < 0.9 * before
    assert all(torch.equal(value, kept[name]) for name, value in trainer.teacher.state_dict().items())
    trainer.save_model(tmp_path / "saved")
    loaded = YanForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert loaded.config.unroll_steps == loaded.generation_config.num_inference_steps == 1


def test_the_loss_is_zero_where_nothing_is_to_be_learned_and_positive_elsewhere(tmp_path):
    trainer = make_trainer(tmp_path, num_inference_steps=2)
    batch = trainer.data_collator(list(trainer.train_dataset))
    assert trainer.compute_loss(trainer.model.eval(), batch) > 1e-3
    trainer.model.config.unroll_steps = 3
    assert trainer.compute_loss(trainer.model, batch).abs() < 1e-5


def test_divergence_is_that_of_torch():
    p, q = torch.randn(2, 3, 4, 7, generator=torch.Generator().manual_seed(0)).unbind(0)
    expected = F.kl_div(q.log_softmax(-1), p.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(divergence(p, q), expected)


def test_canvases_repeat_rows_and_follow_the_generator():
    model, (ids, mask) = tiny_model(), source_batch()
    drawn, lengths = draw_canvases(model, ids, mask, repeats=3, generator=torch.Generator().manual_seed(1))
    again, _ = draw_canvases(model, ids, mask, repeats=3, generator=torch.Generator().manual_seed(1))
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)
    assert drawn["input_ids"].shape[0] == lengths.shape[0] == 9
    assert torch.equal(drawn["input_ids"][:3], ids[:1].expand(3, -1))
    assert torch.equal(drawn["decoder_attention_mask"].sum(-1), lengths)
    # A cold draw is the most probable length.
    _, cold = draw_canvases(model, ids, mask, temperature=1e-4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(cold, model.encode_source(ids, mask)[1].argmax(-1) + 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_inference_steps": 3}, "num_inference_steps=3 must be at least 1 and less than the model's 3"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"length_head": False}, "length_head=True"),
    ],
)
def test_what_cannot_be_shortened_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, **options)
