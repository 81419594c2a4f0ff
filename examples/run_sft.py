r"""
Supervised fine-tuning on prompts and completions, or conversations, in TRL's formats, with TRL's SFTTrainer.

    python examples/run_sft.py --model_name_or_path examples/models/yan-e2e --dataset_name ORG/CHAT_DATA \
        --output_dir outputs/sft --max_length 96 --max_steps 500 --learning_rate 1e-3 --use_lora

Columns: `prompt` and `completion` (texts or messages), or `messages` that end with the assistant's turn; a tokenizer
that reads conversations needs a chat template. All flags of SFTConfig work but packing.
"""

from dataclasses import dataclass, field

from transformers import HfArgumentParser
from trl import SFTConfig

from modeling_yan import YanForConditionalGeneration
from modeling_yan.common.arguments import ModelArguments, parse_arguments, run_script
from modeling_yan.common.building import build_model, check_adaptable, load_tokenizer
from modeling_yan.data.loading import load_data, select_split
from modeling_yan.training.adapters import lora_config
from modeling_yan.training.budget import with_earlier_stages
from modeling_yan.training.freezing import freeze
from modeling_yan.training.runs import finish_run, prepare_run, run_training
from modeling_yan.training.sft import YanSFTTrainer
from modeling_yan.training.trainer import EMACallback


@dataclass
class SFTDataArguments:
    dataset_name: str = field(metadata={"help": "Hub name, local folder, or a CSV, JSON or Parquet file."})
    use_lora: bool = field(default=False, metadata={"help": "Train a LoRA adapter instead of the weights."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter."})


@dataclass
class SFTArguments(SFTConfig):
    """TRL's, without the flag that ModelArguments has, too: TRL is given no model and no tokenizer by name."""

    trust_remote_code: bool = field(default=False, init=False)


def main() -> None:
    parser = HfArgumentParser((ModelArguments, SFTDataArguments, SFTArguments), description=__doc__)
    model_arguments, data, training = parse_arguments(parser)
    if data.use_lora:
        check_adaptable(model_arguments)
    resume = prepare_run(training, model_arguments)
    splits = load_data(data.dataset_name)
    train = select_split(splits, "train", data.dataset_name)
    tokenizer = load_tokenizer(model_arguments)
    model = build_model(YanForConditionalGeneration, model_arguments, tokenizer)
    if not data.use_lora:
        freeze(model, model_arguments.frozen_parts)
    trainer = YanSFTTrainer(
        model,
        training,
        train_dataset=train,
        eval_dataset=splits.get("validation") or splits.get("test"),
        processing_class=tokenizer,
        peft_config=lora_config(model, data.lora_r) if data.use_lora else None,
        embedding_learning_rate=model_arguments.embedding_learning_rate,
        encoder_learning_rate=model_arguments.encoder_learning_rate,
        callbacks=[EMACallback(model_arguments.ema_decay)] if model_arguments.ema_decay else None,
    )
    report = run_training(trainer, training_flops=model_arguments.training_flops, resume=resume)
    if trainer.eval_dataset is not None:
        metrics = trainer.evaluate()
        trainer.save_metrics("eval", metrics)
        report |= metrics
    finish_run(trainer, with_earlier_stages(report, model_arguments.model_name_or_path))


if __name__ == "__main__":
    run_script(main)
