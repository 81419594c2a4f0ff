r"""
Turns a checkpoint of the published YAN training code into a Hub folder with the same numbers, and back.

    python conversion/convert_published_checkpoint.py --checkpoint X.pt --output_dir DIR \
        [--tokenizer NAME_OR_DIR] [--push_to_hub ID]
    python conversion/convert_published_checkpoint.py --reverse --checkpoint DIR --output_dir DIR2

The second one writes DIR2/checkpoint.pt.

Reads tensors only (`weights_only=True`). Every key is mapped by one table, strictly both ways. Nothing is left behind
unless what was written, loaded again, gives the same outputs as the weights that went into it.
"""

import argparse
import json
import pickle
import shutil
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel

from modeling_yan import YanConfig, YanForConditionalGeneration, YanForMaskedLM
from modeling_yan.common.arguments import run_script
from modeling_yan.common.hub import check_destination, push_folder, write_folder

# Published model_config key -> YanConfig field.
CONFIG_FIELDS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "dropout": "hidden_dropout_prob",
    "attention_heads": "num_attention_heads",
    "qkv_bias": "attention_bias",
    "encoder_n_trf_blocks": "encoder_layers",
    "decoder_n_resi_blocks": "decoder_layers",
    "n_trf_blocks": "flow_layers",
    "cross_att_idx": "cross_attention_layers",
    "moe_n_experts": "num_experts",
    "moe_gate_temperature": "gate_temperature",
    "init_noise": "prior_std",
    "mamba_d_state": "mamba_d_state",
    "mamba_d_conv": "mamba_d_conv",
    "mamba_expand": "mamba_expand",
    "pad_token_id": "pad_token_id",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "mask_token_id": "mask_token_id",
}
# The same for what only training reads (YanTrainingConfig); loss weights are in the published loss_config.
TRAINING_FIELDS = {
    "latent_noise": "latent_noise",
    "moe_sigma": "velocity_std",
    "beta_a": "time_sampling_alpha",
    "beta_b": "time_sampling_beta",
}
LOSS_FIELDS = {"lambda_vf": "nll_loss_weight", "lambda_distill": "mse_loss_weight", "lambda_ce": "ce_loss_weight"}
# Handled by `translate_config` itself, or of the training run and not of the model.
OTHER_CONFIG_KEYS = {
    "max_length",
    "moe_gate_dim_multiplier",
    "ode_steps",
    "encoder_use_mamba",
    "flow_use_mamba",
    "mamba_ff_mult",
    "freeze_enc",
    "freeze_flow",
    "freeze_dec",
    "freeze_tok_emb",
    "freeze_pos_emb",
}
MAMBA_PARAMETERS = (
    "A_log",
    "D",
    "in_proj.weight",
    "conv1d.weight",
    "conv1d.bias",
    "x_proj.weight",
    "dt_proj.weight",
    "dt_proj.bias",
    "out_proj.weight",
)
# Our parameter name -> the published key it holds, or the K keys that are stacked in it.
KeyTable = dict[str, list[str]]
# Our names whose first axis stacks the experts.
STACKED = "model.flow.experts."
SHARED_TABLES = {
    "shared_tok_emb.weight": ("encoder.shared_tok_emb.weight",),
    "shared_pos_emb.weight": ("encoder.shared_pos_emb.weight", "flow.shared_pos_emb.weight"),
}


def translate_config(published: dict, losses: dict | None = None) -> YanConfig:
    """
    Args:
        published: the checkpoint's `model_config`.
        losses: its `loss_config`; weights with other names than the three known ones are left at their defaults.

    Raises:
        ValueError: naming keys that are unknown or missing.
    """
    unknown = sorted(set(published) - set(CONFIG_FIELDS) - set(TRAINING_FIELDS) - OTHER_CONFIG_KEYS)
    needed = {"vocab_size", "d_model", "max_length", "attention_heads", "encoder_n_trf_blocks", "decoder_n_resi_blocks"}
    missing = sorted(needed - set(published))
    if unknown or missing:
        raise ValueError(f"model_config has unknown keys {unknown} and lacks {missing}")
    options = {ours: published[theirs] for theirs, ours in CONFIG_FIELDS.items() if theirs in published}
    width = published["d_model"]
    options["max_position_embeddings"] = published["max_length"] + 1
    options["gate_hidden_size"] = published.get("moe_gate_dim_multiplier", 1) * width
    options["encoder_mixer"] = "mamba" if published.get("encoder_use_mamba") else "attention"
    options["flow_mixer"] = "mamba" if published.get("flow_use_mamba") else "attention"
    options["mamba_intermediate_size"] = published.get("mamba_ff_mult", 4) * width
    training = {ours: published[theirs] for theirs, ours in TRAINING_FIELDS.items() if theirs in published}
    training |= {ours: losses[theirs] for theirs, ours in LOSS_FIELDS.items() if theirs in (losses or {})}
    training["unroll_steps"] = published.get("ode_steps", 4) - 1
    return YanConfig(length_head=False, training_config=training, **options)


def linear_keys(ours: str, theirs: str, bias: bool = True) -> KeyTable:
    return {f"{ours}.{name}": [f"{theirs}.{name}"] for name in (("weight", "bias") if bias else ("weight",))}


def norm_keys(ours: str, theirs: str) -> KeyTable:
    return {f"{ours}.weight": [f"{theirs}.scale"], f"{ours}.bias": [f"{theirs}.shift"]}


def attention_keys(ours: str, theirs: str, bias: bool) -> KeyTable:
    table = linear_keys(f"{ours}.out_proj", f"{theirs}.out_proj")
    for name in "qkv":
        table |= linear_keys(f"{ours}.{name}_proj", f"{theirs}.W_{name}", bias=bias)
    return table


def feed_forward_keys(ours: str, theirs: str, last: int = 2) -> KeyTable:
    """`last`: number of the second linear layer among the published ones."""
    up = linear_keys(f"{ours}.up_proj", f"{theirs}.layers.0")
    return up | linear_keys(f"{ours}.down_proj", f"{theirs}.layers.{last}")


def mamba_keys(ours: str, theirs: str) -> KeyTable:
    table = linear_keys(f"{ours}.proj", f"{theirs}.proj")
    for direction in ("fwd", "bwd"):
        for name in MAMBA_PARAMETERS:
            table[f"{ours}.{direction}.{name}"] = [f"{theirs}.{direction}.{name}"]
    return table


def block_keys(kind: str, ours: str, theirs: str, bias: bool) -> KeyTable:
    """Mixer of a kind and feed-forward of a block."""
    if kind == "mamba":
        # These have a dropout between the linear layers.
        feed_forward = feed_forward_keys(f"{ours}.feed_forward", f"{theirs}.ff", last=3)
        return mamba_keys(f"{ours}.mixer", f"{theirs}.self_mixer") | feed_forward
    attention = attention_keys(f"{ours}.mixer", f"{theirs}.self_att", bias)
    return attention | feed_forward_keys(f"{ours}.feed_forward", f"{theirs}.ff")


def block_name(part: str, kind: str, index: int) -> str:
    """What the published code calls a block of "encoder" or "flow"."""
    return f"{part}.{'mamba' if kind == 'mamba' else 'trf'}_blocks.{index}"


def autoencoder_keys(config: YanConfig) -> KeyTable:
    """Embeddings, encoder and decoder."""
    table = {
        "model.encoder.embeddings.word_embeddings.weight": ["shared_tok_emb.weight"],
        "model.encoder.embeddings.position_embeddings.weight": ["shared_pos_emb.weight"],
        **linear_keys("decoder.lm_head", "decoder.lm_head"),
        **norm_keys("model.encoder.final_norm", "encoder.final_norm"),
    }
    kind = config.encoder_mixer
    for index in range(config.encoder_layers):
        ours, theirs = f"model.encoder.layers.{index}", block_name("encoder", kind, index)
        table |= block_keys(kind, ours, theirs, config.attention_bias)
        table |= norm_keys(f"{ours}.mixer_norm", f"{theirs}.norm_self" + ("" if kind == "mamba" else "_att"))
        table |= norm_keys(f"{ours}.feed_forward_norm", f"{theirs}.norm_ff")
    for index in range(config.decoder_layers):
        ours, theirs = f"decoder.layers.{index}", f"decoder.resi_blocks.{index}"
        table |= norm_keys(f"{ours}.norm", f"{theirs}.norm")
        table |= feed_forward_keys(f"{ours}.feed_forward", f"{theirs}.ff")
    return table


def flow_keys(config: YanConfig) -> KeyTable:
    """Blocks, time embedding, gate and experts of the velocity field."""
    table = norm_keys("model.flow.final_norm", "flow.final_norm")
    table |= linear_keys("model.flow.time_embedding.proj", "flow.time_emb.1")
    table |= linear_keys("model.flow.gate.up_proj", "flow.gate.0")
    table |= linear_keys("model.flow.gate.down_proj", "flow.gate.2")
    kind, bias = config.flow_mixer, config.attention_bias
    for index in range(config.flow_layers):
        ours, theirs = f"model.flow.layers.{index}", block_name("flow", kind, index)
        table |= block_keys(kind, ours, theirs, bias)
        table |= linear_keys(f"{ours}.modulation", f"{theirs}.adaLN.1")
        if index in config.cross_attention_layers:
            table |= attention_keys(f"{ours}.cross_attention", f"{theirs}.cross_att", bias)
    for part, layer in (("up", 0), ("down", 2)):
        for ours, theirs in ((f"{part}_proj", "weight"), (f"{part}_bias", "bias")):
            keys = [f"flow.expert_out_proj.{k}.layers.{layer}.{theirs}" for k in range(config.num_experts)]
            table[f"{STACKED}{ours}"] = keys
    return table


def key_table(config: YanConfig, has_flow: bool) -> KeyTable:
    """The keys of a model of this config."""
    return {**autoencoder_keys(config), **(flow_keys(config) if has_flow else {})}


def read_checkpoint(path: Path) -> dict:
    """
    Raises:
        ValueError: if the file is not a readable YAN checkpoint, saying why.
    """
    if not path.is_file():
        raise ValueError(f"--checkpoint {path} is not a file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} holds objects other than tensors and plain values, or is damaged: {reason}") from None
    except (RuntimeError, EOFError, zipfile.BadZipFile, KeyError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: {str(error).splitlines()[0]}") from None
    if not isinstance(checkpoint, dict) or not all(
        isinstance(checkpoint.get(k), dict) for k in ("model", "model_config")
    ):
        raise ValueError(f"{path} is not a YAN checkpoint: it needs the dictionaries 'model' and 'model_config'")
    return checkpoint


def convert(checkpoint: dict) -> PreTrainedModel:
    """
    The model a published checkpoint holds: `YanForConditionalGeneration`, or `YanForMaskedLM` for an autoencoder.

    Raises:
        ValueError: for keys that are unknown or missing, wrong shapes, and shared tables that differ.
    """
    state = dict(checkpoint["model"])
    strangers = sorted(name for name, value in state.items() if not isinstance(value, torch.Tensor))
    if strangers:
        raise ValueError(f"the state dict holds values that are not tensors under {strangers}")
    has_flow = any(name.startswith("flow.") for name in state)
    config = translate_config(checkpoint["model_config"], checkpoint.get("loss_config"))
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
    model = (YanForConditionalGeneration if has_flow else YanForMaskedLM)(config)
    weights = {}
    for ours, target in model.state_dict().items():
        parts = [state[key] for key in table[ours]]
        value = torch.stack(parts) if ours.startswith(STACKED) else parts[0]
        if value.shape != target.shape:
            raise ValueError(
                f"{table[ours][0]} has shape {tuple(parts[0].shape)}, the config asks for {tuple(target.shape)}"
            )
        weights[ours] = value
    model.load_state_dict(weights)
    if has_flow:
        model.generation_config.num_inference_steps = config.training_config.unroll_steps
    return model.eval()


def published_config(config: YanConfig) -> dict:
    """
    The `model_config` that `translate_config` turns into this config.

    Raises:
        ValueError: naming what the published format cannot hold.
    """
    width = config.hidden_size
    fixed = {
        "prediction_type": "velocity",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "intermediate_size": 4 * width,
        "length_head": False,
    }
    other = {name: getattr(config, name) for name, value in fixed.items() if getattr(config, name) != value}
    multiples = ("gate_hidden_size", "mamba_intermediate_size")
    other |= {name: getattr(config, name) for name in multiples if getattr(config, name) % width}
    mixers = ("encoder_mixer", "flow_mixer")
    other |= {name: getattr(config, name) for name in mixers if getattr(config, name) not in ("attention", "mamba")}
    if other:
        raise ValueError(f"the published format cannot hold {other}; it needs {fixed} and widths that are multiples")
    return {
        **{theirs: getattr(config, ours) for theirs, ours in CONFIG_FIELDS.items()},
        **{theirs: getattr(config.training_config, ours) for theirs, ours in TRAINING_FIELDS.items()},
        "max_length": config.max_position_embeddings - 1,
        "moe_gate_dim_multiplier": config.gate_hidden_size // width,
        "ode_steps": config.training_config.unroll_steps + 1,
        "encoder_use_mamba": config.encoder_mixer == "mamba",
        "flow_use_mamba": config.flow_mixer == "mamba",
        "mamba_ff_mult": config.mamba_intermediate_size // width,
    }


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
    """Writes `folder/checkpoint.pt`, reads it again, compares, and only then moves it into place."""
    checkpoint = reverse(model)
    check_destination(folder)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        file = Path(temporary) / "checkpoint.pt"
        torch.save(checkpoint, file)
        check_copy(convert(read_checkpoint(file)), model)
        folder.mkdir(exist_ok=True)
        shutil.move(file, folder / "checkpoint.pt")


def load_folder(path: Path) -> PreTrainedModel:
    """A Hub folder as the class its weights are of."""
    if not (path / "config.json").is_file():
        raise ValueError(f"--checkpoint {path} is not a model folder; --reverse reads one")
    architecture = (json.loads((path / "config.json").read_text(encoding="utf-8")).get("architectures") or [""])[0]
    classes = {model_class.__name__: model_class for model_class in (YanForConditionalGeneration, YanForMaskedLM)}
    if architecture not in classes:
        raise ValueError(f"--checkpoint {path} holds {architecture or 'no class'}; --reverse reads {sorted(classes)}")
    return classes[architecture].from_pretrained(path, dtype=torch.float32).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="published checkpoint; with --reverse a folder")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--tokenizer", help="saved beside the model")
    parser.add_argument("--push_to_hub", metavar="ID", help="repository to upload the folder to")
    parser.add_argument("--reverse", action="store_true", help="write the published format from a model folder")
    arguments = parser.parse_args()
    if arguments.reverse:
        if arguments.tokenizer or arguments.push_to_hub:
            raise ValueError("--reverse writes a single file; --tokenizer and --push_to_hub do not go with it")
        write_published(load_folder(arguments.checkpoint), arguments.output_dir)
        print(f"{arguments.output_dir / 'checkpoint.pt'}")
        return
    model = convert(read_checkpoint(arguments.checkpoint))
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer) if arguments.tokenizer else None
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
