"""Text corpora for stage 1: streamed or memory-mapped, tokenised, optionally packed."""

from itertools import chain

from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from modeling_yan.data.loading import load_data, require_columns
from modeling_yan.data.tasks import Task

Corpus = Dataset | IterableDataset


def load_corpus(
    name: str,
    text_columns: list[str],
    split: str,
    *,
    config_name: str | None = None,
    streaming: bool = False,
    distinct: bool = False,
) -> Corpus | None:
    """
    A corpus with the one column `text`; None if the data set has no such split.

    Args:
        name, config_name, streaming: as `load_data` takes them.
        text_columns: columns to read, each a text of its own; rows without text in them are left out.
        distinct: drop repeated texts, which holds all of them in memory.

    Raises:
        ValueError: for columns that are not there, and for `distinct` with `streaming`.
    """
    if distinct and streaming:
        raise ValueError("distinct=True needs all texts at once and streaming=True has them one by one; choose one")
    splits = load_data(name, config_name, streaming=streaming)
    if split not in splits:
        return None
    corpus = splits[split]
    known = corpus.column_names or list(next(iter(corpus)))
    require_columns(known, text_columns, name)
    if distinct:
        texts = chain.from_iterable(corpus[column] for column in text_columns)
        return Dataset.from_dict({"text": list(dict.fromkeys(text for text in texts if text))})

    def gather(rows: dict) -> dict:
        return {"text": [text for column in text_columns for text in rows[column] if text]}

    return corpus.map(gather, batched=True, remove_columns=known)


def task_texts(pairs: Dataset) -> list[str]:
    """
    What a flow for a task will read and write: every source once, each followed by the targets of its rows as they
    stand, so that the first texts are of both.
    """
    seen, texts = set(), []
    for source, target in zip(pairs["source"], pairs["target"], strict=True):
        texts += [target] if source in seen else [source, target]
        seen.add(source)
    return texts


def load_task_corpus(name: str, task: Task, split: str, mask_token: str | None = None) -> Dataset | None:
    """
    `task_texts` of a split as a corpus with the one column `text`, so that an autoencoder knows labels and other short
    answers as well as long texts. None if the data set has no such split.

    Raises:
        ValueError: if the columns do not fit the task.
    """
    splits = load_data(name)
    if split not in splits:
        return None
    return Dataset.from_dict({"text": task_texts(task.build(splits[split], mask_token))})


def tokenize_corpus(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, max_length: int, pack: bool = False) -> Corpus:
    """
    Column `text` -> column `input_ids`.

    Args:
        max_length: texts are cut after this many tokens.
        pack: instead of being cut, texts are laid end to end, each ending in the tokenizer's EOS, and every
            `max_length` tokens are a row without padding. Of each batch of 1,000 texts the rest that fills no row is
            left out.
    """

    def tokenize(rows: dict) -> dict:
        if not pack:
            return {"input_ids": tokenizer(rows["text"], truncation=True, max_length=max_length)["input_ids"]}
        stream = list(chain.from_iterable(tokenizer(rows["text"])["input_ids"]))
        return {"input_ids": [stream[i : i + max_length] for i in range(0, len(stream) - max_length + 1, max_length)]}

    return corpus.map(tokenize, batched=True, remove_columns=["text"])
