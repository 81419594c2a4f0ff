"""YAN model configuration."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig

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
# Encoders whose own outputs are reproduced exactly inside a YAN. All count positions from the left edge or relatively, so
# rows are moved to the left edge first (see YanHostedEncoder).
HOSTED_ENCODERS = ("bart", "bert", "modernbert", "roberta", "t5")
# Loss terms that are not defined where a canvas has room for blanks.
NEED_A_PLACE = (
    "nll_loss_weight",
    "mse_loss_weight",
    "denoising_ce_loss_weight",
    "gate_entropy_weight",
    "load_balance_weight",
    "mmd_loss_weight",
    "latent_l2_weight",
)


@strict
class YanConfig(PreTrainedConfig):
    r"""
    Configuration of a YAN model: mixture-of-experts flow matching for text (arXiv 2604.15009). The defaults give
    a model of about 200 million parameters over the Llama-3 vocabulary with a pad and a mask token added.

    Args:
        vocab_size (`int`, defaults to 128258): Number of token ids.
        hidden_size (`int`, defaults to 512): Width of embeddings, latents and hidden states.
        num_attention_heads (`int`, defaults to 8): Heads of every attention; must divide `hidden_size`.
        intermediate_size (`int`, *optional*): Width of feed-forward layers and expert heads; `4 * hidden_size` if unset.
        max_position_embeddings (`int`, defaults to 1024): Rows of the position table, the longest source or target.
        end_positions (`bool`, defaults to `False`): Whether positions are also counted from the end, by a second table that the paper does
            not have: for answers that end as their source ends, such as a text with a gap filled.
        hidden_act (`str`, defaults to `"gelu"`): Activation of feed-forward layers, experts and gate.
        layer_norm_eps (`float`, defaults to 1e-5): Epsilon of every layer normalisation.
        hidden_dropout_prob (`float`, defaults to 0.1): Dropout after the embeddings and on every residual branch.
        attention_bias (`bool`, defaults to `False`): Bias of query, key and value projections; the output projection
            always has one.
        encoder_layers, flow_layers, decoder_layers (`int`, defaults to 6, 6, 2): Depth of the three parts.
        cross_attention_layers (`list[int]`, *optional*): Flow layers that attend to the source; all if unset.
        encoder_mixer, flow_mixer (`"attention"`, `"conv_attention"` or `"mamba"`): Token mixer of encoder and flow.
        attention_conv_size (`int`, defaults to 5): Positions that the convolution in front of `"conv_attention"` sees; odd.
        mamba_d_state, mamba_d_conv, mamba_expand (`int`, defaults to 16, 4, 2): Sizes of the Mamba mixers.
        mamba_scan (`str`, defaults to `"auto"`): How the selective scan is computed: `"auto"` is the kernel of mamba-ssm on
            CUDA where it is installed and `"chunked"` (plain torch) elsewhere; `"doubling"` in compiled and exported graphs;
            `"sequential"` is the reference.
        mamba_intermediate_size (`int`, *optional*): Feed-forward width of Mamba blocks; `intermediate_size` if unset.
        encoder_config (`dict` or `PreTrainedConfig`, *optional*): Of a pretrained encoder from transformers that takes the
            place of YAN's own; its type is one of `HOSTED_ENCODERS`. `encoder_layers` is then its number of layers.
        num_experts (`int`, defaults to 4): Expert velocity fields K; 1 is plain flow matching.
        num_experts_per_token (`int`, *optional*): Experts that the training likelihood considers for a token, the most probable
            by the gate; all if unset. The others are not computed, and learn nothing from that token: give `load_balance_weight`
            too. Generation computes one expert per token in any case.
        experts_implementation (`str`, defaults to `"auto"`): How a token's own expert is computed: `"loop"` (expert after
            expert, the reference), `"grouped_mm"` (one grouped product), `"dense"` (all experts, then the token's own). `"auto"`
            is the loop on a CPU, grouped products where torch has them elsewhere and in compiled graphs, `"dense"` in exported ones.
        gate_temperature (`float`, defaults to 1.0): Divides the gate logits.
        gate_hidden_size (`int`, *optional*): Hidden width of the gate; `hidden_size` if unset.
        prediction_type (`"velocity"` or `"data"`, defaults to `"velocity"`): What an expert head outputs: the velocity, as
            in the paper, or the endpoint x_1, from which the velocity is `(x_1 - x_t) / (1 - t)`.
        velocity_std (`float`, defaults to 1.0): Standard deviation sigma of each expert's Gaussian over velocities.
        prior_std (`float`, defaults to 1.0): Standard deviation s_0 of the noise at t = 0.
        latent_noise (`float`, defaults to 0.1): Largest scale of the noise added to latents in training.
        time_sampling_alpha, time_sampling_beta (`float`, defaults to 1.0): Beta distribution of training times.
        unroll_steps (`int`, defaults to 3): Euler steps of the endpoint that the training loss unrolls.
        glancing_ratio (`float`, defaults to 0.0): In training, of the positions that the endpoint gets wrong the share whose tokens are
            shown: their embeddings stand in the place of noise, at positions drawn from the whole canvas (glancing, arXiv 2008.07905). It costs a
            second endpoint without gradients. For sources with many right answers.
        length_head (`bool`, defaults to `True`): Whether the model predicts the length of its answer.
        canvas_ratio (`float`, defaults to 1.0): Positions of the canvas per token of the answer. 1 is the paper's: every token has its place.
            More (2, say) leaves room for blanks, written as `pad_token_id`: tokens may stand anywhere in their order, `ce_loss` is the exact
            likelihood over all placements (CTC), and the loss terms that need a token's place are out: set `nll_loss_weight` and
            `mse_loss_weight` to 0.
        length_loss_weight, nll_loss_weight, mse_loss_weight, ce_loss_weight, gate_entropy_weight,
        load_balance_weight, mmd_loss_weight, latent_l2_weight (`float`): Weights of the loss terms.
        ngram_loss_weight (`float`, defaults to 0.0): Weight of a term the paper does not have: the share of the target's n-grams that
            the endpoint is not expected to hold, wherever they stand (`ngram_distance`, `alignment_bigram_distance`). For sources with many right answers.
        ngram_size (`int`, defaults to 2): n of that term.
        denoising_ce_loss_weight (`float`, defaults to 0.0): Weight of a term the paper does not have: cross-entropy of
            the endpoint that one step from the likelihood's own `x_t` reaches. It costs a decoder pass and no trunk pass.
        loss_chunk_size (`int`, *optional*): Positions whose logits the training loss holds at once, for vocabularies so large
            that all of them do not fit. In training the models then return no `logits`.
        label_smoothing (`float`, defaults to 0.0): Of the cross-entropy over tokens.
        embedding_std (`float`, defaults to 1.0): Initial standard deviation of token and position embeddings. Positions
            must live on the scale of latents and prior (1.0): the flow adds them to its state.
        initializer_range (`float`, *optional*): Initial standard deviation of linear layers;
            `1 / sqrt(3 * fan_in)` (torch's default variance) if unset.
        pad_token_id, bos_token_id, eos_token_id, mask_token_id (`int`, *optional*): Those of Llama-3 with a pad and a mask
            token added, where the vocabulary has them; `None` in a smaller one.
        classifier_dropout (`float`, *optional*): Dropout before classification heads; `hidden_dropout_prob` if unset.

    Raises:
        ValueError: from the constructor, for values that do not fit together.
    """

    model_type = "yan"
    sub_configs = {"encoder_config": AutoConfig}
    # Custom pipelines that this process knows without remote code; set by the installed package.
    registered_pipelines = ()
    keys_to_ignore_at_inference = [
        "length_logits",
        "encoder_last_hidden_state",
        "hidden_states",
        "attentions",
        "latents",
        "velocities",
        "gate_probs",
        "expert_usage",
    ]

    vocab_size: int = 128258
    hidden_size: int = 512
    num_attention_heads: int = 8
    intermediate_size: int | None = None
    max_position_embeddings: int = 1024
    end_positions: bool = False
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    hidden_dropout_prob: float | int = 0.1
    attention_bias: bool = False
    encoder_layers: int = 6
    flow_layers: int = 6
    decoder_layers: int = 2
    cross_attention_layers: list[int] | None = None
    encoder_mixer: Literal["attention", "conv_attention", "mamba"] = "attention"
    flow_mixer: Literal["attention", "conv_attention", "mamba"] = "attention"
    attention_conv_size: int = 5
    mamba_d_state: int = 16
    mamba_d_conv: int = 4
    mamba_expand: int = 2
    mamba_scan: Literal["auto", "sequential", "chunked", "doubling", "kernel"] = "auto"
    mamba_intermediate_size: int | None = None
    encoder_config: dict | PreTrainedConfig | None = None
    num_experts: int = 4
    num_experts_per_token: int | None = None
    experts_implementation: Literal["auto", "loop", "grouped_mm", "dense"] = "auto"
    gate_temperature: float | int = 1.0
    gate_hidden_size: int | None = None
    prediction_type: Literal["velocity", "data"] = "velocity"
    velocity_std: float | int = 1.0
    prior_std: float | int = 1.0
    latent_noise: float | int = 0.1
    time_sampling_alpha: float | int = 1.0
    time_sampling_beta: float | int = 1.0
    unroll_steps: int = 3
    glancing_ratio: float | int = 0.0
    length_head: bool = True
    canvas_ratio: float | int = 1.0
    length_loss_weight: float | int = 0.1
    nll_loss_weight: float | int = 1.0
    mse_loss_weight: float | int = 1.0
    ce_loss_weight: float | int = 1.0
    ngram_loss_weight: float | int = 0.0
    ngram_size: int = 2
    denoising_ce_loss_weight: float | int = 0.0
    gate_entropy_weight: float | int = 0.0
    load_balance_weight: float | int = 0.0
    mmd_loss_weight: float | int = 0.0
    latent_l2_weight: float | int = 0.0
    loss_chunk_size: int | None = None
    label_smoothing: float | int = 0.0
    embedding_std: float | int = 1.0
    initializer_range: float | int | None = None
    classifier_dropout: float | int | None = None
    pad_token_id: int | None = DEFAULT_TOKEN_IDS["pad_token_id"]
    bos_token_id: int | None = DEFAULT_TOKEN_IDS["bos_token_id"]
    eos_token_id: int | list[int] | None = DEFAULT_TOKEN_IDS["eos_token_id"]
    mask_token_id: int | None = DEFAULT_TOKEN_IDS["mask_token_id"]
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
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
        pipelines = kwargs.get("custom_pipelines", CUSTOM_PIPELINES)
        kwargs["custom_pipelines"] = {
            task: dict(entry) for task, entry in pipelines.items() if task not in self.registered_pipelines
        }
        super().__post_init__(**kwargs)
        # Run here too, where the error arrives as the ValueError it is and not wrapped by the library.
        self.validate_sizes()

    def _adopt_encoder_config(self) -> None:
        if isinstance(self.encoder_config, dict):
            options = dict(self.encoder_config)
            self.encoder_config = AutoConfig.for_model(options.pop("model_type", ""), **options)
        hosted = self.encoder_config
        if hosted.model_type not in HOSTED_ENCODERS:
            raise ValueError(
                f"encoder_config has model_type={hosted.model_type!r}; YAN hosts the encoders of {sorted(HOSTED_ENCODERS)}. "
                "Others read in one direction only, or their positions have not been shown to survive padding"
            )
        if hosted.hidden_size != self.hidden_size:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be that of the encoder, {hosted.hidden_size}: its states are the latents"
            )
        self.encoder_layers = hosted.num_hidden_layers
        # After resizing embeddings, what counts is the vocabulary of the whole.
        hosted.vocab_size = self.vocab_size

    def to_dict(self) -> dict:
        """As in transformers; the saved form names all custom pipelines."""
        output = super().to_dict()
        hidden = {task: dict(CUSTOM_PIPELINES[task]) for task in self.registered_pipelines}
        output["custom_pipelines"] = {**hidden, **output.get("custom_pipelines", {})}
        return output

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the encoder, the part that every class has."""
        return self.encoder_layers

    def validate_sizes(self):
        """Checks ranges and combinations; runs in the constructor."""
        positive = (
            "vocab_size hidden_size num_attention_heads intermediate_size max_position_embeddings encoder_layers "
            "flow_layers num_experts gate_temperature gate_hidden_size velocity_std prior_std time_sampling_alpha "
            "time_sampling_beta unroll_steps ngram_size num_experts_per_token loss_chunk_size layer_norm_eps mamba_d_state mamba_d_conv mamba_expand"
        )
        for name in positive.split():
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}={value} must be greater than 0")
        not_negative = (
            "decoder_layers latent_noise glancing_ratio length_loss_weight nll_loss_weight mse_loss_weight ce_loss_weight "
            "ngram_loss_weight denoising_ce_loss_weight gate_entropy_weight load_balance_weight mmd_loss_weight latent_l2_weight embedding_std"
        )
        for name in not_negative.split():
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        self._validate_canvas_ratio()
        for name in ("hidden_dropout_prob", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and less than 1")
        if self.ngram_loss_weight and self.loss_chunk_size is not None:
            raise ValueError(
                f"ngram_loss_weight={self.ngram_loss_weight} needs the logits of all positions at once; leave loss_chunk_size out"
            )
        if self.glancing_ratio and self.loss_chunk_size is not None:
            raise ValueError(
                f"glancing_ratio={self.glancing_ratio} needs the logits of all positions at once; leave loss_chunk_size out"
            )
        if self.glancing_ratio and self.encoder_config is not None:
            raise ValueError(
                f"glancing_ratio={self.glancing_ratio} shows YAN's own token embeddings, which are latents without a context; leave "
                "encoder_config out"
            )
        if self.num_experts_per_token is not None and self.num_experts_per_token > self.num_experts:
            raise ValueError(
                f"num_experts_per_token={self.num_experts_per_token} is more than num_experts={self.num_experts}"
            )
        if self.end_positions and self.encoder_config is not None:
            raise ValueError(
                "end_positions=True needs YAN's own encoder, whose positions the canvas shares; leave encoder_config out"
            )
        if self.attention_conv_size < 1 or self.attention_conv_size % 2 == 0:
            raise ValueError(
                f"attention_conv_size={self.attention_conv_size} must be odd and at least 1: as many neighbours on either side"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={self.num_attention_heads}"
            )
        if self.hidden_size % 2 or self.hidden_size < 4:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be even and at least 4: the time embedding halves it"
            )
        if self.cross_attention_layers is not None:
            layers = self.cross_attention_layers
            if len(set(layers)) != len(layers) or any(not 0 <= i < self.flow_layers for i in layers):
                raise ValueError(
                    f"cross_attention_layers={layers} must be distinct indices below flow_layers={self.flow_layers}"
                )
        for name in ("pad", "bos", "eos", "mask"):
            value = getattr(self, f"{name}_token_id")
            for token_id in value if isinstance(value, list) else [value]:
                if token_id is not None and not 0 <= token_id < self.vocab_size:
                    raise ValueError(
                        f"{name}_token_id={token_id} is not a token id below vocab_size={self.vocab_size}; "
                        "pass the id the tokenizer uses, or None"
                    )

    def _validate_canvas_ratio(self):
        if self.canvas_ratio < 1:
            raise ValueError(f"canvas_ratio={self.canvas_ratio} must be at least 1, a position for every token")
        if self.canvas_ratio == 1:
            return
        for name in (*NEED_A_PLACE, "label_smoothing"):
            if getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)} needs a place for every token, which canvas_ratio={self.canvas_ratio} does not give: "
                    f"set {name}=0, or canvas_ratio=1"
                )
        if self.loss_chunk_size is not None:
            raise ValueError(
                f"canvas_ratio={self.canvas_ratio} needs the logits of all positions at once; leave loss_chunk_size out"
            )
        if self.ngram_loss_weight and self.ngram_size != 2:
            raise ValueError(
                f"ngram_size={self.ngram_size} is counted at canvas_ratio=1 only; with canvas_ratio={self.canvas_ratio} set ngram_size=2"
            )
        for name in ("pad_token_id", "eos_token_id"):
            if getattr(self, name) is None:
                raise ValueError(f"canvas_ratio={self.canvas_ratio} needs {name}; pass the id the tokenizer uses")


__all__ = ["YanConfig"]
