"""What every YAN class shares: weights, saving, and the encoder."""

import math
import os
import shutil
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, cached_file, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_yan import YanConfig
from .layers_yan import YanEmbeddings, YanEncoderLayer, YanExperts, YanModulation, YanPositionEmbeddings
from .mixers_yan import YanAttention, YanMambaDirection, YanNearIdentity, mixer_mask

logger = logging.get_logger(__name__)

# Activations with act(x) - act(-x) = x, from which two rows of weights make an identity.
IDENTITY_PAIRS = {"gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish"}


class YanPreTrainedModel(PreTrainedModel):
    config_class = YanConfig
    config: YanConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["YanEmbeddings", "YanEncoderLayer", "YanFlowLayer", "YanDecoderLayer", "YanExperts"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": YanEncoderLayer, "attentions": YanAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)

        def linear_(weight: torch.Tensor, fan_in: int, scale: float = 1.0):
            std = self.config.initializer_range
            init.normal_(weight, std=scale * ((3 * fan_in) ** -0.5 if std is None else std))

        if isinstance(module, YanNearIdentity):
            linear_(module.weight, module.in_features, 0.5)
            init.copy_(module.weight, module.weight + torch.eye(module.in_features).to(module.weight))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            linear_(module.weight, module.in_features)
            if isinstance(module, YanModulation):
                chunks = torch.zeros(module.num_chunks, self.config.hidden_size)
                chunks[0::2] = 1
                init.copy_(module.bias, chunks.flatten())
        elif isinstance(module, nn.Conv1d):
            # Each channel has its own filter, as wide as the kernel; torch's default variance, whatever initializer_range.
            init.normal_(module.weight, std=(3 * module.kernel_size[0]) ** -0.5)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.embedding_std)
        elif isinstance(module, YanExperts):
            width, inner = module.down_proj.shape[1:]
            copies = (
                self.config.prediction_type == "data"
                and self.config.hidden_act in IDENTITY_PAIRS
                and inner >= 2 * width
            )
            linear_(module.up_proj, width, 0.2 if copies else 1.0)
            linear_(module.down_proj, inner, 0.2 if copies else 1.0)
            if copies:
                pair = torch.zeros(inner, width).to(module.up_proj)
                pair[:width], pair[width : 2 * width] = torch.eye(width), -torch.eye(width)
                init.copy_(module.up_proj, module.up_proj + pair)
                init.copy_(module.down_proj, module.down_proj + pair.T)
            init.zeros_(module.up_bias)
            init.zeros_(module.down_bias)
        elif isinstance(module, YanMambaDirection):
            # As Mamba does it: decay rates 1 .. N in every channel, step sizes log-uniform in [0.001, 0.1].
            rates = torch.arange(1, module.A_log.shape[1] + 1, dtype=torch.float32)
            init.copy_(module.A_log, rates.log().expand_as(module.A_log))
            init.ones_(module.D)
            init.uniform_(module.dt_proj.weight, -(module.rank**-0.5), module.rank**-0.5)
            steps = torch.exp(torch.rand(len(module.D)) * math.log(100.0) + math.log(0.001)).clamp_min(1e-4)
            # The inverse of softplus.
            init.copy_(module.dt_proj.bias, steps + (-torch.expm1(-steps)).log())

    @torch.no_grad()
    def _start_head_from_embeddings(self) -> None:
        """
        Gives the output projection the token embeddings, scaled to logits of standard deviation 1 for a wrong token. A latent of YAN's own
        encoder keeps its token's embedding on the residual path, so that a new model gives clean text back before any training.
        """
        if self.config.encoder_config is None:
            scale = self.config.embedding_std * self.config.hidden_size**0.5
            self.get_output_embeddings().weight.copy_(self.get_input_embeddings().weight / scale)

    def save_pretrained(self, save_directory: str | os.PathLike, is_main_process: bool = True, **kwargs):
        """
        As in transformers, and complete: the code that loads the folder with `trust_remote_code=True` is saved with it,
        which the library does for a class with a single Auto class only, and never for pipelines.
        """
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        if is_main_process:
            self._save_code(Path(save_directory))

    def _save_code(self, folder: Path) -> None:
        here = Path(__file__).parent
        files = {file.name: file for file in here.glob("*_yan.py")}
        for name in ("configuration_yan.py", "pipeline_yan.py"):
            if name not in files:
                # Loaded as remote code, which caches only what this file imports; the rest is where the model came from.
                found = cached_file(self.config.name_or_path, name, _raise_exceptions_for_missing_entries=False)
                if found is None:
                    logger.warning(
                        f"{name} was not found beside {self.config.name_or_path}; {folder} is saved without it"
                    )
                    continue
                files[name] = Path(found)
        for name, file in files.items():
            if file.resolve() != (folder / name).resolve():
                shutil.copyfile(file, folder / name)


def check_source(input_ids, attention_mask, inputs_embeds, max_length: int) -> None:
    """
    Raises:
        ValueError: unless exactly one input is given, with at most `max_length` tokens.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("pass exactly one of input_ids and inputs_embeds")
    length = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
    if length > max_length and (attention_mask is None or attention_mask.sum(-1).max() > max_length):
        raise ValueError(
            f"input_ids has {length} tokens, more than max_position_embeddings={max_length}; "
            "tokenize with truncation=True"
        )


class YanEncoder(YanPreTrainedModel):
    """Embeddings, bidirectional blocks and a final layer norm; its output is both condition and latent."""

    def __init__(self, config: YanConfig):
        super().__init__(config)
        self.embeddings = YanEmbeddings(config)
        self.layers = nn.ModuleList([YanEncoderLayer(config) for _ in range(config.encoder_layers)])
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value):
        self.embeddings.word_embeddings = value

    def positions(self, length: int, mask: torch.Tensor | None) -> torch.Tensor:
        """Position embeddings of a canvas (B or 1, L, d), counted over the valid positions of its mask (B, L)."""
        return self.embeddings.positions(length, mask)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """
        Args:
            input_ids: (B, L); or `inputs_embeds` (B, L, d).
            attention_mask: (B, L), 1 at tokens, 0 at padding on either side; all tokens if absent.

        Raises:
            ValueError: unless exactly one input is given, no longer than the position table.
        """
        check_source(input_ids, attention_mask, inputs_embeds, self.config.max_position_embeddings)
        if inputs_embeds is None:
            inputs_embeds = self.embeddings.word_embeddings(input_ids)
        hidden_states = self.embeddings(inputs_embeds, attention_mask)
        mask = mixer_mask(self.config.encoder_mixer, self.config, hidden_states, attention_mask)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask)
        return BaseModelOutput(last_hidden_state=self.final_norm(hidden_states))


class YanHostedEncoder(YanPreTrainedModel):
    """
    A pretrained encoder of transformers (`config.encoder_config`) in the place of `YanEncoder`. It keeps its own position
    scheme and gives its own outputs; the canvas of the flow has a position table of its own.

    Args:
        add_canvas_positions: without a flow that table would never be used, and never get a gradient.
    """

    def __init__(self, config: YanConfig, add_canvas_positions: bool = True):
        super().__init__(config)
        backbone = AutoModel.from_config(config.encoder_config)
        if config.encoder_config.is_encoder_decoder:
            backbone = backbone.get_encoder()
        if getattr(backbone, "pooler", None) is not None:
            # YAN never reads it, and a parameter without gradient stops data-parallel training.
            backbone.pooler = None
        self.backbone = backbone
        self.embeddings = YanPositionEmbeddings(config) if add_canvas_positions else None
        self.post_init()

    def get_input_embeddings(self):
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value):
        self.backbone.set_input_embeddings(value)

    def positions(self, length: int, mask: torch.Tensor | None) -> torch.Tensor:
        """As `YanEncoder.positions`."""
        return self.embeddings.positions(length, mask)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """
        Args and errors as those of `YanEncoder`. Rows are moved to the left edge for the backbone, which counts positions
        from there, and back again; a row padded on the right, or not at all, is passed on as it is.
        """
        check_source(input_ids, attention_mask, inputs_embeds, self.config.max_position_embeddings)
        if attention_mask is None:
            outputs = self.backbone(input_ids=input_ids, inputs_embeds=inputs_embeds, **kwargs)
            return BaseModelOutput(
                *(outputs.get(name) for name in ("last_hidden_state", "hidden_states", "attentions"))
            )
        attention_mask = attention_mask.long()
        order = attention_mask.argsort(dim=1, descending=True, stable=True)
        # The longest row decides, so that padding never reaches past the backbone's last position.
        order = order[:, : self.config.max_position_embeddings]
        mask = attention_mask.gather(1, order)
        if input_ids is not None:
            # RoBERTa tells padding by its id.
            padding = getattr(self.backbone.config, "pad_token_id", None)
            input_ids = input_ids.gather(1, order).masked_fill(mask == 0, 0 if padding is None else padding)
        else:
            inputs_embeds = inputs_embeds.gather(1, order.unsqueeze(-1).expand(-1, -1, inputs_embeds.shape[-1]))
        outputs = self.backbone(input_ids=input_ids, attention_mask=mask, inputs_embeds=inputs_embeds, **kwargs)

        def back(states: torch.Tensor) -> torch.Tensor:
            index = order.unsqueeze(-1).expand_as(states)
            return states.new_zeros(*attention_mask.shape, states.shape[-1]).scatter(1, index, states)

        hidden_states = outputs.get("hidden_states")
        return BaseModelOutput(
            last_hidden_state=back(outputs.last_hidden_state),
            hidden_states=None if hidden_states is None else tuple(back(states) for states in hidden_states),
            attentions=outputs.get("attentions"),
        )


def build_encoder(config: YanConfig, has_flow: bool) -> YanEncoder | YanHostedEncoder:
    """YAN's own encoder, or the pretrained one that `config.encoder_config` describes."""
    if config.encoder_config is None:
        return YanEncoder(config)
    return YanHostedEncoder(config, add_canvas_positions=has_flow)
