"""
Fine-tunes a pretrained encoder with a classification head, which is what most people would try first where the answers
are a few labels, and scores the labels' texts as YAN's answers are scored.

    python benchmarks/run_head_baseline.py --encoder NAME_OR_DIR --task sst2 --dataset_name ../shared/data/sst2 \
        --learning_rate 5e-5 --output_dir outputs/head-sst2
"""

from dataclasses import dataclass, field

import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from modeling_yan.common.arguments import parse_arguments, run_script
from modeling_yan.common.hub import read_tokenizer, readable
from modeling_yan.data.loading import select_split
from modeling_yan.data.tasks import Task, evaluation_rows, load_splits
from modeling_yan.evaluation.metrics import score_texts
from modeling_yan.training.runs import finish_run, prepare_run, run_training
from modeling_yan.training.trainer import KnownLengthsTrainer

# More different answers than a head is for.
MOST_LABELS = 200


@dataclass
class HeadArguments:
    encoder: str = field(metadata={"help": "Folder or Hub name of the pretrained encoder."})
    task: str = field(metadata={"help": "Name in configuration/tasks, or a YAML file."})
    dataset_name: str = field(metadata={"help": "Hub name, local folder, or a CSV, JSON or Parquet file."})
    freeze: bool = field(default=False, metadata={"help": "Train the head alone."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only the first rows."})
    training_flops: float | None = field(
        default=None, metadata={"help": "Train for this many FLOPs instead of max_steps."}
    )


def label_names(texts: Dataset) -> list[str]:
    """
    The different answers, sorted.

    Raises:
        ValueError: for more than a head can tell apart.
    """
    names = sorted(set(texts["target"]))
    if len(names) > MOST_LABELS:
        raise ValueError(f"the task has {len(names):,} different answers; a head is for up to {MOST_LABELS}")
    return names


def tokenize(texts: Dataset, tokenizer: PreTrainedTokenizerBase, names: list[str], longest: int) -> Dataset:
    """Sources' ids and the numbers of their labels."""
    numbers = {name: number for number, name in enumerate(names)}

    def one(rows: dict) -> dict:
        batch = tokenizer(rows["source"], truncation=True, max_length=longest)
        return {**batch, "labels": [numbers[target] for target in rows["target"]]}

    return texts.map(one, batched=True, remove_columns=texts.column_names, desc="tokenise")


@torch.no_grad()
def classify(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sources: list[str], longest: int, batch_size: int
) -> list[int]:
    """Number of the most probable label of each source."""
    model.eval()
    found = []
    for start in range(0, len(sources), batch_size):
        texts = sources[start : start + batch_size]
        batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=longest)
        found += model(**batch.to(model.device)).logits.argmax(-1).tolist()
    return found


def main() -> None:
    arguments, training = parse_arguments(HfArgumentParser((HeadArguments, TrainingArguments)))
    resume = prepare_run(training)
    task = Task.load(arguments.task)
    tokenizer = read_tokenizer(arguments.encoder)
    splits = load_splits(arguments.dataset_name, task, tokenizer.mask_token)
    texts = select_split(splits, "train", arguments.dataset_name)
    if arguments.max_train_samples is not None:
        texts = texts.select(range(min(arguments.max_train_samples, len(texts))))
    names = label_names(texts)
    with readable(arguments.encoder):
        model = AutoModelForSequenceClassification.from_pretrained(
            arguments.encoder, num_labels=len(names), dtype=torch.float32
        )
    if arguments.freeze:
        model.base_model.requires_grad_(False)
    trainer = KnownLengthsTrainer(
        model=model,
        args=training,
        train_dataset=tokenize(texts, tokenizer, names, task.max_source_length),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    report = {"architecture": "head", "train_rows": len(texts)}
    report |= run_training(trainer, training_flops=arguments.training_flops, resume=resume)
    for name, rows in evaluation_rows(splits, None).items():
        numbers = classify(
            model, tokenizer, rows["source"][:], task.max_source_length, training.per_device_eval_batch_size
        )
        report[name] = {"rows": len(rows), **score_texts([names[n] for n in numbers], rows["references"])}
    finish_run(trainer, report)


if __name__ == "__main__":
    run_script(main)
