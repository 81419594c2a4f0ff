"""
Data sets by the name of a Hub repository, a folder or a file, and the splits and rows of them that a script needs.
"""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import datasets
import pandas
from datasets import Dataset, Features, IterableDataset, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError

FILE_FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
# Characters of the longest cell of a CSV file, as many as the csv module can be set to on every system.
LONGEST_CELL = 2**31 - 1
Splits = Mapping[str, Dataset | IterableDataset]


def load_data(name: str, config_name: str | None = None, *, streaming: bool = False) -> Splits:
    """
    Every split of a data set.

    Args:
        name: Hub name or local folder, as `datasets.load_dataset` takes it; a folder that `save_to_disk` wrote, which
            is memory-mapped, so that its size is not bounded by memory; or one file, which becomes the split `train`.
        config_name: the configuration of a data set that has several.
        streaming: rows are read as they are needed, nothing is stored first.

    Columns of CSV and JSON files are read as in `read_file`.

    Raises:
        ValueError: for a file that is not there, an empty folder, a file of another format than CSV, JSON, JSON lines
            and Parquet, and a CSV file that cannot be read.
    """
    path = Path(name)
    kind = FILE_FORMATS.get(path.suffix.lower())
    if kind and not path.exists():
        raise ValueError(f"dataset_name={name!r} is no file in {Path.cwd()}; give the path of one that is there")
    if path.is_file():
        if kind is None:
            raise ValueError(f"dataset_name={name!r} must be a folder, a Hub name or a file of {sorted(FILE_FORMATS)}")
        if not streaming:
            return {"train": read_file(name, "dataset_name")}
        return _load(kind, data_files=name, streaming=True, **_options([path]))
    if path.is_dir() and not any(path.rglob("*.*")):
        raise ValueError(f"dataset_name={name!r} is an empty folder")
    if not (path / "dataset_dict.json").exists() and not (path / "state.json").exists():
        try:
            options = _options(_data_files(path))
        except (ValueError, csv.Error) as error:
            raise ValueError(f"dataset_name={name!r} cannot be read: {error}") from None
        return _load(name, config_name, streaming=streaming, **options)
    stored = load_from_disk(name)
    splits = stored if isinstance(stored, dict) else {"train": stored}
    return {split: rows.to_iterable_dataset() for split, rows in splits.items()} if streaming else splits


def read_file(path: str, argument: str) -> Dataset:
    """
    All rows of a CSV, JSON, JSON lines or Parquet file.

    Columns of a CSV file are read as the text that stands in them: "007" stays "007", "NA" is no missing value. So are
    dates in a JSON file.

    Args:
        argument: name of the argument that the path was given by, for errors.

    Raises:
        ValueError: for a file that is not there, cannot be read, has another format or no rows.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{argument}={path} is no file in {Path.cwd()}; give the path of one that is there")
    kind = FILE_FORMATS.get(file.suffix.lower())
    if kind is None:
        raise ValueError(f"{argument}={path} must end in one of {', '.join(FILE_FORMATS)}; save it as one of these")
    try:
        rows = _load(kind, data_files=path, **_options([file]))["train"]
    except (ValueError, csv.Error, DatasetGenerationError) as error:
        reason = error.__cause__ or error
        raise ValueError(f"{argument}={path} cannot be read as {kind.upper()}: {reason}") from None
    if not len(rows):
        raise ValueError(f"{argument}={path} has no rows")
    return rows


def _load(*arguments, **options) -> Splits:
    """`load_dataset`, but texts in JSON files that could be read as dates stay texts."""
    splits = load_dataset(*arguments, **options)
    first = next(iter(splits.values()))
    # Of streamed rows the kinds may not be known yet.
    kinds = first.features or {}
    dates = [name for name, kind in kinds.items() if isinstance(kind, Value) and kind.dtype.startswith("timestamp")]
    # Releases of datasets that lack this type have no way to keep a text from becoming a date.
    if not dates or first.info.builder_name != "json" or not hasattr(datasets, "Json"):
        return splits
    as_json = Features({**kinds, **{name: datasets.Json() for name in dates}})
    as_text = Features({**kinds, **{name: Value("string") for name in dates}})
    splits = load_dataset(*arguments, **options, features=as_json)
    return {
        split: rows.map(lambda row: {name: row[name] for name in dates}, features=as_text)
        for split, rows in splits.items()
    }


def _data_files(folder: Path) -> list[Path]:
    """The files of a local folder that hold rows; none for a Hub name."""
    return [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in FILE_FORMATS and file.is_file()]


def _options(files: Sequence[Path]) -> dict:
    """
    Of `load_dataset`, so that every column of CSV files is text; none for files of other formats.

    Raises:
        ValueError: for a CSV file that cannot be read.
    """
    if not files or any(FILE_FORMATS.get(file.suffix.lower()) != "csv" for file in files):
        return {}
    headers = []
    for file in files:
        try:
            headers.append(_check_csv(file))
        except (ValueError, csv.Error) as error:
            if len(files) == 1:
                raise
            raise ValueError(f"{file.name}: {error}") from None
    options = {"keep_default_na": False}
    if all(header == headers[0] for header in headers):
        options["features"] = Features({name: Value("string") for name in headers[0]})
    return options


def _check_csv(file: Path) -> list[str]:
    """Names of the columns of a CSV file whose rows fit them; pandas names those without a name, as an index."""
    limit = csv.field_size_limit(LONGEST_CELL)
    with file.open(encoding="utf-8-sig", newline="") as text:
        lines = csv.reader(text)
        try:
            header = next(lines, [])
            if len(header) == 1 and (found := re.search(r"[;\t|]", header[0])):
                raise ValueError(f"its first row {header[0]!r} is parted by {found[0]!r}; save it parted by commas")
            named = [name for name in header if name]
            if len(set(named)) < len(named):
                raise ValueError(f"its first row {header} names a column twice")
            empty = True
            for row in lines:
                empty = False
                if len(row) > len(header):
                    raise ValueError(
                        f"line {lines.line_num} has {len(row)} values, the first row {len(header)} columns"
                    )
        except UnicodeDecodeError as error:
            raise ValueError(f"it is not encoded as UTF-8 ({error}); save it as CSV in UTF-8") from None
        finally:
            csv.field_size_limit(limit)
        if empty:
            raise ValueError("it has no rows below its first one, which names the columns")
    return list(pandas.read_csv(file, nrows=0)) if "" in header else header


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
