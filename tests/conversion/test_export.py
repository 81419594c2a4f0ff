"""Exported graphs: the model's tokens on shapes they were not traced with, by ONNX Runtime and by torch.export."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_yan.training.tokenization import train_tokenizer

from ..conftest import source_batch, tiny_model

ROOT = Path(__file__).parents[2]
EXPORT = runpy.run_path(str(ROOT / "conversion" / "export_yan.py"))
OnnxYan = runpy.run_path(str(ROOT / "examples" / "run_onnx.py"))["OnnxYan"]
TEXTS = ["the eagle is a pub near the river", "a cheap coffee shop in the city centre"]


@pytest.fixture(scope="module", params=["attention", "blanks", pytest.param("mamba", marks=pytest.mark.slow)])
def exported(request, tmp_path_factory):
    tokenizer = train_tokenizer(TEXTS * 20, 300, 32)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "mask")}
    mixers = {
        "encoder_mixer": "mamba" if request.param == "mamba" else "conv_attention",
        "flow_mixer": "attention" if request.param == "blanks" else request.param,
    }
    if request.param == "blanks":
        mixers |= {"canvas_ratio": 1.5, "nll_loss_weight": 0.0, "mse_loss_weight": 0.0}
    model = tiny_model(vocab_size=len(tokenizer), **ids, **mixers)
    folder = tmp_path_factory.mktemp("models")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    command = [sys.executable, ROOT / "conversion" / "export_yan.py", "--model", "model", "--output_dir", "onnx"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    if request.param == "attention":
        again = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        assert again.returncode == 2
        assert "is not empty" in again.stderr
    return model, OnnxYan(folder / "onnx"), tokenizer


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_length_candidates": 4},
        {"num_inference_steps": 2, "max_new_tokens": 7},
        {"target_lengths": [9, 20, 1, 3]},
    ],
)
def test_onnx_runtime_writes_the_models_tokens(exported, side, options):
    model, graphs, _ = exported
    ids, mask = source_batch((13, 1, 6, 2), side=side)
    noise = torch.randn(4, 32, 16, generator=torch.Generator().manual_seed(1))
    expected = model.generate(ids, mask, prior_noise=noise, expert_selection="argmax", **options)
    found = graphs.generate(ids.numpy(), mask.numpy(), prior_noise=noise.numpy(), **options)
    assert np.array_equal(found, expected.numpy())


def test_onnx_runtime_answers_texts(exported):
    _, graphs, tokenizer = exported
    ids = tokenizer(TEXTS, return_tensors="np", padding=True)
    expected = graphs.generate(ids["input_ids"], ids["attention_mask"], seed=3, max_new_tokens=8)
    texts = [text.strip() for text in tokenizer.batch_decode(expected, skip_special_tokens=True)]
    assert graphs.write(TEXTS, seed=3, max_new_tokens=8) == texts


def test_torch_export_keeps_every_length_free(tmp_path):
    model = tiny_model()
    EXPORT["export"](model, tmp_path, "pt2")
    inputs = EXPORT["example_inputs"](model, 5, 29, 31, seed=3)["step"]
    velocities, gate = torch.export.load(tmp_path / "step.pt2").module()(**inputs)
    with torch.no_grad():
        condition = model.model.condition(31, inputs["canvas_mask"], inputs["states"], inputs["attention_mask"])
        expected = model.model.flow(inputs["x_t"], inputs["t"], condition)
    valid = inputs["canvas_mask"].bool()
    torch.testing.assert_close(velocities[valid], expected[0][valid], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gate[valid], expected[1][valid], atol=1e-5, rtol=1e-4)


def test_a_graph_that_differs_is_refused(model):
    graph = EXPORT["DecoderGraph"](model)
    inputs = EXPORT["example_inputs"](model, 2, 5, 6)["decoder"]
    ids, scores = graph(**inputs)
    with pytest.raises(ValueError, match="exported decoder differs from the model in scores"):
        EXPORT["compare"]("decoder", lambda _: (ids, scores + 0.1), graph, inputs, ["ids", "scores"])


def test_a_folder_that_is_no_export_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no yan_export\.json"):
        OnnxYan(tmp_path)
