"""
Stage 1: trains the autoencoder by text infilling.

    python examples/run_autoencoder.py configuration/training/autoencoder_e2e.yaml
    python examples/run_autoencoder.py --preset yan-tiny --train_tokenizer 2048 --dataset_name ../shared/data/e2e_nlg \
        --text_columns meaning_representation human_reference --output_dir outputs/autoencoder --max_steps 1000
"""

import json
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import HfArgumentParser, PreTrainedTokenizerBase, TrainingArguments

from modeling_yan import YanForMaskedLM
from modeling_yan.training.budget import apply_budget, with_earlier_stages
from modeling_yan.training.corpora import load_corpus, load_task_corpus, tokenize_corpus
from modeling_yan.training.data_collator import DataCollatorForTextInfilling
from modeling_yan.training.scripts import (
    ModelArguments,
    build_model,
    load_tokenizer,
    parse_arguments,
    prepare_run,
    run_script,
)
from modeling_yan.training.stages import freeze
from modeling_yan.training.tasks import Task
from modeling_yan.training.tokenization import SPECIAL_TOKENS, train_tokenizer
from modeling_yan.training.trainer import EMACallback, YanTrainer


@dataclass
class DataArguments:
    dataset_name: str = field(metadata={"help": "Hub name or local folder."})
    text_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns to learn from, each a text of its own; `text` by default."}
    )
    task: str | None = field(
        default=None,
        metadata={
            "help": "Learn from the sources and targets of this task instead of columns: a name in configuration/tasks, or a YAML file."
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


def load_texts(arguments: DataArguments, split: str, tokenizer: PreTrainedTokenizerBase | None):
    """
    The corpus of a split, None where there is no such split.

    Args:
        tokenizer: None if it is still to be trained.

    Raises:
        ValueError: for options that exclude each other.
    """
    if arguments.task is None:
        return load_corpus(
            arguments.dataset_name,
            arguments.text_columns or ["text"],
            split,
            config_name=arguments.dataset_config_name,
            streaming=arguments.streaming,
            distinct=arguments.distinct,
        )
    for name in ("text_columns", "streaming", "distinct", "dataset_config_name"):
        if getattr(arguments, name):
            raise ValueError(
                f"{name}={getattr(arguments, name)!r} does not go with task={arguments.task}; leave it out"
            )
    mask_token = SPECIAL_TOKENS["mask_token"] if tokenizer is None else tokenizer.mask_token
    return load_task_corpus(arguments.dataset_name, Task.load(arguments.task), split, mask_token)


def main() -> None:
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    model_arguments, data_arguments, training = parse_arguments(parser)
    resume = prepare_run(training)
    if data_arguments.streaming and training.max_steps <= 0:
        raise ValueError("streaming=True has no known end; pass --max_steps")
    tokenizer = None if data_arguments.train_tokenizer else load_tokenizer(model_arguments)
    train, evaluation = (load_texts(data_arguments, split, tokenizer) for split in ("train", "validation"))
    if train is None:
        raise ValueError(f"{data_arguments.dataset_name} has no train split")
    if tokenizer is None:
        texts = (row["text"] for row in islice(train, data_arguments.tokenizer_samples))
        tokenizer = train_tokenizer(texts, data_arguments.train_tokenizer, data_arguments.max_length)
    train = tokenize_corpus(train, tokenizer, data_arguments.max_length, data_arguments.pack)
    if evaluation is not None:
        first = list(
            islice(tokenize_corpus(evaluation, tokenizer, data_arguments.max_length), data_arguments.max_eval_samples)
        )
        evaluation = Dataset.from_list(first)
    model = build_model(YanForMaskedLM, model_arguments, tokenizer)
    freeze(model, [part for part in model_arguments.freeze.split(",") if part])
    training.remove_unused_columns = False
    if data_arguments.max_length > model.config.max_position_embeddings:
        raise ValueError(
            f"max_length={data_arguments.max_length} is more than the model's max_position_embeddings="
            f"{model.config.max_position_embeddings}; lower it or raise the other by --config_overrides"
        )

    def token_accuracy(prediction) -> dict[str, float]:
        valid = prediction.label_ids != -100
        return {"token_accuracy": float(np.mean(prediction.predictions[valid] == prediction.label_ids[valid]))}

    trainer = YanTrainer(
        model=model,
        args=training,
        train_dataset=train,
        eval_dataset=evaluation,
        data_collator=DataCollatorForTextInfilling(tokenizer, rate=data_arguments.infill_rate),
        processing_class=tokenizer,
        compute_metrics=token_accuracy,
        preprocess_logits_for_metrics=lambda logits, labels: (
            logits[0] if isinstance(logits, tuple) else logits
        ).argmax(-1),
        embedding_learning_rate=model_arguments.embedding_learning_rate,
        callbacks=[EMACallback(model_arguments.ema_decay)] if model_arguments.ema_decay else None,
    )
    if trainer.is_world_process_zero():
        rows = "a stream" if data_arguments.streaming else f"{len(train):,} rows"
        print(f"{model.num_parameters():,} parameters, {rows}, {torch.get_num_threads()} threads")
    each_update = apply_budget(trainer, model_arguments.training_flops)
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume)
    report = {
        "parameters": model.num_parameters(),
        "updates": trainer.state.global_step,
        "train_flops": each_update * trainer.state.global_step,
        "train_minutes": round((time.perf_counter() - start) / 60, 2),
        "seed": training.seed,
    }
    report = with_earlier_stages(report, model_arguments.model_name_or_path)
    trainer.save_model()
    if evaluation is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)
        report |= metrics
    if trainer.is_world_process_zero():
        path = Path(training.output_dir) / "report.json"
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run_script(main)
