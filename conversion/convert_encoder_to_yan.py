r"""
Makes a YAN around a pretrained encoder of transformers: its weights, embeddings and tokenizer in place, a fresh flow
and decoder of fitting width behind it.

    python conversion/convert_encoder_to_yan.py --encoder NAME_OR_DIR --output_dir DIR \
        [--preset yan-base] [--push_to_hub ID]

For BERT, RoBERTa and ModernBERT, and the encoder half of BART and T5. The encoder keeps its own position scheme,
whatever it is: before anything is kept, the written folder is loaded again and must give the original's hidden states
exactly. The flow has a position table of its own. Nothing of the flow, the decoder and the length head is trained: go
on with stages 1 and 2.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import (
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from modeling_yan import YanConfig, YanForConditionalGeneration
from modeling_yan.common.arguments import run_script
from modeling_yan.common.files import check_destination
from modeling_yan.common.help import ScriptHelp
from modeling_yan.common.hub import (
    push_folder,
    read_config,
    read_model_and_gaps,
    read_tokenizer,
    refuse_gaps,
    write_folder,
)
from modeling_yan.common.paths import configuration_path
from modeling_yan.configuration_yan import HOSTED_ENCODERS

# What of a preset does not depend on the encoder.
PRESET_FIELDS = ("flow_layers", "decoder_layers", "num_experts")
# What AutoModel adds to an encoder, and YAN does not read.
UNREAD = ("pooler.", "decoder.")
# Longest text of an encoder whose positions are relative and have no end.
DEFAULT_MAX_LENGTH = 1024


def longest_text(encoder: PreTrainedConfig) -> int:
    """Positions the encoder has; RoBERTa's table begins after the padding id."""
    length = getattr(encoder, "max_position_embeddings", None) or DEFAULT_MAX_LENGTH
    return length - encoder.pad_token_id - 1 if encoder.model_type == "roberta" else length


def build_config(encoder: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None, preset: str) -> YanConfig:
    """
    Sizes from the encoder, the rest from the preset, token ids from the tokenizer (BERT's CLS and SEP as BOS and EOS).

    Raises:
        ValueError: for an encoder that cannot be hosted, or without an id that ends a text.
    """
    if encoder.model_type not in HOSTED_ENCODERS:
        raise ValueError(
            f"--encoder is of type {encoder.model_type!r}; the encoders that can be hosted are "
            f"{sorted(HOSTED_ENCODERS)}. Models that read in one direction are none, and other position schemes have "
            "not been shown to carry over"
        )

    def token_id(*names: str) -> int | None:
        holders = [encoder] if tokenizer is None else [tokenizer]
        found = (getattr(holder, f"{name}_token_id", None) for holder in holders for name in names)
        return next((value for value in found if value is not None), None)

    options = json.loads(configuration_path("models", f"{preset}.json").read_text(encoding="utf-8"))
    ids = {
        "pad_token_id": token_id("pad"),
        "bos_token_id": token_id("bos", "cls"),
        "eos_token_id": token_id("eos", "sep"),
        "mask_token_id": token_id("mask"),
    }
    if ids["eos_token_id"] is None:
        raise ValueError("neither tokenizer nor encoder names an EOS or SEP token; a YAN needs one to end its texts")
    return YanConfig(
        vocab_size=encoder.vocab_size,
        hidden_size=encoder.hidden_size,
        num_attention_heads=encoder.num_attention_heads,
        max_position_embeddings=longest_text(encoder),
        encoder_config=encoder.to_dict(),
        **{name: options[name] for name in PRESET_FIELDS},
        **ids,
    )


def load_encoder(name: str) -> PreTrainedModel:
    """
    The pretrained encoder in float32; of a sequence-to-sequence model its encoder half.

    Raises:
        ValueError: for an encoder that cannot be hosted, cannot be read or lacks weights.
    """
    config = read_config(name)
    if config.model_type not in HOSTED_ENCODERS:
        # Not worth loading.
        build_config(config, None, "yan-base")
    model, missing = read_model_and_gaps(AutoModel, name, dtype=torch.float32)
    refuse_gaps(name, [weight for weight in missing if not weight.startswith(UNREAD)], model)
    return (model.get_encoder() if model.config.is_encoder_decoder else model).eval()


def host(encoder: PreTrainedModel, config: YanConfig) -> YanForConditionalGeneration:
    """A YAN with the encoder's weights in place."""
    model = YanForConditionalGeneration(config).eval()
    backbone = model.model.encoder.backbone
    weights = encoder.state_dict()
    backbone.load_state_dict({name: weights[name] for name in backbone.state_dict()})
    return model


def compare(model: YanForConditionalGeneration, encoder: PreTrainedModel) -> None:
    """
    Raises:
        ValueError: unless the hosted encoder gives the original's hidden states, with and without padding.
    """
    ids = torch.arange(24).view(2, 12) % (encoder.config.vocab_size - 8) + 4
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    padding = getattr(encoder.config, "pad_token_id", None)
    ids = ids.masked_fill(mask == 0, 0 if padding is None else padding)
    for attention_mask in (None, mask):
        with torch.no_grad():
            theirs = encoder(input_ids=ids, attention_mask=attention_mask).last_hidden_state
            ours = model.get_encoder()(ids, attention_mask).last_hidden_state
        tokens = mask.bool() if attention_mask is not None else torch.ones_like(mask).bool()
        difference = (ours - theirs)[tokens].abs().max().item()
        if not difference <= 1e-5:
            raise ValueError(f"the hosted encoder's hidden states differ from the original's by {difference:.1e}")


def model_card(model: YanForConditionalGeneration, source: str, repository: str) -> str:
    """README.md of the folder: what is trained in it and what is not."""
    config, encoder = model.config, model.config.encoder_config
    return f"""---
library_name: transformers
base_model: {source}
tags:
- yan
- flow-matching
- custom_code
---

# {repository}

The encoder of `{source}` ({encoder.model_type}, {encoder.num_hidden_layers} layers, width {encoder.hidden_size}) inside
a YAN (arXiv 2604.15009) with {config.flow_layers} flow layers and {config.num_experts} experts,
{model.num_parameters():,} parameters in all. **The flow, the decoder and the length head are untrained**: the encoder's
hidden states equal the original's, but the model cannot write before `examples/run_autoencoder.py` and
`examples/run_flow.py` have been run on it.

```python
from transformers import AutoModelForSeq2SeqLM

model = AutoModelForSeq2SeqLM.from_pretrained("{repository}", trust_remote_code=True)
```
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument("--encoder", required=True, help="Hub name or folder of the pretrained model")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to be written, new or empty")
    parser.add_argument("--preset", default="yan-base", help="flow and decoder depth and experts: configuration/models")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the tokenizer")
    parser.add_argument("--push_to_hub", metavar="ID", help="repository to upload the folder to")
    arguments = parser.parse_args()
    check_destination(arguments.output_dir)
    encoder = load_encoder(arguments.encoder)
    tokenizer = read_tokenizer(arguments.encoder, trust_remote_code=arguments.trust_remote_code)
    model = host(encoder, build_config(encoder.config, tokenizer, arguments.preset))
    compare(model, encoder)
    repository = arguments.push_to_hub or arguments.output_dir.name
    card = model_card(model, arguments.encoder, repository)
    write_folder(model, tokenizer, arguments.output_dir, card, lambda again: compare(again, encoder))
    parameters = f"{model.num_parameters():,} parameters around {encoder.num_parameters():,} pretrained"
    print(f"{parameters}, in {arguments.output_dir}")
    if arguments.push_to_hub:
        push_folder(arguments.output_dir, arguments.push_to_hub)


if __name__ == "__main__":
    run_script(main)
