"""Training for so many seconds, for demonstrations: the flow around a frozen encoder."""

import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Seq2SeqTrainingArguments,
    TrainerCallback,
)

from modeling_yan.data.tasks import Task
from modeling_yan.data.tokenization import tokenize_pairs
from modeling_yan.training.encoder_states import StatesCollator, states_of_frozen_encoder
from modeling_yan.training.freezing import freeze
from modeling_yan.training.trainer import YanSeq2SeqTrainer


class StopAfter(TrainerCallback):
    """Ends training after so many seconds."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = time.perf_counter() - self.start >= self.seconds


def train_for_seconds(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    task: Task,
    seconds: float,
    folder: Path,
) -> int:
    """
    Trains all but the encoder, whose states are computed once, which the seconds do not count.

    Args:
        rows: columns `source` and `target`.
        task: with the lengths in tokens.
        folder: for the states.

    Returns:
        How many updates were made.
    """
    freeze(model, ["encoder"])
    training = Seq2SeqTrainingArguments(
        output_dir=str(folder),
        max_steps=100_000,
        per_device_train_batch_size=64,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        learning_rate=1e-3,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=10,
    )
    train, states = states_of_frozen_encoder(
        model, tokenize_pairs(rows, tokenizer, task.max_source_length, task.max_target_length), training
    )
    trainer = YanSeq2SeqTrainer(
        model=model,
        args=training,
        train_dataset=train,
        data_collator=StatesCollator(tokenizer, states=states),
        callbacks=[StopAfter(seconds)],
    )
    # It prints the dictionary of a log where there is no progress bar.
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.state.global_step
