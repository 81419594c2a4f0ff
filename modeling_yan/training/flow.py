"""Stages 2 and 3: the flow, trained on source-target pairs."""

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
import yaml
from datasets import Dataset
from peft import get_peft_model
from transformers import (
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainingArguments,
)

from modeling_yan import YanForConditionalGeneration
from modeling_yan.canvas_yan import text_room
from modeling_yan.common.arguments import ModelArguments, check_positive, parse_arguments
from modeling_yan.common.building import (
    build_model,
    check_adaptable,
    check_model_arguments,
    check_new_tokenizer,
    load_tokenizer,
)
from modeling_yan.common.precision import is_main_process
from modeling_yan.configuration_yan import YanConfig
from modeling_yan.data.corpora import task_texts
from modeling_yan.data.loading import first_rows
from modeling_yan.data.pairs import PairArguments, check_pair_arguments, load_pairs
from modeling_yan.data.redrawn_pairs import RedrawnPairs
from modeling_yan.data.reference_selection import typical_targets
from modeling_yan.data.tasks import Task, evaluation_rows
from modeling_yan.data.tokenization import (
    fitting_vocab_size,
    mask_token_of,
    model_end_id,
    set_truncation_side,
    target_ids,
    tokenize_pairs,
    train_tokenizer,
)
from modeling_yan.evaluation.metrics import score_texts
from modeling_yan.training.adapters import lora_config
from modeling_yan.training.budget import default_updates, with_earlier_stages
from modeling_yan.training.encoder_states import (
    EncoderStates,
    StatesCollator,
    remove_states,
    states_of_frozen_encoder,
    with_reading,
)
from modeling_yan.training.freezing import check_parts, freeze
from modeling_yan.training.runs import finish_run, prepare_run, run_training
from modeling_yan.training.samples import SamplesCallback
from modeling_yan.training.scoring import score_splits
from modeling_yan.training.trainer import EMACallback, YanSeq2SeqTrainer

# Texts that a tokenizer is trained on.
TOKENIZER_TEXTS = 100_000
# Answers whose latents are drawn.
PLOTTED_TEXTS = 256
# Training rows that are answered and scored at the end, beside those held out.
SCORED_TRAINING_ROWS = 200
# Positions that a new model may get for long texts.
MOST_POSITIONS = 1024
# Answers are few where they are no more than this many, each of them in at least as many rows.
FEW_ANSWERS, ROWS_PER_ANSWER = 64, 4

DESCRIPTION = """
Trains a model on source-target pairs, a new one or one that is there (--model_name_or_path), and scores it.

    %(prog)s --train_file my.csv --source_column question --target_column answer

What is not given is a recipe's, or else that of configuration/training/default.yaml. From --output_dir on, options are
those of transformers' Seq2SeqTrainingArguments.
"""


def say(line: str) -> None:
    """Prints a line, once for all processes."""
    if is_main_process():
        print(line, flush=True)


@dataclass
class FlowDataArguments(PairArguments):
    """The pairs that a flow is trained on, and how its answers are watched."""

    targets: Literal["all", "typical"] = field(
        default="all",
        metadata={
            "help": "Of each training source: all references; or typical, the one that agrees with its others and is "
            "worded as those of other sources are."
        },
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only the first rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first rows only."})
    max_source_length: int | None = field(
        default=None, metadata={"help": "Tokens of a source; the longest by default."}
    )
    max_target_length: int | None = field(
        default=None, metadata={"help": "Tokens of a target; the longest by default."}
    )
    fill_canvas: bool | None = field(
        default=None,
        metadata={
            "help": "Fill all targets up to max_target_length with EOS and write canvases of that size: for short "
            "answers, whose length would give them away. By default where there are few different ones."
        },
    )
    train_tokenizer: int | None = field(
        default=None,
        metadata={
            "help": "Entries of the tokenizer that is trained on the training rows for a new model; by default as many "
            "as they have frequent words."
        },
    )
    num_samples: int = field(default=4, metadata={"help": "Answers shown and kept at each evaluation."})
    plots: bool = field(default=False, metadata={"help": "Draw losses, expert usage and latents at the end."})
    use_lora: bool = field(default=False, metadata={"help": "Train a LoRA adapter instead of the weights."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter."})
    # Whether lengths are the texts' own in spite of a task; without one they always are.
    fits_lengths: bool = field(default=False, init=False)


@dataclass
class FlowData:
    """
    Args:
        task: with the lengths that were asked for, or that the texts have.
        tokenizer: loaded, or trained on the texts.
        texts: training rows, with columns `source` and `target`.
        train: the same, tokenised.
        held_out: name of a split -> rows to be answered and scored.
        fill_canvas: whether targets are filled with EOS.
        end_id: of the token that ends a text; the tokenizer's by default.
    """

    task: Task
    tokenizer: PreTrainedTokenizerBase
    texts: Dataset
    train: Dataset
    held_out: dict[str, Dataset]
    fill_canvas: bool = False
    end_id: int | None = None

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
        return tokenize_pairs(rows, self.tokenizer, *lengths, fill_canvas=self.fill_canvas, end_id=self.end_id)


def check_flow_arguments(data: FlowDataArguments, model_arguments: ModelArguments) -> None:
    """
    Raises:
        ValueError: for arguments that exclude each other, before anything is read.
    """
    check_pair_arguments(data)
    check_positive(data, "max_source_length", "max_target_length", "max_train_samples", "max_eval_samples")
    check_parts(model_arguments.frozen_parts)
    check_new_tokenizer(data.train_tokenizer, model_arguments)
    if data.use_lora and model_arguments.model_name_or_path is None:
        raise ValueError("use_lora trains an adapter of a model that is there; give model_name_or_path, too")
    if data.use_lora:
        check_adaptable(model_arguments)
    if data.use_lora and model_arguments.frozen_parts:
        raise ValueError(
            f"freeze={model_arguments.freeze} does not go with use_lora, which freezes all weights and puts adapters "
            "into every part; leave one of them out"
        )


def check_redrawn(task: Task, data: FlowDataArguments) -> None:
    """
    Raises:
        ValueError: for options that look at all targets, of a task whose rows are derived anew.
    """
    asked = {"fill_canvas": data.fill_canvas, "targets": data.targets == "typical" and data.targets}
    for name, value in asked.items():
        if task.redraw and value:
            raise ValueError(
                f"{name}={value} does not go with task={task.name}, whose rows are derived anew each time; leave it out"
            )


def fit_lengths(
    task: Task, texts: Dataset, tokenizer: PreTrainedTokenizerBase, config: YanConfig, *, grows: bool
) -> Task:
    """
    The task with lengths of the longest source and target, as far as the model has positions.

    Args:
        texts: columns `source` and `target`.
        config: of the model.
        grows: whether its positions can be as many as are needed, up to `MOST_POSITIONS`.
    """
    positions = max(config.max_position_embeddings, MOST_POSITIONS if grows else 0)
    room = text_room(positions, config.canvas_ratio)
    sources = max(map(len, tokenizer(list(texts["source"]), verbose=False)["input_ids"]))
    targets = max(map(len, target_ids(tokenizer, texts["target"], model_end_id(config, tokenizer, new=grows))))
    return task.with_lengths(min(sources, positions), min(targets, room))


def are_few(answers: Collection) -> bool:
    """Whether answers are but a few different ones, as labels are."""
    different = len(set(answers))
    return different <= FEW_ANSWERS and len(answers) >= ROWS_PER_ANSWER * different


def give_away(labels: Collection[list[int]]) -> bool:
    """Whether labels are so few different ones that their lengths, where these differ, tell much of them."""
    answers = [tuple(ids) for ids in labels]
    return are_few(answers) and len({len(ids) for ids in answers}) > 1


def train_own_tokenizer(texts: Dataset, size: int | None) -> PreTrainedTokenizerBase:
    """
    A tokenizer for what the rows read and write, said in one line.

    Args:
        texts: columns `source` and `target`.
        size: entries; `fitting_vocab_size` by default.
    """
    read = task_texts(texts)[:TOKENIZER_TEXTS]
    tokenizer = train_tokenizer(read, size or fitting_vocab_size(read), MOST_POSITIONS)
    say(f"tokenizer: {len(tokenizer):,} entries, trained on {len(read):,} texts")
    return tokenizer


def choose_canvas(loaded: FlowData, asked: bool | None, config: YanConfig) -> bool:
    """
    Whether targets are filled with EOS: as asked for, or else where their lengths would give them away, said in one
    line. Canvases with blanks are not: repeated tokens are one there.
    """
    if asked is not None or config.canvas_ratio > 1:
        return bool(asked)
    longest = loaded.task.max_target_length
    labels = target_ids(loaded.tokenizer, loaded.texts["target"], loaded.end_id, longest)
    if not give_away(labels):
        return False
    say(
        f"{len({tuple(ids) for ids in labels})} different answers, whose lengths tell which: all are filled up to "
        f"{longest} tokens (--fill_canvas false predicts lengths instead)"
    )
    return True


def load_flow_data(data: FlowDataArguments, model_arguments: ModelArguments, seed: int = 0) -> FlowData:
    """
    Reads the pairs, chooses the references, loads or trains the tokenizer, and fits lengths and canvas to the texts.

    Args:
        seed: of the choice of validation rows, where there are none.

    Raises:
        ValueError: for data that cannot be read as pairs, and for a tokenizer that is to be both loaded and trained.
    """
    # 1. What can be told from arguments and configs alone.
    check_flow_arguments(data, model_arguments)
    # A pretrained encoder has tokenizer and positions already.
    config = check_model_arguments(model_arguments)
    new = model_arguments.model_name_or_path is None and model_arguments.encoder is None
    trained_before = bool(model_arguments.tokenizer_name) or not new
    tokenizer = load_tokenizer(model_arguments) if trained_before else None
    # 2. The texts.
    task, splits = load_pairs(data, mask_token_of(tokenizer), seed)
    texts = splits["train"]
    check_redrawn(task, data)
    if tokenizer is None:
        tokenizer = train_own_tokenizer(texts, data.train_tokenizer)
    set_truncation_side(tokenizer, task.truncation_side)
    if data.targets == "typical":
        texts = typical_targets(texts)
    texts = first_rows(texts, data.max_train_samples)
    # 3. Lengths and canvas. A task file has lengths of its own.
    if data.task is None or data.fits_lengths:
        task = fit_lengths(task, texts, tokenizer, config, grows=new)
    task = task.with_lengths(data.max_source_length, data.max_target_length)
    longest = max(task.max_source_length, task.max_target_length)
    # One that is loaded may have been trained on shorter texts; what it can read beyond these it keeps.
    tokenizer.model_max_length = max(tokenizer.model_max_length, longest) if trained_before else longest
    end_id = model_end_id(config, tokenizer, new=new)
    loaded = FlowData(task, tokenizer, texts, texts, evaluation_rows(splits, data.max_eval_samples), end_id=end_id)
    loaded.fill_canvas = choose_canvas(loaded, data.fill_canvas, config)
    # 4. Their tokens.
    if task.redraw:
        loaded.train = RedrawnPairs(texts, task, tokenizer, seed=seed, end_id=end_id)
    else:
        loaded.train = loaded.tokenize(texts)
    return loaded


def grow_positions(model_arguments: ModelArguments, loaded: FlowData) -> dict:
    """
    Config fields of a new model, so that it has positions for the longest text; none where it has, where it is loaded,
    and where its positions were given.
    """
    config = check_model_arguments(model_arguments)
    starts = (model_arguments.model_name_or_path, model_arguments.encoder)
    given = any(starts) or "max_position_embeddings" in model_arguments.overrides
    canvas_of = loaded.task.max_source_length if config.canvas_from_source else loaded.task.max_target_length
    needed = max(loaded.task.max_source_length, math.ceil(canvas_of * config.canvas_ratio))
    if given or needed <= config.max_position_embeddings or needed > MOST_POSITIONS:
        return {}
    return {"max_position_embeddings": needed}


def build_flow_model(model_arguments: ModelArguments, data: FlowDataArguments, loaded: FlowData) -> PreTrainedModel:
    """
    The model to be trained: parts of it frozen, or an adapter around it.

    Raises:
        ValueError: if the texts may be longer than the model's positions.
    """
    grown = grow_positions(model_arguments, loaded)
    if grown:
        overrides = {**model_arguments.overrides, **grown}
        model_arguments = replace(model_arguments, config_overrides=yaml.safe_dump(overrides))
    model = build_model(YanForConditionalGeneration, model_arguments, loaded.tokenizer)
    if loaded.longest > model.config.max_position_embeddings:
        raise ValueError(
            f"task {loaded.task.name} has texts of up to {loaded.longest} tokens, the model max_position_embeddings="
            f"{model.config.max_position_embeddings}; pass smaller --max_source_length and --max_target_length"
        )
    set_canvas(model, loaded.task.max_target_length if loaded.fill_canvas else None)
    if data.use_lora:
        return get_peft_model(model, lora_config(model, data.lora_r))
    freeze(model, model_arguments.frozen_parts)
    return model


def set_canvas(model: YanForConditionalGeneration, size: int | None) -> None:
    """
    Has a model write canvases of `size` tokens, or for None of the length that suits it, also where it was trained on
    filled ones before.
    """
    options = model.generation_config
    if size is not None:
        options.update(length_mode="canvas", max_new_tokens=size)
    elif options.length_mode == "canvas" and model.config.predicts_length:
        options.update(length_mode="predicted", max_new_tokens=None)


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
    encoder_learning_rate: float | None = None,
    num_samples: int = 0,
    states: EncoderStates | None = None,
) -> YanSeq2SeqTrainer:
    """
    A trainer that evaluates by what the model writes.

    Args:
        model: of `build_flow_model`.
        loaded: of `load_flow_data`.
        training: `predict_with_generate` is set.
        ema_decay: of averaged weights; none by default.
        embedding_learning_rate: of the token embeddings; that of everything else by default.
        encoder_learning_rate: of a pretrained encoder; that of everything else by default.
        num_samples: answers shown and kept at each evaluation.
        states: of the training rows, where the encoder is frozen.
    """
    training.predict_with_generate = True
    chosen = loaded.chosen
    trainer = YanSeq2SeqTrainer(
        model=model,
        args=training,
        train_dataset=loaded.train,
        eval_dataset=None if chosen is None else loaded.tokenize(chosen),
        data_collator=StatesCollator(loaded.tokenizer, states=states),
        processing_class=loaded.tokenizer,
        compute_metrics=None if chosen is None else text_metrics(loaded.tokenizer, chosen),
        embedding_learning_rate=embedding_learning_rate,
        encoder_learning_rate=encoder_learning_rate,
        callbacks=[EMACallback(ema_decay)] if ema_decay else None,
    )
    if chosen is not None and num_samples and training.eval_strategy != "no":
        shown = first_rows(chosen, num_samples)
        texts = list(shown["source"]), list(shown["target"])
        trainer.add_callback(SamplesCallback(trainer, *texts, max_source_length=loaded.task.max_source_length))
    return trainer


def draw_plots(trainer: YanSeq2SeqTrainer, loaded: FlowData) -> dict[str, float]:
    """Writes training.png and latents.png beside the model; what `plot_latents` tells of the latents."""
    # Only here: matplotlib is no dependency of training.
    from modeling_yan.evaluation.plots import plot_latents, plot_training

    folder = Path(trainer.args.output_dir)
    if any("loss" in entry for entry in trainer.state.log_history):
        plot_training(trainer.state.log_history, folder / "training.png")
    else:
        say(f"no loss was logged within {trainer.state.global_step} updates (logging_steps): training.png is left out")
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
    loaded = load_flow_data(data, model_arguments, training.seed)
    model = build_flow_model(model_arguments, data, loaded)
    if not model_arguments.has_budget:
        labels = are_few(loaded.texts["target"][:])
        training.max_steps = default_updates(len(loaded.train), training, labels=labels)
    try:
        loaded.train, states = states_of_frozen_encoder(model, loaded.train, training)
        if states is not None:
            say(f"the encoder is frozen: its states are computed once, {states.values.nbytes / 2**20:,.0f} MiB on disk")
        trainer = build_trainer(
            model,
            loaded,
            training,
            ema_decay=model_arguments.ema_decay,
            embedding_learning_rate=model_arguments.embedding_learning_rate,
            encoder_learning_rate=model_arguments.encoder_learning_rate,
            num_samples=data.num_samples,
            states=states,
        )
        held_out = "".join(f", {len(rows):,} {name} sources" for name, rows in loaded.held_out.items())
        lengths = f"up to {loaded.task.max_source_length} tokens read and {loaded.task.max_target_length} written"
        say(f"{model.num_parameters():,} parameters, {len(loaded.train):,} training pairs{held_out}; {lengths}")
        trainer.data_names = data.names
        report = run_training(trainer, training_flops=model_arguments.training_flops, resume=resume)
    finally:
        if training.process_index == 0:
            remove_states(training.output_dir)
    report = with_reading(report, states)
    report |= {"train_rows": len(loaded.train), "last_terms": trainer.last_terms()}
    seen = evaluation_rows({"validation": loaded.texts}, SCORED_TRAINING_ROWS)["validation"]
    trainer.scores = score_splits(
        trainer.model,
        loaded.tokenizer,
        {"train": seen, **loaded.held_out},
        loaded.task,
        batch_size=training.per_device_eval_batch_size,
        seed=training.seed,
    )
    report |= trainer.scores
    if data.plots and trainer.is_world_process_zero():
        report["latents"] = draw_plots(trainer, loaded)
    report = with_earlier_stages(report, model_arguments.model_name_or_path)
    if trainer.is_world_process_zero():
        # For run_evaluation.py and whoever trains on.
        loaded.task.save(Path(training.output_dir) / "task.yaml")
    finish_run(trainer, report)
    return report


def main() -> None:
    """`examples/run_flow.py` and `yan train`."""
    parser = HfArgumentParser((ModelArguments, FlowDataArguments, Seq2SeqTrainingArguments), description=DESCRIPTION)
    train_flow(*parse_arguments(parser, use_defaults=True))
