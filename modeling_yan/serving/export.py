r"""
A model as graphs: one reads sources, and one for every number of steps writes on their canvases, with free batch and
lengths. `YanOrtForConditionalGeneration` runs them with the model's own `generate()`.

    yan export --model examples/models/yan-e2e --output_dir outputs/onnx --steps 1 3

`--format onnx` (default) needs the extra `export`; its attention is ONNX Runtime's `MultiHeadAttention`. `--format pt2`
writes what `torch.export.load` reads. Every graph is compared with the model on shapes it was not traced with before it
is kept.

    encoder: input_ids, attention_mask (B, Lx) -> states (B, Lx, d), length_logits (B, positions)
    canvas_N_steps: x_0 (B, L, d), uniform (B, L), argmax_experts (), states, attention_mask, canvas_mask (B, L),
        token_bias (V,), and copied_ids (B, L or Lx) where positions copy -> ids (B, L), log_probs (B, L)
"""

import argparse
import contextlib
import logging as python_logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging

from modeling_yan import YanForConditionalGeneration
from modeling_yan.common.arguments import run_script
from modeling_yan.common.files import check_destination, whole_folder
from modeling_yan.common.help import ScriptHelp
from modeling_yan.common.hub import check_config_file, read_model, read_tokenizer
from modeling_yan.flow_matching_yan import sample_categorical, time_grid
from modeling_yan.lexicon_yan import copy_lexicon
from modeling_yan.mixers_yan import WHOLE_HEADS
from modeling_yan.selective_scan_yan import EXPORTED_LENGTH
from modeling_yan.serving.graph_folder import (
    ENCODER,
    SUFFIXES,
    Manifest,
    canvas_graph,
    config_fingerprint,
    file_digest,
)

# A protobuf holds no more; weights beyond it lie in a file beside the graph.
LARGEST_FILE = 2**31 - 2**24


class EncoderGraph(nn.Module):
    def __init__(self, model: YanForConditionalGeneration):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        states, length_logits = self.model.encode_source(input_ids, attention_mask)
        return states if length_logits is None else (states, length_logits)


class CanvasGraph(nn.Module):
    """
    From noise to tokens in a fixed number of steps. Times are constants, so that what depends on them alone is folded;
    keys and values of the source are computed once, and of the experts each token's own.
    """

    def __init__(self, model: YanForConditionalGeneration, steps: int, solver: str = "euler", time_shift: float = 1.0):
        super().__init__()
        self.model = model
        self.solver = solver
        self.register_buffer("time_grid", time_grid(steps, shift=time_shift), persistent=False)

    def forward(self, x_0, uniform, argmax_experts, states, attention_mask, canvas_mask, token_bias, copied_ids=None):
        condition = self.model.canvas_condition(x_0.shape[1], states, attention_mask, canvas_mask)

        def choose(gate: torch.Tensor) -> torch.Tensor:
            return torch.where(argmax_experts, gate.argmax(-1), sample_categorical(gate.exp(), uniform=uniform))

        latents, _ = self.model.model.flow.solve(x_0, condition, choose, time_grid=self.time_grid, solver=self.solver)
        # Flat, so that the bias of the largest product is added inside of it.
        decoder = self.model.decoder
        decoded, copied = decoder.states(latents), self.model.copy_source(copied_ids, states, attention_mask)
        copies = decoder.copies(decoded, copied)
        copies = None if copies is None else tuple(part.flatten(0, 1) for part in copies)
        logits = decoder.logits(decoded.flatten(0, 1), copies)
        ids = (logits + token_bias).argmax(-1)
        log_probs = logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1))
        return ids.view(uniform.shape), log_probs.view(uniform.shape)


def fused_attention(module, query, key, value, attention_mask, scaling: float, **kwargs) -> tuple[torch.Tensor, None]:
    """ONNX Runtime's attention over states (B, L, d), with the mask (B, L) of the keys as it is."""
    attended = torch.onnx.ops.symbolic(
        "com.microsoft::MultiHeadAttention",
        [query, key, value, None, attention_mask],
        {"num_heads": query.shape[-1] // module.head_dim, "scale": float(scaling)},
        dtype=query.dtype,
        shape=query.shape,
        version=1,
    )
    return attended, None


def key_mask(attention_mask: torch.Tensor | None = None, **kwargs) -> torch.Tensor | None:
    """The mask (B, L) as ONNX Runtime's attention takes it."""
    return None if attention_mask is None else attention_mask.to(torch.int32)


@contextlib.contextmanager
def attention_of(model: YanForConditionalGeneration, format_: str) -> Iterator[None]:
    """The model with attention that its graphs can hold; a hosted encoder keeps its own."""
    config, hosted = model.config, model.config.encoder_config
    before, of_hosted = config._attn_implementation, None if hosted is None else hosted._attn_implementation
    ALL_ATTENTION_FUNCTIONS.register(WHOLE_HEADS, fused_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(WHOLE_HEADS, key_mask)
    if format_ == "onnx":
        config._attn_implementation = WHOLE_HEADS
    if hosted is not None:
        # The reshape after T5's fused attention has no ONNX form.
        hosted._attn_implementation = "eager" if hosted.model_type == "t5" else of_hosted
    try:
        yield
    finally:
        config._attn_implementation = before
        if hosted is not None:
            hosted._attn_implementation = of_hosted


def example_inputs(model: YanForConditionalGeneration, rows: int, source: int, canvas: int, seed: int = 0) -> dict:
    """Inputs of both kinds of graph, by name; the last row is shorter than the others."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    attention_mask, canvas_mask = torch.ones(rows, source, dtype=torch.long), torch.ones(rows, canvas, dtype=torch.long)
    attention_mask[-1, source // 2 :], canvas_mask[-1, canvas // 2 :] = 0, 0
    input_ids = torch.randint(config.vocab_size, (rows, source), generator=generator)
    copied_ids = model.copied_ids(canvas, input_ids, attention_mask)
    states, x_0 = (torch.randn(rows, length, config.hidden_size, generator=generator) for length in (source, canvas))
    return {
        ENCODER: {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
        },
        "canvas": {
            "x_0": x_0,
            "uniform": torch.rand(rows, canvas, generator=generator),
            "argmax_experts": torch.tensor(seed % 2 == 1),
            "states": states,
            "attention_mask": attention_mask,
            "canvas_mask": canvas_mask,
            "token_bias": model.token_bias(model.generation_options().sampling),
            **({} if copied_ids is None else {"copied_ids": copied_ids}),
        },
    }


def output_names(name: str, model: YanForConditionalGeneration) -> list[str]:
    if name == ENCODER:
        return ["states", "length_logits"] if model.config.predicts_length else ["states"]
    return ["ids", "log_probs"]


def dynamic_shapes(inputs: dict, longest: int, points: bool = False) -> dict:
    """Batch and lengths free; inputs of the same kind share theirs. With `points`, what is copied is the source."""
    batch, source, canvas = Dim("batch"), Dim("source_length", max=longest), Dim("canvas_length", max=longest)
    sizes = {name: {0: batch, 1: source} for name in ("input_ids", "attention_mask", "states")}
    sizes |= {name: {0: batch, 1: canvas} for name in ("x_0", "uniform", "canvas_mask")}
    sizes["copied_ids"] = {0: batch, 1: source if points else canvas}
    return {name: sizes.get(name, {}) for name in inputs}


def compare(name: str, run: Callable[[dict], list], expected: tuple, inputs: dict, outputs: list[str]) -> None:
    """
    Raises:
        ValueError: where a graph does not give what the model gives.
    """
    expected = expected if isinstance(expected, tuple) else (expected,)
    valid = inputs["attention_mask" if name == ENCODER else "canvas_mask"].bool()
    for output, ours, theirs in zip(outputs, run(inputs), expected, strict=True):
        ours = torch.as_tensor(ours)
        if ours.shape[:2] == valid.shape:
            ours, theirs = ours[valid], theirs[valid]
        if not torch.allclose(ours.double(), theirs.double(), atol=1e-4, rtol=1e-3):
            error = (ours.double() - theirs.double()).abs().max()
            raise ValueError(
                f"the exported {name} differs from the model in {output} by up to {error:.1e}; nothing was kept"
            )


def write_onnx(graph: nn.Module, inputs: dict, shapes: dict, outputs: list[str], path: Path) -> None:
    # It misses operators of torchvision.
    python_logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(python_logging.ERROR)
    with warnings.catch_warnings():
        # Inputs that share a length, and parts of torch that this one calls by their old names.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph,
            kwargs=inputs,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=list(inputs),
            output_names=outputs,
            verbose=False,
        )
    size = sum(parameter.numel() * parameter.element_size() for parameter in graph.parameters())
    program.save(path, external_data=size > LARGEST_FILE)
    if size <= LARGEST_FILE:
        fold_constants(path)


def fold_constants(path: Path) -> None:
    """What does not depend on inputs is computed here and not at every start: modulations, slices of weights."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    folded = path.with_suffix(".folded")
    options.optimized_model_filepath = str(folded)
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    folded.replace(path)


def quantize(path: Path) -> None:
    """Weights of matrix products as int8, a scale for each output channel; activations are rounded as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # It advises a preparation that `fold_constants` was.
    python_logging.disable(python_logging.WARNING)
    try:
        products = ["MatMul", "Gemm"]
        quantize_dynamic(path, path, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=products)
    finally:
        python_logging.disable(python_logging.NOTSET)


def write_graph(graph: nn.Module, inputs: dict, shapes: dict, outputs: list[str], path: Path) -> Callable:
    """Writes a graph in the format of its name's ending; returns what runs it from there."""
    if path.suffix == SUFFIXES["onnx"]:
        write_onnx(graph, inputs, shapes, outputs, path)
        from onnxruntime import InferenceSession

        session = InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda items: session.run(outputs, {key: value.numpy() for key, value in items.items()})
    torch.export.save(torch.export.export(graph, (), inputs, dynamic_shapes=shapes), path)
    loaded = torch.export.load(path).module()

    def run(items: dict) -> tuple:
        with torch.no_grad():
            found = loaded(**items)
        return found if isinstance(found, tuple) else (found,)

    return run


def check_exportable(model: YanForConditionalGeneration, steps: list[int]) -> None:
    """
    Raises:
        ValueError: for what no graph can hold.
    """
    longest = model.config.max_position_embeddings
    if "mamba" in (model.config.encoder_mixer, model.config.flow_mixer) and longest > EXPORTED_LENGTH:
        raise ValueError(
            f"max_position_embeddings={longest}: an exported Mamba scan reaches no further than {EXPORTED_LENGTH} "
            "positions"
        )
    if not steps or any(number < 1 for number in steps):
        raise ValueError(f"--steps {steps} must be numbers of at least 1, each of which gets a graph")


def export(
    model: YanForConditionalGeneration,
    folder: Path,
    format_: str = "onnx",
    steps: list[int] | None = None,
    int8: bool = False,
) -> Manifest:
    """
    Writes the graphs of a model into a folder, each compared with the model on two other shapes first, with its config
    and generation options.

    Args:
        folder: made where it is not there yet.
        format_: "onnx" or "pt2".
        steps: numbers of solver steps; one and the model's own by default. Solver and time shift are the model's own.
        int8: whether weights of matrix products are rounded to int8, after the comparison; texts are then nearly the
            model's.
    """
    options = model.generation_options().sampling
    steps = sorted({1, options.num_inference_steps} if steps is None else set(steps))
    check_exportable(model, steps)
    if int8 and format_ != "onnx":
        raise ValueError(f"--int8 is for --format onnx, not {format_}")
    folder.mkdir(parents=True, exist_ok=True)
    model.eval()
    graphs = {ENCODER: EncoderGraph(model)}
    for number in steps:
        graphs[canvas_graph(number)] = CanvasGraph(model, number, options.solver, options.time_shift)
    for name, graph in graphs.items():
        path = folder / f"{name}{SUFFIXES[format_]}"
        export_graph(name, graph.eval(), path)
        if int8:
            quantize(path)
    files = {path.name: file_digest(path) for name in graphs for path in sorted(folder.glob(f"{name}.*"))}
    manifest = Manifest(format_, steps, options.solver, options.time_shift, config_fingerprint(model.config), files)
    manifest.write(folder)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    copy_lexicon(model, folder)
    return manifest


def export_graph(name: str, graph: EncoderGraph | CanvasGraph, path: Path) -> None:
    """Writes one graph, and holds it to the model on shapes that it was not traced with."""
    model, kind = graph.model, ENCODER if name == ENCODER else "canvas"
    longest = model.config.max_position_embeddings
    inputs, outputs = example_inputs(model, 3, min(11, longest), min(9, longest))[kind], output_names(kind, model)
    with attention_of(model, path.suffix[1:]):
        run = write_graph(graph, inputs, dynamic_shapes(inputs, longest, model.config.copy_mechanism), outputs, path)
    for rows, source, canvas in ((1, 5, 2), (4, 17, 23)):
        items = example_inputs(model, rows, min(source, longest), min(canvas, longest), seed=rows)[kind]
        with torch.no_grad():
            expected = graph(**items)
        compare(name, run, expected, items, outputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument("--model", required=True, help="a YAN folder or Hub name")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to be written, new or empty")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the tokenizer")
    parser.add_argument("--format", choices=sorted(SUFFIXES), default="onnx", help="pt2 is torch.export's")
    parser.add_argument("--steps", type=int, nargs="+", help="a graph for each; 1 and the model's own by default")
    parser.add_argument("--int8", action="store_true", help="round weights to int8: faster, nearly the same texts")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    check_destination(arguments.output_dir)
    check_config_file(arguments.model, YanForConditionalGeneration)
    tokenizer = read_tokenizer(arguments.model, trust_remote_code=arguments.trust_remote_code)
    model = read_model(YanForConditionalGeneration, arguments.model, dtype=torch.float32)
    with whole_folder(arguments.output_dir) as folder:
        export(model, folder, arguments.format, arguments.steps, arguments.int8)
        tokenizer.save_pretrained(folder)
    print(f"wrote {', '.join(sorted(p.name for p in arguments.output_dir.iterdir()))} to {arguments.output_dir}")


if __name__ == "__main__":
    run_script(main)
