"""
Trains a baseline of YAN with the stock Trainer on a source-target task. From scratch: GPT-2-shaped, BART-shaped, or
masked diffusion in LLaDA's way; the first two also serve as teachers. Or from a pretrained encoder, which also gives
the decoder its layers (BERT2BERT, arXiv 1907.12461).

    python benchmarks/run_baseline.py --architecture gpt2 --task e2e_nlg --dataset_name ../shared/data/e2e_nlg \
        --tokenizer_name examples/models/yan-e2e --output_dir outputs/gpt2-e2e
    python benchmarks/run_baseline.py --architecture masked_diffusion --like outputs/yan-babi --training_flops 2e14 \
        --task babi_qa1 --dataset_name ../shared/data/babi_qa1 --tokenizer_name outputs/yan-babi \
        --output_dir outputs/diffusion-babi
    python benchmarks/run_baseline.py --architecture bert2bert --encoder NAME_OR_DIR --task sst2 \
        --dataset_name ../shared/data/sst2 --learning_rate 5e-5 --output_dir outputs/bert2bert-sst2
"""

import copy
from dataclasses import dataclass, field
from typing import Literal

import torch
from datasets import Dataset
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    DataCollatorForSeq2Seq,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from modeling_yan import YanForConditionalGeneration
from modeling_yan.common.arguments import parse_arguments, run_script
from modeling_yan.common.building import token_ids
from modeling_yan.common.hub import read_config, read_model, read_tokenizer, readable
from modeling_yan.data.loading import select_split
from modeling_yan.data.redrawn_pairs import RedrawnPairs
from modeling_yan.data.tasks import Task, evaluation_rows, load_splits
from modeling_yan.data.tokenization import end_token_id, set_truncation_side, tokenize_pairs
from modeling_yan.evaluation.baselines import closest_width
from modeling_yan.evaluation.masked_diffusion import MaskedDiffusionLM
from modeling_yan.evaluation.text_generation import reader_config
from modeling_yan.training.runs import finish_run, prepare_run, run_training
from modeling_yan.training.scoring import score_splits
from modeling_yan.training.trainer import KnownLengthsTrainer


@dataclass
class BaselineArguments:
    architecture: Literal["gpt2", "bart", "masked_diffusion", "bert2bert"] = field(
        metadata={"help": "Shape of the model."}
    )
    task: str = field(metadata={"help": "Name in configuration/tasks, or a YAML file."})
    dataset_name: str = field(metadata={"help": "Hub name, local folder, or a CSV, JSON or Parquet file."})
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Tokenizer folder or Hub name; YAN's own, to be comparable, or the encoder's."}
    )
    encoder: str | None = field(
        default=None, metadata={"help": "bert2bert: folder or Hub name of the encoder that it begins with."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the tokenizer."})
    max_source_length: int | None = field(default=None, metadata={"help": "Tokens of a source, instead of the task's."})
    max_target_length: int | None = field(
        default=None, metadata={"help": "Tokens of a target (the canvas of masked diffusion), instead of the task's."}
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on the first rows only."})
    like: str | None = field(
        default=None, metadata={"help": "A YAN folder; the width is chosen to give as many parameters as it has."}
    )
    training_flops: float | None = field(
        default=None, metadata={"help": "Train for this many FLOPs instead of max_steps."}
    )
    hidden_size: int = field(default=192, metadata={"help": "Width, where `like` does not decide it."})
    layers: int = field(default=6, metadata={"help": "GPT-2: layers. BART: of encoder and decoder together."})
    decoder_layers: int | None = field(
        default=None, metadata={"help": "BART: how many of `layers` are the decoder's; half of them by default."}
    )
    teacher: str | None = field(
        default=None,
        metadata={
            "help": "BART: folder of a trained one; the model begins with its encoder and the first `decoder_layers` "
            "layers of its decoder, as distilled models do (arXiv 2010.13002)."
        },
    )
    num_attention_heads: int = field(default=4, metadata={"help": "Attention heads."})
    init_std: float = field(default=0.02, metadata={"help": "Initial standard deviation of the weights."})
    attn_implementation: str = field(
        default="sdpa", metadata={"help": "eager is the faster one to train short texts with on a CPU."}
    )
    hidden_dropout_prob: float = field(default=0.1, metadata={"help": "Dropout."})


def build_bart(arguments: BaselineArguments, positions: int, width: int, **ids) -> BartForConditionalGeneration:
    decoder_layers = arguments.decoder_layers or (arguments.layers + 1) // 2
    config = BartConfig(
        max_position_embeddings=positions,
        d_model=width,
        encoder_layers=arguments.layers - decoder_layers,
        decoder_layers=decoder_layers,
        encoder_attention_heads=arguments.num_attention_heads,
        decoder_attention_heads=arguments.num_attention_heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        dropout=arguments.hidden_dropout_prob,
        init_std=arguments.init_std,
        decoder_start_token_id=ids["bos_token_id"],
        forced_eos_token_id=None,
        **ids,
    )
    return BartForConditionalGeneration(config)


def shrink_bart(
    teacher: str, decoder_layers: int, dropout: float, tokenizer: PreTrainedTokenizerBase
) -> BartForConditionalGeneration:
    """
    A trained BART's encoder and the first layers of its decoder.

    Raises:
        ValueError: for a teacher with fewer layers, or with another vocabulary than the tokenizer's.
    """
    whole = read_model(BartForConditionalGeneration, teacher)
    if decoder_layers > whole.config.decoder_layers:
        raise ValueError(f"decoder_layers={decoder_layers}: {teacher} has {whole.config.decoder_layers}")
    if whole.config.vocab_size != len(tokenizer):
        raise ValueError(
            f"teacher={teacher} has {whole.config.vocab_size} ids, the tokenizer {len(tokenizer)}; give the teacher's "
            "tokenizer_name"
        )
    config = copy.deepcopy(whole.config)
    config.update({"decoder_layers": decoder_layers, "dropout": dropout})
    model = BartForConditionalGeneration(config)
    kept = model.state_dict().keys()
    model.load_state_dict({name: value for name, value in whole.state_dict().items() if name in kept})
    return model


def build_bert2bert(encoder: str, tokenizer: PreTrainedTokenizerBase) -> EncoderDecoderModel:
    """An encoder, and a decoder of its layers with new cross-attention; its CLS and SEP begin and end answers."""
    with readable(encoder):
        model = EncoderDecoderModel.from_encoder_decoder_pretrained(encoder, encoder)
    ids = token_ids(tokenizer)
    chosen = {
        "decoder_start_token_id": ids["bos_token_id"],
        "eos_token_id": ids["eos_token_id"],
        "pad_token_id": ids["pad_token_id"],
    }
    for name, value in chosen.items():
        setattr(model.config, name, value)
    model.generation_config.update(**chosen)
    return model


def build_gpt2(arguments: BaselineArguments, positions: int, width: int, **ids) -> GPT2LMHeadModel:
    """GPT-2, or the masked diffusion model of its layers, whose noise is `mask_token_id`."""
    dropout, mask_token_id = arguments.hidden_dropout_prob, ids.pop("mask_token_id")
    config = GPT2Config(
        n_positions=positions,
        n_embd=width,
        n_layer=arguments.layers,
        n_head=arguments.num_attention_heads,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        initializer_range=arguments.init_std,
        **ids,
    )
    if arguments.architecture == "gpt2":
        return GPT2LMHeadModel(config)
    config.mask_token_id = mask_token_id
    return MaskedDiffusionLM(config)


def build_model(
    arguments: BaselineArguments, tokenizer: PreTrainedTokenizerBase, positions: int, width: int
) -> PreTrainedModel:
    """
    A baseline over the tokenizer's vocabulary, with greedy decoding as its generation default.
    """
    if arguments.architecture == "bert2bert":
        model = build_bert2bert(arguments.encoder, tokenizer)
        model.generation_config.update(do_sample=False, num_beams=1)
        return model
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    ids["vocab_size"] = len(tokenizer)
    if arguments.teacher:
        dropout = arguments.hidden_dropout_prob
        model = shrink_bart(arguments.teacher, arguments.decoder_layers, dropout, tokenizer)
    elif arguments.architecture == "bart":
        model = build_bart(arguments, positions, width, **ids)
    else:
        model = build_gpt2(arguments, positions, width, mask_token_id=tokenizer.mask_token_id, **ids)
    if arguments.architecture != "masked_diffusion":
        model.generation_config.update(do_sample=False, num_beams=1)
    return model


def equal_width(arguments: BaselineArguments, tokenizer: PreTrainedTokenizerBase, positions: int) -> int:
    """The width that gives as many parameters as the model `like` has."""
    config = read_config(arguments.like)
    with torch.device("meta"):
        wanted = YanForConditionalGeneration(config).num_parameters()
    return closest_width(
        lambda width: build_model(arguments, tokenizer, positions, width), wanted, arguments.num_attention_heads
    )


def join_for_causal(row: dict) -> dict:
    """Source and target on one line of ids; only the target is learned."""
    source, target = row["input_ids"], row["labels"]
    return {
        "input_ids": source + target,
        "attention_mask": [1] * (len(source) + len(target)),
        "labels": [-100] * len(source) + target,
    }


def training_rows(
    arguments: BaselineArguments, texts: Dataset, tokenizer: PreTrainedTokenizerBase, task: Task, seed: int
) -> Dataset | RedrawnPairs:
    """Tokenised pairs as the architecture reads them."""
    two_parts = arguments.architecture in ("bart", "bert2bert")
    if task.redraw:
        if not two_parts:
            raise ValueError(f"task={task.name} draws its pairs anew, which architecture=bart and bert2bert can read")
        return RedrawnPairs(texts, task, tokenizer, seed=seed)
    # Masked diffusion learns where to end by writing EOS on the rest of its canvas.
    fill = arguments.architecture == "masked_diffusion"
    pairs = tokenize_pairs(texts, tokenizer, task.max_source_length, task.max_target_length, fill_canvas=fill)
    return pairs if two_parts else pairs.map(join_for_causal, desc="join")


def check_arguments(arguments: BaselineArguments) -> None:
    """
    Raises:
        ValueError: for arguments that exclude each other, before anything is read.
    """
    from_encoder = arguments.architecture == "bert2bert"
    if from_encoder != (arguments.encoder is not None):
        raise ValueError(f"architecture={arguments.architecture} with encoder={arguments.encoder}: they go together")
    if from_encoder and arguments.like:
        raise ValueError(f"like={arguments.like} chooses a width, which the encoder has already; leave it out")
    if arguments.teacher and (arguments.architecture != "bart" or arguments.like or not arguments.decoder_layers):
        raise ValueError(
            f"teacher={arguments.teacher} gives architecture=bart its sizes; leave like out, and say how many "
            "decoder_layers it keeps"
        )
    if arguments.decoder_layers is not None and not 0 < arguments.decoder_layers < arguments.layers:
        raise ValueError(
            f"decoder_layers={arguments.decoder_layers} must lie between 1 and {arguments.layers - 1}: encoder and "
            f"decoder share layers={arguments.layers}"
        )
    if not from_encoder and arguments.tokenizer_name is None:
        raise ValueError("tokenizer_name is needed for a model from scratch; give YAN's own")


def main() -> None:
    arguments, training = parse_arguments(HfArgumentParser((BaselineArguments, TrainingArguments)))
    check_arguments(arguments)
    resume = prepare_run(training)
    task = Task.load(arguments.task).with_lengths(arguments.max_source_length, arguments.max_target_length)
    tokenizer_name = arguments.tokenizer_name or arguments.encoder
    tokenizer = read_tokenizer(tokenizer_name, trust_remote_code=arguments.trust_remote_code)
    set_truncation_side(tokenizer, task.truncation_side)
    splits = load_splits(arguments.dataset_name, task, tokenizer.mask_token)
    texts = select_split(splits, "train", arguments.dataset_name)
    train = training_rows(arguments, texts, tokenizer, task, training.seed)
    positions = task.max_source_length + task.max_target_length
    width = equal_width(arguments, tokenizer, positions) if arguments.like else arguments.hidden_size
    model = build_model(arguments, tokenizer, positions, width)
    model.set_attn_implementation(arguments.attn_implementation)
    trainer = KnownLengthsTrainer(
        model=model,
        args=training,
        train_dataset=train,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
    )
    report = {
        "architecture": arguments.architecture,
        "hidden_size": reader_config(model.config).hidden_size,
        "train_rows": len(train),
        **run_training(trainer, training_flops=arguments.training_flops, resume=resume),
    }
    report |= score_splits(
        model,
        tokenizer,
        evaluation_rows(splits, arguments.max_eval_samples),
        task,
        batch_size=training.per_device_eval_batch_size,
        eos_token_id=end_token_id(tokenizer),
        progress="generate",
    )
    finish_run(trainer, report)


if __name__ == "__main__":
    run_script(main)
