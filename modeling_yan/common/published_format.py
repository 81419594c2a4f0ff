"""The published format beside ours: fields of its configs, and the key of every weight."""

from modeling_yan.configuration_yan import YanConfig

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
        "copy_mechanism": False,
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
