"""
Trains a peer of YAN from scratch with the stock Trainer on a source-target task: GPT-2-shaped, BART-shaped, or masked diffusion in
LLaDA's way. The first two also serve as teachers.

    python examples/baselines/run_baseline.py --architecture gpt2 --task e2e_nlg --dataset_name ../shared/data/e2e_nlg \
        --tokenizer_name examples/models/yan-e2e --output_dir outputs/gpt2-e2e
    python examples/baselines/run_baseline.py --architecture masked_diffusion --like outputs/yan-babi --training_flops 2e14 \
        --task babi_qa1 --dataset_name ../shared/data/babi_qa1 --tokenizer_name outputs/yan-babi --output_dir outputs/diffusion-babi
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    DataCollatorForSeq2Seq,
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    set_seed,
)

from modeling_yan import YanForConditionalGeneration
from modeling_yan.evaluation.masked_diffusion import MaskedDiffusionLM
from modeling_yan.evaluation.metrics import score_texts
from modeling_yan.evaluation.peers import closest_width
from modeling_yan.evaluation.speed import device_name
from modeling_yan.evaluation.text_generation import generate_texts
from modeling_yan.training.budget import apply_budget
from modeling_yan.training.scripts import parse_arguments, run_script
from modeling_yan.training.tasks import Task, group_references, load_splits
from modeling_yan.training.tokenization import set_truncation_side, tokenize_pairs


@dataclass
class TwinArguments:
    architecture: Literal["gpt2", "bart", "masked_diffusion"] = field(metadata={"help": "Shape of the model."})
    task: str = field(metadata={"help": "Name in configuration/tasks, or a YAML file."})
    dataset_name: str = field(metadata={"help": "Hub name or local folder."})
    tokenizer_name: str = field(metadata={"help": "Tokenizer folder or Hub name; YAN's own, for a fair peer."})
    max_source_length: int | None = field(default=None, metadata={"help": "Tokens of a source, instead of the task's."})
    max_target_length: int | None = field(
        default=None, metadata={"help": "Tokens of a target (the canvas of masked diffusion), instead of the task's."}
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first rows only."})
    like: str | None = field(
        default=None, metadata={"help": "A YAN folder; the width is chosen to give as many parameters as it has."}
    )
    training_flops: float | None = field(
        default=None, metadata={"help": "Train for this many floating-point operations instead of max_steps."}
    )
    hidden_size: int = field(default=192, metadata={"help": "Width, where `like` does not decide it."})
    layers: int = field(default=6, metadata={"help": "GPT-2: layers. BART: layers of encoder and decoder together."})
    num_attention_heads: int = field(default=4, metadata={"help": "Attention heads."})
    init_std: float = field(default=0.02, metadata={"help": "Initial standard deviation of the weights."})
    attn_implementation: str = field(
        default="sdpa", metadata={"help": "eager is the faster one to train short texts with on a CPU."}
    )
    hidden_dropout_prob: float = field(default=0.1, metadata={"help": "Dropout."})


def build_model(arguments: TwinArguments, tokenizer, max_positions: int, hidden_size: int):
    """A randomly initialised peer over the tokenizer's vocabulary, with greedy decoding as its generation default."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    dropout = arguments.hidden_dropout_prob
    if arguments.architecture == "bart":
        encoder_layers = arguments.layers // 2
        config = BartConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=max_positions,
            d_model=hidden_size,
            encoder_layers=encoder_layers,
            decoder_layers=arguments.layers - encoder_layers,
            encoder_attention_heads=arguments.num_attention_heads,
            decoder_attention_heads=arguments.num_attention_heads,
            encoder_ffn_dim=4 * hidden_size,
            decoder_ffn_dim=4 * hidden_size,
            dropout=dropout,
            init_std=arguments.init_std,
            decoder_start_token_id=tokenizer.bos_token_id,
            forced_eos_token_id=None,
            **ids,
        )
        model = BartForConditionalGeneration(config)
    else:
        config = GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=max_positions,
            n_embd=hidden_size,
            n_layer=arguments.layers,
            n_head=arguments.num_attention_heads,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            initializer_range=arguments.init_std,
            **ids,
        )
        if arguments.architecture == "masked_diffusion":
            config.mask_token_id = tokenizer.mask_token_id
            return MaskedDiffusionLM(config)
        model = GPT2LMHeadModel(config)
    model.generation_config.update(do_sample=False, num_beams=1)
    return model


def equal_width(arguments: TwinArguments, tokenizer, max_positions: int) -> int:
    """The width that gives as many parameters as the model `like` has."""
    config = AutoConfig.from_pretrained(arguments.like, trust_remote_code=True)
    with torch.device("meta"):
        wanted = YanForConditionalGeneration(config).num_parameters()
    return closest_width(
        lambda width: build_model(arguments, tokenizer, max_positions, width), wanted, arguments.num_attention_heads
    )


def join_for_causal(row: dict) -> dict:
    """Source and target on one line of ids; only the target is learned."""
    source, target = row["input_ids"], row["labels"]
    return {
        "input_ids": source + target,
        "attention_mask": [1] * (len(source) + len(target)),
        "labels": [-100] * len(source) + target,
    }


def main() -> None:
    parser = HfArgumentParser((TwinArguments, TrainingArguments))
    arguments, training = parse_arguments(parser)
    set_seed(training.seed)
    task = Task.load(arguments.task).with_lengths(arguments.max_source_length, arguments.max_target_length)
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer_name, trust_remote_code=True)
    set_truncation_side(tokenizer, task.truncation_side)
    splits = load_splits(arguments.dataset_name, task, tokenizer.mask_token)
    # Masked diffusion learns where to end by writing EOS on the rest of its canvas.
    diffusion = arguments.architecture == "masked_diffusion"
    train = tokenize_pairs(
        splits["train"], tokenizer, task.max_source_length, task.max_target_length, fill_canvas=diffusion
    )
    if arguments.architecture != "bart":
        train = train.map(join_for_causal, desc="join")
    max_positions = task.max_source_length + task.max_target_length
    width = equal_width(arguments, tokenizer, max_positions) if arguments.like else arguments.hidden_size
    model = build_model(arguments, tokenizer, max_positions, width)
    model.set_attn_implementation(arguments.attn_implementation)
    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=train,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
    )
    each_update = apply_budget(trainer, arguments.training_flops)
    start = time.perf_counter()
    trainer.train()
    minutes = (time.perf_counter() - start) / 60
    trainer.save_model()

    report = {
        "architecture": arguments.architecture,
        "parameters": model.num_parameters(),
        "train_rows": len(train),
        "updates": trainer.state.global_step,
        "train_minutes": round(minutes, 2),
        "hidden_size": width,
        "batch_size": training.train_batch_size * training.gradient_accumulation_steps,
        "train_flops": each_update * trainer.state.global_step,
        "seed": training.seed,
        "device": device_name(training.device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    for name in [s for s in ("validation", "test") if s in splits]:
        rows = group_references(splits[name])
        rows = rows.select(range(min(arguments.max_eval_samples or len(rows), len(rows))))
        texts = generate_texts(
            model,
            tokenizer,
            rows["source"],
            batch_size=training.per_device_eval_batch_size,
            max_source_length=task.max_source_length,
            max_new_tokens=task.max_target_length,
            eos_token_id=tokenizer.eos_token_id,
            progress=f"{name}: generate",
        )
        report[name] = {"rows": len(rows), **score_texts(texts, rows["references"])}
    path = Path(training.output_dir) / "report.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    run_script(main)
