"""
Stages 2 and 3: trains the flow on source-target pairs, from an autoencoder, from another YAN, or from scratch.

    python examples/run_flow.py configuration/training/flow_e2e.yaml
    python examples/run_flow.py --model_name_or_path outputs/autoencoder --task e2e_nlg \
        --dataset_name ../shared/data/e2e_nlg --output_dir outputs/flow --max_steps 2000
"""

import json
import random
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, get_peft_model
from transformers import DataCollatorForSeq2Seq, HfArgumentParser, Seq2SeqTrainingArguments

from modeling_yan import YanForConditionalGeneration
from modeling_yan.evaluation.metrics import score_texts
from modeling_yan.evaluation.speed import device_name
from modeling_yan.evaluation.text_generation import generate_texts
from modeling_yan.training.budget import apply_budget, with_earlier_stages
from modeling_yan.training.corpora import task_texts
from modeling_yan.training.pair_selection import DataCollatorForSeveralTargets, YanPairSelectionTrainer
from modeling_yan.training.reference_selection import consensus_targets, typical_targets
from modeling_yan.training.samples import SamplesCallback
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
from modeling_yan.training.tokenization import (
    SPECIAL_TOKENS,
    group_labels,
    set_truncation_side,
    tokenize_pairs,
    train_tokenizer,
)
from modeling_yan.training.trainer import EMACallback, YanSeq2SeqTrainer

# Texts that a tokenizer is trained on.
TOKENIZER_TEXTS = 100_000


@dataclass
class DataArguments:
    task: str = field(metadata={"help": "Name in configuration/tasks, or a YAML file."})
    dataset_name: str = field(metadata={"help": "Hub name or local folder."})
    targets: Literal["all", "consensus", "typical", "easiest"] = field(
        default="all",
        metadata={
            "help": "Of each training source: all references; consensus, only the one that its others agree with most; "
            "typical, one that agrees with its others and is worded as those of other sources are; easiest, "
            "at each update the one of num_targets that the model finds easiest."
        },
    )
    num_targets: int | None = field(
        default=None,
        metadata={"help": "References that compete, with --targets easiest, and only with it; 4 if not given."},
    )
    num_priors: int = field(default=1, metadata={"help": "Priors that compete for each reference."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only the first rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first rows only."})
    max_source_length: int | None = field(default=None, metadata={"help": "Tokens of a source, instead of the task's."})
    max_target_length: int | None = field(default=None, metadata={"help": "Tokens of a target, instead of the task's."})
    fill_canvas: bool = field(
        default=False,
        metadata={
            "help": "Fill all targets up to max_target_length with EOS and write canvases of that size: for short answers, "
            "whose length would give them away."
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


def lora_config(rank: int) -> LoraConfig:
    """
    LoRA on the linear layers of attention, Mamba and feed-forward, not on the output projection; the stacked experts are
    parameters, not layers.
    """
    names = "q_proj k_proj v_proj out_proj up_proj down_proj in_proj x_proj dt_proj"
    return LoraConfig(
        task_type="SEQ_2_SEQ_LM",
        r=rank,
        lora_alpha=2 * rank,
        target_modules=names.split(),
    )


def train(model_arguments: ModelArguments, data: DataArguments, training: Seq2SeqTrainingArguments) -> dict:
    """Trains, saves model and tokenizer to `output_dir`, and returns the report it writes there."""
    resume = prepare_run(training)
    if data.num_targets is not None and data.targets != "easiest":
        raise ValueError(
            f"num_targets={data.num_targets} is for targets=easiest, not for targets={data.targets}; leave it out"
        )
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
    if "train" not in splits:
        raise ValueError(f"{data.dataset_name} has no train split")
    longest = max(task.max_source_length, task.max_target_length)
    if tokenizer is None:
        texts = task_texts(splits["train"])[:TOKENIZER_TEXTS]
        tokenizer = train_tokenizer(texts, data.train_tokenizer, longest)
    set_truncation_side(tokenizer, task.truncation_side)
    choose = {"consensus": consensus_targets, "typical": typical_targets}.get(data.targets)
    if choose is not None:
        splits["train"] = choose(splits["train"])
    if data.max_train_samples:
        splits["train"] = splits["train"].select(range(min(data.max_train_samples, len(splits["train"]))))
    tokenized = partial(
        tokenize_pairs,
        tokenizer=tokenizer,
        max_source_length=task.max_source_length,
        max_target_length=task.max_target_length,
        fill_canvas=data.fill_canvas,
    )
    train_set = tokenized(splits["train"])
    if data.targets == "easiest":
        train_set = group_labels(train_set)
    evaluations = {}
    for name in [s for s in ("validation", "test") if s in splits]:
        rows = group_references(splits[name])
        evaluations[name] = rows.select(range(min(data.max_eval_samples or len(rows), len(rows))))
    chosen = evaluations.get("validation") or evaluations.get("test")
    eval_set = None if chosen is None else tokenized(chosen)

    model = build_model(YanForConditionalGeneration, model_arguments, tokenizer)
    if longest > model.config.max_position_embeddings:
        raise ValueError(
            f"task {task.name} has texts of up to {longest} tokens, the model max_position_embeddings="
            f"{model.config.max_position_embeddings}; pass smaller --max_source_length and --max_target_length"
        )
    if data.fill_canvas:
        model.generation_config.update(length_mode="canvas", max_new_tokens=task.max_target_length)
    if data.use_lora:
        model = get_peft_model(model, lora_config(data.lora_r))
    else:
        freeze(model, [part for part in model_arguments.freeze.split(",") if part])

    def decode(ids) -> list[str]:
        ids = torch.as_tensor(ids)
        texts = tokenizer.batch_decode(ids.masked_fill(ids < 0, tokenizer.pad_token_id), skip_special_tokens=True)
        return [text.strip() for text in texts]

    def metrics(prediction) -> dict:
        # Several processes repeat the first rows to fill their last batch, all of them where rows are few.
        texts = decode(prediction.predictions)[: len(chosen)]
        return score_texts(texts, chosen["references"])

    trainer_class, collator, options = YanSeq2SeqTrainer, DataCollatorForSeq2Seq(tokenizer), {}
    if data.targets == "easiest" or data.num_priors > 1:
        trainer_class, options = YanPairSelectionTrainer, {"num_priors": data.num_priors}
        generator = random.Random(training.seed)
        competing = {} if data.num_targets is None else {"num_targets": data.num_targets}
        collator = DataCollatorForSeveralTargets(tokenizer, generator=generator, **competing)
    trainer = trainer_class(
        model=model,
        args=training,
        train_dataset=train_set,
        eval_dataset=eval_set,
        data_collator=collator,
        processing_class=tokenizer,
        compute_metrics=metrics,
        embedding_learning_rate=model_arguments.embedding_learning_rate,
        callbacks=[EMACallback(model_arguments.ema_decay)] if model_arguments.ema_decay else None,
        **options,
    )
    if chosen is not None and data.num_samples and training.eval_strategy != "no":
        shown = chosen.select(range(min(data.num_samples, len(chosen))))
        trainer.add_callback(SamplesCallback(trainer, list(shown["source"]), list(shown["target"])))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if trainer.is_world_process_zero():
        print(f"{model.num_parameters():,} parameters ({trainable:,} trained), {len(train_set):,} pairs")
    each_update = apply_budget(trainer, model_arguments.training_flops)
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume)
    report = {
        "parameters": model.num_parameters(),
        "trained_parameters": trainable,
        "train_rows": len(train_set),
        "updates": trainer.state.global_step,
        "processes": training.world_size,
        "batch_size": training.train_batch_size * training.gradient_accumulation_steps * training.world_size,
        "train_flops": each_update * trainer.state.global_step,
        "train_minutes": round((time.perf_counter() - start) / 60, 2),
        "seed": training.seed,
        "device": device_name(training.device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "last_terms": trainer.last_terms(),
    }
    trainer.save_model()
    for name, rows in evaluations.items():
        texts = generate_texts(
            trainer.model,
            tokenizer,
            rows["source"],
            batch_size=training.per_device_eval_batch_size,
            max_source_length=task.max_source_length,
            max_new_tokens=task.max_target_length,
            generator=torch.Generator(trainer.model.device).manual_seed(training.seed),
        )
        report[name] = {"rows": len(rows), **score_texts(texts, rows["references"])}
    if data.plots and trainer.is_world_process_zero():
        from modeling_yan.evaluation.plots import plot_latents, plot_training

        folder = Path(training.output_dir)
        plot_training(trainer.state.log_history, folder / "training.png")
        texts = splits["train"]["target"][:256]
        model = trainer.accelerator.unwrap_model(trainer.model)
        report["latents"] = plot_latents(model, tokenizer, texts, folder / "latents.png")
    report = with_earlier_stages(report, model_arguments.model_name_or_path)
    if trainer.is_world_process_zero():
        path = Path(training.output_dir) / "report.json"
        path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(report, indent=2))
    return report


def main() -> None:
    parser = HfArgumentParser((ModelArguments, DataArguments, Seq2SeqTrainingArguments))
    model_arguments, data, training = parse_arguments(parser)
    training.predict_with_generate = True
    train(model_arguments, data, training)


if __name__ == "__main__":
    run_script(main)
