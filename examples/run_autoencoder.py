"""
Stage 1: trains the autoencoder by text infilling.

    python examples/run_autoencoder.py configuration/training/autoencoder_e2e.yaml
    python examples/run_autoencoder.py --preset yan-tiny --train_tokenizer 2048 --dataset_name ../shared/data/e2e_nlg \
        --text_columns meaning_representation human_reference --output_dir outputs/autoencoder --max_steps 1000
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from datasets import Dataset, load_dataset
from transformers import HfArgumentParser, TrainingArguments

from modeling_yan import YanForMaskedLM
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
from modeling_yan.training.tokenization import train_tokenizer
from modeling_yan.training.trainer import EMACallback, YanTrainer


@dataclass
class DataArguments:
    dataset_name: str = field(metadata={"help": "Hub name or local folder."})
    text_columns: list[str] = field(
        default_factory=lambda: ["text"], metadata={"help": "Columns to learn from, each a text of its own."}
    )
    train_tokenizer: int | None = field(
        default=None, metadata={"help": "Train a byte-level BPE of this size on the texts."}
    )
    max_length: int = field(default=128, metadata={"help": "Texts are cut after this many tokens."})
    infill_rate: float = field(default=0.08, metadata={"help": "Share of tokens under masked spans."})


def load_texts(arguments: DataArguments, split: str) -> Dataset | None:
    """Column `text` with the distinct texts of a split, in order; None if there is no such split."""
    data = load_dataset(arguments.dataset_name)
    if split not in data:
        return None
    missing = [c for c in arguments.text_columns if c not in data[split].column_names]
    if missing:
        raise ValueError(
            f"text_columns={missing} are not in {arguments.dataset_name}; it has {data[split].column_names}"
        )
    texts = dict.fromkeys(text for column in arguments.text_columns for text in data[split][column] if text)
    return Dataset.from_dict({"text": list(texts)})


def main() -> None:
    parser = HfArgumentParser((ModelArguments, DataArguments, TrainingArguments))
    model_arguments, data_arguments, training = parse_arguments(parser)
    resume = prepare_run(training)
    train, evaluation = (load_texts(data_arguments, split) for split in ("train", "validation"))
    if train is None:
        raise ValueError(f"{data_arguments.dataset_name} has no train split")
    if data_arguments.train_tokenizer:
        tokenizer = train_tokenizer(train["text"], data_arguments.train_tokenizer, data_arguments.max_length)
    else:
        tokenizer = load_tokenizer(model_arguments)

    def tokenize(rows: dict) -> dict:
        return {
            "input_ids": tokenizer(rows["text"], truncation=True, max_length=data_arguments.max_length)["input_ids"]
        }

    train = train.map(tokenize, batched=True, remove_columns=["text"])
    evaluation = None if evaluation is None else evaluation.map(tokenize, batched=True, remove_columns=["text"])
    model = build_model(YanForMaskedLM, model_arguments, tokenizer)
    freeze(model, [part for part in model_arguments.freeze.split(",") if part])
    training.remove_unused_columns = False

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
        callbacks=[EMACallback(model_arguments.ema_decay)] if model_arguments.ema_decay else None,
    )
    print(f"{model.num_parameters():,} parameters, {len(train):,} texts, {torch.get_num_threads()} threads")
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    if evaluation is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)


if __name__ == "__main__":
    run_script(main)
