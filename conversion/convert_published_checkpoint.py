r"""
Turns a checkpoint of the published YAN training code into a Hub folder with the same numbers, and back.

    python conversion/convert_published_checkpoint.py --checkpoint X.pt --output_dir DIR \
        [--tokenizer NAME_OR_DIR] [--push_to_hub ID]
    python conversion/convert_published_checkpoint.py --reverse --checkpoint DIR --output_dir DIR2

The second one writes DIR2/checkpoint.pt.

Tests the archive's checksums, which torch ignores, and reads tensors only (`weights_only=True`). Every key is mapped by
one table, strictly both ways. Nothing is left behind unless what was written, loaded again, gives the same outputs as
the weights that went into it. Files in torch's format of before 2020 have no checksums.
"""

import argparse
import pickle
import zipfile
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel

from modeling_yan import YanConfig, YanForConditionalGeneration, YanForMaskedLM
from modeling_yan.common.arguments import run_script
from modeling_yan.common.files import check_destination, whole_folder
from modeling_yan.common.help import ScriptHelp
from modeling_yan.common.hub import push_folder, read_config, read_model, read_tokenizer, write_folder
from modeling_yan.common.published_format import (
    LOSS_FIELDS,
    SHARED_TABLES,
    STACKED,
    KeyTable,
    key_table,
    published_config,
    translate_config,
)

# Published sizes. Those of layers and experts have at least one tensor each in the state dict.
LAYERS = ("encoder_n_trf_blocks", "decoder_n_resi_blocks", "n_trf_blocks", "moe_n_experts")
SIZES = (
    *LAYERS,
    *("vocab_size", "d_model", "max_length", "attention_heads", "moe_gate_dim_multiplier", "ode_steps"),
    *("mamba_d_state", "mamba_d_conv", "mamba_expand", "mamba_ff_mult"),
)
SWITCHES = ("encoder_use_mamba", "flow_use_mamba", "qkv_bias")
# More solver steps than anybody trains with: `ode_steps` counts the points of time between them.
MOST_STEPS = 1000
# Types of weights that float32 holds exactly.
WEIGHT_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def first_line(error: Exception) -> str:
    """What an error says, or its type where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def check_archive(path: Path) -> None:
    """
    Raises:
        ValueError: if what is in a file is not what its checksums say.
    """
    if not zipfile.is_zipfile(path):
        # Of torch's older format, or no checkpoint.
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:
        raise ValueError(f"{path} is damaged: {first_line(error)}") from None
    if damaged:
        raise ValueError(f"{path} is damaged: the checksum of {damaged} in it is wrong; copy the file again")


def read_checkpoint(path: Path) -> dict:
    """
    Raises:
        ValueError: if the file is not a readable YAN checkpoint, saying why.
    """
    if not path.is_file():
        raise ValueError(f"--checkpoint {path} is not a file")
    if not path.stat().st_size:
        raise ValueError(f"{path} cannot be read as a checkpoint: it is empty")
    check_archive(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds objects other than tensors and plain values, or is damaged: {first_line(error)}"
        ) from None
    except Exception as error:
        # Damaged files get as far as any line of torch's reader.
        raise ValueError(f"{path} cannot be read as a checkpoint: {first_line(error)}") from None
    if not isinstance(checkpoint, dict) or not all(
        isinstance(checkpoint.get(k), dict) for k in ("model", "model_config")
    ):
        raise ValueError(f"{path} is not a YAN checkpoint: it needs the dictionaries 'model' and 'model_config'")
    return checkpoint


def check_weights(state: dict) -> None:
    """
    Raises:
        ValueError: for values that are no tensors of finite floating-point numbers which float32 holds exactly.
    """
    strangers = sorted(str(name) for name, value in state.items() if not isinstance(value, torch.Tensor))
    if strangers:
        raise ValueError(f"the state dict holds values that are not tensors under {strangers}")
    for name, value in state.items():
        kinds = {
            "nested tensor": value.is_nested,
            "quantised tensor": value.is_quantized,
            "sparse tensor": value.layout != torch.strided,
            "tensor without numbers": value.is_meta,
        }
        for kind in (kind for kind, found in kinds.items() if found):
            raise ValueError(f"{name} is a {kind}; save plain ones")
        if value.dtype not in WEIGHT_TYPES:
            raise ValueError(f"{name} has dtype {value.dtype}; weights are of {[str(kind) for kind in WEIGHT_TYPES]}")
        if not value.isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite")


def check_settings(published: dict, losses: object, num_weights: int) -> None:
    """
    What `translate_config` calculates with, and sizes that would fill the memory before the weights show them wrong.

    Raises:
        ValueError: naming the key and its value.
    """
    if not isinstance(losses, dict | None):
        raise ValueError(f"loss_config is of type {type(losses).__name__}; it must be a dictionary")
    for name in (key for key in SIZES if key in published):
        value = published[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"model_config: {name}={value!r} must be a whole number that is not negative")
        if name in LAYERS and value > num_weights:
            raise ValueError(f"model_config: {name}={value}, but the state dict has only {num_weights} tensors")
    for name in (key for key in SWITCHES if key in published):
        if not isinstance(published[name], bool):
            raise ValueError(f"model_config: {name}={published[name]!r} must be True or False")
    if not 1 <= published.get("ode_steps", 4) - 1 <= MOST_STEPS:
        raise ValueError(f"model_config: ode_steps={published['ode_steps']} must be from 2 to {MOST_STEPS + 1}")


def check_shapes(state: dict[str, torch.Tensor], table: KeyTable, model_class: type, config: YanConfig) -> None:
    """
    Before a model takes memory.

    Raises:
        ValueError: for a weight of another shape than the config asks for.
    """
    try:
        with torch.device("meta"):
            shapes = {ours: weight.shape for ours, weight in model_class(config).state_dict().items()}
    except RuntimeError as error:
        raise ValueError(f"no model has the sizes of model_config: {first_line(error)}") from None
    for ours, shape in shapes.items():
        # An expert's own tensors lack the axis that stacks them.
        shape = shape[1:] if ours.startswith(STACKED) else shape
        for key in table[ours]:
            if state[key].shape != shape:
                raise ValueError(f"{key} has shape {tuple(state[key].shape)}, the config asks for {tuple(shape)}")


def convert(checkpoint: dict) -> PreTrainedModel:
    """
    The model a published checkpoint holds: `YanForConditionalGeneration`, or `YanForMaskedLM` for an autoencoder.

    Raises:
        ValueError: for keys that are unknown or missing, wrong types, values and shapes, and shared tables that differ.
    """
    state, losses = dict(checkpoint["model"]), checkpoint.get("loss_config")
    check_weights(state)
    check_settings(checkpoint["model_config"], losses, len(state))
    has_flow = any(name.startswith("flow.") for name in state)
    config = translate_config(checkpoint["model_config"], losses)
    for table_name, copies in SHARED_TABLES.items():
        for copy in copies:
            if copy in state and not torch.equal(state.pop(copy), state.get(table_name, torch.empty(0))):
                raise ValueError(f"{copy} differs from {table_name}, which it should repeat")
    table = key_table(config, has_flow)
    expected = {key for keys in table.values() for key in keys}
    missing, unknown = sorted(expected - set(state)), sorted(set(state) - expected)
    if missing or unknown:
        raise ValueError(f"the state dict lacks {missing} and has unknown keys {unknown}")
    if not has_flow:
        config.training_config = {"ce_loss_weight": 1.0}
    model_class = YanForConditionalGeneration if has_flow else YanForMaskedLM
    check_shapes(state, table, model_class, config)
    model = model_class(config)
    weights = {
        ours: torch.stack([state[key] for key in keys]) if ours.startswith(STACKED) else state[keys[0]]
        for ours, keys in table.items()
    }
    model.load_state_dict(weights)
    if has_flow:
        model.generation_config.num_inference_steps = config.training_config.unroll_steps
    return model.eval()


def convert_file(path: Path) -> PreTrainedModel:
    """
    As `convert`, from a file.

    Raises:
        ValueError: naming the file and what is wrong in it.
    """
    checkpoint = read_checkpoint(path)
    try:
        return convert(checkpoint)
    except (ValueError, StrictDataclassError) as error:
        raise ValueError(f"{path}: {error}") from None


def reverse(model: PreTrainedModel) -> dict:
    """The published checkpoint of a model: what `convert` reads, shared tables repeated as the published code does."""
    config, weights = model.config, model.state_dict()
    has_flow = isinstance(model, YanForConditionalGeneration)
    options = published_config(config)
    state: dict[str, torch.Tensor] = {}
    for ours, theirs in key_table(config, has_flow).items():
        parts = weights[ours].unbind(0) if ours.startswith(STACKED) else [weights[ours]]
        state |= {key: part.clone() for key, part in zip(theirs, parts, strict=True)}
    for table_name, copies in SHARED_TABLES.items():
        state |= {copy: state[table_name].clone() for copy in copies if has_flow or not copy.startswith("flow.")}
    losses = {theirs: getattr(config.training_config, ours) for theirs, ours in LOSS_FIELDS.items()}
    return {"model": state, "model_config": options, "loss_config": losses, "trainer_config": {}, "step": 0}


def outputs(model: PreTrainedModel) -> torch.Tensor:
    """Logits on fixed inputs, to compare two copies of a model."""
    ids = torch.arange(12).view(2, 6) % model.config.vocab_size
    with torch.no_grad():
        return model(ids).logits


def check_copy(again: PreTrainedModel, model: PreTrainedModel) -> None:
    """
    Raises:
        ValueError: unless every weight is bit-equal and the outputs agree. Those may differ in the last bit: loaded
            weights lie elsewhere in memory, and matrix products depend on alignment.
    """
    weights = again.state_dict()
    equal = all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    if not equal or not torch.allclose(outputs(again.eval()), outputs(model), atol=1e-5, rtol=1e-5):
        raise ValueError("what was written does not give the outputs of what was read; nothing was kept")


def model_card(model: PreTrainedModel, source: str, repository: str) -> str:
    """README.md of a converted folder."""
    config, generates = model.config, isinstance(model, YanForConditionalGeneration)
    auto_class = "AutoModelForSeq2SeqLM" if generates else "AutoModelForMaskedLM"
    rows = {
        "parameters": f"{model.num_parameters():,}",
        "vocabulary": f"{config.vocab_size:,}",
        "hidden size": config.hidden_size,
        "encoder": f"{config.encoder_layers} layers, {config.encoder_mixer}",
    }
    use = "logits = model(**source).logits  # one per position"
    if generates:
        rows |= {"flow": f"{config.flow_layers} layers, {config.flow_mixer}", "experts": config.num_experts}
        use = "print(tokenizer.decode(model.generate(**source, max_new_tokens=32)[0], skip_special_tokens=True))"
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    length = " It predicts no length: give `max_new_tokens` or `target_lengths`." if generates else ""
    return f"""---
library_name: transformers
{"pipeline_tag: text-generation" if generates else "pipeline_tag: fill-mask"}
tags:
- yan
- flow-matching
- custom_code
---

# {repository}

Converted from the published YAN checkpoint `{source}` with the same numbers (arXiv 2604.15009).{length}

```python
from transformers import AutoTokenizer, {auto_class}

model = {auto_class}.from_pretrained("{repository}", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("{repository}")
source = tokenizer("...", return_tensors="pt")
{use}
```

| | |
| --- | --- |
{table}
"""


def write_published(model: PreTrainedModel, folder: Path) -> None:
    """Writes `folder/checkpoint.pt`, which appears only if, read again, it gives the model's outputs."""
    checkpoint = reverse(model)
    with whole_folder(folder) as written:
        try:
            torch.save(checkpoint, written / "checkpoint.pt")
        except RuntimeError as error:
            # What torch says of a full disk.
            raise OSError(f"{folder / 'checkpoint.pt'} cannot be written: {first_line(error)}") from None
        check_copy(convert_file(written / "checkpoint.pt"), model)


def load_folder(path: Path) -> PreTrainedModel:
    """
    A Hub folder as the class its weights are of.

    Raises:
        ValueError: for a folder of no such class, one that cannot be read or lacks weights.
    """
    if not (path / "config.json").is_file():
        raise ValueError(f"--checkpoint {path} is not a model folder; --reverse reads one")
    names = read_config(path).architectures or [""]
    classes = {model_class.__name__: model_class for model_class in (YanForConditionalGeneration, YanForMaskedLM)}
    if names[0] not in classes:
        raise ValueError(f"--checkpoint {path} holds {names[0] or 'no class'}; --reverse reads {sorted(classes)}")
    return read_model(classes[names[0]], path, dtype=torch.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument("--checkpoint", type=Path, required=True, help="published checkpoint; with --reverse a folder")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to be written, new or empty")
    parser.add_argument("--tokenizer", help="saved beside the model")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the tokenizer")
    parser.add_argument("--push_to_hub", metavar="ID", help="repository to upload the folder to")
    parser.add_argument("--reverse", action="store_true", help="write the published format from a model folder")
    arguments = parser.parse_args()
    if arguments.reverse:
        if arguments.tokenizer or arguments.push_to_hub:
            raise ValueError("--reverse writes a single file; --tokenizer and --push_to_hub do not go with it")
        write_published(load_folder(arguments.checkpoint), arguments.output_dir)
        print(f"{arguments.output_dir / 'checkpoint.pt'}")
        return
    check_destination(arguments.output_dir)
    model, tokenizer = convert_file(arguments.checkpoint), None
    if arguments.tokenizer:
        tokenizer = read_tokenizer(arguments.tokenizer, trust_remote_code=arguments.trust_remote_code)
    if tokenizer is not None and len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"--tokenizer {arguments.tokenizer} has {len(tokenizer)} ids, the checkpoint {model.config.vocab_size}"
        )
    card = model_card(model, arguments.checkpoint.name, arguments.push_to_hub or arguments.output_dir.name)
    write_folder(model, tokenizer, arguments.output_dir, card, lambda again: check_copy(again, model))
    print(f"{type(model).__name__}, {model.num_parameters():,} parameters, in {arguments.output_dir}")
    if arguments.push_to_hub:
        push_folder(arguments.output_dir, arguments.push_to_hub)


if __name__ == "__main__":
    run_script(main)
