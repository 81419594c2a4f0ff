"""Stage 1 by its script."""

import json

import pytest
from datasets import Dataset, DatasetDict

from modeling_yan import YanForMaskedLM

from ..helpers import ON_CPU, ROOT, ran, refused


def test_the_folder_is_a_loadable_model_with_its_metrics(autoencoder):
    model = YanForMaskedLM.from_pretrained(autoencoder)
    assert model.config.vocab_size == 400
    metrics = json.loads((autoencoder / "eval_results.json").read_text())
    assert 0 <= metrics["eval_token_accuracy"] <= 1


def test_it_trains_on_a_packed_stream(tmp_path):
    data = Dataset.from_dict({"text": ["The river runs past the pub.", "A cheap café near the Vaults!"] * 2})
    DatasetDict({"train": data}).save_to_disk(tmp_path / "corpus")
    printed = ran(
        "examples/run_autoencoder.py",
        ROOT / "configuration/training/autoencoder.yaml",
        cwd=tmp_path,
        dataset_name="corpus",
        text_columns="text",
        streaming=True,
        pack=True,
        output_dir="out",
        train_tokenizer=300,
        max_length=8,
        max_steps=2,
        per_device_train_batch_size=2,
        config_overrides="{hidden_size: 24, num_attention_heads: 2}",
        **ON_CPU,
    )
    assert "a stream" in printed
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_trained_model_keeps_its_tokenizer(workspace):
    options = {"model_name_or_path": "autoencoder", "train_tokenizer": 300, "output_dir": "refused"}
    line = refused("examples/run_autoencoder.py", cwd=workspace, dataset_name="data", **options, **ON_CPU)
    assert "train_tokenizer=300 is for a new model; leave it out, or leave 'autoencoder' out" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [({"text_columns": "prose"}, "prose"), ({"task": "e2e_nlg", "distinct": True}, "distinct=True")],
    ids=["column", "distinct_task"],
)
def test_bad_arguments_end_with_one_clear_line(workspace, options, message):
    line = refused(
        "examples/run_autoencoder.py",
        cwd=workspace,
        dataset_name="data",
        train_tokenizer=400,
        output_dir="refused",
        **options,
        **ON_CPU,
    )
    assert message in line
