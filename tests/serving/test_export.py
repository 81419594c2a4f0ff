"""Graphs as they are written: every length free, compared with the model, and what cannot be exported."""

import pytest
import torch

from modeling_yan.serving.export import CanvasGraph, EncoderGraph, check_exportable, compare, example_inputs, export

from ..helpers import refused, tiny_model

pytest.importorskip("onnxscript")

SIZES = {"encoder_layers": 1, "flow_layers": 1, "cross_attention_layers": [0], "max_position_embeddings": 32}


def test_torch_export_keeps_every_length_free(tmp_path):
    model = tiny_model(**SIZES)
    folder = tmp_path / "not" / "there"
    manifest = export(model, folder, "pt2", steps=[2])
    assert set(manifest.files) == {"encoder.pt2", "canvas_2_steps.pt2"}
    for name, graph in (("encoder", EncoderGraph(model)), ("canvas_2_steps", CanvasGraph(model, 2))):
        inputs = example_inputs(model, 5, 29, 31, seed=3)[name.split("_")[0]]
        with torch.no_grad():
            expected, found = graph(**inputs), torch.export.load(folder / f"{name}.pt2").module()(**inputs)
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


def test_int8_is_for_onnx(tmp_path):
    with pytest.raises(ValueError, match="--int8 is for --format onnx, not pt2"):
        export(tiny_model(**SIZES), tmp_path, "pt2", int8=True)
