"""
Learns from a reward on the model's own answers (modeling_yan/training/reward.py says what is maximised).

    python examples/run_reward.py --model_name_or_path examples/models/yan-e2e --task e2e_nlg --dataset_name ../shared/data/e2e_nlg \
        --reward examples/rewards.py:mentions_every_value --output_dir outputs/reward --max_steps 100 --learning_rate 1e-4

The reward gets `completions` and the task's columns `source` and `references` as lists and returns a number for each. Before
and after, greedy answers to the validation sources are scored by the reward and by the task's metrics.
"""

import json
import runpy
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import HfArgumentParser, TrainingArguments

from modeling_yan import YanForConditionalGeneration
from modeling_yan.evaluation.metrics import score_texts
from modeling_yan.evaluation.text_generation import generate_texts
from modeling_yan.training.budget import apply_budget, with_earlier_stages
from modeling_yan.training.reward import Reward, YanRewardTrainer
from modeling_yan.training.scripts import (
    ModelArguments,
    build_model,
    load_tokenizer,
    parse_arguments,
    prepare_run,
    run_script,
)
from modeling_yan.training.stages import freeze
from modeling_yan.training.tasks import Task, group_references, load_splits
from modeling_yan.training.tokenization import set_truncation_side, tokenize_sources


@dataclass
class RewardArguments:
    task: str = field(metadata={"help": "Name in configuration/tasks, or a YAML file."})
    dataset_name: str = field(metadata={"help": "Hub name or local folder."})
    reward: str = field(metadata={"help": "FILE.py:FUNCTION."})
    num_generations: int = field(default=8, metadata={"help": "Answers to a source, each from a prior of its own."})
    temperature: float = field(default=1.0, metadata={"help": "Of tokens and lengths."})
    beta: float = field(default=0.0, metadata={"help": "Weight of the divergence from the model at the start."})
    max_eval_samples: int = field(default=200, metadata={"help": "Validation sources scored before and after."})


def load_reward(name: str) -> Reward:
    path, _, function = name.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"reward={name!r} must be FILE.py:FUNCTION, and there is no file {path!r}")
    found = runpy.run_path(path).get(function)
    if not callable(found):
        raise ValueError(f"reward={name!r}: {path} has no function {function!r}")
    return found


def main() -> None:
    parser = HfArgumentParser((ModelArguments, RewardArguments, TrainingArguments))
    model_arguments, arguments, training = parse_arguments(parser)
    resume = prepare_run(training)
    reward, task = load_reward(arguments.reward), Task.load(arguments.task)
    tokenizer = load_tokenizer(model_arguments)
    set_truncation_side(tokenizer, task.truncation_side)
    splits = load_splits(arguments.dataset_name, task, tokenizer.mask_token)
    held_out = group_references(splits["validation" if "validation" in splits else "test"])
    held_out = held_out.select(range(min(arguments.max_eval_samples, len(held_out))))
    train_set = tokenize_sources(splits["train"], tokenizer, task.max_source_length)
    model = build_model(YanForConditionalGeneration, model_arguments, tokenizer)
    freeze(model, [part for part in model_arguments.freeze.split(",") if part])

    def score() -> dict[str, float]:
        texts = generate_texts(
            model,
            tokenizer,
            held_out["source"],
            batch_size=training.per_device_eval_batch_size,
            max_source_length=task.max_source_length,
            max_new_tokens=task.max_target_length,
            generator=torch.Generator(model.device).manual_seed(training.seed),
        )
        values = reward(completions=texts, source=held_out["source"], references=held_out["references"])
        return {"reward": sum(values) / len(values), **score_texts(texts, held_out["references"])}

    trainer = YanRewardTrainer(
        model,
        reward,
        training,
        train_dataset=train_set,
        processing_class=tokenizer,
        num_generations=arguments.num_generations,
        temperature=arguments.temperature,
        beta=arguments.beta,
        embedding_learning_rate=model_arguments.embedding_learning_rate,
    )
    before, each_update = score(), apply_budget(trainer, model_arguments.training_flops)
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume)
    minutes = (time.perf_counter() - start) / 60
    trainer.save_model()
    report = {
        "task": arguments.task,
        "rows": len(held_out),
        "reward": arguments.reward.rpartition(":")[2],
        "updates": trainer.state.global_step,
        "sources_per_update": training.train_batch_size,
        "num_generations": arguments.num_generations,
        "seed": training.seed,
        "parameters": model.num_parameters(),
        "train_flops": each_update * trainer.state.global_step,
        "train_minutes": round(minutes, 2),
        "before": before,
        "after": score(),
    }
    report = with_earlier_stages(report, model_arguments.model_name_or_path)
    path = Path(training.output_dir) / "report.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    run_script(main)
