"""Graphs as they are written: every length free, compared with the model, and what cannot be exported."""

import pytest
import torch

from modeling_yan.serving.export import CanvasGraph, EncoderGraph, check_exportable, compare, example_inputs, export

from ..helpers import refused, seeded, source_batch, tiny_model

pytest.importorskip("onnxscript")

SIZES = {"encoder_layers": 1, "flow_layers": 2, "cross_attention_layers": [1], "max_position_embeddings": 32}


def test_torch_export_keeps_every_length_free(tmp_path):
    model = tiny_model(**SIZES)
    manifest = export(model, tmp_path, "pt2", steps=[2])
    assert set(manifest.files) == {"encoder.pt2", "canvas_2_steps.pt2"}
    for name, graph in (("encoder", EncoderGraph(model)), ("canvas_2_steps", CanvasGraph(model, 2))):
        inputs = example_inputs(model, 5, 29, 31, seed=3)[name.split("_")[0]]
        with torch.no_grad():
            expected, found = graph(**inputs), torch.export.load(tmp_path / f"{name}.pt2").module()(**inputs)
        compare(name, lambda _, found=found: found, expected, inputs, ["first", "second"])


def test_a_graph_that_differs_is_refused():
    model = tiny_model(**SIZES)
    inputs = example_inputs(model, 2, 5, 6)["canvas"]
    ids, log_probs = CanvasGraph(model, 1)(**inputs)
    with pytest.raises(ValueError, match="exported canvas differs from the model in log_probs"):
        compare("canvas", lambda _: (ids, log_probs + 0.1), (ids, log_probs), inputs, ["ids", "log_probs"])


def test_what_no_graph_can_hold_is_refused():
    with pytest.raises(ValueError, match=r"--steps \[0, 3\] must be numbers of at least 1"):
        check_exportable(tiny_model(**SIZES), [0, 3])
    model = tiny_model(flow_mixer="mamba", max_position_embeddings=2049)
    with pytest.raises(ValueError, match="an exported Mamba scan reaches no further than"):
        check_exportable(model, [1])


def test_a_folder_without_a_model_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "without config.json" in refused(
        "modeling_yan/cli.py", "export", cwd=tmp_path, model="empty", output_dir="o"
    )


def test_int8_rounds_the_weights_of_products_and_writes_nearly_the_models_tokens(tmp_path):
    from modeling_yan.serving.onnx_runtime import YanOrtForConditionalGeneration

    onnx = pytest.importorskip("onnx")
    model = tiny_model(**SIZES)
    export(model, tmp_path, steps=[1], int8=True)
    operators = [node.op_type for node in onnx.load(tmp_path / "canvas_1_step.onnx").graph.node]
    assert "MatMulInteger" in operators
    assert "MatMul" not in operators
    assert operators.count("MultiHeadAttention") == 3
    graphs = YanOrtForConditionalGeneration.from_pretrained(tmp_path)
    ids, mask = source_batch((13, 1, 6, 2))
    options = {"num_inference_steps": 1, "target_lengths": 30, "return_dict_in_generate": True, "eos_token_id": None}
    found, expected = (m.generate(ids, mask, generator=seeded(), **options) for m in (graphs, model))
    assert (found.sequences == expected.sequences).float().mean() > 0.8
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, atol=0.05, rtol=0.05)


def test_int8_is_for_onnx(tmp_path):
    with pytest.raises(ValueError, match="--int8 is for --format onnx, not pt2"):
        export(tiny_model(**SIZES), tmp_path, "pt2", int8=True)


def test_a_graph_holds_fused_attention_and_each_tokens_own_expert(tmp_path):
    onnx = pytest.importorskip("onnx")
    export(tiny_model(**SIZES, flow_mixer="conv_attention"), tmp_path, steps=[2])
    operators = [node.op_type for node in onnx.load(tmp_path / "canvas_2_steps.onnx").graph.node]
    # Two layers in two steps: attention to the canvas, and in one of them to the source.
    assert operators.count("MultiHeadAttention") == 2 * 3
    assert operators.count("Conv") == 2 * 2
    # Which tokens are an expert's is found once.
    assert operators.count("NonZero") == 3
    assert "Softmax" not in operators
