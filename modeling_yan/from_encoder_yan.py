"""A new YAN around a pretrained encoder of transformers: its sizes, its weights, its token ids."""

import dataclasses
import os

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from .configuration_yan import HOSTED_ENCODERS, YanConfig
from .encoder_yan import encoder_within
from .training_config_yan import TRAINING_FIELDS

# What stands around a pretrained encoder where nothing else is asked for. Only the endpoint is trained: with it nothing
# pulls the flow towards the encoder's latents of the answer, which no decoder has been trained to read.
HOSTED_DEFAULTS = {
    "flow_layers": 4,
    "decoder_layers": 1,
    "num_experts": 1,
    "prediction_type": "data",
    "tie_word_embeddings": True,
}
HOSTED_TRAINING = {"unroll_steps": 1, "nll_loss_weight": 0.0, "mse_loss_weight": 0.0}
# What the encoder and its tokenizer decide.
OF_ENCODER = ("vocab_size", "hidden_size", "encoder_layers", "encoder_mixer", "reverse_positions", "encoder_config")
# What AutoModel adds to an encoder, and YAN does not read.
UNREAD = ("pooler.", "decoder.")
# Longest text of an encoder whose positions are relative and have no end.
DEFAULT_MAX_LENGTH = 1024


def check_hosted(encoder: PreTrainedConfig) -> None:
    """
    Raises:
        ValueError: for an encoder that YAN cannot stand around.
    """
    if encoder.model_type not in HOSTED_ENCODERS:
        raise ValueError(
            f"the encoder is of type {encoder.model_type!r}; the encoders that can be hosted are "
            f"{sorted(HOSTED_ENCODERS)}. Models that read in one direction are none, and other position schemes have "
            "not been shown to carry over"
        )


def longest_text(encoder: PreTrainedConfig) -> int:
    """Positions the encoder has; RoBERTa's table begins after the padding id."""
    length = getattr(encoder, "max_position_embeddings", None) or DEFAULT_MAX_LENGTH
    return length - encoder.pad_token_id - 1 if encoder.model_type == "roberta" else length


def hosted_token_ids(
    encoder: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None, given: dict
) -> dict[str, int | None]:
    """
    Ids of pad, BOS, EOS and mask, from what is given, the tokenizer, or else the encoder's config; BERT's CLS and SEP
    are BOS and EOS.

    Raises:
        ValueError: where nothing says which id ends a text, or fills a batch.
    """

    def found(*names: str) -> int | None:
        if f"{names[0]}_token_id" in given:
            return given[f"{names[0]}_token_id"]
        holder = encoder if tokenizer is None else tokenizer
        ids = (getattr(holder, f"{name}_token_id", None) for name in names)
        return next((value for value in ids if value is not None), None)

    ids = {"pad": found("pad"), "bos": found("bos", "cls"), "eos": found("eos", "sep"), "mask": found("mask")}
    for name, remedy in (("eos", "or a sep_token"), ("pad", "such as '[PAD]'")):
        if ids[name] is None:
            raise ValueError(
                f"neither tokenizer nor encoder has a token for {name}_token_id, which a YAN needs; give the tokenizer "
                f"a {name}_token {remedy}, or pass {name}_token_id"
            )
    return {f"{name}_token_id": value for name, value in ids.items()}


def config_around(encoder: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None = None, **fields) -> YanConfig:
    """
    The config of a YAN around an encoder: its sizes, the tokenizer's ids, and `HOSTED_DEFAULTS`.

    Args:
        encoder: of a model of `HOSTED_ENCODERS`; of a sequence-to-sequence model its encoder half is meant.
        tokenizer: of the encoder; without it ids come from the encoder's config.
        **fields: of `YanConfig`, those of its `training_config` among them, instead of the defaults.

    Raises:
        ValueError: for an encoder that cannot be hosted, names that are no fields, fields that the encoder decides,
            a tokenizer with more entries than the encoder has embeddings, and one without a token that ends a text.
    """
    check_hosted(encoder)
    known = {field.name for field in dataclasses.fields(YanConfig)} | {*TRAINING_FIELDS, "flow_from_encoder"}
    unknown, decided = sorted({*fields} - known), sorted({*fields} & {*OF_ENCODER})
    if unknown:
        raise ValueError(f"{unknown} are no fields of YanConfig or its training_config")
    if decided:
        raise ValueError(f"{decided} are the encoder's and cannot be changed around it; leave them out")
    if tokenizer is not None and len(tokenizer) > encoder.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer):,} entries, the encoder embeddings for {encoder.vocab_size:,}: they "
            "are not of one model; load both from the same name, or resize the encoder's embeddings first"
        )
    longest = longest_text(encoder)
    if fields.get("max_position_embeddings", longest) > longest:
        raise ValueError(
            f"max_position_embeddings={fields['max_position_embeddings']} is more than the {longest} positions of the "
            f"{encoder.model_type} encoder"
        )
    training = {**HOSTED_TRAINING, **(fields.pop("training_config", None) or {})}
    training |= {name: fields.pop(name) for name in TRAINING_FIELDS if name in fields}
    own = encoder.to_dict()
    if os.path.isdir(own.get("_name_or_path") or ""):
        # Where a folder lies on this machine is nobody's business who gets the model.
        own["_name_or_path"] = ""
    sizes = {"num_attention_heads": encoder.num_attention_heads, "max_position_embeddings": longest}
    return YanConfig(
        vocab_size=encoder.vocab_size,
        hidden_size=encoder.hidden_size,
        encoder_config=own,
        training_config=training,
        **{**HOSTED_DEFAULTS, **sizes, **fields, **hosted_token_ids(encoder, tokenizer, fields)},
    )


def load_encoder(name: str | os.PathLike, **options) -> PreTrainedModel:
    """
    A pretrained encoder in float32 and evaluation mode; of a sequence-to-sequence model its encoder half.

    Args:
        name: folder or Hub name.
        **options: of `from_pretrained`, such as `revision` or `token`.

    Raises:
        ValueError: for an encoder that cannot be hosted or lacks weights.
    """
    check_hosted(AutoConfig.from_pretrained(name, **options))
    model, info = AutoModel.from_pretrained(name, output_loading_info=True, dtype=torch.float32, **options)
    missing = sorted(weight for weight in info["missing_keys"] if not weight.startswith(UNREAD))
    if missing:
        raise ValueError(
            f"{name} lacks {len(missing)} weights of the encoder, which would be random, among them {missing[0]}; name "
            "a folder that was saved from a whole model"
        )
    return encoder_within(model).eval()


# Name in a flow layer -> name in a layer of BERT's form.
LAYER_KEYS = {
    "cross_attention.q_proj": "attention.self.query",
    "cross_attention.k_proj": "attention.self.key",
    "cross_attention.v_proj": "attention.self.value",
    "cross_attention.source_k_proj": "attention.self.key",
    "cross_attention.source_v_proj": "attention.self.value",
    "cross_attention.out_proj": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feed_forward.up_proj": "intermediate.dense",
    "feed_forward.down_proj": "output.dense",
    "feed_forward_norm": "output.LayerNorm",
}


@torch.no_grad()
def start_flow_from_encoder(model: PreTrainedModel) -> None:
    """
    Gives the flow's layers the weights of the hosted encoder's last ones, its input norm that of the embeddings, and
    the canvas the encoder's positions under mask tokens, on the scale of the prior (standard deviation 1).
    """
    encoder, flow = model.model.encoder, model.model.flow
    layers = encoder.backbone.encoder.layer
    for ours, theirs in zip(flow.layers, layers[len(layers) - len(flow.layers) :], strict=True):
        for name, their_name in LAYER_KEYS.items():
            ours.get_submodule(name).load_state_dict(theirs.get_submodule(their_name).state_dict())
    embeddings, canvas = encoder.backbone.embeddings, encoder.embeddings.position_embeddings.weight
    flow.input_norm.load_state_dict(embeddings.LayerNorm.state_dict())
    # RoBERTa's positions begin after the padding id.
    table = embeddings.position_embeddings.weight[-len(canvas) :] + embeddings.token_type_embeddings.weight[-1]
    if model.config.mask_token_id is not None:
        table = table + embeddings.word_embeddings.weight[model.config.mask_token_id]
    canvas.copy_(table / table.std())


class YanFromEncoderMixin:
    """Gives a class with a hosted encoder, at `model.encoder.backbone`, its way to begin."""

    @classmethod
    def from_encoder(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        revision: str = "main",
        token: str | bool | None = None,
        **config,
    ):
        """
        A new model around a pretrained encoder: its embeddings, layers and positions in place, so that it gives the
        original's hidden states; flow, decoder and length head are untrained.

            YanForConditionalGeneration.from_encoder("google-bert/bert-base-uncased", flow_layers=4, num_experts=1)

        Args:
            pretrained_model_name_or_path: folder or Hub name of a BERT, RoBERTa, ModernBERT, BART or T5 (of the last
                two the encoder half); or such a model itself, whatever head is on it.
            tokenizer: which ids pad, begin and end texts; read from the same name by default.
            attn_implementation: as in `from_pretrained`.
            trust_remote_code: whether code that comes with the tokenizer may run.
            revision, token: as in `from_pretrained`.
            **config: fields of `YanConfig`, those of its `training_config` among them. By default `HOSTED_DEFAULTS`:
                the output projection is tied to the encoder's token embeddings.

        Raises:
            ValueError: for an encoder of another kind, without all its weights or with changed layers, a tokenizer that
                does not fit it or ends no text, and config fields that are unknown or do not fit.
            OSError: if there is no such model.
        """
        encoder, hub = pretrained_model_name_or_path, {"revision": revision, "token": token}
        if isinstance(encoder, PreTrainedModel):
            encoder = encoder_within(encoder)
        else:
            encoder = load_encoder(pretrained_model_name_or_path, **hub)
            if tokenizer is None:
                tokenizer = AutoTokenizer.from_pretrained(
                    pretrained_model_name_or_path, trust_remote_code=trust_remote_code, **hub
                )
        yan_config = config_around(encoder.config, tokenizer, **config)
        if attn_implementation is not None:
            yan_config._attn_implementation = attn_implementation
        model = cls(yan_config).eval()
        backbone, weights = model.model.encoder.backbone, encoder.state_dict()
        missing = sorted(backbone.state_dict().keys() - weights.keys())
        if missing:
            raise ValueError(
                f"{type(encoder).__name__} lacks {len(missing)} weights that its config promises, among them "
                f"{missing[0]}; merge adapters into it, and undo other changes of its layers"
            )
        backbone.load_state_dict({name: weights[name] for name in backbone.state_dict()})
        model.start_tied_head()
        if yan_config.flow_from_encoder and model.model.flow is not None:
            start_flow_from_encoder(model)
        return model
