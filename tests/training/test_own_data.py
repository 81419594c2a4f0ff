"""One's own pairs: read, checked, split, and trained on with the defaults that were measured best."""

import json
import sys

import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_from_disk
from transformers import BertConfig, HfArgumentParser, PreTrainedTokenizerFast, Seq2SeqTrainingArguments

from modeling_yan import YanConfig, YanForConditionalGeneration
from modeling_yan.common import precision
from modeling_yan.common.arguments import ModelArguments, parse_arguments
from modeling_yan.common.building import build_model, check_embedding_rate, check_model_arguments
from modeling_yan.data.pairs import PairArguments, load_pairs, split_off_validation
from modeling_yan.data.tasks import BadRow, Task
from modeling_yan.data.tokenization import fitting_vocab_size, tokenize_pairs
from modeling_yan.training.budget import default_updates
from modeling_yan.training.flow import FlowDataArguments, build_flow_model, give_away, load_flow_data
from modeling_yan.training.trainer import YanSeq2SeqTrainer

from ..helpers import ON_CPU, ran, refused, tiny_config, tiny_model, word_piece_tokenizer

ROWS = [{"question": f"which number follows {i}", "answer": f"it is {i + 1}"} for i in range(40)]
COLUMNS = {"source_column": "question", "target_column": "answer"}
SMALL = "{hidden_size: 16, num_attention_heads: 2, intermediate_size: 24, encoder_layers: 1, flow_layers: 1}"


@pytest.fixture
def csv_file(tmp_path):
    Dataset.from_list(ROWS).to_csv(tmp_path / "my.csv")
    return tmp_path / "my.csv"


# Reading


def test_a_csv_file_becomes_a_scored_model_in_one_command(csv_file, tmp_path):
    out = ran(
        "examples/run_flow.py",
        cwd=tmp_path,
        train_file="my.csv",
        config_overrides=SMALL,
        max_steps=2,
        use_cpu=True,
        report_to="none",
        **COLUMNS,
    )
    assert "the speed of float32" in out
    assert "tokenizer: " in out
    assert "2 updates of 32 rows, 1 epochs, " in out
    folder = tmp_path / "outputs" / "yan"
    report = json.loads((folder / "report.json").read_text())
    assert (report["updates"], report["train_rows"]) == (2, 38)
    assert (report["train"]["rows"], report["validation"]["rows"]) == (38, 2)
    model = YanForConditionalGeneration.from_pretrained(folder)
    assert (model.config.prediction_type, model.config.flow_mixer) == ("data", "conv_attention")
    # The task can be evaluated on, and is as long as the texts.
    task = Task.load(str(folder / "task.yaml"))
    assert task.render(ROWS[0]) == {
        "source": ROWS[0]["question"],
        "target": ROWS[0]["answer"],
        "references": [ROWS[0]["answer"]],
    }
    assert 2 < task.max_target_length < 30


@pytest.mark.parametrize("name", ["rows.csv", "rows.json", "rows.jsonl", "rows.parquet", "folder", "saved", "name"])
def test_every_kind_of_file_gives_the_same_pairs(tmp_path, name):
    rows = Dataset.from_list(ROWS)
    if name in ("folder", "name"):
        (tmp_path / name).mkdir()
        rows.to_csv(tmp_path / name / "train.csv")
    elif name == "saved":
        rows.save_to_disk(tmp_path / name)
    else:
        getattr(rows, {"csv": "to_csv", "parquet": "to_parquet"}.get(name.split(".")[1], "to_json"))(tmp_path / name)
    argument = "dataset_name" if name == "name" else "train_file"
    task, splits = load_pairs(PairArguments(**{argument: str(tmp_path / name)}, **COLUMNS))
    pairs = {*zip(splits["train"]["source"], splits["train"]["target"])} | {
        *zip(splits["validation"]["source"], splits["validation"]["target"])
    }
    assert pairs == {(row["question"], row["answer"]) for row in ROWS}
    assert len(splits["validation"]) == 2
    assert task.name == name.split(".")[0]


def test_cells_of_a_csv_file_are_read_as_they_stand(tmp_path):
    (tmp_path / "my.csv").write_text(
        'id,text\n007,"a, ""b"""\nNA,None\nTrue,"two\nlines"\n1.50,ä\n', encoding="utf-8-sig"
    )
    arguments = PairArguments(
        train_file=str(tmp_path / "my.csv"), source_column="id", target_column="text", validation_split_percentage=0
    )
    splits = load_pairs(arguments)[1]
    assert splits["train"]["source"][:] == ["007", "NA", "True", "1.50"]
    assert splits["train"]["target"][:] == ['a, "b"', "None", "two\nlines", "ä"]
    assert set(splits) == {"train"}


def test_files_of_their_own_are_the_held_out_rows(csv_file, tmp_path):
    Dataset.from_list(ROWS[:3]).to_csv(tmp_path / "validation.csv")
    Dataset.from_list(ROWS[:4]).to_json(tmp_path / "test.jsonl")
    files = {"validation_file": str(tmp_path / "validation.csv"), "test_file": str(tmp_path / "test.jsonl")}
    splits = load_pairs(PairArguments(train_file=str(csv_file), **files, **COLUMNS))[1]
    assert {name: len(rows) for name, rows in splits.items()} == {"train": 40, "validation": 3, "test": 4}


def test_rows_of_one_source_are_never_on_both_sides():
    rows = Dataset.from_dict({"source": [f"s{i // 4}" for i in range(80)], "target": [str(i) for i in range(80)]})
    train, validation = split_off_validation(rows, 10, seed=1)
    assert (len(train), len(validation)) == (72, 8)
    assert not {*train["source"]} & {*validation["source"]}
    assert split_off_validation(rows, 10, seed=1)[1]["target"][:] == validation["target"][:]
    assert split_off_validation(rows, 10, seed=2)[1]["target"][:] != validation["target"][:]
    # A share smaller than a row, or than a source's rows, is one of them.
    assert len(split_off_validation(rows, 1, seed=1)[1]) == 4
    one = rows.select(range(4))
    assert split_off_validation(one, 50, seed=1) == (one, None)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither train_file nor dataset_name is given"),
        ({"train_file": "a.csv", "dataset_name": "b"}, "train_file=a.csv and dataset_name=b are given"),
        ({"train_file": "absent.csv", **COLUMNS}, "train_file=absent.csv is no file in"),
        ({"dataset_name": "absent.csv", **COLUMNS}, "dataset_name='absent.csv' is no file in"),
        ({"train_file": "my.csv", "task": "absent.yaml"}, "task=absent.yaml is no file in"),
        ({"dataset_name": "d", "test_file": "a.csv"}, "test_file=a.csv goes with train_file"),
        ({"train_file": "a.csv", "dataset_config_name": "c"}, "dataset_config_name=c goes with dataset_name"),
        ({"train_file": "a.csv", "source_column": "q"}, "source_column is given without target_column"),
        ({"train_file": "a.csv", "task": "squad", **COLUMNS}, "task=squad says which columns are read"),
        ({"train_file": "my.csv"}, r"the columns of my.csv are \['question', 'answer'\]"),
        ({"train_file": "my.csv", **COLUMNS, "target_column": "reply"}, r"target_column=reply is no column of my.csv"),
        ({"train_file": "my.csv", "validation_split_percentage": 100, **COLUMNS}, "validation_split_percentage=100"),
        ({"train_file": "my.txt", **COLUMNS}, "train_file=my.txt must end in one of .csv"),
        ({"train_file": "empty.csv", **COLUMNS}, "empty.csv, row 2: column 'answer' is empty, and so are 1 other rows"),
        ({"train_file": "wide.csv", **COLUMNS}, "wide.csv cannot be read as CSV: line 3 has 3 values"),
        ({"train_file": "twice.csv", **COLUMNS}, "names a column twice"),
        ({"train_file": "bare.csv", **COLUMNS}, "bare.csv cannot be read as CSV: it has no rows"),
        ({"train_file": "bad.json", **COLUMNS}, "bad.json cannot be read as JSON"),
        ({"train_file": "lists.jsonl", **COLUMNS}, "target_column=answer: the column of lists.jsonl holds lists"),
        ({"train_file": "kinds.jsonl", **COLUMNS}, "kinds.jsonl holds values of different kinds"),
        ({"train_file": "my.csv", "validation_file": "folder", **COLUMNS}, "validation_file=folder is no file in"),
        ({"train_file": "my.csv", "test_file": "folder", **COLUMNS}, "test_file=folder is no file in"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value.split(" ")[0],
)
def test_what_cannot_be_read_is_named(csv_file, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    files = {
        "my.txt": "a",
        "empty.csv": "question,answer\na,b\nc,\nd, \n",
        "wide.csv": "question,answer\na,b\na,b,c\n",
        "twice.csv": "question,question\na,b\n",
        "bare.csv": "question,answer\n",
        "bad.json": "{question",
        "lists.jsonl": '{"question": "a", "answer": ["b"]}\n',
        "kinds.jsonl": '{"question": "a", "answer": "b"}\n{"question": "a", "answer": 3}\n',
    }
    (tmp_path / "folder").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_pairs(PairArguments(**options))


def labelled(folder, **splits: list[int]) -> PairArguments:
    kinds = Features({"text": Value("string"), "label": ClassLabel(names=["bad", "good"])})
    made = {
        split: Dataset.from_dict(
            {"text": [f"{split} {i}" for i in range(len(labels))], "label": labels}, features=kinds
        )
        for split, labels in splits.items()
    }
    DatasetDict(made).save_to_disk(folder)
    return PairArguments(dataset_name=str(folder), source_column="text", target_column="label")


def test_labels_are_written_by_name_and_hidden_ones_are_never_targets(tmp_path, caplog):
    arguments = labelled(tmp_path / "one", train=[0, 1, 1], validation=[1], test=[-1, -1])
    splits = load_pairs(arguments)[1]
    assert splits["train"]["target"][:] == ["bad", "good", "good"]
    assert set(splits) == {"train", "validation"}
    assert "split test has hidden labels only" in caplog.text
    with pytest.raises(ValueError, match=r"split train, row 2: column 'label' holds the label -1"):
        load_pairs(labelled(tmp_path / "two", train=[0, -1]))
    assert len(load_from_disk(str(tmp_path / "one"))["test"]) == 2


@pytest.mark.parametrize("label", [-1, 2, "x"])
def test_labels_without_a_name_are_bad_rows_of_a_task(label):
    with pytest.raises(BadRow, match="the label"):
        Task.load("sst2").render({"sentence": "fine", "label": label})


# Lengths, vocabulary, canvas


def load(csv, **options):
    data = {name: value for name, value in options.items() if name in FlowDataArguments.__dataclass_fields__}
    rest = {name: value for name, value in options.items() if name not in data}
    model = ModelArguments(config_overrides=SMALL, **rest)
    arguments = FlowDataArguments(train_file=str(csv), **COLUMNS, **data)
    return load_flow_data(arguments, model), arguments, model


def test_lengths_are_those_of_the_longest_texts_and_positions_grow_to_them(tmp_path):
    rows = [{"question": "a " * 200 + str(i), "answer": "b " * (i + 1)} for i in range(10)]
    Dataset.from_list(rows).to_json(tmp_path / "long.jsonl")
    loaded, arguments, model = load(tmp_path / "long.jsonl", validation_split_percentage=0)
    assert max(len(ids) for ids in loaded.train["input_ids"]) == loaded.task.max_source_length
    assert max(len(ids) for ids in loaded.train["labels"]) == loaded.task.max_target_length
    assert loaded.task.max_source_length > 128
    built = build_flow_model(model, arguments, loaded)
    assert built.config.max_position_embeddings == loaded.tokenizer.model_max_length == loaded.task.max_source_length
    # Asked for, it is what was asked for.
    short, arguments, model = load(tmp_path / "long.jsonl", validation_split_percentage=0, max_source_length=20)
    assert short.task.max_source_length == 20
    assert build_flow_model(model, arguments, short).config.max_position_embeddings == 128


def test_a_vocabulary_has_an_entry_for_each_frequent_word():
    assert fitting_vocab_size(["rare words"]) == 512
    assert fitting_vocab_size([f"w{i} w{i} w{i} w{i} w{i}" for i in range(100)]) == 612
    assert fitting_vocab_size([f"w{i} " * 5 for i in range(9000)]) == 8192


@pytest.mark.parametrize(
    ("labels", "gives_away"),
    [
        ([[5, 2], [6, 7, 2]] * 4, True),
        ([[5, 2], [6, 2]] * 4, False),  # one length
        ([[5, 2], [6, 7, 2]], False),  # as many answers as rows
        ([[i, *[5] * (i % 2), 2] for i in range(65)] * 4, False),  # many answers
    ],
)
def test_few_answers_of_several_lengths_give_themselves_away(labels, gives_away):
    assert give_away(labels) == gives_away


@pytest.mark.parametrize(("asked", "filled"), [(None, True), (True, True), (False, False)])
def test_short_answers_fill_the_canvas_unless_it_is_said_otherwise(tmp_path, capsys, asked, filled):
    rows = [{"question": f"text {i}", "answer": ["yes", "on the whole no"][i % 2]} for i in range(20)]
    Dataset.from_list(rows).to_csv(tmp_path / "labels.csv")
    loaded, arguments, model = load(tmp_path / "labels.csv", fill_canvas=asked)
    assert loaded.fill_canvas == filled
    assert ("2 different answers" in capsys.readouterr().out) == (asked is None)
    assert (len({len(ids) for ids in loaded.train["labels"]}) == 1) == filled
    options = build_flow_model(model, arguments, loaded).generation_config
    assert (options.length_mode == "canvas") == filled


# Defaults


def parse(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["run_flow.py", "--use_cpu", "--bf16", "false", *arguments])
    parser = HfArgumentParser((ModelArguments, FlowDataArguments, Seq2SeqTrainingArguments))
    return parse_arguments(parser, use_defaults=True)


def test_defaults_are_what_was_measured_best_and_what_is_given_wins(monkeypatch):
    model, _, training = parse(monkeypatch)
    assert (training.learning_rate, model.embedding_learning_rate) == (1e-3, 0.03)
    assert (training.lr_scheduler_type, training.adam_beta2, training.weight_decay) == ("cosine", 0.98, 0.01)
    assert training.per_device_train_batch_size == 32
    config = check_model_arguments(model)
    assert (config.prediction_type, config.training_config.unroll_steps) == ("data", 1)
    assert (config.encoder_mixer, config.flow_mixer) == ("conv_attention", "conv_attention")
    overrides = "{flow_layers: 1, training_config: {unroll_steps: 2}}"
    model, _, training = parse(monkeypatch, "--learning_rate=2e-4", "--config_overrides", overrides)
    assert training.learning_rate == 2e-4
    config = check_model_arguments(model)
    assert (config.flow_layers, config.prediction_type) == (1, "data")
    assert (config.training_config.unroll_steps, config.training_config.nll_loss_weight) == (2, 0.01)
    # A preset's own mixers stay.
    assert check_model_arguments(parse(monkeypatch, "--preset", "yan-mamba-base")[0]).flow_mixer == "mamba"
    # Of a model that is loaded, embeddings and config stay as they are.
    model, _, training = parse(monkeypatch, "--model_name_or_path", "somewhere")
    assert (training.learning_rate, model.embedding_learning_rate, model.config_overrides) == (5e-4, None, None)


@pytest.mark.parametrize(
    ("recipe", "flags", "expected"),
    [
        ({}, [], (False, -1, None)),
        ({"training_flops": 1e12}, [], (True, -1, 1e12)),
        ({"training_flops": 1e12}, ["--max_steps", "5"], (True, 5, None)),
        ({"training_flops": 1e12}, ["--num_train_epochs", "2"], (True, -1, None)),
        ({"max_steps": 5}, ["--training_flops", "1e12"], (True, -1, 1e12)),
        ({"max_steps": 5}, ["--num_train_epochs", "2"], (True, -1, None)),
        ({}, ["--max_steps", "5", "--training_flops", "1e12"], (True, 5, None)),
    ],
)
def test_an_explicit_length_of_training_wins(monkeypatch, tmp_path, recipe, flags, expected):
    (tmp_path / "recipe.json").write_text(json.dumps({"seed": 0, **recipe}))
    monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / "recipe.json"), "--use_cpu", "--bf16", "false", *flags])
    model, training = parse_arguments(HfArgumentParser((ModelArguments, Seq2SeqTrainingArguments)))
    assert (model.has_budget, training.max_steps, model.training_flops) == expected


def test_training_is_as_long_as_the_data_needs():
    training = Seq2SeqTrainingArguments(use_cpu=True, per_device_train_batch_size=32, gradient_accumulation_steps=2)
    for labels in (True, False):
        few, many = (default_updates(rows, training, labels=labels) for rows in (100, 1_000_000))
        assert few == default_updates(200, training, labels=labels)
        assert many / default_updates(2_000_000, training, labels=labels) == pytest.approx(0.5, rel=1e-3)
        assert many > 10 * few
    # What 200 rows of labels, and of texts, were measured to need.
    assert [default_updates(200, training, labels=labels) for labels in (True, False)] == [200, 1200]


# Precision


@pytest.mark.parametrize(
    ("given", "speed", "flags", "line"),
    [
        ({"use_cpu": "true"}, 1.2, {"bf16": True}, "bfloat16 on this CPU: 1.2 times the speed of float32, used"),
        ({"use_cpu": "true"}, 0.1, {"bf16": False}, "0.10 times the speed of float32; float32 is used"),
        ({"use_cpu": "true", "bf16": "true"}, 1.2, {"bf16": True}, ""),
        ({"use_cpu": "true", "bf16": "true"}, 0.1, {"bf16": False}, ""),
        ({"use_cpu": "true", "bf16": "false"}, 1.2, {}, ""),
        ({"use_cpu": "true", "fp16": "true"}, 1.2, {}, ""),
    ],
)
def test_precision_is_what_this_cpu_multiplies_fastest(monkeypatch, caplog, given, speed, flags, line):
    monkeypatch.setattr(precision, "bfloat16_speed", lambda: speed)
    chosen, said = precision.choose_precision(given)
    assert chosen == flags
    assert line in said
    assert bool(said) == bool(line)
    assert ("in software" in caplog.text) == (given.get("bf16") == "true" and speed < 1)


def test_without_an_accelerator_the_cpu_is_chosen(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(precision, "bfloat16_speed", lambda: 2.0)
    assert precision.choose_precision({})[0] == {"use_cpu": True, "bf16": True}
    assert precision.bfloat16_speed() > 0


def test_no_recipe_names_a_device_or_a_precision():
    from ..helpers import ROOT

    for path in (ROOT / "configuration" / "training").glob("*.yaml"):
        assert "use_cpu:" not in path.read_text()
        assert "bf16:" not in path.read_text()


# What would go wrong without a word


def trainer(tmp_path, model=None, rate=None, **options) -> YanSeq2SeqTrainer:
    arguments = Seq2SeqTrainingArguments(tmp_path, use_cpu=True, report_to="none", **options)
    return YanSeq2SeqTrainer(model=model or tiny_model(), args=arguments, embedding_learning_rate=rate)


def test_trainers_label_smoothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0\.1.*training_config: \{label_smoothing: 0\.1\}"):
        trainer(tmp_path, label_smoothing_factor=0.1)


def test_weights_of_16_bits_are_warned_of(tmp_path, caplog):
    trainer(tmp_path)
    assert "16 bits" not in caplog.text
    trainer(tmp_path, tiny_model().to(torch.bfloat16))
    assert "load the model with dtype=torch.float32" in caplog.text


def test_embeddings_of_a_pretrained_encoder_have_no_rate_of_their_own(tmp_path):
    encoder = BertConfig(vocab_size=53, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    hosting = tiny_config(encoder_config=encoder.to_dict(), encoder_mixer="attention")
    with pytest.raises(ValueError, match=r"embedding_learning_rate=0\.03.*bert encoder.*leave it out"):
        check_embedding_rate(hosting, 0.03)
    check_embedding_rate(hosting, None)
    check_embedding_rate(YanConfig(), 0.03)
    hosting.save_pretrained(tmp_path / "hosting")
    options = ["--model_name_or_path", "hosting", "--embedding_learning_rate", "0.03", "--train_file", "no.csv"]
    line = refused("examples/run_flow.py", *options, cwd=tmp_path, output_dir="out", **ON_CPU)
    assert "embedding_learning_rate=0.03" in line


def test_an_adapter_needs_a_model(csv_file, tmp_path):
    line = refused("examples/run_flow.py", "--use_lora", cwd=tmp_path, train_file="my.csv", **COLUMNS, **ON_CPU)
    assert "model_name_or_path" in line


# Tokenizers without EOS


@pytest.fixture(scope="module")
def word_pieces() -> PreTrainedTokenizerFast:
    return word_piece_tokenizer()


def test_sep_ends_targets_and_cls_does_not_begin_them(word_pieces):
    rows = Dataset.from_list([{"source": "pubs near river", "target": "pubs"}, {"source": "pub", "target": "near"}])
    pairs = tokenize_pairs(rows, word_pieces, 8, 4)
    assert pairs["input_ids"][0] == [2, 6, 7, 8, 5, 3]
    assert pairs["labels"][:] == [[6, 7, 3], [8, 3]]
    assert tokenize_pairs(rows, word_pieces, 8, 4, fill_canvas=True)["labels"][:] == [[6, 7, 3, 3], [8, 3, 3, 3]]
    assert tokenize_pairs(rows, word_pieces, 8, 2)["labels"][0] == [6, 3]
    # The model's own EOS, where it is another.
    assert tokenize_pairs(rows, word_pieces, 8, 4, end_id=5)["labels"][1] == [8, 3, 5]


def test_a_model_over_such_a_tokenizer_trains_with_its_ids(word_pieces, tmp_path):
    word_pieces.save_pretrained(tmp_path / "tokenizer")
    rows = [{"question": f"near river {'pub ' * (i % 3)}", "answer": ["pubs", "river"][i % 2]} for i in range(12)]
    Dataset.from_list(rows).to_csv(tmp_path / "my.csv")
    loaded, arguments, model = load(tmp_path / "my.csv", tokenizer_name=str(tmp_path / "tokenizer"))
    built = build_flow_model(model, arguments, loaded)
    assert (built.config.eos_token_id, built.config.bos_token_id) == (3, 2)
    assert loaded.fill_canvas
    assert all(ids[0] != 2 and ids[-1] == 3 and len(ids) == 3 for ids in loaded.train["labels"])
    assert build_model(YanForConditionalGeneration, model, word_pieces).config.eos_token_id == 3
