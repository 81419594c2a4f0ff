"""
The baselines as somebody would deploy them on a CPU: their own weights in CTranslate2, in float32 and in int8. Needs
the extra `benchmark`.
"""

import copy
import dataclasses
import tempfile
from collections.abc import Callable

import torch

from modeling_yan.evaluation.baselines import WritingSystem, are_best

# CTranslate2's compute types, and how far below the best a token's logit may be, as a share of the largest logit: int8
# rounds weights and activations to 1/127 of their largest, layer after layer.
COMPUTE_TYPES = {"float32": None, "int8": 0.02}


def _convert(model, folder: str, compute_type: str) -> None:
    """Writes a BART or GPT-2 as CTranslate2 reads it. Its tokens are the ids as text."""
    from ctranslate2.converters.transformers import BartLoader, GPT2Loader

    # The converter quantizes the weights that it is given in place.
    model = copy.deepcopy(model)
    tokens = [str(i) for i in range(model.config.vocab_size)]
    if model.config.is_encoder_decoder:
        # What the converter reads of a BART of before transformers 5.
        options = {"normalize_before": False, "normalize_embedding": True, "add_final_layer_norm": False}
        for name, value in options.items():
            setattr(model.config, name, value)
        spec = BartLoader().get_model_spec(model)
        spec.register_source_vocabulary(tokens)
        spec.register_target_vocabulary(tokens)
        spec.config.decoder_start_token = str(model.config.decoder_start_token_id)
    else:
        spec = GPT2Loader().get_model_spec(model)
        spec.register_vocabulary(tokens)
    for name in ("bos", "eos"):
        setattr(spec.config, f"{name}_token", str(getattr(model.config, f"{name}_token_id")))
    spec.config.unk_token = str(model.config.pad_token_id)
    spec.validate()
    spec.optimize(quantization=compute_type)
    spec.save(folder)


def _as_tokens(source: torch.LongTensor) -> list[list[str]]:
    return [list(map(str, row)) for row in source.tolist()]


def load_runtime(model, compute_type: str, threads: int):
    """CTranslate2's `Translator` of a BART, or its `Generator` of a GPT-2. Tokens are the ids as text."""
    import ctranslate2

    settings = {"device": "cpu", "compute_type": compute_type, "inter_threads": 1, "intra_threads": threads}
    with tempfile.TemporaryDirectory() as folder:
        _convert(model, folder, compute_type)
        kind = ctranslate2.Translator if model.config.is_encoder_decoder else ctranslate2.Generator
        return kind(folder, **settings)


def _writer(model, compute_type: str, threads: int) -> Callable[[torch.LongTensor, int], torch.LongTensor]:
    # Of a batch nothing is split off, no end of a text is looked for, and nothing is computed that is not returned.
    options = {"beam_size": 1, "end_token": [], "max_batch_size": 0, "return_scores": False}
    runtime = load_runtime(model, compute_type, threads)

    def translate(source: torch.LongTensor, length: int) -> torch.LongTensor:
        lengths = {"min_decoding_length": length, "max_decoding_length": length}
        results = runtime.translate_batch(_as_tokens(source), **options, **lengths)
        return torch.tensor([list(map(int, result.hypotheses[0])) for result in results])

    def generate(source: torch.LongTensor, length: int) -> torch.LongTensor:
        lengths = {"min_length": length, "max_length": length}
        results = runtime.generate_batch(
            _as_tokens(source), **options, **lengths, include_prompt_in_result=False, sampling_topk=1
        )
        return torch.tensor([result.sequences_ids[0] for result in results])

    return translate if model.config.is_encoder_decoder else generate


def ctranslate2_baselines(eager: WritingSystem) -> list[WritingSystem]:
    """
    An eager baseline's weights in CTranslate2, greedy, on as many threads as the others.

    Args:
        eager: a BART or GPT-2 of `baselines.py`, on the CPU in float32.
    """
    systems, name = [], eager.name.removesuffix(", KV cache")
    for compute_type, slack in COMPUTE_TYPES.items():

        def is_right(source: torch.LongTensor, answers: torch.LongTensor, slack: float | None = slack) -> bool:
            return are_best(eager.next_token_logits(source, answers), answers, slack)

        systems.append(
            dataclasses.replace(
                eager,
                name=f"{name}, CTranslate2 {compute_type}",
                write=_writer(eager.model, compute_type, eager.threads),
                is_right=is_right,
                compiled=True,
            )
        )
    return systems
