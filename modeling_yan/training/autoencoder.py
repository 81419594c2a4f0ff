"""Stage 1: the autoencoder, trained by text infilling."""

from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from modeling_yan import YanForMaskedLM
from modeling_yan.common.arguments import ModelArguments
from modeling_yan.common.building import build_model, check_new_tokenizer, load_tokenizer
from modeling_yan.data.collators import DataCollatorForTextInfilling
from modeling_yan.data.corpora import Corpus, load_corpus, load_task_corpus, tokenize_corpus
from modeling_yan.data.tasks import Task
from modeling_yan.data.tokenization import mask_token_of, train_tokenizer
from modeling_yan.training.budget import with_earlier_stages
from modeling_yan.training.freezing import freeze
from modeling_yan.training.runs import finish_run, prepare_run, run_training
from modeling_yan.training.trainer import EMACallback, YanTrainer


@dataclass
class AutoencoderDataArguments:
    """The texts that an autoencoder is trained on."""

    dataset_name: str = field(metadata={"help": "Hub name, local folder, or a CSV, JSON or Parquet file."})
    text_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns to learn from, each a text of its own; `text` by default."}
    )
    task: str | None = field(
        default=None,
        metadata={
            "help": "Learn from the sources and targets of this task instead of columns: a name in "
            "configuration/tasks, or a YAML file."
        },
    )
    train_tokenizer: int | None = field(
        default=None, metadata={"help": "Train a byte-level BPE of this size on the texts."}
    )
    max_length: int = field(default=128, metadata={"help": "Texts are cut after this many tokens."})
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of a data set with several."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read the corpus as training goes; needs --max_steps."})
    pack: bool = field(default=False, metadata={"help": "Lay texts end to end and fill every row to max_length."})
    distinct: bool = field(default=False, metadata={"help": "Drop repeated texts, which holds all in memory."})
    max_eval_samples: int = field(default=2000, metadata={"help": "Evaluate on the first texts only."})
    tokenizer_samples: int = field(default=100_000, metadata={"help": "Texts that train_tokenizer learns from."})
    infill_rate: float = field(default=0.08, metadata={"help": "Share of tokens under masked spans."})


def load_texts(data: AutoencoderDataArguments, split: str, tokenizer: PreTrainedTokenizerBase | None) -> Corpus | None:
    """
    The corpus of a split, with the column `text`; None where there is no such split.

    Args:
        tokenizer: None if it is still to be trained.

    Raises:
        ValueError: for options that exclude each other.
    """
    if data.task is None:
        return load_corpus(
            data.dataset_name,
            data.text_columns or ["text"],
            split,
            config_name=data.dataset_config_name,
            streaming=data.streaming,
            distinct=data.distinct,
        )
    for name in ("text_columns", "streaming", "distinct", "dataset_config_name"):
        if getattr(data, name):
            raise ValueError(f"{name}={getattr(data, name)!r} does not go with task={data.task}; leave it out")
    return load_task_corpus(data.dataset_name, Task.load(data.task), split, mask_token_of(tokenizer))


def load_autoencoder_data(
    data: AutoencoderDataArguments, model_arguments: ModelArguments
) -> tuple[PreTrainedTokenizerBase, Corpus, Dataset | None]:
    """
    The tokenizer, loaded or trained on the texts; tokenised training rows; and validation rows, where there are any.

    Raises:
        ValueError: if there is no training split.
    """
    tokenizer = None if data.train_tokenizer else load_tokenizer(model_arguments)
    train, held_out = (load_texts(data, split, tokenizer) for split in ("train", "validation"))
    if train is None:
        raise ValueError(f"{data.dataset_name} has no split 'train'")
    if tokenizer is None:
        texts = (row["text"] for row in islice(train, data.tokenizer_samples))
        tokenizer = train_tokenizer(texts, data.train_tokenizer, data.max_length)
    if held_out is not None:
        first = islice(tokenize_corpus(held_out, tokenizer, data.max_length), data.max_eval_samples)
        held_out = Dataset.from_list(list(first))
    return tokenizer, tokenize_corpus(train, tokenizer, data.max_length, data.pack), held_out


def build_autoencoder(
    model_arguments: ModelArguments, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> PreTrainedModel:
    """
    The model to be trained, with parts of it frozen.

    Raises:
        ValueError: if texts of `max_length` tokens are longer than its positions.
    """
    model = build_model(YanForMaskedLM, model_arguments, tokenizer)
    freeze(model, model_arguments.frozen_parts)
    if max_length > model.config.max_position_embeddings:
        raise ValueError(
            f"max_length={max_length} is more than the model's max_position_embeddings="
            f"{model.config.max_position_embeddings}; lower it or raise the other by --config_overrides"
        )
    return model


def token_accuracy(prediction) -> dict[str, float]:
    """`compute_metrics` of Trainer: the share of tokens that are given back right."""
    valid = prediction.label_ids != -100
    return {"token_accuracy": float(np.mean(prediction.predictions[valid] == prediction.label_ids[valid]))}


def most_probable(logits, labels) -> torch.Tensor:
    """`preprocess_logits_for_metrics` of Trainer: ids (B, L) instead of logits (B, L, V)."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


def train_autoencoder(
    model_arguments: ModelArguments, data: AutoencoderDataArguments, training: TrainingArguments
) -> dict:
    """
    Trains an autoencoder and saves model and tokenizer to `output_dir`.

    Returns:
        The report that is written to report.json and printed: of `run_training`, and the metrics of evaluation.

    Raises:
        ValueError: for arguments that do not go together, as early as that can be told.
    """
    check_new_tokenizer(data.train_tokenizer, model_arguments)
    resume = prepare_run(training, model_arguments)
    if data.streaming and training.max_steps <= 0:
        raise ValueError("streaming=True has no known end; pass --max_steps")
    tokenizer, train, held_out = load_autoencoder_data(data, model_arguments)
    model = build_autoencoder(model_arguments, tokenizer, data.max_length)
    training.remove_unused_columns = False
    trainer = YanTrainer(
        model=model,
        args=training,
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=DataCollatorForTextInfilling(tokenizer, rate=data.infill_rate),
        processing_class=tokenizer,
        compute_metrics=token_accuracy,
        preprocess_logits_for_metrics=most_probable,
        embedding_learning_rate=model_arguments.embedding_learning_rate,
        encoder_learning_rate=model_arguments.encoder_learning_rate,
        callbacks=[EMACallback(model_arguments.ema_decay)] if model_arguments.ema_decay else None,
    )
    if trainer.is_world_process_zero():
        rows = "a stream" if data.streaming else f"{len(train):,} rows"
        print(f"{model.num_parameters():,} parameters, {rows}", flush=True)
    report = run_training(trainer, training_flops=model_arguments.training_flops, resume=resume)
    if held_out is not None:
        metrics = trainer.evaluate()
        trainer.save_metrics("eval", metrics)
        report |= metrics
    report = with_earlier_stages(report, model_arguments.model_name_or_path)
    finish_run(trainer, report)
    return report
