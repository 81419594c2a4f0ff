"""A training run from its first check to its report, the same for every stage."""

import json
import os
import time
from pathlib import Path

from transformers import Trainer, TrainingArguments, set_seed

from modeling_yan.common.arguments import ModelArguments
from modeling_yan.common.building import check_model_arguments
from modeling_yan.common.reports import machine, write_report
from modeling_yan.training.budget import apply_budget, planned_updates, rows_per_update, seconds_per_update
from modeling_yan.training.checkpoints import check_writable, resolve_resume
from modeling_yan.training.trainer import YanTrainerMixin


def prepare_run(training: TrainingArguments, model_arguments: ModelArguments | None = None) -> str | None:
    """
    Seeds everything, and finds out before any work whether the run can start.

    Returns:
        The checkpoint to go on from, if any.

    Raises:
        ValueError: for config overrides that no model can have, an output folder that cannot be written to, a
            checkpoint that is not complete, and processes that do not know of each other.
    """
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if training.world_size != launched:
        raise ValueError(
            f"{launched} processes were launched, but each would train alone (world_size={training.world_size}); on "
            "CPUs pass --use_cpu"
        )
    if model_arguments is not None:
        check_model_arguments(model_arguments)
    check_writable(training.output_dir)
    resume = resolve_resume(training)
    set_seed(training.seed)
    return resume


def describe_plan(trainer: Trainer, each_update: float) -> str:
    """
    One line: updates, epochs, FLOPs and about how many minutes there are to come.

    Args:
        each_update: FLOPs of an update.
    """
    plan = planned_updates(trainer)
    if plan is None:
        return f"{trainer.args.max_steps:,} updates of {rows_per_update(trainer.args)} rows"
    updates, epochs = plan
    minutes = updates * seconds_per_update(trainer) / 60
    return (
        f"{updates:,} updates of {rows_per_update(trainer.args)} rows, {epochs:.3g} epochs, "
        f"{updates * each_update:.2g} FLOPs, about {minutes:.1f} minutes"
    )


def run_training(trainer: Trainer, *, training_flops: float | None = None, resume: str | None = None) -> dict:
    """
    Trains and saves the model.

    Args:
        trainer: ready to train.
        training_flops: the budget, which decides `max_steps`; that of the arguments by default.
        resume: a checkpoint to go on from.

    Returns:
        What every report of training holds: `parameters`, `trained_parameters`, `updates`, `batch_size` (over processes
        and accumulated micro-batches), `processes`, `train_flops`, `train_minutes` of this call, `seed`, and
        `machine`'s entries.
    """
    training = trainer.args
    each_update = apply_budget(trainer, training_flops)
    if trainer.is_world_process_zero():
        print(describe_plan(trainer, each_update), flush=True)
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume)
    minutes = (time.perf_counter() - start) / 60
    trainer.save_model()
    model, updates = trainer.accelerator.unwrap_model(trainer.model), trainer.state.global_step
    return {
        "parameters": model.num_parameters(),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "updates": updates,
        "batch_size": rows_per_update(training),
        "processes": training.world_size,
        "train_flops": each_update * updates,
        "train_minutes": round(minutes, 2),
        "seed": training.seed,
        **machine(training.device),
    }


def finish_run(trainer: Trainer, report: dict) -> None:
    """
    Writes `report.json` and, where nobody wrote one by hand, the model card beside the model, and prints the report,
    once for all processes.
    """
    if trainer.is_world_process_zero():
        if isinstance(trainer, YanTrainerMixin) and trainer.writes_card:
            trainer.create_model_card()
        write_report(report, Path(trainer.args.output_dir) / "report.json")
        print(json.dumps(report, indent=2))
