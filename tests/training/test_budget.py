"""Training budgets: counted work, the updates it pays for, and nothing else changed."""

import json

import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainingArguments

from modeling_yan.common.flops import WorkCounter
from modeling_yan.data.tokenization import train_tokenizer
from modeling_yan.training.budget import apply_budget, flops_per_update, with_earlier_stages
from modeling_yan.training.trainer import YanSeq2SeqTrainer

from ..helpers import seeded, tiny_model


def make_trainer(tmp_path, **options) -> YanSeq2SeqTrainer:
    tokenizer = train_tokenizer(["a b c d e f"] * 9, 53, 16)
    rows = [{"input_ids": [5, 6, 7, 2], "attention_mask": [1] * 4, "labels": [8, 9, 2]}] * 16
    arguments = Seq2SeqTrainingArguments(
        tmp_path,
        report_to="none",
        use_cpu=True,
        per_device_train_batch_size=4,
        save_strategy="no",
        logging_steps=1,
        **options,
    )
    return YanSeq2SeqTrainer(
        model=tiny_model(),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
    )


def test_a_budget_becomes_updates(tmp_path):
    trainer = make_trainer(tmp_path)
    each = flops_per_update(trainer)
    # More than two operations for each of the 12 target tokens and each parameter of a trunk pass, forward and
    # backward.
    trunk = sum(p.numel() for p in trainer.model.model.flow.layers.parameters())
    assert each > 3 * 2 * 12 * trunk
    assert apply_budget(trainer, 5.5 * each) == each
    assert trainer.args.max_steps == 5
    trainer.train()
    assert trainer.state.global_step == 5
    with pytest.raises(ValueError, match=r"training_flops=1e\+03 pays for no update"):
        apply_budget(trainer, 1e3)


def test_rows_of_different_length_are_counted_in_their_proportion(tmp_path):
    """Sorted by length, the first batches are the longest."""
    trainer = make_trainer(tmp_path, train_sampling_strategy="group_by_length")
    lengths = torch.randint(2, 16, (400,), generator=seeded()).tolist()
    rows = [{"input_ids": [5] * n, "attention_mask": [1] * n, "labels": [8, 2]} for n in lengths]
    trainer.train_dataset = Dataset.from_list(rows)
    counted = flops_per_update(trainer)
    every = flops_per_update(trainer, batches=50)
    assert counted == pytest.approx(every, rel=0.15)
    first = next(iter(trainer.get_train_dataloader()))["input_ids"].shape[1]
    assert first == max(lengths)


def test_accumulated_batches_count_and_nothing_else_changes(tmp_path):
    trainer = make_trainer(tmp_path, gradient_accumulation_steps=2)
    weights = {name: p.clone() for name, p in trainer.model.named_parameters()}
    state = torch.get_rng_state()
    assert apply_budget(trainer, None) == 2 * flops_per_update(make_trainer(tmp_path))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(p, weights[name]) and p.grad is None for name, p in trainer.model.named_parameters())


def test_the_last_update_of_an_epoch_counts_with_the_batches_that_are_left_for_it(tmp_path):
    trainer = make_trainer(tmp_path, gradient_accumulation_steps=3, num_train_epochs=2)
    each = flops_per_update(trainer)
    with WorkCounter() as counter:
        trainer.train()
    assert trainer.state.global_step == 4
    assert each * 4 == pytest.approx(counter.flops)


def test_stages_add_up_and_an_uncounted_one_leaves_no_total(tmp_path):
    first = with_earlier_stages({"train_flops": 2.0, "train_minutes": 1.5}, None)
    assert (first["total_train_flops"], first["total_train_minutes"]) == (2.0, 1.5)
    (tmp_path / "report.json").write_text(json.dumps(first))
    second = with_earlier_stages({"train_flops": 3.0, "train_minutes": 1.0}, str(tmp_path))
    assert (second["train_flops"], second["total_train_flops"], second["total_train_minutes"]) == (3.0, 5.0, 2.5)
    third = with_earlier_stages({"train_flops": 3.0, "train_minutes": 1.0}, str(tmp_path / "nowhere"))
    assert third["total_train_flops"] is None
