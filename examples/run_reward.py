r"""
Learns from a reward on the model's own answers (modeling_yan/training/rewards.py says what is maximised).

    python examples/run_reward.py --model_name_or_path examples/models/yan-e2e --task e2e_nlg \
        --dataset_name ../shared/data/e2e_nlg --reward examples/rewards.py:mentions_every_value \
        --output_dir outputs/reward --max_steps 100 --learning_rate 1e-4

`--reward` runs the file that it names. The function gets `completions` and the task's columns `source` and
`references` as lists and returns a number for each. Before and after, greedy answers to the validation sources are
scored by the reward and by the task's metrics; where there are none, some of the training sources are held out.
"""

import runpy
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset
from transformers import HfArgumentParser, TrainingArguments

from modeling_yan import YanForConditionalGeneration
from modeling_yan.common.arguments import ModelArguments, parse_arguments, run_script
from modeling_yan.common.building import build_model, load_tokenizer
from modeling_yan.data.pairs import PairArguments, load_pairs
from modeling_yan.data.tasks import Task, evaluation_rows
from modeling_yan.data.tokenization import set_truncation_side, tokenize_sources
from modeling_yan.evaluation.metrics import score_texts
from modeling_yan.training.budget import with_earlier_stages
from modeling_yan.training.freezing import freeze
from modeling_yan.training.rewards import Reward, YanRewardTrainer
from modeling_yan.training.runs import finish_run, prepare_run, run_training
from modeling_yan.training.scoring import answer_rows
from modeling_yan.training.trainer import EMACallback


@dataclass
class RewardArguments:
    task: str = field(metadata={"help": "Name in configuration/tasks, or a YAML file."})
    dataset_name: str = field(metadata={"help": "Hub name, local folder, or a CSV, JSON or Parquet file."})
    reward: str = field(metadata={"help": "FILE.py:FUNCTION. The file is run: name none that you do not trust."})
    num_generations: int = field(default=8, metadata={"help": "Answers to a source, each from a prior of its own."})
    temperature: float = field(default=1.0, metadata={"help": "Of tokens and lengths."})
    beta: float = field(default=0.0, metadata={"help": "Weight of the divergence from the model at the start."})
    max_eval_samples: int = field(default=200, metadata={"help": "Held-out sources scored before and after."})


def load_reward(name: str) -> Reward:
    """
    The function of FILE.py:FUNCTION.

    Raises:
        ValueError: if there is no such file or function.
    """
    path, _, function = name.rpartition(":")
    if not Path(path).is_file():
        raise ValueError(f"reward={name!r} must be FILE.py:FUNCTION, and there is no file {path!r}")
    found = runpy.run_path(path).get(function)
    if not callable(found):
        raise ValueError(f"reward={name!r}: {path} has no function {function!r}")
    return found


def score(trainer: YanRewardTrainer, rows: Dataset, task: Task) -> dict[str, float]:
    """The mean reward of greedy answers to the rows, and the task's metrics."""
    batch_size, seed = trainer.args.per_device_eval_batch_size, trainer.args.seed
    model = trainer.accelerator.unwrap_model(trainer.model)
    texts = answer_rows(model, trainer.processing_class, rows, task, batch_size=batch_size, seed=seed)
    values = trainer.reward(completions=texts, source=rows["source"], references=rows["references"])
    return {"reward": sum(values) / len(values), **score_texts(texts, rows["references"])}


def build_trainer(
    model_arguments: ModelArguments, arguments: RewardArguments, training: TrainingArguments
) -> tuple[YanRewardTrainer, Dataset, Task]:
    """The trainer, and the rows that it is scored on, read as which task."""
    reward, tokenizer = load_reward(arguments.reward), load_tokenizer(model_arguments)
    pairs = PairArguments(dataset_name=arguments.dataset_name, task=arguments.task)
    task, splits = load_pairs(pairs, tokenizer.mask_token, training.seed)
    set_truncation_side(tokenizer, task.truncation_side)
    held_out = evaluation_rows(splits, arguments.max_eval_samples)
    if not held_out:
        raise ValueError(f"dataset_name={arguments.dataset_name} has one source alone, and none to score; add others")
    model = build_model(YanForConditionalGeneration, model_arguments, tokenizer, whole=True)
    freeze(model, model_arguments.frozen_parts)
    trainer = YanRewardTrainer(
        model,
        reward,
        training,
        train_dataset=tokenize_sources(splits["train"], tokenizer, task.max_source_length),
        processing_class=tokenizer,
        num_generations=arguments.num_generations,
        temperature=arguments.temperature,
        beta=arguments.beta,
        embedding_learning_rate=model_arguments.embedding_learning_rate,
        encoder_learning_rate=model_arguments.encoder_learning_rate,
        callbacks=[EMACallback(model_arguments.ema_decay)] if model_arguments.ema_decay else None,
    )
    return trainer, next(iter(held_out.values())), task


def main() -> None:
    parser = HfArgumentParser((ModelArguments, RewardArguments, TrainingArguments), description=__doc__)
    model_arguments, arguments, training = parse_arguments(parser)
    resume = prepare_run(training, model_arguments)
    trainer, rows, task = build_trainer(model_arguments, arguments, training)
    before = score(trainer, rows, task)
    report = {
        "task": arguments.task,
        "rows": len(rows),
        "reward": arguments.reward.rpartition(":")[2],
        "num_generations": arguments.num_generations,
        **run_training(trainer, training_flops=model_arguments.training_flops, resume=resume),
        "before": before,
        "after": score(trainer, rows, task),
    }
    finish_run(trainer, with_earlier_stages(report, model_arguments.model_name_or_path))


if __name__ == "__main__":
    run_script(main)
