"""Several tasks that one model learns."""

import json

import pytest
from datasets import Dataset

from modeling_yan.data.mixtures import join_tasks
from modeling_yan.data.pairs import PairArguments, check_pair_arguments, load_pairs
from modeling_yan.data.tasks import Task

from ..helpers import ran, refused

CAPITALS = {
    "source": "capital of: {country}",
    "target": "{city}",
    "max_source_length": 12,
    "max_target_length": 4,
    "metric": "exact_match",
}
SUMS = {"source": "sum: {a} {b}", "target": "{sum}", "max_source_length": 20, "max_target_length": 2, "metric": "bleu"}
SMALL = "{hidden_size: 16, num_attention_heads: 2, intermediate_size: 24, encoder_layers: 1, flow_layers: 1}"


@pytest.fixture
def two_tasks(tmp_path, monkeypatch):
    """Task files and data sets of two tasks, capitals without validation rows, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name, task in {"capitals": CAPITALS, "sums": SUMS}.items():
        (tmp_path / f"{name}.yaml").write_text(json.dumps(task))
        (tmp_path / name).mkdir()
    Dataset.from_list([{"country": f"land {i}", "city": f"town {i}"} for i in range(20)]).to_parquet(
        tmp_path / "capitals" / "train.parquet"
    )
    for split, rows in {"train": range(30), "validation": range(30, 36)}.items():
        Dataset.from_list([{"a": i, "b": i, "sum": 2 * i} for i in rows]).to_parquet(
            tmp_path / "sums" / f"{split}.parquet"
        )
    return tmp_path


def read(**options):
    return load_pairs(PairArguments(task="capitals.yaml,sums.yaml", dataset_name="capitals, sums", **options))


def test_pairs_are_those_of_all_tasks(two_tasks):
    task, splits = read()
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 19 + 30, "validation": 1 + 6}
    assert set(splits["train"]["source"]) >= {f"sum: {i} {i}" for i in range(30)}
    assert (task.name, task.metric) == ("capitals+sums", "rouge")
    assert (task.max_source_length, task.max_target_length) == (20, 4)
    # What is saved with the model reads the pairs as they are.
    assert task.render(splits["train"][0]) == splits["train"][0]


def test_first_rows_are_of_all_tasks_and_depend_on_the_seed_alone(two_tasks):
    sources = read()[1]["train"]["source"][:]
    assert {source.split(":")[0] for source in sources[:12]} == {"capital of", "sum"}
    assert sources == read()[1]["train"]["source"][:]


def test_a_task_that_is_named_twice_is_read_twice_and_holds_the_same_rows_out(two_tasks):
    arguments = PairArguments(task="capitals.yaml,capitals.yaml", dataset_name="capitals,capitals")
    task, splits = load_pairs(arguments)
    assert task.name == "capitals"
    assert arguments.names == ["capitals"]
    assert len(splits["train"]) == 38
    assert len(set(splits["train"]["source"])) == 19
    assert not set(splits["train"]["source"]) & set(splits["validation"]["source"])


def test_a_large_task_leaves_room_for_the_others(two_tasks):
    splits = read(max_rows_per_task=20)[1]
    headings = [source.split(":")[0] for source in splits["train"]["source"]]
    # 19 capitals are all there are; sums are drawn, not the first ones.
    assert (headings.count("capital of"), headings.count("sum")) == (19, 20)
    assert not set(splits["train"]["source"]) >= {f"sum: {i} {i}" for i in range(20)}
    assert len(splits["validation"]) == 7
    assert splits["train"]["source"][:] == read(max_rows_per_task=20)[1]["train"]["source"][:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "a", "dataset_name": "c", "max_rows_per_task": 3}, "max_rows_per_task=3 goes with several tasks"),
        ({"task": "a,b", "dataset_name": "c,d", "max_rows_per_task": 0}, "max_rows_per_task=0 must be at least 1"),
        ({"task": "a,b", "dataset_name": "c"}, "task=a,b names 2 tasks; give --dataset_name a data set for each"),
        ({"task": "a,b", "dataset_name": "c,"}, "parted by commas, not c,"),
        ({"task": "a,b", "train_file": "c.csv"}, "task=a,b names 2 tasks"),
        ({"task": "a,b", "dataset_name": "c,d", "dataset_config_name": "e"}, "dataset_config_name=e goes with one"),
    ],
)
def test_several_tasks_need_as_many_data_sets(options, message):
    with pytest.raises(ValueError, match=message):
        check_pair_arguments(PairArguments(**options))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"redraw": True}, "task=sums has `redraw: true`"), ({"truncation_side": "left"}, "at different sides")],
)
def test_tasks_that_cannot_be_joined_are_named(two_tasks, change, message):
    (two_tasks / "sums.yaml").write_text(json.dumps(SUMS | change))
    with pytest.raises(ValueError, match=message):
        read()


def test_tasks_of_one_name_are_compared_too():
    tasks = [Task("task", "{q}", "{a}", truncation_side=side) for side in ("left", "right")]
    with pytest.raises(ValueError, match="different sides, task: left, task: right; give them one"):
        join_tasks(tasks)
    assert join_tasks(tasks[:1] * 2).name == "task"


def test_one_command_trains_a_model_of_two_tasks(two_tasks):
    options = {"task": "capitals.yaml,sums.yaml", "dataset_name": "capitals,sums", "use_cpu": True, "report_to": "none"}
    out = ran("examples/run_flow.py", cwd=two_tasks, config_overrides=SMALL, max_steps=2, **options)
    assert "49 training pairs, 7 validation sources; up to 20 tokens read and 4 written" in out
    card = (two_tasks / "outputs" / "yan" / "README.md").read_text()
    assert "capitals, sums" in card
    error = refused("examples/run_flow.py", cwd=two_tasks, **options | {"dataset_name": "sums"})
    assert "names 2 tasks" in error
