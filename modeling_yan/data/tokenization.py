"""Byte-level BPE trained with `tokenizers`, and the tokenisation of source-target pairs."""

import logging
from collections.abc import Iterable

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from modeling_yan.data.tasks import group_references

logger = logging.getLogger(__name__)
SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>"}


def train_tokenizer(texts: Iterable[str], vocab_size: int, model_max_length: int) -> PreTrainedTokenizerFast:
    """
    Byte-level BPE that ends every text with EOS, ids 0..3 being pad, BOS, EOS and mask.

    Args:
        texts: what to learn the merges from.
        vocab_size: size of the vocabulary, special tokens and the 256 bytes included.
        model_max_length: where `truncation=True` cuts.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    eos = SPECIAL_TOKENS["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", pair=f"$A {eos} $B:1 {eos}:1", special_tokens=[(eos, tokenizer.token_to_id(eos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=model_max_length,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"],
        **SPECIAL_TOKENS,
    )


def set_truncation_side(tokenizer: PreTrainedTokenizerBase, side: str) -> None:
    """
    "right" or "left": where `truncation=True` cuts, now and after saving. The attribute alone is lost in transformers
    5.23 if the last text before `save_pretrained` was not truncated.
    """
    tokenizer.truncation_side = tokenizer.init_kwargs["truncation_side"] = side


def tokenize_pairs(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_source_length: int,
    max_target_length: int,
    fill_canvas: bool = False,
) -> Dataset:
    """
    Columns `source`, `target` -> `input_ids`, `attention_mask`, `labels` (lists of ids, EOS last). Longer rows are cut,
    with a warning that counts them. With `fill_canvas` all labels are filled up to `max_target_length` by EOS.
    """

    def tokenize(rows: dict) -> dict:
        batch = tokenizer(rows["source"], max_length=max_source_length, truncation=True)
        labels = tokenizer(text_target=rows["target"])["input_ids"]
        # Answers keep their beginning and EOS, wherever the tokenizer cuts sources.
        labels = [ids if len(ids) <= max_target_length else [*ids[: max_target_length - 1], ids[-1]] for ids in labels]
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}

    def fill(row: dict) -> dict:
        labels = row["labels"]
        return {"labels": labels + [tokenizer.eos_token_id] * (max_target_length - len(labels))}

    pairs = dataset.map(tokenize, batched=True, remove_columns=dataset.column_names, desc="tokenise")
    for column, limit in (("input_ids", max_source_length), ("labels", max_target_length)):
        full = sum(len(ids) >= limit for ids in pairs[column])
        if full:
            logger.warning(f"{column}: {full:,} of {len(pairs):,} rows reach {limit} tokens and may have been cut")
    return pairs.map(fill, desc="fill") if fill_canvas else pairs


def tokenize_sources(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_source_length: int) -> Dataset:
    """
    Columns `source`, `references` -> one row per distinct source, with `input_ids` and `attention_mask` beside them.
    """

    def tokenize(rows: dict) -> dict:
        batch = tokenizer(rows["source"], max_length=max_source_length, truncation=True)
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    return group_references(dataset).remove_columns("target").map(tokenize, batched=True, desc="tokenise")
