"""Byte-level BPE trained with `tokenizers`, and the tokenisation of source-target pairs."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from modeling_yan.data.tasks import group_references

logger = logging.getLogger(__name__)
# Bounds of a vocabulary that data decides.
SMALLEST_VOCABULARY, LARGEST_VOCABULARY = 512, 8192
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


def fitting_vocab_size(texts: Iterable[str]) -> int:
    """
    Entries of a tokenizer for some texts: one for each word that occurs at least five times, beside 512 for bytes,
    special tokens and parts of words; in all no more than 8,192.
    """
    counts = Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text))
    frequent = sum(count >= 5 for count in counts.values())
    return min(SMALLEST_VOCABULARY + frequent, LARGEST_VOCABULARY)


def mask_token_of(tokenizer: PreTrainedTokenizerBase | None) -> str | None:
    """What masks words for a tokenizer; without one for the one that is trained on the texts."""
    return SPECIAL_TOKENS["mask_token"] if tokenizer is None else tokenizer.mask_token


def end_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id that ends a text: EOS, or SEP where a tokenizer has no EOS (BERT's)."""
    return tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id


def config_end_id(config: PreTrainedConfig) -> int | None:
    """Id that ends a text by a model's config: its EOS, the first where there are several."""
    return config.eos_token_id[0] if isinstance(config.eos_token_id, list) else config.eos_token_id


def model_end_id(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, *, new: bool = False) -> int | None:
    """Id that ends the texts of a model: its config's, or else, and for a new model, its tokenizer's."""
    end_id = None if new else config_end_id(config)
    return end_token_id(tokenizer) if end_id is None else end_id


def target_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], end_id: int | None, longest: int | None = None
) -> list[list[int]]:
    """
    Ids of targets: without BOS or CLS at their beginning, with `end_id` at their end and nowhere else.

    Args:
        end_id: the EOS of the model's config.
        longest: tokens that are kept, `end_id` among them; all by default. Answers keep their beginning, wherever the
            tokenizer cuts sources.

    Raises:
        ValueError: if there is no `end_id`.
    """
    if end_id is None:
        raise ValueError("the tokenizer has neither EOS nor SEP, and a text must end; set tokenizer.eos_token")
    begin = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None, end_id}
    found = []
    for ids in tokenizer(text_target=list(texts))["input_ids"]:
        if ids and ids[0] in begin:
            ids = ids[1:]
        while ids and ids[-1] == end_id:
            ids = ids[:-1]
        found.append([*(ids if longest is None else ids[: longest - 1]), end_id])
    return found


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
    end_id: int | None = None,
) -> Dataset:
    """
    Columns `source`, `target` -> `input_ids`, `attention_mask`, `labels` (lists of ids, EOS last). Longer rows are cut,
    with a warning that counts them. With `fill_canvas` all labels are filled up to `max_target_length` by EOS.

    Args:
        end_id: the EOS of the model's config; the tokenizer's `end_token_id` by default.

    Raises:
        ValueError: if neither is there.
    """
    end_id = end_token_id(tokenizer) if end_id is None else end_id

    def tokenize(rows: dict) -> dict:
        batch = tokenizer(rows["source"], max_length=max_source_length, truncation=True)
        labels = target_ids(tokenizer, rows["target"], end_id, max_target_length)
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}

    def fill(row: dict) -> dict:
        labels = row["labels"]
        return {"labels": labels + [end_id] * (max_target_length - len(labels))}

    pairs = dataset.map(tokenize, batched=True, remove_columns=dataset.column_names, desc="tokenise")
    count_cut_rows(dataset, pairs, tokenizer, end_id, max_source_length, max_target_length)
    return pairs.map(fill, desc="fill") if fill_canvas else pairs


def count_cut_rows(
    texts: Dataset,
    pairs: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    end_id: int,
    max_source_length: int,
    max_target_length: int,
) -> None:
    """
    Warns of rows whose source or target was cut, and counts them.

    Args:
        texts: columns `source` and `target`.
        pairs: the same rows, cut: columns `input_ids` and `labels`.
    """
    whole = {
        "input_ids": lambda row: tokenizer(row["source"])["input_ids"],
        "labels": lambda row: target_ids(tokenizer, [row["target"]], end_id)[0],
    }
    for column, limit in (("input_ids", max_source_length), ("labels", max_target_length)):
        full = texts.select([index for index, ids in enumerate(pairs[column]) if len(ids) >= limit])
        cut = sum(len(whole[column](row)) > limit for row in full)
        if cut:
            logger.warning(f"{column}: {cut:,} of {len(pairs):,} rows reach {limit} tokens and may have been cut")


def tokenize_sources(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_source_length: int) -> Dataset:
    """
    Columns `source`, `references` -> one row per distinct source, with `input_ids` and `attention_mask` beside them.
    """

    def tokenize(rows: dict) -> dict:
        batch = tokenizer(rows["source"], max_length=max_source_length, truncation=True)
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    return group_references(dataset).remove_columns("target").map(tokenize, batched=True, desc="tokenise")
