"""Which parts of a model a stage trains."""

from collections.abc import Collection

from torch import nn

PARTS = {
    "embeddings": "encoder.embeddings.",
    "encoder": "encoder.",
    "flow": "flow.",
    "decoder": "decoder.",
    "length_head": "length_head.",
}


def freeze(model: nn.Module, parts: Collection[str]) -> int:
    """
    Freezes the named parts and unfreezes all others.

    Args:
        parts: among "embeddings", "encoder" (embeddings included), "flow", "decoder", "length_head".

    Returns:
        The number of parameters left to train.

    Raises:
        ValueError: for an unknown part, or if nothing is left to train.
    """
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise ValueError(f"freeze={sorted(unknown)} are not parts of a model; there are {sorted(PARTS)}")
    prefixes = tuple(PARTS[part] for part in parts)
    trainable = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (prefixes and name.removeprefix("model.").startswith(prefixes)))
        trainable += parameter.numel() if parameter.requires_grad else 0
    if not trainable:
        raise ValueError(f"freeze={sorted(parts)} leaves nothing to train")
    return trainable
