r"""
Makes a YAN around a pretrained encoder of transformers: its weights, embeddings and tokenizer in place, a fresh flow
and decoder of fitting width behind it.

    python conversion/convert_encoder_to_yan.py --encoder NAME_OR_DIR --output_dir DIR \
        [--config_overrides '{flow_layers: 2, flow_from_encoder: true}'] [--push_to_hub ID]

For BERT, RoBERTa and ModernBERT, and the encoder half of BART and T5. The encoder keeps its own position scheme,
whatever it is: before anything is kept, the written folder is loaded again and must give the original's hidden states
exactly. Nothing of the flow, the decoder and the length head is trained: go on with `examples/run_flow.py`, which also
takes the encoder itself (`--encoder`).
"""

import argparse
from pathlib import Path

import torch
from transformers import PreTrainedModel

from modeling_yan import YanForConditionalGeneration
from modeling_yan.common.arguments import ModelArguments, run_script
from modeling_yan.common.building import hosted_config, hosted_fields, load_tokenizer
from modeling_yan.common.files import check_destination
from modeling_yan.common.help import ScriptHelp
from modeling_yan.common.hub import push_folder, readable, write_folder
from modeling_yan.from_encoder_yan import load_encoder


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
hidden states equal the original's, but the model cannot write before `examples/run_flow.py` has been run on it.

```python
from transformers import AutoModelForSeq2SeqLM

model = AutoModelForSeq2SeqLM.from_pretrained("{repository}", trust_remote_code=True)
```
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument("--encoder", required=True, help="Hub name or folder of the pretrained model")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to be written, new or empty")
    parser.add_argument("--preset", help="what stands around the encoder: configuration/models")
    parser.add_argument("--config_overrides", help="config fields to change, as YAML: '{flow_layers: 2}'")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the tokenizer")
    parser.add_argument("--push_to_hub", metavar="ID", help="repository to upload the folder to")
    arguments = parser.parse_args()
    check_destination(arguments.output_dir)
    asked = ModelArguments(
        encoder=arguments.encoder,
        preset=arguments.preset or ModelArguments.preset,
        config_overrides=arguments.config_overrides,
        trust_remote_code=arguments.trust_remote_code,
    )
    hosted_config(asked)
    tokenizer = load_tokenizer(asked)
    with readable(arguments.encoder):
        encoder = load_encoder(arguments.encoder)
    model = YanForConditionalGeneration.from_encoder(encoder, tokenizer, **hosted_fields(asked))
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
