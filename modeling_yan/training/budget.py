"""Training compute: what an update costs in FLOPs, and how many updates a budget pays for."""

import itertools
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import gather_object
from transformers import Trainer, TrainingArguments

from modeling_yan.common.flops import WorkCounter
from modeling_yan.common.reports import read_report

# Batches that group_by_length sorts among themselves, longest first: the first of them would cost more than the mean.
SORTED_TOGETHER = 50
# What is trained where nothing says how long: as many updates as a small set needs, whose answers are a few labels or
# texts of their own, and as many epochs as a large one.
UPDATES_FOR_LABELS, UPDATES_FOR_TEXTS, FEWEST_EPOCHS = 200, 1200, 5


def rows_per_update(training: TrainingArguments) -> int:
    """Over all processes and accumulated micro-batches."""
    return training.train_batch_size * training.gradient_accumulation_steps * training.world_size


def default_updates(rows: int, training: TrainingArguments, *, labels: bool) -> int:
    """
    Updates for a number of training rows: 200 where the answers are a few labels, else 1,200; five epochs where these
    are more.
    """
    fewest = UPDATES_FOR_LABELS if labels else UPDATES_FOR_TEXTS
    return max(fewest, math.ceil(FEWEST_EPOCHS * rows / rows_per_update(training)))


def updates_per_epoch(trainer: Trainer) -> int:
    """Of a trainer whose data set has a length; the last one may have fewer micro-batches than the others."""
    return max(math.ceil(len(trainer.get_train_dataloader()) / trainer.args.gradient_accumulation_steps), 1)


def micro_batches_per_update(trainer: Trainer) -> float:
    """Of one process, the mean over an epoch; of a stream, whose end is not known, all that are accumulated."""
    if not hasattr(trainer.train_dataset, "__len__"):
        return trainer.args.gradient_accumulation_steps
    return len(trainer.get_train_dataloader()) / updates_per_epoch(trainer)


def planned_updates(trainer: Trainer) -> tuple[int, float] | None:
    """Updates and epochs that the trainer's arguments ask for; None for a stream, whose end is not known."""
    training = trainer.args
    if not hasattr(trainer.train_dataset, "__len__"):
        return None
    each_epoch = updates_per_epoch(trainer)
    if training.max_steps > 0:
        return training.max_steps, training.max_steps / each_epoch
    return math.ceil(training.num_train_epochs * each_epoch), training.num_train_epochs


def spread_batches(trainer: Trainer, count: int) -> list:
    """`count` of the first 50 batches, evenly spaced, so that they are as long as the mean."""
    first = list(itertools.islice(trainer.get_train_dataloader(), SORTED_TOGETHER))
    stride = max(len(first) // count, 1)
    return first[stride // 2 :: stride]


@contextmanager
def nothing_changes(trainer: Trainer) -> Iterator[None]:
    """A model in training mode whose weights, gradients, logs and mode, and torch's random states, are put back."""
    model = trainer.model
    was_training = model.training
    with torch.random.fork_rng():
        model.train()
        yield
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    if hasattr(trainer, "forget_logs"):
        trainer.forget_logs()


def pass_through(trainer: Trainer, batch: dict) -> None:
    """Forward and backward."""
    batch = trainer._prepare_inputs(batch)
    with trainer.compute_loss_context_manager():
        loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()


def flops_per_update(trainer: Trainer, batches: int = 5) -> float:
    """
    FLOPs of one update, forward and backward, over all processes and accumulated micro-batches.

    It is the mean over some of the first 50 batches of each process, evenly spaced, as `WorkCounter` counts them, the
    same in every process. Neither weights nor torch's random states are changed.

    Args:
        trainer: with a data set to train on.
        batches: how many are counted.
    """
    with nothing_changes(trainer):
        counted = spread_batches(trainer, batches)
        with WorkCounter() as counter:
            for batch in counted:
                pass_through(trainer, batch)
    return sum(gather_object([counter.flops / len(counted)])) * micro_batches_per_update(trainer)


def seconds_per_update(trainer: Trainer) -> float:
    """About how long an update takes: forward and backward of a batch of middling length, the second time."""
    with nothing_changes(trainer):
        batch = spread_batches(trainer, 1)[0]
        for _ in range(2):
            start = time.perf_counter()
            pass_through(trainer, batch)
            if trainer.args.device.type == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
    return seconds * micro_batches_per_update(trainer)


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
