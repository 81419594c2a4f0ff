"""
Source-target pairs from one's own files or from a data set: read, checked and split before anything is trained.

    arguments = PairArguments(train_file="my.csv", source_column="question", target_column="answer")
    task, splits = load_pairs(arguments)      # splits: columns source, target, references
"""

import logging
import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Value

from modeling_yan.data.loading import load_data, read_file
from modeling_yan.data.mixtures import join_tasks, mix_splits
from modeling_yan.data.tasks import Task

logger = logging.getLogger(__name__)
FILES = ("train_file", "validation_file", "test_file")


@dataclass
class PairArguments:
    """Which pairs are read, and what of them is held out."""

    train_file: str | None = field(
        default=None,
        metadata={"help": "Training rows: a CSV, JSON, JSON lines or Parquet file, or a folder of splits."},
    )
    validation_file: str | None = field(default=None, metadata={"help": "Rows that training is evaluated on."})
    test_file: str | None = field(default=None, metadata={"help": "Rows that are scored at the end."})
    dataset_name: str | None = field(
        default=None, metadata={"help": "Instead of files: a Hub name, a local folder or one file."}
    )
    dataset_config_name: str | None = field(
        default=None, metadata={"help": "Configuration of a data set with several."}
    )
    source_column: str | None = field(default=None, metadata={"help": "Column that is read."})
    target_column: str | None = field(default=None, metadata={"help": "Column that is written."})
    task: str | None = field(
        default=None,
        metadata={
            "help": "Instead of columns, where texts are made from templates: a name in configuration/tasks, or a YAML "
            "file. Several, parted by commas, are learned by one model; dataset_name then has a data set for each."
        },
    )
    max_rows_per_task: int | None = field(
        default=None,
        metadata={
            "help": "Of several tasks: training rows of each at most, drawn at random, so that a large data set leaves "
            "room for the others; all by default."
        },
    )
    validation_split_percentage: int = field(
        default=5,
        metadata={"help": "Share of the training rows that is held out where there are no validation rows; 0: none."},
    )

    @property
    def names(self) -> list[str]:
        """What others may know the data by: Hub names, or of files and folders the last part."""
        given = [part.train_file or part.dataset_name for part in self.parts]
        return list(dict.fromkeys(Path(name).name if Path(name).exists() else name for name in given))

    @property
    def parts(self) -> list["PairArguments"]:
        """
        The arguments of each task, where there are several.

        Raises:
            ValueError: unless each of several tasks has a data set.
        """
        tasks = [name.strip() for name in (self.task or "").split(",")]
        if len(tasks) == 1:
            return [self]
        names = [name.strip() for name in (self.dataset_name or "").split(",")]
        if len(names) != len(tasks) or not all(tasks + names):
            raise ValueError(
                f"task={self.task} names {len(tasks)} tasks; give --dataset_name a data set for each, in the same "
                f"order, parted by commas, not {self.dataset_name}"
            )
        alone = replace(self, max_rows_per_task=None)
        return [replace(alone, task=task, dataset_name=name) for task, name in zip(tasks, names, strict=True)]


def check_pair_arguments(arguments: PairArguments) -> None:
    """
    Raises:
        ValueError: for arguments that are missing or exclude each other, before anything is read.
    """
    if (arguments.train_file is None) == (arguments.dataset_name is None):
        both = f"train_file={arguments.train_file} and dataset_name={arguments.dataset_name} are"
        which = "neither train_file nor dataset_name is" if arguments.train_file is None else both
        raise ValueError(
            f"{which} given; give either --train_file (CSV, JSON, JSON lines, Parquet) or --dataset_name (a Hub "
            "name or a folder)"
        )
    for name, needed in (
        ("validation_file", "train_file"),
        ("test_file", "train_file"),
        ("dataset_config_name", "dataset_name"),
    ):
        if getattr(arguments, name) is not None and getattr(arguments, needed) is None:
            raise ValueError(f"{name}={getattr(arguments, name)} goes with {needed}; give that too, or leave it out")
    columns = {name: getattr(arguments, name) for name in ("source_column", "target_column")}
    given = {name: value for name, value in columns.items() if value is not None}
    if arguments.task is not None and given:
        raise ValueError(f"task={arguments.task} says which columns are read; leave out {sorted(given)}, or the task")
    if len(given) == 1:
        missing = next(iter(set(columns) - set(given)))
        raise ValueError(f"{next(iter(given))} is given without {missing}; both are needed")
    if len(arguments.parts) > 1 and arguments.dataset_config_name is not None:
        raise ValueError(
            f"dataset_config_name={arguments.dataset_config_name} goes with one data set; leave it out, or train on "
            f"one of {arguments.dataset_name}"
        )
    if arguments.max_rows_per_task is not None and len(arguments.parts) == 1:
        raise ValueError(
            f"max_rows_per_task={arguments.max_rows_per_task} goes with several tasks; leave it out, or name them, "
            "parted by commas"
        )
    if arguments.max_rows_per_task is not None and arguments.max_rows_per_task < 1:
        raise ValueError(f"max_rows_per_task={arguments.max_rows_per_task} must be at least 1")
    if not 0 <= arguments.validation_split_percentage < 100:
        raise ValueError(
            f"validation_split_percentage={arguments.validation_split_percentage} must be at least 0 and less than 100"
        )


def read_splits(arguments: PairArguments) -> dict[str, Dataset]:
    """
    The rows of each split as they stand in the files or the data set.

    Raises:
        ValueError: for files that are not there or cannot be read, and without training rows.
    """
    if arguments.train_file is None:
        splits = dict(load_data(arguments.dataset_name, arguments.dataset_config_name))
    elif Path(arguments.train_file).is_dir():
        splits = dict(load_data(arguments.train_file))
    else:
        splits = {}
    for name in FILES:
        path = getattr(arguments, name)
        if path is not None and not (name == "train_file" and Path(path).is_dir()):
            splits[name.removesuffix("_file")] = read_file(path, name)
    if "train" not in splits:
        raise ValueError(
            f"{arguments.train_file or arguments.dataset_name} has no split 'train'; it has {sorted(splits)}"
        )
    return splits


def _place(arguments: PairArguments, split: str) -> str:
    """What an error calls a split: its file, or the split of a data set."""
    path = getattr(arguments, f"{split}_file", None)
    return path or f"{arguments.train_file or arguments.dataset_name}, split {split}"


def check_column(rows: Dataset, column: str, argument: str, place: str) -> None:
    """
    Finds out whether every row has a text in a column. Rows are counted from 1, a header not included.

    Args:
        argument: name of the argument that names the column, for errors.
        place: what an error calls the rows.

    Raises:
        ValueError: for a column that is not there or holds no texts, and for empty cells and hidden labels, naming the
            first row.
    """
    if column not in rows.column_names:
        raise ValueError(f"{argument}={column} is no column of {place}; it has {rows.column_names}")
    kind = rows.features[column]
    if not isinstance(kind, Value | ClassLabel):
        holds, remedy = f"{type(kind).__name__.lower()}s", "write a task file that derives a text from it"
        if type(kind).__name__ == "Json":
            holds, remedy = "values of different kinds", 'write each as a text ("3", not 3), or write a task file'
        raise ValueError(
            f"{argument}={column}: the column of {place} holds {holds}, not texts; {remedy} (docs/own_data.md)"
        )
    values = rows[column]
    empty = [i for i, v in enumerate(values) if v is None or v != v or (isinstance(v, str) and not v.strip())]
    if empty:
        others = f", and so are {len(empty) - 1} other rows" if len(empty) > 1 else ""
        raise ValueError(
            f"{place}, row {empty[0] + 1}: column {column!r} is empty{others}; fill it in or delete the row"
        )
    hidden = hidden_labels(rows, column)
    if hidden:
        raise ValueError(
            f"{place}, row {hidden[0] + 1}: column {column!r} holds the label {values[hidden[0]]}, which has no name: "
            f"{len(hidden)} labels are hidden; delete these rows"
        )


def hidden_labels(rows: Dataset, column: str) -> list[int]:
    """Indices of rows whose label has no name; Hub sets hide those of a test split as -1."""
    if not isinstance(rows.features.get(column), ClassLabel):
        return []
    return [index for index, value in enumerate(rows[column]) if value is not None and value < 0]


def task_of_columns(arguments: PairArguments, splits: Mapping[str, Dataset]) -> Task:
    """
    The task of reading one column and writing another; of labels with names the name is written.

    Raises:
        ValueError: for columns that no split has or that have no text in a row.
    """
    if arguments.source_column is None:
        raise ValueError(
            "source_column and target_column must be given, or a task; the columns of "
            f"{_place(arguments, 'train')} are {splits['train'].column_names}"
        )
    for split, rows in splits.items():
        for argument in ("source_column", "target_column"):
            check_column(rows, getattr(arguments, argument), argument, _place(arguments, split))
    features = splits["train"].features
    derive = {}
    for side in ("source", "target"):
        column = getattr(arguments, f"{side}_column")
        kind = features[column]
        names = (
            {"function": "label_name", "names": kind.names} if isinstance(kind, ClassLabel) else {"function": "first"}
        )
        derive[f"{side}_text"] = {**names, "column": column}
    name = Path(arguments.train_file or arguments.dataset_name).stem
    return Task(name=name, source="{source_text}", target="{target_text}", derive=derive)


def split_off_validation(rows: Dataset, percentage: int, seed: int) -> tuple[Dataset, Dataset | None]:
    """
    Training rows and about `percentage` of 100 of them, at least one, to be held out. Rows with the same source stay
    together.

    Args:
        rows: column `source`.
        seed: of the choice.

    Returns:
        Both parts; no second one where there is but one source.
    """
    groups = defaultdict(list)
    for index, source in enumerate(rows["source"]):
        groups[source].append(index)
    if len(groups) < 2:
        return rows, None
    wanted, held_out = max(1, round(len(rows) * percentage / 100)), []
    shuffled = list(groups.values())
    random.Random(seed).shuffle(shuffled)
    # A source with many rows is passed over where a smaller one fits.
    for indices in shuffled:
        if len(held_out) + len(indices) <= wanted:
            held_out += indices
    held_out = set(held_out or min(shuffled, key=len))
    kept = [index for index in range(len(rows)) if index not in held_out]
    return rows.select(kept), rows.select(sorted(held_out))


def load_pairs(arguments: PairArguments, mask_token: str | None = None, seed: int = 0) -> tuple[Task, DatasetDict]:
    """
    Reads, checks and renders all pairs; holds validation rows out of the training rows where there are none.

    Args:
        mask_token: the tokenizer's, where a task masks text.
        seed: of the choice of validation rows.

    Returns:
        The task, several joined (`join_tasks`), and its splits with columns `source`, `target` and `references`.

    Raises:
        ValueError: for anything that cannot be read as pairs, naming argument, column or row and what to do.
    """
    check_pair_arguments(arguments)
    if len(arguments.parts) > 1:
        loaded = [load_pairs(part, mask_token, seed) for part in arguments.parts]
        parts = [splits for _, splits in loaded]
        return join_tasks([task for task, _ in loaded]), mix_splits(parts, seed, arguments.max_rows_per_task)
    task = None if arguments.task is None else Task.load(arguments.task)
    splits = read_splits(arguments)
    if task is None:
        for name in [name for name in splits if name != "train"]:
            if len(hidden_labels(splits[name], arguments.target_column)) == len(splits[name]):
                logger.warning(f"{_place(arguments, name)} has hidden labels only, -1, and is left out")
                del splits[name]
        task = task_of_columns(arguments, splits)
    pairs = DatasetDict({name: task.build(rows, mask_token) for name, rows in splits.items()})
    percentage = arguments.validation_split_percentage
    if "validation" not in pairs and percentage:
        pairs["train"], validation = split_off_validation(pairs["train"], percentage, seed)
        if validation is not None:
            pairs["validation"] = validation
            logger.info(f"{len(validation)} of the training rows are held out for validation")
    return task, pairs
