"""The README.md that a saved model has where nobody has written another: what it is and how to use it."""

import torch

# Class -> what it does, and a line of code that does it.
USES = {
    "YanForConditionalGeneration": (
        "writes the answer to a text, all positions at once, in a few steps of a mixture of learned velocity fields",
        'pipeline("text2text-generation", model="{name}", trust_remote_code=True)("a source text")',
    ),
    "YanForMaskedLM": (
        "fills masked text, position by position; it is the autoencoder whose latents a YAN's flow writes",
        'pipeline("fill-mask", model="{name}", trust_remote_code=True)("a text with <mask> in it")',
    ),
    "YanForSequenceClassification": (
        "classifies texts with a head on the encoder",
        'pipeline("text-classification", model="{name}", trust_remote_code=True)("a text")',
    ),
    "YanForTokenClassification": (
        "classifies tokens with a head on the encoder",
        'pipeline("token-classification", model="{name}", trust_remote_code=True)("a text")',
    ),
    "YanForQuestionAnswering": (
        "marks the answer to a question in a context with a head on the encoder",
        'AutoModelForQuestionAnswering.from_pretrained("{name}", trust_remote_code=True)',
    ),
}
DEFAULT_USE = ("encodes texts", 'pipeline("feature-extraction", model="{name}", trust_remote_code=True)("a text")')


# Class -> the task by which the Hub lists it.
PIPELINE_TAGS = {
    "YanForConditionalGeneration": "text-generation",
    "YanForMaskedLM": "fill-mask",
    "YanForSequenceClassification": "text-classification",
    "YanForTokenClassification": "token-classification",
    "YanForQuestionAnswering": "question-answering",
}
DEFAULT_TAG = "feature-extraction"

# Model card of an adapter: code that loads it with the model it belongs to.
ADAPTER_USE = 'AutoPeftModelForSeq2SeqLM.from_pretrained("{name}", trust_remote_code=True)'


def model_card(model: torch.nn.Module, name: str, training: str = "", *, adapter_of: str | None = None) -> str:
    """
    Args:
        model: of any of YAN's classes.
        name: of the folder or repository.
        training: a section on how it was trained, as Markdown.
        adapter_of: name of the model that an adapter, which is what the folder holds, belongs to; None for a model.
    """
    config = model.config
    what, code = USES.get(type(model).__name__, DEFAULT_USE)
    subject, library = "A YAN", "transformers"
    if adapter_of is not None:
        subject, library, code = f"An adapter (PEFT) of {adapter_of}, a YAN", "peft", ADAPTER_USE
    encoder = (
        f"{config.encoder_mixer} encoder"
        if config.encoder_config is None
        else (f"pretrained encoder of type {config.encoder_config.model_type}")
    )
    sizes = [f"{encoder} of {config.encoder_layers} layers, width {config.hidden_size}"]
    if type(model).__name__ in ("YanForConditionalGeneration", "YanModel"):
        canvas = (
            "one position per token"
            if config.canvas_ratio == 1
            else f"{config.canvas_ratio:g} positions per token (CTC)"
        )
        sizes += [f"{config.flow_layers} flow layers with {config.num_experts} experts", f"canvas of {canvas}"]
    imports = code.split("(", 1)[0].split(".", 1)[0]
    tag = PIPELINE_TAGS.get(type(model).__name__, DEFAULT_TAG)
    return f"""---
library_name: {library}
pipeline_tag: {tag}
tags:
- yan
- flow-matching
- custom_code
---

# {name}

{subject} ([mixture-of-experts flow matching for language](https://arxiv.org/abs/2604.15009)) that {what}.

- {sum(p.numel() for p in model.parameters()):,} parameters: {", ".join(sizes)}
- vocabulary of {config.vocab_size:,} tokens, texts of up to {config.max_position_embeddings} positions

```python
from {library} import {imports}

{code.format(name=name)}
```
{f"{chr(10)}{training.strip()}{chr(10)}" if training else ""}"""


__all__ = ["DEFAULT_TAG", "PIPELINE_TAGS", "model_card"]
