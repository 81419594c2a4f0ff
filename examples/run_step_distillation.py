"""
Distils a model into fewer steps (modeling_yan/training/step_distillation.py says how). Needs the sources of a task, no answers.

    python examples/run_step_distillation.py --model_name_or_path examples/models/yan-e2e --task e2e_nlg \
        --dataset_name ../shared/data/e2e_nlg --num_inference_steps 1 --output_dir outputs/yan-e2e-1-step --max_steps 400 \
        --learning_rate 5e-4

Before and after, answers to the validation sources are scored: in the model's own steps, and in the few.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import HfArgumentParser, TrainingArguments

from modeling_yan import YanForConditionalGeneration
from modeling_yan.evaluation.metrics import score_texts
from modeling_yan.evaluation.text_generation import generate_texts
from modeling_yan.training.budget import apply_budget, with_earlier_stages
from modeling_yan.training.scripts import (
    ModelArguments,
    build_model,
    load_tokenizer,
    parse_arguments,
    prepare_run,
    run_script,
)
from modeling_yan.training.stages import freeze
from modeling_yan.training.step_distillation import YanStepDistillationTrainer
from modeling_yan.training.tasks import Task, group_references, load_splits
from modeling_yan.training.tokenization import set_truncation_side, tokenize_sources


@dataclass
class StepDistillationArguments:
    task: str = field(metadata={"help": "Name in configuration/tasks, or a YAML file."})
    dataset_name: str = field(metadata={"help": "Hub name or local folder; its sources are used."})
    num_inference_steps: int = field(default=1, metadata={"help": "Steps to reach the endpoint in."})
    mse_weight: float = field(default=1.0, metadata={"help": "Weight of the squared distance of the endpoints."})
    max_eval_samples: int = field(default=300, metadata={"help": "Validation sources scored before and after."})


def main() -> None:
    parser = HfArgumentParser((ModelArguments, StepDistillationArguments, TrainingArguments))
    model_arguments, arguments, training = parse_arguments(parser)
    if model_arguments.model_name_or_path is None:
        raise ValueError("model_name_or_path is needed: the model to distil")
    resume = prepare_run(training)
    task, tokenizer = Task.load(arguments.task), load_tokenizer(model_arguments)
    set_truncation_side(tokenizer, task.truncation_side)
    splits = load_splits(arguments.dataset_name, task, tokenizer.mask_token)
    held_out = group_references(splits["validation" if "validation" in splits else "test"])
    held_out = held_out.select(range(min(arguments.max_eval_samples, len(held_out))))
    train_set = tokenize_sources(splits["train"], tokenizer, task.max_source_length)
    model = build_model(YanForConditionalGeneration, model_arguments, tokenizer)
    freeze(model, [part for part in model_arguments.freeze.split(",") if part])
    teacher_steps = model.generation_config.num_inference_steps

    def score(steps: int) -> dict[str, float]:
        texts = generate_texts(
            model,
            tokenizer,
            held_out["source"],
            batch_size=training.per_device_eval_batch_size,
            max_source_length=task.max_source_length,
            max_new_tokens=task.max_target_length,
            num_inference_steps=steps,
            generator=torch.Generator(model.device).manual_seed(training.seed),
        )
        return score_texts(texts, held_out["references"])

    trainer = YanStepDistillationTrainer(
        model,
        training,
        num_inference_steps=arguments.num_inference_steps,
        mse_weight=arguments.mse_weight,
        train_dataset=train_set,
        processing_class=tokenizer,
        embedding_learning_rate=model_arguments.embedding_learning_rate,
    )
    before = {str(steps): score(steps) for steps in (arguments.num_inference_steps, teacher_steps)}
    each_update = apply_budget(trainer, model_arguments.training_flops)
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume)
    minutes = (time.perf_counter() - start) / 60
    trainer.save_model()
    report = {
        "task": arguments.task,
        "rows": len(held_out),
        "updates": trainer.state.global_step,
        "batch_size": training.train_batch_size,
        "seed": training.seed,
        "parameters": model.num_parameters(),
        "train_flops": each_update * trainer.state.global_step,
        "train_minutes": round(minutes, 2),
        "before": before,
        "after": {str(steps): score(steps) for steps in (arguments.num_inference_steps, teacher_steps)},
    }
    report = with_earlier_stages(report, model_arguments.model_name_or_path)
    path = Path(training.output_dir) / "report.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    run_script(main)
