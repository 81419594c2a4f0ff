"""Tables of the pages that hold what was measured with a pretrained encoder."""

import itertools
import json

import pytest

from .helpers import ROOT

PAGE = ROOT / "docs" / "pretrained.md"
RUNS = json.loads((ROOT / "benchmarks" / "results" / "pretrained.json").read_text(encoding="utf-8"))


def table_below(heading: str) -> tuple[list[str], list[list[str]]]:
    """Names of the columns, and the cells of each row."""
    lines = PAGE.read_text(encoding="utf-8").split(f"\n### {heading}\n")[1].splitlines()
    rows = itertools.takewhile(lambda line: line.startswith("|"), itertools.dropwhile(lambda x: x[:1] != "|", lines))
    head, _, *body = ([cell.strip() for cell in row.split("|")[1:-1]] for row in rows)
    return head, body


def stated_of(run: dict, column: str) -> str:
    """What a cell says of a run."""
    if column == "parameters":
        return f"{run['parameters'] / 1e6:.1f} million"
    if column in ("TFLOP", "minutes"):
        # Of all stages, where there are several.
        flops, minutes = (run.get(f"total_{name}", run[name]) for name in ("train_flops", "train_minutes"))
        return f"{flops / 1e12:.0f}" if column == "TFLOP" else f"{minutes:.0f}"
    split, score = column.split(", ")
    return f"{run[split][score.lower().replace(' ', '_')]:.1f}" if split in run else "–"


@pytest.mark.parametrize(
    ("heading", "task"),
    [
        ("Questions: SQuAD", "reading"),
        ("Topics: AG News", "topic"),
        ("Articles: DBpedia", "entity"),
        ("Sentiment: SST-2", "sentiment"),
        ("Last words: ROCStories", "rocstories_last_word"),
    ],
)
def test_tables_of_pretrained_starts_hold_what_was_measured(heading, task):
    head, body = table_below(heading)
    runs = {run["run"]: run for run in RUNS if run["task"] == task}
    measured = [cells for cells in body if "from scratch" not in cells[0]]
    assert measured
    for name, *cells in measured:
        assert cells == [stated_of(runs[name], column) for column in head[1:]], name
