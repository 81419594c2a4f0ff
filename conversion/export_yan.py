"""
A YAN model as three graphs that need neither this package nor transformers: encoder, step and decoder, with dynamic
batch, source and canvas length.

    python conversion/export_yan.py --model examples/models/yan-e2e --output_dir outputs/onnx
    python examples/run_onnx.py --model outputs/onnx "name[Aromi], eatType[coffee shop], area[city centre]"

`--format onnx` (default) needs the extra `export` (onnx, onnxscript; onnxruntime to run it); `--format pt2` writes what
`torch.export.load` reads. Every graph is compared with the model on shapes it was not traced with before it is kept.

    encoder: input_ids, attention_mask (B, Lx) -> states (B, Lx, d), length_logits (B, max length)
    step:    x_t (B, L, d), t (B,), states, attention_mask, canvas_mask (B, L) -> velocities (B, L, K, d), gate (B, L,
        K)
    decoder: latents (B, L, d), canvas_mask -> ids (B, L), scores (B,)
"""

import argparse
import json
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim
from transformers.utils import logging

from modeling_yan import YanForConditionalGeneration
from modeling_yan.common.arguments import run_script
from modeling_yan.common.files import check_destination, whole_folder
from modeling_yan.common.hub import check_config_file, read_model, read_tokenizer
from modeling_yan.selective_scan_yan import EXPORTED_LENGTH

FORMATS = ("onnx", "pt2")


class EncoderGraph(nn.Module):
    def __init__(self, model: YanForConditionalGeneration):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        states, length_logits = self.model.encode_source(input_ids, attention_mask)
        return states if length_logits is None else (states, length_logits)


class StepGraph(nn.Module):
    """Velocities of all experts and the gate; the solver takes each token's own."""

    def __init__(self, model: YanForConditionalGeneration):
        super().__init__()
        self.model = model.model

    def forward(self, x_t, t, states, attention_mask, canvas_mask):
        condition = self.model.condition(x_t.shape[1], canvas_mask, states, attention_mask)
        return self.model.flow(x_t, t, condition)


class DecoderGraph(nn.Module):
    def __init__(self, model: YanForConditionalGeneration):
        super().__init__()
        self.model = model
        self.options = model.generation_options().sampling

    def forward(self, latents, canvas_mask):
        return self.model.decode_latents(latents, canvas_mask, options=self.options)


def example_inputs(model: YanForConditionalGeneration, rows: int, source: int, canvas: int, seed: int = 0) -> dict:
    """Inputs of every graph by its name; the last row is shorter than the others."""
    generator = torch.Generator().manual_seed(seed)
    width = model.config.hidden_size
    attention_mask, canvas_mask = torch.ones(rows, source, dtype=torch.long), torch.ones(rows, canvas, dtype=torch.long)
    attention_mask[-1, source // 2 :], canvas_mask[-1, canvas // 2 :] = 0, 0
    states, x_t, latents = (
        torch.randn(rows, length, width, generator=generator) for length in (source, canvas, canvas)
    )
    return {
        "encoder": {
            "input_ids": torch.randint(model.config.vocab_size, (rows, source), generator=generator),
            "attention_mask": attention_mask,
        },
        "step": {
            "x_t": x_t,
            "t": torch.rand(rows, generator=generator),
            "states": states,
            "attention_mask": attention_mask,
            "canvas_mask": canvas_mask,
        },
        "decoder": {"latents": latents, "canvas_mask": canvas_mask},
    }


def output_names(name: str, model: YanForConditionalGeneration) -> list[str]:
    if name == "encoder":
        return ["states", "length_logits"] if model.config.length_head else ["states"]
    return {"step": ["velocities", "gate"], "decoder": ["ids", "scores"]}[name]


def dynamic_shapes(inputs: dict, longest: int) -> dict:
    """Batch and lengths free; inputs of the same kind share theirs."""
    batch, source, canvas = Dim("batch"), Dim("source_length", max=longest), Dim("canvas_length", max=longest)
    sizes = {"t": (batch,)}
    sizes |= dict.fromkeys(("input_ids", "attention_mask", "states"), (batch, source))
    sizes |= dict.fromkeys(("x_t", "latents", "canvas_mask"), (batch, canvas))
    return {name: dict(enumerate(sizes[name])) for name in inputs}


def compare(name: str, run, graph: nn.Module, inputs: dict, expected_names: list[str]) -> None:
    """
    Raises:
        ValueError: where a graph does not give what the model gives.
    """
    with torch.no_grad():
        expected = graph(**inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for output, ours, theirs in zip(expected_names, run(inputs), expected, strict=True):
        ours = torch.as_tensor(ours)
        valid = inputs["canvas_mask"].bool() if name != "encoder" else inputs["attention_mask"].bool()
        if ours.dim() > 1 and ours.shape[:2] == valid.shape:
            ours, theirs = ours[valid], theirs[valid]
        if not torch.allclose(ours.double(), theirs.double(), atol=1e-4, rtol=1e-3):
            error = (ours.double() - theirs.double()).abs().max()
            raise ValueError(
                f"the exported {name} differs from the model in {output} by up to {error:.1e}; nothing was kept"
            )


def export(model: YanForConditionalGeneration, folder: Path, format_: str = "onnx") -> None:
    """Writes the graphs of a model into a folder, each compared with the model on two other shapes first."""
    longest = model.config.max_position_embeddings
    if "mamba" in (model.config.encoder_mixer, model.config.flow_mixer) and longest > EXPORTED_LENGTH:
        raise ValueError(
            f"max_position_embeddings={longest}: an exported Mamba scan reaches no further than {EXPORTED_LENGTH} "
            "positions"
        )
    graphs = {"encoder": EncoderGraph(model), "step": StepGraph(model), "decoder": DecoderGraph(model)}
    traced = example_inputs(model, 3, min(11, longest), min(9, longest))
    for name, graph in graphs.items():
        graph.eval()
        inputs, outputs = traced[name], output_names(name, model)
        shapes = dynamic_shapes(inputs, longest)
        if format_ == "onnx":
            path = folder / f"{name}.onnx"
            program = torch.onnx.export(
                graph,
                kwargs=inputs,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=list(inputs),
                output_names=outputs,
                verbose=False,
            )
            program.save(path, external_data=False)
            from onnxruntime import InferenceSession

            session = InferenceSession(path, providers=["CPUExecutionProvider"])

            def run(items, session=session, outputs=outputs):
                return session.run(outputs, {key: value.numpy() for key, value in items.items()})
        else:
            path = folder / f"{name}.pt2"
            torch.export.save(torch.export.export(graph, (), inputs, dynamic_shapes=shapes), path)
            loaded = torch.export.load(path).module()

            def run(items, loaded=loaded):
                with torch.no_grad():
                    found = loaded(**items)
                return found if isinstance(found, tuple) else (found,)

        for rows, source, canvas in ((1, 5, 2), (4, 17, 23)):
            shape = (rows, min(source, longest), min(canvas, longest))
            compare(name, run, graph, example_inputs(model, *shape, seed=1)[name], outputs)
    options = model.generation_options()
    settings = {
        "format": format_,
        "hidden_size": model.config.hidden_size,
        "prior_std": model.config.prior_std,
        "canvas_ratio": model.config.canvas_ratio,
        "max_length": min(options.longest, longest),
        "num_inference_steps": options.sampling.num_inference_steps,
        "num_length_candidates": options.num_length_candidates,
        "length_head": model.config.length_head,
        "eos_token_ids": list(options.sampling.eos_token_ids),
        "pad_token_id": options.pad_token_id,
    }
    (folder / "yan_export.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a YAN folder or Hub name")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the tokenizer")
    parser.add_argument("--format", choices=FORMATS, default="onnx")
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    check_destination(arguments.output_dir)
    check_config_file(arguments.model, YanForConditionalGeneration)
    tokenizer = read_tokenizer(arguments.model, trust_remote_code=arguments.trust_remote_code)
    model = read_model(YanForConditionalGeneration, arguments.model, dtype=torch.float32)
    hosted = model.config.encoder_config
    if hosted is not None and hosted.model_type == "t5":
        # The reshape after its fused attention has no ONNX form.
        model.get_encoder().backbone.set_attn_implementation("eager")
    with whole_folder(arguments.output_dir) as folder:
        export(model, folder, arguments.format)
        tokenizer.save_pretrained(folder)
    print(f"wrote {', '.join(sorted(p.name for p in arguments.output_dir.iterdir()))} to {arguments.output_dir}")


if __name__ == "__main__":
    run_script(main)
