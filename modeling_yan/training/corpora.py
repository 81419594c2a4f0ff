"""Text corpora for stage 1: streamed or memory-mapped, tokenised, optionally packed."""

from itertools import chain
from pathlib import Path

from datasets import Dataset, IterableDataset, load_dataset, load_from_disk
from transformers import PreTrainedTokenizerBase

from modeling_yan.training.tasks import Task

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
        name: Hub name or local folder, as `datasets.load_dataset` takes it, or a folder that `save_to_disk` wrote. Local Arrow
            files are memory-mapped: their size is not bounded by memory.
        text_columns: columns to read, each a text of its own; rows without text in them are left out.
        config_name: the configuration of a data set that has several.
        streaming: read as training goes, nothing is stored first.
        distinct: drop repeated texts, which holds all of them in memory.

    Raises:
        ValueError: for columns that are not there, and for `distinct` with `streaming`.
    """
    if distinct and streaming:
        raise ValueError("distinct=True needs all texts at once and streaming=True has them one by one; choose one")
    folder = Path(name)
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        stored = load_from_disk(name)
        data = stored if isinstance(stored, dict) else {"train": stored}
        if streaming:
            data = {key: value.to_iterable_dataset() for key, value in data.items()}
    else:
        data = load_dataset(name, config_name, streaming=streaming)
    if split not in data:
        return None
    corpus = data[split]
    known = corpus.column_names or list(next(iter(corpus)))
    missing = [column for column in text_columns if column not in known]
    if missing:
        raise ValueError(f"text_columns={missing} are not in {name}; it has {known}")

    def gather(rows: dict) -> dict:
        return {"text": [text for column in text_columns for text in rows[column] if text]}

    if distinct:
        return Dataset.from_dict({"text": list(dict.fromkeys(chain.from_iterable(
            [text for text in corpus[column] if text] for column in text_columns
        )))})  # fmt: skip
    return corpus.map(gather, batched=True, remove_columns=known)


def task_texts(pairs: Dataset) -> list[str]:
    """What a flow for a task will read and write: every source once, then the target of every row."""
    return [*dict.fromkeys(pairs["source"]), *pairs["target"]]


def load_task_corpus(name: str, task: Task, split: str, mask_token: str = "<mask>") -> Dataset | None:
    """
    `task_texts` of a split as a corpus with the one column `text`, so that an autoencoder knows labels and other short answers as well as
    long texts. None if the data set has no such split.

    Raises:
        ValueError: if the columns do not fit the task.
    """
    data = load_dataset(name)
    if split not in data:
        return None
    return Dataset.from_dict({"text": task_texts(task.build(data[split], mask_token))})


def tokenize_corpus(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, max_length: int, pack: bool = False) -> Corpus:
    """
    Column `text` -> column `input_ids`.

    Args:
        max_length: texts are cut after this many tokens.
        pack: instead of being cut, texts are laid end to end, each ending in the tokenizer's EOS, and every `max_length`
            tokens are a row without padding. Of each batch of 1,000 texts the rest that fills no row is left out.
    """

    def tokenize(rows: dict) -> dict:
        if not pack:
            return {"input_ids": tokenizer(rows["text"], truncation=True, max_length=max_length)["input_ids"]}
        stream = list(chain.from_iterable(tokenizer(rows["text"])["input_ids"]))
        return {"input_ids": [stream[i : i + max_length] for i in range(0, len(stream) - max_length + 1, max_length)]}

    return corpus.map(tokenize, batched=True, remove_columns=["text"])
