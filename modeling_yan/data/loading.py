"""
Data sets by the name of a Hub repository, a folder or a file, and the splits and rows of them that a script needs.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from datasets import Dataset, IterableDataset, load_dataset, load_from_disk

FILE_FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
Splits = Mapping[str, Dataset | IterableDataset]


def load_data(name: str, config_name: str | None = None, *, streaming: bool = False) -> Splits:
    """
    Every split of a data set.

    Args:
        name: Hub name or local folder, as `datasets.load_dataset` takes it; a folder that `save_to_disk` wrote, which
            is memory-mapped, so that its size is not bounded by memory; or one file, which becomes the split `train`.
        config_name: the configuration of a data set that has several.
        streaming: rows are read as they are needed, nothing is stored first.

    Raises:
        ValueError: for an empty folder and for a file of another format than CSV, JSON, JSON lines and Parquet.
    """
    path = Path(name)
    if path.is_file():
        if path.suffix not in FILE_FORMATS:
            raise ValueError(f"dataset_name={name!r} must be a folder, a Hub name or a file of {sorted(FILE_FORMATS)}")
        return load_dataset(FILE_FORMATS[path.suffix], data_files=name, streaming=streaming)
    if path.is_dir() and not any(path.rglob("*.*")):
        raise ValueError(f"dataset_name={name!r} is an empty folder")
    if not (path / "dataset_dict.json").exists() and not (path / "state.json").exists():
        return load_dataset(name, config_name, streaming=streaming)
    stored = load_from_disk(name)
    splits = stored if isinstance(stored, dict) else {"train": stored}
    return {split: rows.to_iterable_dataset() for split, rows in splits.items()} if streaming else splits


def select_split(splits: Splits, split: str, name: str) -> Dataset | IterableDataset:
    """
    A split of the data set called `name`.

    Raises:
        ValueError: if there is no such split, naming those there are.
    """
    if split not in splits:
        raise ValueError(f"{name} has no split {split!r}; it has {sorted(splits)}")
    return splits[split]


def first_rows(dataset: Dataset, count: int | None) -> Dataset:
    """The first `count` rows, or all where there are no more or `count` is None."""
    return dataset if count is None else dataset.select(range(min(count, len(dataset))))


def require_columns(columns: Iterable[str], wanted: Iterable[str], name: str) -> None:
    """
    Raises:
        ValueError: for a wanted column that the data set called `name` does not have.
    """
    missing = [column for column in wanted if column not in set(columns)]
    if missing:
        raise ValueError(f"{name} has no columns {missing}; it has {sorted(columns)}")
