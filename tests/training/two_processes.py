"""
Run by test_distributed.py in one process or in two: trains tiny models with every draw pinned in the data, so that the
loss curve depends on the global batch alone, and writes the curves and the weights.

    python two_processes.py '[{"kind": "ddp" or "fsdp2", "output": DIR, "arguments": {…}, "config": {…}}, …]'
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from datasets import Dataset
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from transformers import Seq2SeqTrainingArguments

from modeling_yan.training.trainer import YanSeq2SeqTrainer
from tests.helpers import pinned_draws, seeded, source_batch, target_labels, tiny_model

ROWS, SOURCE, TARGET, UPDATES = 32, 7, 5, 4
WRAPPED = ("YanEncoderLayer", "YanFeedForward", "YanMamba", "YanExperts", "YanDecoderLayer")


def rows() -> dict[str, torch.Tensor]:
    """Sources, targets of different length, and all that training would draw."""
    lengths = torch.randint(2, TARGET + 1, (ROWS,), generator=seeded()).tolist()
    lengths[0] = TARGET
    ids, _ = source_batch([SOURCE] * ROWS)
    return {"input_ids": ids, "labels": target_labels(lengths), **pinned_draws(ROWS, TARGET)}


def build(config: dict) -> torch.nn.Module:
    return tiny_model(latent_noise=0.0, **config).train()


def with_trainer(output: Path, arguments: dict, config: dict) -> None:
    """DDP where there are two processes, as Trainer does it."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    settings = Seq2SeqTrainingArguments(
        output,
        max_steps=UPDATES,
        save_steps=UPDATES // 2,
        logging_steps=1,
        learning_rate=0.01,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        per_device_train_batch_size=8 // world // arguments.get("gradient_accumulation_steps", 1),
        ddp_find_unused_parameters=False,
        **arguments,
    )
    data = rows()
    trainer = YanSeq2SeqTrainer(
        build(config),
        settings,
        train_dataset=Dataset.from_dict({"row": list(range(ROWS)), "length": (data["labels"] != -100).sum(1).tolist()}),
        data_collator=lambda features: {k: v[[f["row"] for f in features]] for k, v in data.items()},
    )
    trainer.train()
    trainer.save_model(str(output / "final"))
    if trainer.is_world_process_zero():
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        (output / "logs.json").write_text(json.dumps(logs))


def with_fsdp2(output: Path, arguments: dict, config: dict) -> None:
    """Sharded with torch's fully_shard where there are two processes; accelerate ignores FSDP on a CPU."""
    distributed = "WORLD_SIZE" in os.environ
    if distributed and not dist.is_initialized():
        dist.init_process_group("gloo")
    rank, world = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    model = build(config)
    if distributed:
        mesh = torch.distributed.init_device_mesh("cpu", (world,))
        for module in reversed(list(model.modules())):
            if type(module).__name__ in WRAPPED:
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
        register_fsdp_forward_method(model, "generate")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    data, curve = rows(), []
    for update in range(UPDATES):
        start = update * 8
        tokens = (data["labels"][start : start + 8] != -100).sum()
        mine = slice(start + rank * 8 // world, start + (rank + 1) * 8 // world)
        # fully_shard averages gradients over processes.
        loss = model(**{k: v[mine] for k, v in data.items()}, num_items_in_batch=tokens).loss * world
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach().clone()
        if distributed:
            dist.all_reduce(mean)
            mean /= world
        curve.append({"loss": mean.item()})
    model.eval()
    text = model.generate(data["input_ids"][:2], target_lengths=4, generator=seeded())
    state = {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in model.state_dict().items()
    }
    if rank == 0:
        final = output / "final"
        final.mkdir(parents=True)
        model.config.save_pretrained(final)
        save_file({k: v.contiguous() for k, v in state.items()}, final / "model.safetensors", {"format": "pt"})
        (output / "logs.json").write_text(json.dumps(curve))
        (output / "text.json").write_text(json.dumps(text.tolist()))


def run_jobs(jobs: list[dict]) -> None:
    """One job after the other, each from the same seed."""
    for job in jobs:
        torch.manual_seed(0)
        run = {"ddp": with_trainer, "fsdp2": with_fsdp2}[job["kind"]]
        run(Path(job["output"]), job.get("arguments", {}), job.get("config", {}))


if __name__ == "__main__":
    run_jobs(json.loads(sys.argv[1]))
    if dist.is_initialized():
        # Whoever leaves first takes the connections of the other with it.
        dist.barrier()
        dist.destroy_process_group()
