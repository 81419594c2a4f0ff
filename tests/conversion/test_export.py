"""Exported graphs: the model's tokens on shapes they were not traced with, by ONNX Runtime and by torch.export."""

import numpy as np
import pytest
import torch
from transformers import BartConfig, BertConfig, ModernBertConfig, RobertaConfig, T5Config

from modeling_yan.data.tokenization import train_tokenizer

from ..helpers import TEXTS, WITH_BLANKS, ran, refused, script_functions, seeded, source_batch, tiny_model

SCRIPT = "conversion/export_yan.py"
# Graphs grow with layers, and the time that exporting takes with them: one layer of each kind is enough.
SIZES = {"encoder_layers": 1, "flow_layers": 2, "cross_attention_layers": [1], "max_position_embeddings": 32}
WIDTH = {"hidden_size": 16, "intermediate_size": 24, "pad_token_id": 0}
HOSTED = {
    "bert": BertConfig(max_position_embeddings=32, num_hidden_layers=1, num_attention_heads=2, **WIDTH),
    "roberta": RobertaConfig(max_position_embeddings=33, num_hidden_layers=1, num_attention_heads=2, **WIDTH),
    "modernbert": ModernBertConfig(num_hidden_layers=1, num_attention_heads=2, **WIDTH),
    "bart": BartConfig(
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        pad_token_id=0,
    ),
    "t5": T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=1, num_decoder_layers=1, num_heads=2, pad_token_id=0),
}
MODELS = {
    "attention": {"encoder_mixer": "conv_attention"},
    "mamba": {"encoder_mixer": "mamba", "flow_mixer": "mamba"},
    **{name: {"encoder_config": config.to_dict()} for name, config in HOSTED.items()},
}
# An encoder and a decoder have a graph each, so that one export shows a hosted encoder and blanks.
MODELS["bert"] |= {**WITH_BLANKS, "canvas_ratio": 1.5}


@pytest.fixture(scope="module")
def export() -> dict:
    """What the script defines."""
    return script_functions(SCRIPT)


@pytest.fixture(scope="module")
def onnx_yan():
    return script_functions("examples/run_onnx.py")["OnnxYan"]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("mamba", "roberta", "modernbert", "bart", "t5")]


@pytest.fixture(scope="module", params=["attention", "bert", *SLOW])
def exported(request, tmp_path_factory, onnx_yan):
    tokenizer = train_tokenizer(TEXTS * 20, 300, 32)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos", "mask")}
    model = tiny_model(vocab_size=len(tokenizer), **ids, **SIZES, **MODELS[request.param])
    folder = tmp_path_factory.mktemp("models")
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    ran(SCRIPT, cwd=folder, model="model", output_dir="onnx")
    assert "is not an empty folder" in refused(SCRIPT, cwd=folder, model="model", output_dir="onnx")
    return model, onnx_yan(folder / "onnx"), tokenizer


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
    noise = torch.randn(4, 32, 16, generator=seeded(1))
    expected = model.generate(ids, mask, prior_noise=noise, expert_selection="argmax", **options)
    found = graphs.generate(ids.numpy(), mask.numpy(), prior_noise=noise.numpy(), **options)
    assert np.array_equal(found, expected.numpy())


def test_onnx_runtime_answers_texts(exported):
    _, graphs, tokenizer = exported
    ids = tokenizer(TEXTS, return_tensors="np", padding=True)
    expected = graphs.generate(ids["input_ids"], ids["attention_mask"], seed=3, max_new_tokens=8)
    texts = [text.strip() for text in tokenizer.batch_decode(expected, skip_special_tokens=True)]
    assert graphs.write(TEXTS, seed=3, max_new_tokens=8) == texts


def test_torch_export_keeps_every_length_free(tmp_path, export):
    model = tiny_model(**SIZES)
    export["export"](model, tmp_path, "pt2")
    inputs = export["example_inputs"](model, 5, 29, 31, seed=3)["step"]
    velocities, gate = torch.export.load(tmp_path / "step.pt2").module()(**inputs)
    with torch.no_grad():
        condition = model.model.condition(31, inputs["canvas_mask"], inputs["states"], inputs["attention_mask"])
        expected = model.model.flow(inputs["x_t"], inputs["t"], condition)
    valid = inputs["canvas_mask"].bool()
    torch.testing.assert_close(velocities[valid], expected[0][valid], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gate[valid], expected[1][valid], atol=1e-5, rtol=1e-4)


def test_a_graph_that_differs_is_refused(model, export):
    graph = export["DecoderGraph"](model)
    inputs = export["example_inputs"](model, 2, 5, 6)["decoder"]
    ids, scores = graph(**inputs)
    with pytest.raises(ValueError, match="exported decoder differs from the model in scores"):
        export["compare"]("decoder", lambda _: (ids, scores + 0.1), graph, inputs, ["ids", "scores"])


def test_a_folder_that_is_no_export_is_refused(tmp_path, onnx_yan):
    with pytest.raises(ValueError, match=r"no yan_export\.json"):
        onnx_yan(tmp_path)
