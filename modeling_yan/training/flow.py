"""Stages 2 and 3: the flow, trained on the source-target pairs of a task."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, PreTrainedTokenizerBase, Seq2SeqTrainingArguments

from modeling_yan import YanForConditionalGeneration
from modeling_yan.common.arguments import ModelArguments, build_model, load_tokenizer
from modeling_yan.data.corpora import task_texts
from modeling_yan.data.loading import first_rows, select_split
from modeling_yan.data.reference_selection import typical_targets
from modeling_yan.data.tasks import Task, evaluation_rows, load_splits
from modeling_yan.data.tokenization import SPECIAL_TOKENS, set_truncation_side, tokenize_pairs, train_tokenizer
from modeling_yan.evaluation.metrics import score_texts
from modeling_yan.training.adapters import lora_config
from modeling_yan.training.budget import with_earlier_stages
from modeling_yan.training.freezing import freeze
from modeling_yan.training.runs import finish_run, prepare_run, run_training
from modeling_yan.training.samples import SamplesCallback
from modeling_yan.training.scoring import score_splits
from modeling_yan.training.trainer import EMACallback, YanSeq2SeqTrainer

# Texts that a tokenizer is trained on.
TOKENIZER_TEXTS = 100_000
# Answers whose latents are drawn.
PLOTTED_TEXTS = 256


@dataclass
class FlowDataArguments:
    """The pairs that a flow is trained on, and how its answers are watched."""

    task: str = field(metadata={"help": "Name in configuration/tasks, or a YAML file."})
    dataset_name: str = field(metadata={"help": "Hub name, local folder, or a CSV, JSON or Parquet file."})
    targets: Literal["all", "typical"] = field(
        default="all",
        metadata={
            "help": "Of each training source: all references; or typical, the one that agrees with its others and is "
            "worded as those of other sources are."
        },
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only the first rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first rows only."})
    max_source_length: int | None = field(default=None, metadata={"help": "Tokens of a source, instead of the task's."})
    max_target_length: int | None = field(default=None, metadata={"help": "Tokens of a target, instead of the task's."})
    fill_canvas: bool = field(
        default=False,
        metadata={
            "help": "Fill all targets up to max_target_length with EOS and write canvases of that size: for short "
            "answers, whose length would give them away."
        },
    )
    train_tokenizer: int | None = field(
        default=None,
        metadata={"help": "Train a tokenizer of so many entries on the task's training rows, for a new model."},
    )
    num_samples: int = field(default=4, metadata={"help": "Answers shown and kept at each evaluation."})
    plots: bool = field(default=False, metadata={"help": "Draw losses, expert usage and latents at the end."})
    use_lora: bool = field(default=False, metadata={"help": "Train a LoRA adapter instead of the weights."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter."})


@dataclass
class FlowData:
    """
    Args:
        task: with the lengths that were asked for.
        tokenizer: loaded, or trained on the texts.
        texts: training rows, with columns `source` and `target`.
        train: the same, tokenised.
        held_out: name of a split -> rows to be answered and scored.
        fill_canvas: whether targets are filled with EOS.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase
    texts: Dataset
    train: Dataset
    held_out: dict[str, Dataset]
    fill_canvas: bool = False

    @property
    def chosen(self) -> Dataset | None:
        """Rows that training is evaluated on: validation, or else test."""
        return self.held_out.get("validation") or self.held_out.get("test")

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(self.task.max_source_length, self.task.max_target_length)

    def tokenize(self, rows: Dataset) -> Dataset:
        """Ids and labels of rows with columns `source` and `target`."""
        lengths = (self.task.max_source_length, self.task.max_target_length)
        return tokenize_pairs(rows, self.tokenizer, *lengths, fill_canvas=self.fill_canvas)


def load_flow_data(data: FlowDataArguments, model_arguments: ModelArguments) -> FlowData:
    """
    Reads the task's rows, chooses the references, and loads or trains the tokenizer.

    Raises:
        ValueError: for data that do not fit the task, and for a tokenizer that is to be both loaded and trained.
    """
    trained_before = model_arguments.tokenizer_name or model_arguments.model_name_or_path
    if data.train_tokenizer and trained_before:
        raise ValueError(
            f"train_tokenizer={data.train_tokenizer} is for a new model; leave it out, or leave {trained_before!r} out "
            "(tokenizer_name, model_name_or_path)"
        )
    task = Task.load(data.task).with_lengths(data.max_source_length, data.max_target_length)
    tokenizer = None if data.train_tokenizer else load_tokenizer(model_arguments)
    mask_token = SPECIAL_TOKENS["mask_token"] if tokenizer is None else tokenizer.mask_token
    splits = load_splits(data.dataset_name, task, mask_token)
    texts = select_split(splits, "train", data.dataset_name)
    if tokenizer is None:
        longest = max(task.max_source_length, task.max_target_length)
        tokenizer = train_tokenizer(task_texts(texts)[:TOKENIZER_TEXTS], data.train_tokenizer, longest)
    set_truncation_side(tokenizer, task.truncation_side)
    if data.targets == "typical":
        texts = typical_targets(texts)
    texts = first_rows(texts, data.max_train_samples)
    held_out = evaluation_rows(splits, data.max_eval_samples)
    loaded = FlowData(task, tokenizer, texts, texts, held_out, data.fill_canvas)
    loaded.train = loaded.tokenize(texts)
    return loaded


def build_flow_model(model_arguments: ModelArguments, data: FlowDataArguments, loaded: FlowData) -> PreTrainedModel:
    """
    The model to be trained: parts of it frozen, or an adapter around it.

    Raises:
        ValueError: if the texts may be longer than the model's positions.
    """
    model = build_model(YanForConditionalGeneration, model_arguments, loaded.tokenizer)
    if loaded.longest > model.config.max_position_embeddings:
        raise ValueError(
            f"task {loaded.task.name} has texts of up to {loaded.longest} tokens, the model max_position_embeddings="
            f"{model.config.max_position_embeddings}; pass smaller --max_source_length and --max_target_length"
        )
    if data.fill_canvas:
        model.generation_config.update(length_mode="canvas", max_new_tokens=loaded.task.max_target_length)
    if data.use_lora:
        return get_peft_model(model, lora_config(data.lora_r))
    freeze(model, model_arguments.frozen_parts)
    return model


def text_metrics(tokenizer: PreTrainedTokenizerBase, rows: Dataset):
    """`compute_metrics` of Seq2SeqTrainer: the scores of generated ids against the references of the rows."""

    def metrics(prediction) -> dict:
        # Several processes repeat the first rows to fill their last batch, all of them where rows are few.
        ids = torch.as_tensor(prediction.predictions[: len(rows)])
        texts = tokenizer.batch_decode(ids.masked_fill(ids < 0, tokenizer.pad_token_id), skip_special_tokens=True)
        return score_texts([text.strip() for text in texts], rows["references"])

    return metrics


def build_trainer(
    model: PreTrainedModel,
    loaded: FlowData,
    training: Seq2SeqTrainingArguments,
    *,
    ema_decay: float | None = None,
    embedding_learning_rate: float | None = None,
    num_samples: int = 0,
) -> YanSeq2SeqTrainer:
    """
    A trainer that evaluates by what the model writes.

    Args:
        model: of `build_flow_model`.
        loaded: of `load_flow_data`.
        training: `predict_with_generate` is set.
        ema_decay: of averaged weights; none by default.
        embedding_learning_rate: of the token embeddings; that of everything else by default.
        num_samples: answers shown and kept at each evaluation.
    """
    training.predict_with_generate = True
    chosen = loaded.chosen
    trainer = YanSeq2SeqTrainer(
        model=model,
        args=training,
        train_dataset=loaded.train,
        eval_dataset=None if chosen is None else loaded.tokenize(chosen),
        data_collator=DataCollatorForSeq2Seq(loaded.tokenizer),
        processing_class=loaded.tokenizer,
        compute_metrics=None if chosen is None else text_metrics(loaded.tokenizer, chosen),
        embedding_learning_rate=embedding_learning_rate,
        callbacks=[EMACallback(ema_decay)] if ema_decay else None,
    )
    if chosen is not None and num_samples and training.eval_strategy != "no":
        shown = first_rows(chosen, num_samples)
        trainer.add_callback(SamplesCallback(trainer, list(shown["source"]), list(shown["target"])))
    return trainer


def draw_plots(trainer: YanSeq2SeqTrainer, loaded: FlowData) -> dict[str, float]:
    """Writes training.png and latents.png beside the model; what `plot_latents` tells of the latents."""
    # Only here: matplotlib is no dependency of training.
    from modeling_yan.evaluation.plots import plot_latents, plot_training

    folder = Path(trainer.args.output_dir)
    plot_training(trainer.state.log_history, folder / "training.png")
    model = trainer.accelerator.unwrap_model(trainer.model)
    return plot_latents(model, loaded.tokenizer, loaded.texts["target"][:PLOTTED_TEXTS], folder / "latents.png")


def train_flow(model_arguments: ModelArguments, data: FlowDataArguments, training: Seq2SeqTrainingArguments) -> dict:
    """
    Trains a flow, saves model and tokenizer to `output_dir`, and scores what it writes.

    Returns:
        The report that is written to report.json and printed: of `run_training` and `score_splits`, and the losses at
        the end.

    Raises:
        ValueError: for arguments that do not go together, as early as that can be told.
    """
    resume = prepare_run(training, model_arguments)
    loaded = load_flow_data(data, model_arguments)
    model = build_flow_model(model_arguments, data, loaded)
    trainer = build_trainer(
        model,
        loaded,
        training,
        ema_decay=model_arguments.ema_decay,
        embedding_learning_rate=model_arguments.embedding_learning_rate,
        num_samples=data.num_samples,
    )
    if trainer.is_world_process_zero():
        print(f"{model.num_parameters():,} parameters, {len(loaded.train):,} pairs", flush=True)
    report = run_training(trainer, training_flops=model_arguments.training_flops, resume=resume)
    report |= {"train_rows": len(loaded.train), "last_terms": trainer.last_terms()}
    report |= score_splits(
        trainer.model,
        loaded.tokenizer,
        loaded.held_out,
        loaded.task,
        batch_size=training.per_device_eval_batch_size,
        seed=training.seed,
    )
    if data.plots and trainer.is_world_process_zero():
        report["latents"] = draw_plots(trainer, loaded)
    report = with_earlier_stages(report, model_arguments.model_name_or_path)
    finish_run(trainer, report)
    return report
