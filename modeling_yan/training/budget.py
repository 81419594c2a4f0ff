"""Training compute, counted: what an update costs, and how many updates a budget pays for."""

import itertools
import json
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from transformers import Trainer

ATTENTION_ON_CPU = "_scaled_dot_product_flash_attention_for_cpu"
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product", "_grouped_mm", "convolution")


class WorkCounter(TorchDispatchMode):
    """
    Counts what runs inside it: `flops`, the floating-point operations of products, convolutions and attention (torch's own
    formulas, and attention on a CPU, which torch leaves out), and `bytes` of the operands and results of these and of embedding
    look-ups, the traffic that no fusion avoids. What is elementwise, Mamba's scan among it, is not counted. Unlike FlopCounterMode it
    puts no hooks on modules, which a forward pass that is partly without gradient breaks.
    """

    def __init__(self):
        super().__init__()
        self.flops = 0
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.name().removeprefix("aten::").split(".")[0]
        packet = function._overloadpacket
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        elif name == ATTENTION_ON_CPU:
            self.flops += sdpa_flop_count(*(x.shape for x in args[:3]))
        elif name == f"{ATTENTION_ON_CPU}_backward":
            self.flops += sdpa_backward_flop_count(*(x.shape for x in args[:4]))
        if name == "embedding":
            self.bytes += 2 * out.numel() * out.element_size()
        elif name.startswith(PRODUCTS):
            tensors = [x for x in (*args, *(out if isinstance(out, tuple) else (out,))) if torch.is_tensor(x)]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return out


# Batches that group_by_length sorts among themselves, longest first: the first of them alone would cost more than the mean.
SORTED_TOGETHER = 50


def flops_per_update(trainer: Trainer, batches: int = 5) -> float:
    """
    Floating-point operations of one update, forward and backward, as `WorkCounter` counts them: the mean over some of the first 50
    batches, evenly spaced. Nothing is changed: neither weights nor torch's random states.
    """
    model = trainer.model
    was_training = model.training
    with torch.random.fork_rng():
        first = list(itertools.islice(trainer.get_train_dataloader(), SORTED_TOGETHER))
        stride = max(len(first) // batches, 1)
        batches = first[stride // 2 :: stride]
        model.train()
        with WorkCounter() as counter:
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
    return counter.flops / len(batches) * trainer.args.gradient_accumulation_steps * trainer.args.world_size


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


def with_earlier_stages(report: dict, started_from: str | None) -> dict:
    """
    The report of a training run with what it and the runs before it cost together.

    Args:
        report: holds `train_flops` and `train_minutes` of this run.
        started_from: the folder it started from; its report.json, where there is one, says what came before.

    Returns:
        The report with `total_train_flops` and `total_train_minutes`. They are None where an earlier stage left no count.
    """
    path = Path(started_from or "") / "report.json"
    totals = {f"total_{name}": report[name] for name in ("train_flops", "train_minutes")}
    if started_from is not None:
        earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for name, own in totals.items():
            before = earlier.get(name)
            totals[name] = None if before is None else round(own + before, 2)
    return {**report, **totals}
