"""States of a frozen encoder from disk train as the encoder itself would."""

import json
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers.trainer
from datasets import Dataset
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file
from transformers import Seq2SeqTrainingArguments

from modeling_yan import YanForConditionalGeneration
from modeling_yan.common.flops import WorkCounter
from modeling_yan.data.tasks import Task
from modeling_yan.training.encoder_states import (
    STATES_FILE,
    EncoderStates,
    StatesCollator,
    load_states,
    states_of_frozen_encoder,
    store_states,
    with_reading,
)
from modeling_yan.training.freezing import freeze

from ..helpers import ON_CPU, ROOT, ran, refused, seeded, tiny_bert, word_piece_tokenizer

TEXTS = ["pub near river", "near pubs", "river river pub near pubs", "pub"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    tiny_bert(folder)
    return folder


@pytest.fixture
def model(bert):
    torch.manual_seed(0)
    model = YanForConditionalGeneration.from_encoder(bert, flow_layers=1, num_experts=1)
    freeze(model, ["encoder"])
    return model


def rows() -> Dataset:
    tokenizer = word_piece_tokenizer()
    pairs = [(tokenizer(text)["input_ids"], [8, 3]) for text in TEXTS]
    return Dataset.from_list([{"input_ids": s, "attention_mask": [1] * len(s), "labels": t} for s, t in pairs])


@pytest.mark.parametrize(
    ("part", "frozen"), [("embeddings", "model.encoder.backbone.embeddings."), ("encoder", "model.encoder.backbone.")]
)
def test_the_canvas_positions_beside_a_pretrained_encoder_are_trained_whatever_of_it_is_frozen(model, part, frozen):
    freeze(model, [part])
    tied = model.get_output_embeddings().weight
    assert not tied.requires_grad
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != (name.startswith(frozen) or parameter is tied), name


@pytest.mark.parametrize("side", ["left", "right"])
def test_stored_states_give_the_losses_and_gradients_of_the_encoder(model, tmp_path, side):
    data, tokenizer = rows(), word_piece_tokenizer()
    tokenizer.padding_side = side
    store_states(model.train(), data, tmp_path, batch_size=3)
    assert model.training
    states = load_states(data, 16, tmp_path)
    assert isinstance(states, EncoderStates)
    assert states.values.shape == (sum(map(len, data["input_ids"])), 16)
    features = [{**data[i], "row": i} for i in (2, 0, 3)]
    batch = StatesCollator(tokenizer, states=states)(features)
    plain = StatesCollator(tokenizer)([data[i] for i in (2, 0, 3)])
    assert "encoder_outputs" not in plain
    results = []
    for inputs in (batch, plain):
        model.eval().zero_grad()
        loss = model(**inputs, generator=seeded()).loss
        loss.backward()
        results.append((loss, model.model.flow.final_norm.weight.grad.clone()))
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-5)


def test_a_frozen_encoder_is_read_once_and_the_file_goes(bert, tmp_path):
    lines = [json.dumps({"q": text, "a": "pubs" if "river" in text else "near"}) for text in TEXTS * 5]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    options = {"train_file": "rows.jsonl", "source_column": "q", "target_column": "a", "max_steps": 2, **ON_CPU}
    output = ran("examples/run_flow.py", cwd=tmp_path, encoder=bert, freeze="encoder", output_dir="out", **options)
    assert "the encoder is frozen: its states are computed once" in output
    assert not (tmp_path / "out" / STATES_FILE).exists()
    before = YanForConditionalGeneration.from_encoder(bert)
    after = YanForConditionalGeneration.from_pretrained(tmp_path / "out")
    table, changed = "model.encoder.backbone.embeddings.word_embeddings.weight", "model.flow.final_norm.weight"
    assert torch.equal(before.state_dict()[table], after.state_dict()[table])
    assert not torch.equal(before.state_dict()[changed], after.state_dict()[changed])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["trained_parameters"] < report["parameters"]


def test_no_upload_holds_the_states(bert, tmp_path, monkeypatch):
    lines = [json.dumps({"q": text, "a": "pubs" if "river" in text else "near"}) for text in TEXTS * 5]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    there, uploaded = [], []

    def upload_folder(*, folder_path, ignore_patterns=None, **options):
        files = [path.name for path in Path(folder_path).iterdir()]
        there.extend(files)
        uploaded.extend(filter_repo_objects(files, ignore_patterns=ignore_patterns))
        done = Future()
        done.set_result(None)
        return done

    hub = SimpleNamespace(upload_folder=upload_folder, create_repo=lambda *_, **__: SimpleNamespace(repo_id="org/yan"))
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: hub)
    options = {"train_file": "rows.jsonl", "source_column": "q", "target_column": "a", "max_steps": 1, **ON_CPU}
    pushes = {"push_to_hub": True, "save_steps": 1, "output_dir": "out"}
    ran("examples/run_flow.py", cwd=tmp_path, encoder=bert, freeze="encoder", **pushes, **options)
    assert any("states" in name for name in there)
    assert "model.safetensors" in uploaded
    assert not any("states" in name for name in uploaded)


def test_reading_the_sources_is_part_of_what_training_cost(model, tmp_path):
    training = Seq2SeqTrainingArguments(tmp_path, report_to="none", use_cpu=True)
    with WorkCounter() as counter:
        _, states = states_of_frozen_encoder(model, rows(), training)
    assert states.flops == counter.flops > 0
    report = {"train_flops": 2.0, "train_minutes": 1.0, "updates": 3}
    costly = {**report, "train_flops": 2.0 + counter.flops, "train_minutes": 1.5}
    assert with_reading(report, replace(states, minutes=0.5)) == costly
    assert with_reading(report, None) == report


OF_SCRIPTS = {
    "flow": {"train_file": "rows.jsonl", "source_column": "prompt", "target_column": "completion", "warmup_steps": 0},
    "sft": {"dataset_name": "rows.jsonl", "max_length": 16},
    "autoencoder": {"dataset_name": "rows.jsonl", "text_columns": ["prompt", "completion"], "max_length": 16},
    "reward": {"dataset_name": "rows", "task": "task.yaml", "reward": f"{ROOT}/examples/rewards.py:sentence_bleu"},
}


@pytest.mark.parametrize("script", OF_SCRIPTS)
def test_an_encoders_own_rate_reaches_it_alone(bert, tmp_path, script):
    lines = "\n".join(json.dumps({"prompt": text, "completion": "near"}) for text in TEXTS * 5)
    (tmp_path / "rows").mkdir()
    for name in ("rows.jsonl", "rows/train.jsonl", "rows/validation.jsonl"):
        (tmp_path / name).write_text(lines)
    task = Task("rows", "{prompt}", "{completion}", max_source_length=16, max_target_length=16)
    task.save(tmp_path / "task.yaml")
    YanForConditionalGeneration.from_encoder(bert).save_pretrained(tmp_path / "yan")
    start = {"model_name_or_path": "yan", "tokenizer_name": bert} if script == "reward" else {"encoder": bert}
    ran(
        f"examples/run_{script}.py",
        cwd=tmp_path,
        encoder_learning_rate=0.0,
        output_dir="out",
        max_steps=1,
        **start,
        **OF_SCRIPTS[script],
        **ON_CPU,
    )
    before = YanForConditionalGeneration.from_encoder(bert).state_dict()
    after = load_file(tmp_path / "out" / "model.safetensors")
    trained = "decoder.lm_head.bias"
    encoder = [name for name in before if name.startswith("model.encoder.backbone.")]
    assert all(torch.equal(before[name], after[name]) for name in encoder)
    assert not torch.equal(before[trained], after[trained])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_name_or_path": "yan"}, "encoder=bert begins a new model, and model_name_or_path=yan goes on"),
        ({"train_tokenizer": 300}, "train_tokenizer=300 is for a new model"),
        ({"embedding_learning_rate": 0.1}, "embedding_learning_rate=0.1 is for embeddings drawn at random"),
        ({"encoder_learning_rate": 0.1, "freeze": "encoder"}, "encoder_learning_rate=0.1, but freeze=encoder"),
        ({"config_overrides": "{hidden_size: 3}"}, "are the encoder's and cannot be changed"),
    ],
)
def test_options_that_do_not_go_with_an_encoder_are_refused(bert, tmp_path, options, message):
    (tmp_path / "bert").symlink_to(bert)
    (tmp_path / "rows.csv").write_text("q,a\npub,near\n" * 9)
    columns = {"train_file": "rows.csv", "source_column": "q", "target_column": "a"}
    output = refused(
        "examples/run_flow.py", cwd=tmp_path, encoder="bert", output_dir="out", **columns, **options, **ON_CPU
    )
    assert message in output


def test_a_rate_without_a_pretrained_encoder_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("q,a\npub,near\n" * 9)
    columns = {"train_file": "rows.csv", "source_column": "q", "target_column": "a"}
    output = refused(
        "examples/run_flow.py", cwd=tmp_path, encoder_learning_rate=0.1, output_dir="out", **columns, **ON_CPU
    )
    assert "encoder_learning_rate=0.1 is for a pretrained encoder; give --encoder" in output
