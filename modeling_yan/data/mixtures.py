"""Several tasks as one: a model of all of them tells from a source's heading which is meant."""

from collections.abc import Mapping, Sequence

from datasets import Dataset, DatasetDict, concatenate_datasets

from modeling_yan.data.loading import first_rows
from modeling_yan.data.tasks import Task


def join_tasks(tasks: Sequence[Task]) -> Task:
    """
    The task of reading pairs that several tasks made, columns `source`, `target` and `references`. Texts may be as long
    as the longest of any of them. The metric is theirs, or "rouge" where they differ.

    Raises:
        ValueError: for tasks that cut sources at different sides, and for one that derives its rows anew.
    """
    redrawn = [task.name for task in tasks if task.redraw]
    if redrawn:
        raise ValueError(f"task={redrawn[0]} has `redraw: true` and cannot be one of several; train it alone")
    if len({task.truncation_side for task in tasks}) > 1:
        sides = ", ".join(f"{task.name}: {task.truncation_side}" for task in tasks)
        raise ValueError(f"the tasks cut sources at different sides, {sides}; give them one `truncation_side`")
    metrics = {task.metric for task in tasks}
    return Task(
        name="+".join(dict.fromkeys(task.name for task in tasks)),
        source="{source}",
        target="{target}",
        references="references",
        max_source_length=max(task.max_source_length for task in tasks),
        max_target_length=max(task.max_target_length for task in tasks),
        metric=metrics.pop() if len(metrics) == 1 else "rouge",
        truncation_side=tasks[0].truncation_side,
    )


def mix_splits(parts: Sequence[Mapping[str, Dataset]], seed: int, max_train_rows: int | None = None) -> DatasetDict:
    """
    The rows of all parts, a split of a name from all that have one, in an order that depends on the seed alone: the
    first rows are of all parts.

    Args:
        parts: name of a split -> rows with the same columns.
        seed: of the order and of the choice of training rows.
        max_train_rows: training rows that a part may have at most (examples-proportional mixing with a limit, Raffel
            et al. 2020, section 3.5.2); None for all.
    """
    names = dict.fromkeys(name for splits in parts for name in splits)
    rows = {name: [splits[name] for splits in parts if name in splits] for name in names}
    if max_train_rows is not None:
        rows["train"] = [first_rows(part.shuffle(seed=seed), max_train_rows) for part in rows["train"]]
    return DatasetDict({name: concatenate_datasets(of_parts).shuffle(seed=seed) for name, of_parts in rows.items()})
