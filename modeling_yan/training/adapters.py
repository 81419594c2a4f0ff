"""Adapters (PEFT): a few weights beside a frozen model."""

from peft import LoraConfig

# Linear layers of attention, Mamba and feed-forward; the stacked experts are parameters, not layers.
LORA_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "up_proj", "down_proj", "in_proj", "x_proj", "dt_proj")


def lora_config(rank: int) -> LoraConfig:
    """LoRA of a rank, scaled by 2, on the layers of `LORA_LAYERS`; the output projection and the experts have none."""
    return LoraConfig(task_type="SEQ_2_SEQ_LM", r=rank, lora_alpha=2 * rank, target_modules=list(LORA_LAYERS))
