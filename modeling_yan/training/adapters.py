"""Adapters (PEFT): a few weights beside a frozen model."""

from peft import LoraConfig
from torch import nn
from transformers import PreTrainedModel

from modeling_yan.encoder_yan import YanHostedEncoder

# Linear layers of attention, Mamba and feed-forward; the stacked experts are parameters, not layers.
LORA_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "up_proj", "down_proj", "in_proj", "x_proj", "dt_proj")


def lora_layers(model: PreTrainedModel) -> list[str]:
    """`LORA_LAYERS`, and the names of the linear layers of a hosted encoder."""
    hosted = {
        name.rsplit(".", 1)[-1]
        for encoder in model.modules()
        if isinstance(encoder, YanHostedEncoder)
        for name, layer in encoder.backbone.named_modules()
        if isinstance(layer, nn.Linear)
    }
    return sorted({*LORA_LAYERS, *hosted})


def lora_config(model: PreTrainedModel, rank: int) -> LoraConfig:
    """LoRA of a rank, scaled by 2, on the layers of `lora_layers`; the output projection and the experts have none."""
    return LoraConfig(task_type="SEQ_2_SEQ_LM", r=rank, lora_alpha=2 * rank, target_modules=lora_layers(model))
