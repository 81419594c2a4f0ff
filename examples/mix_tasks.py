"""
Several tasks as one data set, for one model that does them all: each data set is read as its task, and what a source
begins with says which task it is.

    python examples/mix_tasks.py --tasks reading:../shared/data/squad entity:../shared/data/dbpedia_14 \
        --output_dir outputs/mixed
    python examples/run_flow.py configuration/training/pretrained_answers.yaml --task pairs --dataset_name outputs/mixed

Where a data set has no validation rows, one training row in twenty is held out. Score each task by its own data:
`run_evaluation.py --task reading --dataset_name ../shared/data/squad`.
"""

import argparse
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from modeling_yan.common.arguments import run_script
from modeling_yan.common.files import check_destination, whole_folder
from modeling_yan.common.help import ScriptHelp
from modeling_yan.data.pairs import PairArguments, load_pairs


def read_task(given: str) -> dict[str, Dataset]:
    """
    Name of a split -> its rows, with columns source, target, references and the task's name.

    Args:
        given: `TASK:DATA`.

    Raises:
        ValueError: for a name without data, and for data that does not fit the task.
    """
    name, _, data = given.partition(":")
    if not data:
        raise ValueError(f"--tasks {given} names no data; give it as TASK:DATA, a task file or name before a data set")
    _, splits = load_pairs(PairArguments(dataset_name=data, task=name))
    return {split: rows.add_column("task", [Path(name).stem] * len(rows)) for split, rows in splits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument("--tasks", nargs="+", required=True, help="TASK:DATA, a task file or name before a data set")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to be written, new or empty")
    parser.add_argument("--seed", type=int, default=0, help="of the order of rows")
    arguments = parser.parse_args()
    check_destination(arguments.output_dir)
    parts: dict[str, list[Dataset]] = {}
    for given in arguments.tasks:
        for split, rows in read_task(given).items():
            parts.setdefault(split, []).append(rows)
    with whole_folder(arguments.output_dir) as folder:
        for split, rows in parts.items():
            # The first rows of a split are then of every task.
            concatenate_datasets(rows).shuffle(seed=arguments.seed).to_parquet(folder / f"{split}.parquet")
            print(f"{split}: " + ", ".join(f"{len(own):,} of {own['task'][0]}" for own in rows))


if __name__ == "__main__":
    run_script(main)
