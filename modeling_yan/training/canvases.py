"""Canvases of a model's own choosing, for training that needs no target: its lengths, priors and experts."""

import torch

from modeling_yan import YanForConditionalGeneration
from modeling_yan.alignment_yan import canvas_lengths


@torch.no_grad()
def draw_canvases(
    model: YanForConditionalGeneration,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    repeats: int = 1,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """
    Draws a length from the length head and a prior from N(0, prior_std^2 I); experts are the gate's argmax at t = 0.

    Args:
        model: with a length head.
        input_ids, attention_mask: sources (B, Lx).
        repeats: canvases to a source, each with a length and a prior of its own.
        temperature: of the lengths.
        generator: for both; torch's global one if absent.

    Returns:
        Arguments of `model.forward`, rows repeated (B * repeats, ...): `input_ids, attention_mask, decoder_attention_mask, prior_noise,
        expert_indices`. And the lengths (B * repeats,), in tokens.
    """
    options = {"generator": generator, "device": input_ids.device}
    source = model.get_encoder()(input_ids, attention_mask)
    length_logits = model.length_head(source.last_hidden_state, attention_mask).float() / temperature
    lengths = length_logits.softmax(-1).multinomial(repeats, replacement=True, generator=generator).flatten() + 1
    positions = canvas_lengths(lengths, model.config.canvas_ratio, model.config.max_position_embeddings)
    canvas = torch.arange(int(positions.max()), device=input_ids.device) < positions.unsqueeze(1)
    noise = model.config.prior_std * torch.randn(*canvas.shape, model.config.hidden_size, **options)
    drawn = {
        "input_ids": input_ids.repeat_interleave(repeats, 0),
        "attention_mask": attention_mask.repeat_interleave(repeats, 0),
        "decoder_attention_mask": canvas.long(),
        "prior_noise": noise,
    }
    gate = model.model(
        drawn["input_ids"],
        drawn["attention_mask"],
        x_t=noise,
        timesteps=torch.zeros(len(noise), device=noise.device),
        decoder_attention_mask=canvas,
    ).gate_probs
    return {**drawn, "expert_indices": gate.argmax(-1)}, lengths
