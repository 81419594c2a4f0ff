"""A YAN's graphs in ONNX Runtime, by precision, and as writers of `evaluation/text_writers.py`: texts in, texts out."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from modeling_yan import YanForConditionalGeneration
from modeling_yan.evaluation.text_writers import PRECISIONS, Writer, yan_writer
from modeling_yan.serving.export import export
from modeling_yan.serving.onnx_runtime import YanOrtForConditionalGeneration


def yan_graphs(
    model: YanForConditionalGeneration, steps: Sequence[int], precisions: Sequence[str] = PRECISIONS
) -> dict[str, YanOrtForConditionalGeneration]:
    """The model in ONNX Runtime at these numbers of steps, by "float32" and "int8"; no folder is left behind."""
    graphs = {}
    for precision in precisions:
        with tempfile.TemporaryDirectory() as folder:
            export(model, Path(folder), steps=list(steps), int8=precision == "int8")
            graphs[precision] = YanOrtForConditionalGeneration.from_pretrained(folder)
    return graphs


def yan_graph_writers(
    model: YanForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    longest: int,
    precisions: Sequence[str] = PRECISIONS,
) -> dict[str, Writer]:
    """A YAN as graphs of one step in ONNX Runtime, by "ONNX Runtime float32" and "ONNX Runtime int8"."""
    return {
        f"ONNX Runtime {precision}": yan_writer(graphs, tokenizer, longest, num_inference_steps=1)
        for precision, graphs in yan_graphs(model, [1], precisions).items()
    }
