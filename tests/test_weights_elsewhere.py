"""Weights in another form or another place than a module keeps them in: quantized, and offloaded."""

import accelerate
import pytest
import torch

from .helpers import seeded, source_batch, tiny_model


class Quantized(torch.nn.Module):
    """A linear layer as bitsandbytes makes it in 8 bits: its weight is of integers, its bias is not."""

    def __init__(self, linear: torch.nn.Linear):
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = torch.nn.Parameter((linear.weight / scale).round().to(torch.int8), requires_grad=False)
        self.scale, self.bias = scale, linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


@torch.no_grad()
def test_quantized_projections_read_what_the_others_do():
    model, times = tiny_model(), torch.tensor([0.2, 0.7])
    embedding, latents = model.model.flow.time_embedding, torch.randn(2, 5, 16, generator=seeded())
    before = embedding(times), model.decoder(latents)
    embedding.proj, model.decoder.lm_head = Quantized(embedding.proj), Quantized(model.decoder.lm_head)
    for found, expected in zip((embedding(times), model.decoder(latents)), before, strict=True):
        torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)


@torch.no_grad()
@pytest.mark.parametrize("mixer", ["attention", "conv_attention"])
def test_weights_that_wait_elsewhere_change_nothing(mixer):
    """With accelerate's offloading a module has its weights during its own forward only."""
    model = tiny_model(encoder_mixer=mixer, flow_mixer=mixer, reverse_positions=True)
    ids, mask = source_batch()

    def outputs() -> list[torch.Tensor]:
        texts = [model.generate(rows, generator=seeded()) for rows in (ids, ids[:1])]
        return [model(ids, mask).logits, model(ids).logits, *texts]

    expected = outputs()
    accelerate.cpu_offload(model, execution_device="cpu")
    assert all(parameter.device.type == "meta" for parameter in model.parameters())
    for found, before in zip(outputs(), expected, strict=True):
        assert torch.equal(found, before)
