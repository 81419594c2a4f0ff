"""YAN model configuration."""

import dataclasses
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import logging

from .losses_yan import LOSS_TERMS
from .training_config_yan import TRAINING_FIELDS, YanTrainingConfig, check_numbers

logger = logging.get_logger(__name__)

# Which class of modeling_yan.py answers for which Auto class. Written into config.json, so that a saved folder
# loads with `trust_remote_code=True` where this package is not installed.
AUTO_MAP = {
    "AutoConfig": "configuration_yan.YanConfig",
    "AutoModel": "modeling_yan.YanModel",
    "AutoModelForMaskedLM": "modeling_yan.YanForMaskedLM",
    "AutoModelForSeq2SeqLM": "modeling_yan.YanForConditionalGeneration",
    "AutoModelForSequenceClassification": "modeling_yan.YanForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_yan.YanForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_yan.YanForQuestionAnswering",
}
# Pipelines that transformers removed or that assume left-to-right models, answered by pipeline_yan.py.
CUSTOM_PIPELINES = {
    task: {"impl": "pipeline_yan.YanTextGenerationPipeline", "pt": ["AutoModelForSeq2SeqLM"], "type": "text"}
    for task in ("text2text-generation", "text-generation")
}
# The Llama-3 tokenizer with a pad and a mask token added.
DEFAULT_TOKEN_IDS = {"pad_token_id": 128256, "bos_token_id": 128000, "eos_token_id": 128001, "mask_token_id": 128257}
# Encoders whose own outputs are reproduced exactly inside a YAN. All count positions from the left edge or relatively,
# so rows are moved to the left edge first (see YanHostedEncoder).
HOSTED_ENCODERS = ("bart", "bert", "modernbert", "roberta", "t5")
# Positions that the convolution in front of "conv_attention" sees.
CONV_ATTENTION_SIZE = 5
# Those whose layers a flow can begin with: they share BERT's form.
FLOW_ENCODERS = ("bert", "roberta")

# Sizes beyond these are typing errors, and would fill memory before anything else could be said about them.
MOST_LAYERS, MOST_PARAMETERS = 1000, 10**12

# Keys of older folders: new names, and values that ask for nothing of what is gone.
RENAMED_KEYS = {"end_positions": "reverse_positions", "ngram_loss_weight": "bigram_loss_weight"}
REMOVED_KEYS = {
    "attention_conv_size": (CONV_ATTENTION_SIZE,),
    "embedding_std": (1.0,),
    "ngram_size": None,
    "num_experts_per_token": None,
}


@strict
class YanConfig(PreTrainedConfig):
    r"""
    Configuration of a YAN model: mixture-of-experts flow matching for text (arXiv 2604.15009). The defaults give
    a model of about 200 million parameters over the Llama-3 vocabulary with a pad and a mask token added.

    Args:
        vocab_size (`int`, defaults to 128258): Number of token ids.
        hidden_size (`int`, defaults to 512): Width of embeddings, latents and hidden states.
        num_attention_heads (`int`, defaults to 8): Heads of every attention; must divide `hidden_size`.
        intermediate_size (`int`, *optional*): Width of feed-forward layers and expert heads; `4 * hidden_size` if
            unset.
        max_position_embeddings (`int`, defaults to 1024): Rows of the position table, the longest source or target.
        reverse_positions (`bool`, defaults to `False`): Whether positions are also counted from the end, by a second
            table that the paper does not have: for answers that end as their source ends, such as a text with a gap
            filled.
        hidden_act (`str`, defaults to `"gelu"`): Activation of feed-forward layers, experts and gate.
        layer_norm_eps (`float`, defaults to 1e-5): Epsilon of every layer normalisation.
        hidden_dropout_prob (`float`, defaults to 0.1): Dropout after the embeddings and on every residual branch.
        attention_bias (`bool`, defaults to `False`): Bias of query, key and value projections; the output projection
            always has one.
        encoder_layers, flow_layers, decoder_layers (`int`, defaults to 6, 6, 2): Depth of the three parts.
        cross_attention_layers (`list[int]`, *optional*): Flow layers that attend to the source; all if unset.
        encoder_mixer, flow_mixer (`"attention"`, `"conv_attention"` or `"mamba"`): Token mixer of encoder and flow. The
            flow's may be `"joint"`, too, which `flow_from_encoder=True` asks for: its layers then have the form of a
            hosted encoder's (BERT's), so that they can begin with its weights, as `from_encoder` has them do: one
            softmax over source and canvas, norms behind their sums.
        mamba_d_state, mamba_d_conv, mamba_expand (`int`, defaults to 16, 4, 2): Sizes of the Mamba mixers.
        mamba_scan (`str`, defaults to `"auto"`): How the selective scan is computed: `"auto"` is the kernel of
            mamba-ssm on CUDA where it is installed and `"chunked"` (plain torch) elsewhere; `"doubling"` in compiled
            and exported graphs; `"sequential"` is the reference.
        mamba_intermediate_size (`int`, *optional*): Feed-forward width of Mamba blocks; `intermediate_size` if unset.
        encoder_config (`dict` or `PreTrainedConfig`, *optional*): Of a pretrained encoder from transformers that takes
            the place of YAN's own; its type is one of `HOSTED_ENCODERS`. `encoder_layers` is then its number of layers.
        num_experts (`int`, defaults to 4): Expert velocity fields K; 1 is plain flow matching.
        experts_implementation (`str`, defaults to `"auto"`): How a token's own expert is computed: `"loop"` (expert
            after expert, the reference), `"grouped_mm"` (one grouped product), `"dense"` (all experts, then the token's
            own). `"auto"` is the loop on a CPU, grouped products where torch has them elsewhere and in compiled graphs,
            `"dense"` in exported ones.
        gate_temperature (`float`, defaults to 1.0): Divides the gate logits.
        gate_hidden_size (`int`, *optional*): Hidden width of the gate; `hidden_size` if unset.
        prediction_type (`"velocity"` or `"data"`, defaults to `"velocity"`): What an expert head outputs: the velocity,
            as in the paper, or the endpoint x_1, from which the velocity is `(x_1 - x_t) / (1 - t)`.
        prior_std (`float`, defaults to 1.0): Standard deviation s_0 of the noise at t = 0.
        length_head (`bool` or `"source"`, defaults to `True`): Whether the model predicts the length of its answer.
            `"source"` is for answers that follow their source word by word, such as a corrected text: the canvas has
            `canvas_ratio` positions for every token of the source. Each begins with the state of its token, and the
            decoder can copy the token.
        canvas_ratio (`float`, defaults to 1.0): Positions of the canvas per token of the answer. 1 is the paper's:
            every token has its place. More (2, say) leaves positions blank, written as `pad_token_id`: tokens may stand
            anywhere in their order, and `ce_loss` is the exact likelihood over all placements (CTC). The loss terms
            that need a token's place are out then: set `nll_loss_weight` and `mse_loss_weight` to 0.
        copy_mechanism (`bool`, defaults to `False`): Whether an answer can take tokens of its source as they are: every
            position points at tokens of the source, which count beside the vocabulary. For names, numbers and
            quotations. It needs `input_ids` where the answer is written, and a `canvas_ratio` of 1.
        training_config (`dict` or `YanTrainingConfig`, *optional*): What only training reads: weights of the loss
            terms, sampling of times, unrolling, glancing, smoothing, chunks. A dict changes the settings that it names.
        initializer_range (`float`, *optional*): Initial standard deviation of linear layers;
            `1 / sqrt(3 * fan_in)` (torch's default variance) if unset.
        pad_token_id, bos_token_id, eos_token_id, mask_token_id (`int`, *optional*): Those of Llama-3 with a pad and a
            mask token added, where the vocabulary has them; `None` in a smaller one.
        classifier_dropout (`float`, *optional*): Dropout before classification heads; `hidden_dropout_prob` if unset.
        tie_word_embeddings (`bool`, defaults to `False`): Whether the output projection is the encoder's table of
            token embeddings, behind a layer norm, instead of a second table. It suits hosted encoders, and answers that
            copy what they read.

    Keys of `YanTrainingConfig` are also read at the top level, where older folders have them.

    Raises:
        ValueError: from the constructor, for values that do not fit together.
    """

    model_type = "yan"
    sub_configs = {"encoder_config": AutoConfig}
    keys_to_ignore_at_inference = [
        "length_logits",
        "encoder_last_hidden_state",
        "hidden_states",
        "attentions",
        "latents",
        "velocities",
        "gate_probs",
        "expert_usage",
        *LOSS_TERMS,
    ]

    vocab_size: int = 128258
    hidden_size: int = 512
    num_attention_heads: int = 8
    intermediate_size: int | None = None
    max_position_embeddings: int = 1024
    reverse_positions: bool = False
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    hidden_dropout_prob: float | int = 0.1
    attention_bias: bool = False
    encoder_layers: int = 6
    flow_layers: int = 6
    decoder_layers: int = 2
    cross_attention_layers: list[int] | None = None
    encoder_mixer: Literal["attention", "conv_attention", "mamba"] = "attention"
    flow_mixer: Literal["attention", "conv_attention", "mamba", "joint"] = "attention"
    mamba_d_state: int = 16
    mamba_d_conv: int = 4
    mamba_expand: int = 2
    mamba_scan: Literal["auto", "sequential", "chunked", "doubling", "kernel"] = "auto"
    mamba_intermediate_size: int | None = None
    encoder_config: dict | PreTrainedConfig | None = None
    num_experts: int = 4
    experts_implementation: Literal["auto", "loop", "grouped_mm", "dense"] = "auto"
    gate_temperature: float | int = 1.0
    gate_hidden_size: int | None = None
    prediction_type: Literal["velocity", "data"] = "velocity"
    prior_std: float | int = 1.0
    length_head: bool | Literal["source"] = True
    canvas_ratio: float | int = 1.0
    copy_mechanism: bool = False
    training_config: dict | YanTrainingConfig | None = None
    initializer_range: float | int | None = None
    classifier_dropout: float | int | None = None
    pad_token_id: int | None = DEFAULT_TOKEN_IDS["pad_token_id"]
    bos_token_id: int | None = DEFAULT_TOKEN_IDS["bos_token_id"]
    eos_token_id: int | list[int] | None = DEFAULT_TOKEN_IDS["eos_token_id"]
    mask_token_id: int | None = DEFAULT_TOKEN_IDS["mask_token_id"]
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        kwargs = self._read_old_keys(kwargs)
        # Before anything is made as long as there are layers.
        self._check_sizes()
        if self.encoder_config is not None:
            self._adopt_encoder_config()
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.mamba_intermediate_size is None:
            self.mamba_intermediate_size = self.intermediate_size
        if self.gate_hidden_size is None:
            self.gate_hidden_size = self.hidden_size
        if self.cross_attention_layers is None:
            self.cross_attention_layers = list(range(self.flow_layers))
        if self.classifier_dropout is None:
            self.classifier_dropout = self.hidden_dropout_prob
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        for name, default in DEFAULT_TOKEN_IDS.items():
            # The Llama-3 ids mean nothing in another vocabulary; an id that was asked for is checked instead.
            if getattr(self, name) == default >= self.vocab_size:
                setattr(self, name, None)
        kwargs.setdefault("custom_pipelines", {task: dict(entry) for task, entry in CUSTOM_PIPELINES.items()})
        super().__post_init__(**kwargs)
        # Run here too, where the error arrives as the ValueError it is and not wrapped by the library.
        self.validate_sizes()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "training_config" and not isinstance(value, YanTrainingConfig):
            unknown = sorted(set(value or {}) - set(TRAINING_FIELDS))
            if unknown:
                raise ValueError(f"training_config has no {unknown}; its settings are {list(TRAINING_FIELDS)}")
            # A dict changes what it names and leaves the rest.
            value = dataclasses.replace(self.__dict__.get(name) or YanTrainingConfig(), **(value or {}))
        super().__setattr__(name, value)

    def _read_old_keys(self, options: dict) -> dict:
        """
        Settings of training at the top level, and names and fields of older folders; returns what is none of these.
        """
        if options.get("ngram_loss_weight") and self.canvas_ratio == 1:
            logger.warning("ngram_loss_weight is left out: bigrams are compared on canvases with blanks only")
            options["ngram_loss_weight"] = 0.0
        options = {RENAMED_KEYS.get(name, name): value for name, value in options.items()}
        for name, neutral in REMOVED_KEYS.items():
            value = options.pop(name, None)
            if neutral is not None and value is not None and value not in neutral:
                raise ValueError(f"{name}={value} is no setting any more; only {neutral[0]} can be loaded")
        if options.pop("flow_from_encoder", False):
            if self.flow_mixer not in ("attention", "joint"):
                raise ValueError(
                    f"flow_from_encoder=True is flow_mixer='joint'; leave out flow_mixer={self.flow_mixer!r}"
                )
            self.flow_mixer = "joint"
        if "reverse_positions" in options:
            self.reverse_positions = options.pop("reverse_positions")
        flat = {name: options.pop(name) for name in TRAINING_FIELDS if name in options}
        if flat:
            self.training_config = flat
        return options

    def _adopt_encoder_config(self) -> None:
        if isinstance(self.encoder_config, dict):
            options = dict(self.encoder_config)
            try:
                self.encoder_config = AutoConfig.for_model(options.pop("model_type", ""), **options)
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"encoder_config: {error}") from error
        hosted = self.encoder_config
        if hosted.model_type not in HOSTED_ENCODERS:
            raise ValueError(
                f"encoder_config has model_type={hosted.model_type!r}; YAN hosts the encoders of "
                f"{sorted(HOSTED_ENCODERS)}. Others read in one direction only, or their positions have not been shown "
                "to survive padding"
            )
        if hosted.hidden_size != self.hidden_size:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be that of the encoder, {hosted.hidden_size}: its states are the "
                "latents"
            )
        self.encoder_layers = hosted.num_hidden_layers

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """
        As in transformers; fields that keyword arguments change are checked, and another model's config is refused.
        """
        if config_dict.get("model_type", cls.model_type) != cls.model_type:
            raise ValueError(
                f"model_type={config_dict['model_type']!r} is the config of another model; YAN's has {cls.model_type!r}"
            )
        loaded = super().from_dict(config_dict, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).validate_sizes()
        return loaded

    def to_dict(self) -> dict:
        """As in transformers."""
        return {**super().to_dict(), "training_config": dataclasses.asdict(self.training_config)}

    @property
    def flow_from_encoder(self) -> bool:
        """Whether the flow's layers have a hosted encoder's form."""
        return self.flow_mixer == "joint"

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Ids that end a text; none where `eos_token_id` is None."""
        eos = self.eos_token_id
        return () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)

    @property
    def predicts_length(self) -> bool:
        """Whether there is a head that predicts the length of the answer."""
        return self.length_head is True

    @property
    def canvas_from_source(self) -> bool:
        """Whether positions of the canvas belong to tokens of the source, and begin with their states."""
        return self.length_head == "source"

    @property
    def copies_source(self) -> bool:
        """Whether answers are written with the ids of their source at hand."""
        return self.copy_mechanism or self.canvas_from_source

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the encoder, the part that every class has."""
        return self.encoder_layers

    def validate_sizes(self):
        """Checks ranges and combinations; runs in the constructor."""
        self._check_sizes()
        for name in ("hidden_dropout_prob", "classifier_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and less than 1")
        if self.hidden_act not in ACT2FN:
            raise ValueError(
                f"hidden_act={self.hidden_act!r} is no activation of transformers; there are {sorted(ACT2FN)}"
            )
        self._validate_canvas()
        self._validate_layers()
        self._validate_token_ids()

    def _check_sizes(self):
        sizes = (
            "vocab_size hidden_size num_attention_heads intermediate_size max_position_embeddings encoder_layers "
            "flow_layers num_experts gate_temperature gate_hidden_size prior_std layer_norm_eps mamba_d_state "
            "mamba_d_conv mamba_expand mamba_intermediate_size initializer_range"
        )
        check_numbers(self, positive=tuple(sizes.split()), not_negative=("decoder_layers",))
        for name in ("encoder_layers", "flow_layers", "decoder_layers", "num_experts"):
            if getattr(self, name) > MOST_LAYERS:
                raise ValueError(f"{name}={getattr(self, name)} is more than {MOST_LAYERS}")
        width, inner = self.hidden_size, self.intermediate_size or 4 * self.hidden_size
        layers = self.encoder_layers + self.flow_layers + self.decoder_layers
        tables = 2 * self.vocab_size + (1 + self.predicts_length) * self.max_position_embeddings
        parameters = width * (tables + layers * (4 * width + 2 * inner) + 2 * self.num_experts * inner)
        if parameters > MOST_PARAMETERS:
            raise ValueError(
                f"vocab_size={self.vocab_size}, hidden_size={width}, intermediate_size={inner}, "
                f"max_position_embeddings={self.max_position_embeddings} and {layers} layers make about "
                f"{parameters:.1e} parameters; that is more than {MOST_PARAMETERS:.0e}"
            )

    def _validate_canvas(self):
        self.training_config.check()
        if self.canvas_ratio < 1:
            raise ValueError(f"canvas_ratio={self.canvas_ratio} must be at least 1, a position for every token")
        self.training_config.check_canvas(self.canvas_ratio)
        if self.copy_mechanism and self.canvas_from_source:
            raise ValueError(
                "copy_mechanism=True with length_head='source': there each position copies its own token already; "
                "leave copy_mechanism out"
            )
        if self.copy_mechanism and self.canvas_ratio != 1:
            raise ValueError(
                f"copy_mechanism=True with canvas_ratio={self.canvas_ratio}: a quotation needs a position for every "
                "token; leave one of them out"
            )
        if self.copy_mechanism and self.eos_token_id is None:
            raise ValueError("copy_mechanism=True needs eos_token_id, which stands behind the end of a quotation")
        for name in ("loss_chunk_size", "label_smoothing"):
            value = getattr(self.training_config, name)
            if self.copy_mechanism and value:
                raise ValueError(
                    f"copy_mechanism=True with {name}={value}: the likelihood is that of whole quotations; leave "
                    f"{name} out"
                )
        if self.training_config.glancing_ratio and self.encoder_config is not None:
            raise ValueError(
                f"glancing_ratio={self.training_config.glancing_ratio} shows YAN's own token embeddings, which are "
                "latents without a context; leave encoder_config out"
            )
        if self.canvas_ratio == 1:
            if self.canvas_from_source:
                raise ValueError(
                    "length_head='source' needs room for texts that are longer than their source: set canvas_ratio "
                    "above 1 (1.5, say)"
                )
            return
        for name in ("pad_token_id", "eos_token_id"):
            if getattr(self, name) is None:
                raise ValueError(f"canvas_ratio={self.canvas_ratio} needs {name}; pass the id the tokenizer uses")
        if self.pad_token_id in self.end_token_ids:
            raise ValueError(
                f"pad_token_id={self.pad_token_id} is also an eos_token_id; with canvas_ratio={self.canvas_ratio} "
                "padding is the blank, which ends no text: give the tokenizer a padding token of its own"
            )

    def _validate_layers(self):
        if self.reverse_positions and self.encoder_config is not None:
            raise ValueError(
                "reverse_positions=True needs YAN's own encoder, whose positions the canvas shares; leave "
                "encoder_config out"
            )
        if self.flow_from_encoder:
            self._validate_joint_flow()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={self.num_attention_heads}"
            )
        if self.hidden_size % 2 or self.hidden_size < 4:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be even and at least 4: the time embedding halves it"
            )
        layers = self.cross_attention_layers
        if len(set(layers)) != len(layers) or any(not 0 <= i < self.flow_layers for i in layers):
            raise ValueError(
                f"cross_attention_layers={layers} must be distinct indices below flow_layers={self.flow_layers}"
            )

    def _validate_joint_flow(self):
        hosted = self.encoder_config
        if hosted is None or hosted.model_type not in FLOW_ENCODERS:
            kind = None if hosted is None else hosted.model_type
            raise ValueError(
                f"flow_from_encoder=True needs an encoder_config of {list(FLOW_ENCODERS)}, got {kind!r}; leave it out"
            )
        if self.cross_attention_layers != list(range(self.flow_layers)):
            raise ValueError(
                "flow_from_encoder=True has layers that attend to source and canvas at once; leave out "
                f"cross_attention_layers={self.cross_attention_layers}"
            )
        if self.flow_layers > hosted.num_hidden_layers:
            raise ValueError(
                f"flow_layers={self.flow_layers} is more than the encoder's {hosted.num_hidden_layers} layers, from "
                "which they begin (flow_from_encoder=True)"
            )

    def _validate_token_ids(self):
        for name in ("pad", "bos", "eos", "mask"):
            value = getattr(self, f"{name}_token_id")
            for token_id in value if isinstance(value, list) else [value]:
                if token_id is not None and not 0 <= token_id < self.vocab_size:
                    raise ValueError(
                        f"{name}_token_id={token_id} is not a token id below vocab_size={self.vocab_size}; "
                        "pass the id the tokenizer uses, or None"
                    )


__all__ = ["YanConfig", "YanTrainingConfig"]
