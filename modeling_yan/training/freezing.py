"""Which parts of a model a stage trains."""

from collections.abc import Collection

from transformers import PreTrainedModel

PARTS = {
    "embeddings": "encoder.embeddings.",
    "encoder": "encoder.",
    "flow": "flow.",
    "decoder": "decoder.",
    "length_head": "length_head.",
}
# The canvas's positions beside a hosted encoder are the flow's: the encoder was pretrained without them.
HOSTED_PARTS = {"embeddings": "encoder.backbone.embeddings.", "encoder": "encoder.backbone."}


def check_parts(parts: Collection[str]) -> None:
    """
    Raises:
        ValueError: for an unknown part.
    """
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise ValueError(f"freeze={sorted(unknown)} are not parts of a model; there are {sorted(PARTS)}")


def freeze(model: PreTrainedModel, parts: Collection[str]) -> int:
    """
    Freezes the named parts and unfreezes all others.

    Args:
        parts: among "embeddings", "encoder" (embeddings included), "flow", "decoder", "length_head".

    Returns:
        The number of parameters left to train.

    Raises:
        ValueError: for an unknown part, or if nothing is left to train.
    """
    check_parts(parts)
    hosted = getattr(model.config, "encoder_config", None) is not None
    prefixes = tuple({**PARTS, **(HOSTED_PARTS if hosted else {})}[part] for part in parts)
    # Token embeddings have other names in each hosted encoder.
    tokens = {id(p) for p in model.get_input_embeddings().parameters()} if "embeddings" in parts else set()
    trainable = 0
    for name, parameter in model.named_parameters():
        frozen = bool(prefixes) and name.removeprefix("model.").startswith(prefixes)
        parameter.requires_grad_(not (frozen or id(parameter) in tokens))
        trainable += parameter.numel() if parameter.requires_grad else 0
    if not trainable:
        raise ValueError(f"freeze={sorted(parts)} leaves nothing to train")
    return trainable
