"""
Trains what people restore punctuation with today: the encoder of a YAN with a label for every word, on the same texts
with the same errors.

    python benchmarks/run_tagger_baseline.py --like outputs/yan-restore --task restore --dataset_name outputs/clean \
        --training_flops 6e13 --output_dir outputs/tagger-restore
"""

from dataclasses import dataclass, field

from transformers import DataCollatorForTokenClassification, HfArgumentParser, TrainingArguments

from modeling_yan import YanForTokenClassification
from modeling_yan.common.arguments import parse_arguments, run_script
from modeling_yan.common.hub import read_config, read_tokenizer
from modeling_yan.data.loading import select_split
from modeling_yan.data.tasks import Task, load_splits
from modeling_yan.evaluation.tagger import LABELS, TaggedTexts
from modeling_yan.training.runs import finish_run, prepare_run, run_training
from modeling_yan.training.trainer import KnownLengthsTrainer


@dataclass
class TaggerArguments:
    like: str = field(metadata={"help": "A YAN folder; the tagger has its encoder's sizes and its tokenizer."})
    task: str = field(metadata={"help": "Name in configuration/tasks, or a YAML file; one that draws its sources."})
    dataset_name: str = field(metadata={"help": "Hub name, local folder, or a CSV, JSON or Parquet file."})
    training_flops: float | None = field(
        default=None, metadata={"help": "Train for this many FLOPs instead of max_steps."}
    )


def main() -> None:
    arguments, training = parse_arguments(HfArgumentParser((TaggerArguments, TrainingArguments)))
    resume = prepare_run(training)
    task = Task.load(arguments.task)
    if not task.redraw:
        raise ValueError(f"task={arguments.task} draws no errors; give one with `redraw: true`, such as restore")
    tokenizer = read_tokenizer(arguments.like)
    texts = select_split(load_splits(arguments.dataset_name, task), "train", arguments.dataset_name)
    config = read_config(arguments.like)
    config.id2label = dict(enumerate(LABELS))
    config.label2id = {label: number for number, label in enumerate(LABELS)}
    trainer = KnownLengthsTrainer(
        model=YanForTokenClassification(config),
        args=training,
        train_dataset=TaggedTexts(texts, task, tokenizer, seed=training.seed),
        data_collator=DataCollatorForTokenClassification(tokenizer),
        processing_class=tokenizer,
    )
    report = {"architecture": "tagger", "train_rows": len(texts)}
    finish_run(trainer, report | run_training(trainer, training_flops=arguments.training_flops, resume=resume))


if __name__ == "__main__":
    run_script(main)
