"""Tiny models and inputs. Weights are random and asymmetric; nothing is downloaded."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported, here and in the scripts that tests start: workers are as many as cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from modeling_yan import YanConfig, YanForConditionalGeneration

VOCAB_SIZE = 53


def tiny_config(**overrides) -> YanConfig:
    options = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
        "encoder_layers": 2,
        "flow_layers": 3,
        "decoder_layers": 1,
        "cross_attention_layers": [0, 2],
        "num_experts": 3,
        "gate_hidden_size": 20,
        "hidden_dropout_prob": 0.0,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "mask_token_id": 3,
    }
    return YanConfig(**{**options, **overrides})


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Gives every parameter, biases and norms included, values that no symmetry hides behind."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def tiny_model(model_class=YanForConditionalGeneration, seed: int = 0, **overrides):
    torch.manual_seed(seed)
    return randomize(model_class(tiny_config(**overrides)), seed).eval()


def source_batch(lengths=(7, 4, 5), seed: int = 0, side: str = "right") -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (B, max length) and mask, padded on one side."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        place = slice(0, length) if side == "right" else slice(ids.shape[1] - length, None)
        ids[row, place] = torch.randint(4, VOCAB_SIZE, (length,), generator=generator)
        mask[row, place] = 1
    return ids, mask


@pytest.fixture(scope="session")
def model() -> YanForConditionalGeneration:
    return tiny_model()


@pytest.fixture(
    scope="session",
    params=[
        {},
        {"end_positions": True},
        {"end_positions": True, "canvas_ratio": 2.0, "nll_loss_weight": 0.0, "mse_loss_weight": 0.0},
    ],
    ids=["from_the_beginning", "from_both_ends", "room_for_blanks"],
)
def model_of_positions(request) -> YanForConditionalGeneration:
    return tiny_model(**request.param)
