"""
Supervised fine-tuning on prompts and completions, or conversations, in TRL's formats, with TRL's SFTTrainer.

    python examples/run_sft.py --model_name_or_path examples/models/yan-e2e --dataset_name ORG/CHAT_DATA --output_dir outputs/sft \
        --max_steps 500 --learning_rate 1e-3 --use_lora

Columns: `prompt` and `completion` (texts or messages), or `messages` that end with the assistant's turn; a tokenizer that
reads conversations needs a chat template. All flags of SFTConfig work but packing.
"""

from dataclasses import dataclass, field

from datasets import load_dataset
from run_flow import lora_config
from transformers import HfArgumentParser
from trl import SFTConfig

from modeling_yan import YanForConditionalGeneration
from modeling_yan.training.scripts import (
    ModelArguments,
    build_model,
    load_tokenizer,
    parse_arguments,
    prepare_run,
    run_script,
)
from modeling_yan.training.sft import YanSFTTrainer
from modeling_yan.training.stages import freeze


@dataclass
class DataArguments:
    dataset_name: str = field(metadata={"help": "Hub name or local folder."})
    use_lora: bool = field(default=False, metadata={"help": "Train a LoRA adapter instead of the weights."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter."})


def main() -> None:
    parser = HfArgumentParser((ModelArguments, DataArguments, SFTConfig))
    model_arguments, data, training = parse_arguments(parser)
    resume = prepare_run(training)
    splits = load_dataset(data.dataset_name)
    if "train" not in splits:
        raise ValueError(f"{data.dataset_name} has no train split")
    tokenizer = load_tokenizer(model_arguments)
    model = build_model(YanForConditionalGeneration, model_arguments, tokenizer)
    if not data.use_lora:
        freeze(model, [part for part in model_arguments.freeze.split(",") if part])
    trainer = YanSFTTrainer(
        model,
        training,
        train_dataset=splits["train"],
        eval_dataset=splits.get("validation") or splits.get("test"),
        processing_class=tokenizer,
        peft_config=lora_config(data.lora_r) if data.use_lora else None,
        embedding_learning_rate=model_arguments.embedding_learning_rate,
    )
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    if trainer.eval_dataset is not None:
        trainer.save_metrics("eval", trainer.evaluate())


if __name__ == "__main__":
    run_script(main)
