"""
Turns a checkpoint of the published YAN training code into a Hub folder with the same numbers.

    python conversion/convert_published_checkpoint.py --checkpoint X.pt --output_dir DIR [--tokenizer NAME_OR_DIR] [--push_to_hub ID]

Reads tensors only (`weights_only=True`). Every key is mapped by one table, strictly both ways. Nothing is left behind
unless the written folder, loaded again, gives the same outputs as the weights that went into it.
"""

import argparse
import pickle
import shutil
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel

from modeling_yan import YanConfig, YanForConditionalGeneration, YanForMaskedLM
from modeling_yan.training.scripts import run_script

# Published model_config key -> YanConfig field.
CONFIG_FIELDS = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "dropout": "hidden_dropout_prob",
    "attention_heads": "num_attention_heads",
    "qkv_bias": "attention_bias",
    "encoder_n_trf_blocks": "encoder_layers",
    "decoder_n_resi_blocks": "decoder_layers",
    "latent_noise": "latent_noise",
    "n_trf_blocks": "flow_layers",
    "cross_att_idx": "cross_attention_layers",
    "moe_n_experts": "num_experts",
    "moe_gate_temperature": "gate_temperature",
    "moe_sigma": "velocity_std",
    "init_noise": "prior_std",
    "beta_a": "time_sampling_alpha",
    "beta_b": "time_sampling_beta",
    "mamba_d_state": "mamba_d_state",
    "mamba_d_conv": "mamba_d_conv",
    "mamba_expand": "mamba_expand",
    "pad_token_id": "pad_token_id",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "mask_token_id": "mask_token_id",
}
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
LOSS_FIELDS = {"lambda_vf": "nll_loss_weight", "lambda_distill": "mse_loss_weight", "lambda_ce": "ce_loss_weight"}
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
    unknown = sorted(set(published) - set(CONFIG_FIELDS) - OTHER_CONFIG_KEYS)
    needed = {"vocab_size", "d_model", "max_length", "attention_heads", "encoder_n_trf_blocks", "decoder_n_resi_blocks"}
    missing = sorted(needed - set(published))
    if unknown or missing:
        raise ValueError(f"model_config has unknown keys {unknown} and lacks {missing}")
    options = {ours: published[theirs] for theirs, ours in CONFIG_FIELDS.items() if theirs in published}
    width = published["d_model"]
    options["max_position_embeddings"] = published["max_length"] + 1
    options["gate_hidden_size"] = published.get("moe_gate_dim_multiplier", 1) * width
    options["unroll_steps"] = published.get("ode_steps", 4) - 1
    options["encoder_mixer"] = "mamba" if published.get("encoder_use_mamba") else "attention"
    options["flow_mixer"] = "mamba" if published.get("flow_use_mamba") else "attention"
    options["mamba_intermediate_size"] = published.get("mamba_ff_mult", 4) * width
    options |= {ours: losses[theirs] for theirs, ours in LOSS_FIELDS.items() if theirs in (losses or {})}
    return YanConfig(length_head=False, **options)


def key_table(config: YanConfig, has_flow: bool) -> dict[str, list[str]]:
    """Our parameter name -> the published key it holds, or the K keys that are stacked in it."""
    table: dict[str, list[str]] = {
        "model.encoder.embeddings.word_embeddings.weight": ["shared_tok_emb.weight"],
        "model.encoder.embeddings.position_embeddings.weight": ["shared_pos_emb.weight"],
        "decoder.lm_head.weight": ["decoder.lm_head.weight"],
        "decoder.lm_head.bias": ["decoder.lm_head.bias"],
    }

    def linear(ours: str, theirs: str, bias: bool = True) -> None:
        for name in ("weight", "bias") if bias else ("weight",):
            table[f"{ours}.{name}"] = [f"{theirs}.{name}"]

    def norm(ours: str, theirs: str) -> None:
        table[f"{ours}.weight"], table[f"{ours}.bias"] = [f"{theirs}.scale"], [f"{theirs}.shift"]

    def attention(ours: str, theirs: str) -> None:
        for name in "qkv":
            linear(f"{ours}.{name}_proj", f"{theirs}.W_{name}", bias=config.attention_bias)
        linear(f"{ours}.out_proj", f"{theirs}.out_proj")

    def feed_forward(ours: str, theirs: str) -> None:
        linear(f"{ours}.up_proj", f"{theirs}.layers.0")
        linear(f"{ours}.down_proj", f"{theirs}.layers.2")

    for i in range(config.encoder_layers):
        ours, theirs = f"model.encoder.layers.{i}", f"encoder.trf_blocks.{i}"
        attention(f"{ours}.mixer", f"{theirs}.self_att")
        feed_forward(f"{ours}.feed_forward", f"{theirs}.ff")
        norm(f"{ours}.mixer_norm", f"{theirs}.norm_self_att")
        norm(f"{ours}.feed_forward_norm", f"{theirs}.norm_ff")
    norm("model.encoder.final_norm", "encoder.final_norm")
    for i in range(config.decoder_layers):
        norm(f"decoder.layers.{i}.norm", f"decoder.resi_blocks.{i}.norm")
        feed_forward(f"decoder.layers.{i}.feed_forward", f"decoder.resi_blocks.{i}.ff")
    if not has_flow:
        return table
    for i in range(config.flow_layers):
        ours, theirs = f"model.flow.layers.{i}", f"flow.trf_blocks.{i}"
        attention(f"{ours}.mixer", f"{theirs}.self_att")
        feed_forward(f"{ours}.feed_forward", f"{theirs}.ff")
        linear(f"{ours}.modulation", f"{theirs}.adaLN.1")
        if i in config.cross_attention_layers:
            attention(f"{ours}.cross_attention", f"{theirs}.cross_att")
    norm("model.flow.final_norm", "flow.final_norm")
    linear("model.flow.time_embedding.proj", "flow.time_emb.1")
    linear("model.flow.gate.up_proj", "flow.gate.0")
    linear("model.flow.gate.down_proj", "flow.gate.2")
    for part, layer in (("up", 0), ("down", 2)):
        for ours, theirs in ((f"{part}_proj", "weight"), (f"{part}_bias", "bias")):
            keys = [f"flow.expert_out_proj.{k}.layers.{layer}.{theirs}" for k in range(config.num_experts)]
            table[f"model.flow.experts.{ours}"] = keys
    return table


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
    has_flow = any(name.startswith("flow.") for name in state)
    config = translate_config(checkpoint["model_config"], checkpoint.get("loss_config"))
    if "mamba" in (config.encoder_mixer, config.flow_mixer if has_flow else "attention"):
        raise ValueError("this checkpoint has Mamba mixers, which this version cannot load yet")
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
        config.ce_loss_weight = 1.0
    model = (YanForConditionalGeneration if has_flow else YanForMaskedLM)(config)
    weights = {}
    for ours, target in model.state_dict().items():
        parts = [state[key] for key in table[ours]]
        value = torch.stack(parts) if ours.startswith("model.flow.experts.") else parts[0]
        if value.shape != target.shape:
            raise ValueError(
                f"{table[ours][0]} has shape {tuple(parts[0].shape)}, the config asks for {tuple(target.shape)}"
            )
        weights[ours] = value
    model.load_state_dict(weights)
    if has_flow:
        model.generation_config.num_inference_steps = config.unroll_steps
    return model.eval()


def outputs(model: PreTrainedModel) -> torch.Tensor:
    """Logits on fixed inputs, to compare two copies of a model."""
    ids = torch.arange(12).view(2, 6) % model.config.vocab_size
    with torch.no_grad():
        return model(ids).logits


def write_folder(model: PreTrainedModel, tokenizer, folder: Path, source: str) -> None:
    """Writes to a temporary folder, loads it again, compares, and only then moves it into place."""
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"--output_dir {folder} is not empty")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        written = Path(temporary) / "model"
        model.save_pretrained(written)
        if tokenizer is not None:
            tokenizer.save_pretrained(written)
        (written / "README.md").write_text(
            f"---\nlibrary_name: transformers\ntags: [yan, custom_code]\n---\n\nConverted from the published YAN checkpoint `{source}`.\n",
            encoding="utf-8",
        )
        again = type(model).from_pretrained(written, dtype=model.dtype).eval()
        if not torch.equal(outputs(again), outputs(model)):
            raise ValueError("the written folder does not give the outputs of the checkpoint; nothing was kept")
        if folder.exists():
            folder.rmdir()
        shutil.move(written, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--tokenizer", help="saved beside the model")
    parser.add_argument("--push_to_hub", metavar="ID", help="repository to upload the folder to")
    arguments = parser.parse_args()
    model = convert(read_checkpoint(arguments.checkpoint))
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer) if arguments.tokenizer else None
    write_folder(model, tokenizer, arguments.output_dir, arguments.checkpoint.name)
    print(f"{type(model).__name__}, {model.num_parameters():,} parameters, in {arguments.output_dir}")
    if arguments.push_to_hub:
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(arguments.push_to_hub, exist_ok=True)
        api.upload_folder(repo_id=arguments.push_to_hub, folder_path=arguments.output_dir)


if __name__ == "__main__":
    run_script(main)
