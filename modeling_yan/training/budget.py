"""Training compute, counted: what an update costs, and how many updates a budget pays for."""

import itertools

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Trainer


def flops_per_update(trainer: Trainer, batches: int = 4) -> float:
    """
    Floating-point operations of one update: forward and backward, by torch's FlopCounterMode (products and attention; what is
    elementwise, Mamba's scan among it, is not counted), the mean over the first batches. Nothing is changed: neither weights nor
    random states.
    """
    model = trainer.model
    was_training = model.training
    with torch.random.fork_rng():
        batches = list(itertools.islice(trainer.get_train_dataloader(), batches))
        model.train()
        counter = FlopCounterMode(display=False)
        with counter:
            for batch in batches:
                batch = trainer._prepare_inputs(batch)
                with trainer.compute_loss_context_manager():
                    loss = trainer.compute_loss(model, batch)
                loss.backward()
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    for name in ("_term_sums", "_tokens", "_counted_since"):
        # What YanTrainerMixin would log of these batches.
        trainer.__dict__.pop(name, None)
    return counter.get_total_flops() / len(batches) * trainer.args.gradient_accumulation_steps * trainer.args.world_size


def apply_budget(trainer: Trainer, budget: float | None) -> float:
    """
    Sets `max_steps` to what a budget of floating-point operations pays for, where one is given.

    Returns:
        The operations of one update.

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
