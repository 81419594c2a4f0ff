"""Training compute: what an update costs in FLOPs, and how many updates a budget pays for."""

import itertools

import torch
from transformers import Trainer

from modeling_yan.common.flops import WorkCounter
from modeling_yan.common.reports import read_report

# Batches that group_by_length sorts among themselves, longest first: the first of them would cost more than the mean.
SORTED_TOGETHER = 50


def flops_per_update(trainer: Trainer, batches: int = 5) -> float:
    """
    FLOPs of one update, forward and backward, over all processes and accumulated micro-batches.

    It is the mean over some of the first 50 batches, evenly spaced, as `WorkCounter` counts them. Neither weights nor
    torch's random states are changed.

    Args:
        trainer: with a data set to train on.
        batches: how many are counted.
    """
    model = trainer.model
    was_training = model.training
    with torch.random.fork_rng():
        first = list(itertools.islice(trainer.get_train_dataloader(), SORTED_TOGETHER))
        stride = max(len(first) // batches, 1)
        counted = first[stride // 2 :: stride]
        model.train()
        with WorkCounter() as counter:
            for batch in counted:
                batch = trainer._prepare_inputs(batch)
                with trainer.compute_loss_context_manager():
                    loss = trainer.compute_loss(model, batch)
                loss.backward()
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    if hasattr(trainer, "forget_logs"):
        trainer.forget_logs()
    return counter.flops / len(counted) * trainer.args.gradient_accumulation_steps * trainer.args.world_size


def apply_budget(trainer: Trainer, budget: float | None) -> float:
    """
    Sets `max_steps` to what a budget of FLOPs pays for, where one is given.

    Returns:
        The FLOPs of one update.

    Raises:
        ValueError: for a budget that pays for no update.
    """
    each = flops_per_update(trainer)
    if budget is not None:
        steps = int(budget // each)
        if steps < 1:
            raise ValueError(f"training_flops={budget:.3g} pays for no update, which takes {each:.3g}; raise it")
        trainer.args.max_steps = steps
    return each


def with_earlier_stages(report: dict, started_from: str | None) -> dict:
    """
    The report of a training run with what it and the runs before it cost together.

    Args:
        report: holds `train_flops` and `train_minutes` of this run.
        started_from: the folder it started from; its report.json, where there is one, says what came before.

    Returns:
        The report with `total_train_flops` and `total_train_minutes`; None where an earlier stage left no count.
    """
    totals = {f"total_{name}": report[name] for name in ("train_flops", "train_minutes")}
    if started_from is not None:
        earlier = read_report(started_from) or {}
        for name, own in totals.items():
            before = earlier.get(name)
            totals[name] = None if before is None else round(own + before, 2)
    return {**report, **totals}
