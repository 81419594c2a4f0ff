"""
Trains a GPT-2-shaped or BART-shaped model from scratch on a source-target task: YAN's autoregressive peer and teacher.

    python examples/baselines/run_autoregressive.py --architecture gpt2 --task e2e_nlg \
        --dataset_name ../shared/data/e2e_nlg --tokenizer_name examples/models/yan-e2e --output_dir outputs/gpt2-e2e
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from transformers import (
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

from modeling_yan.evaluation.metrics import score_texts
from modeling_yan.evaluation.text_generation import generate_texts
from modeling_yan.training.scripts import parse_arguments, run_script
from modeling_yan.training.tasks import Task, group_references, load_splits
from modeling_yan.training.tokenization import tokenize_pairs


@dataclass
class TwinArguments:
    architecture: Literal["gpt2", "bart"] = field(metadata={"help": "Shape of the model."})
    task: str = field(metadata={"help": "Name in configuration/tasks, or a YAML file."})
    dataset_name: str = field(metadata={"help": "Hub name or local folder."})
    tokenizer_name: str = field(metadata={"help": "Tokenizer folder or Hub name; YAN's own, for a fair peer."})
    hidden_size: int = field(default=192, metadata={"help": "Width."})
    layers: int = field(default=6, metadata={"help": "GPT-2: layers. BART: layers of encoder and decoder together."})
    num_attention_heads: int = field(default=4, metadata={"help": "Attention heads."})
    init_std: float = field(default=0.02, metadata={"help": "Initial standard deviation of the weights."})
    hidden_dropout_prob: float = field(default=0.1, metadata={"help": "Dropout."})


def build_model(arguments: TwinArguments, tokenizer, max_positions: int):
    """A randomly initialised twin over the tokenizer's vocabulary, with greedy decoding as its generation default."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    dropout = arguments.hidden_dropout_prob
    if arguments.architecture == "gpt2":
        config = GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=max_positions,
            n_embd=arguments.hidden_size,
            n_layer=arguments.layers,
            n_head=arguments.num_attention_heads,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            initializer_range=arguments.init_std,
            **ids,
        )
        model = GPT2LMHeadModel(config)
    else:
        encoder_layers = arguments.layers // 2
        config = BartConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=max_positions,
            d_model=arguments.hidden_size,
            encoder_layers=encoder_layers,
            decoder_layers=arguments.layers - encoder_layers,
            encoder_attention_heads=arguments.num_attention_heads,
            decoder_attention_heads=arguments.num_attention_heads,
            encoder_ffn_dim=4 * arguments.hidden_size,
            decoder_ffn_dim=4 * arguments.hidden_size,
            dropout=dropout,
            init_std=arguments.init_std,
            decoder_start_token_id=tokenizer.bos_token_id,
            forced_eos_token_id=None,
            **ids,
        )
        model = BartForConditionalGeneration(config)
    model.generation_config.update(do_sample=False, num_beams=1)
    return model


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
    task = Task.load(arguments.task)
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer_name, trust_remote_code=True)
    splits = load_splits(arguments.dataset_name, task, tokenizer.mask_token)
    train = tokenize_pairs(splits["train"], tokenizer, task.max_source_length, task.max_target_length)
    if arguments.architecture == "gpt2":
        train = train.map(join_for_causal, desc="join")
    model = build_model(arguments, tokenizer, task.max_source_length + task.max_target_length)
    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=train,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
    )
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
        "train_flops": trainer.state.total_flos,
        "seed": training.seed,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    for name in [s for s in ("validation", "test") if s in splits]:
        rows = group_references(splits[name])
        texts = generate_texts(
            model,
            tokenizer,
            rows["source"],
            batch_size=training.per_device_eval_batch_size,
            max_source_length=task.max_source_length,
            max_new_tokens=task.max_target_length,
            progress=f"{name}: generate",
        )
        report[name] = {"rows": len(rows), **score_texts(texts, rows["references"])}
    path = Path(training.output_dir) / "report.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    run_script(main)
