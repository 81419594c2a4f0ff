"""
What can restore a text, each in the form that somebody would deploy on a CPU: texts in, texts out.

    systems = {"YAN": yan_restorer(graphs, tokenizer, 128), "BART": ctranslate2_restorer(bart, tokenizer, 128)}
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_yan.data.tokenization import end_token_id
from modeling_yan.evaluation.baselines import shallow_decoder_baseline
from modeling_yan.evaluation.ctranslate2_baselines import ctranslate2_baselines, load_runtime
from modeling_yan.evaluation.tagger import tag_texts
from modeling_yan.evaluation.text_generation import generate_texts
from modeling_yan.restoration_yan import restore

Restorer = Callable[[Sequence[str]], list[str]]


def in_batches(restore: Restorer, texts: Sequence[str], batch_size: int) -> list[str]:
    """All texts restored, those of similar lengths together."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    restored = [""] * len(texts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for index, text in zip(chosen, restore([texts[i] for i in chosen]), strict=True):
            restored[index] = text
    return restored


def yan_restorer(model, tokenizer: PreTrainedTokenizerBase, longest: int, **options) -> Restorer:
    """
    Args:
        model: a YAN, or its graphs in ONNX Runtime.
        longest: tokens of a source that are read.
        options: of `generate()`.
    """

    def write(texts: Sequence[str]) -> list[str]:
        batch = tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True, max_length=longest)
        generator = torch.Generator().manual_seed(0)
        ids = model.generate(batch["input_ids"], batch["attention_mask"], generator=generator, **options)
        return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]

    return write


def checked_restorer(model, tokenizer: PreTrainedTokenizerBase, **options) -> Restorer:
    """What `restore` keeps of a YAN's answers, by its defaults; `options` are of `generate()`."""
    return lambda texts: [restore(model, tokenizer, text, **options).text for text in texts]


def tagger_restorer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, longest: int) -> Restorer:
    """A tagger of `tagger.py`."""
    return lambda texts: tag_texts(model, tokenizer, texts, longest)


def sequence_restorer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, longest: int) -> Restorer:
    """A sequence-to-sequence model by transformers' own `generate()`, greedy: the reference of the next one."""

    options = {"max_source_length": longest, "max_new_tokens": longest, "do_sample": False, "num_beams": 1}
    return lambda texts: generate_texts(model, tokenizer, texts, **options)


def ctranslate2_restorer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, longest: int, compute_type: str = "float32"
) -> Restorer:
    """A BART in CTranslate2, greedy, up to the token that ends a text, on as many threads as torch has."""
    runtime = load_runtime(model, compute_type, torch.get_num_threads())
    end = str(end_token_id(tokenizer))

    def write(texts: Sequence[str]) -> list[str]:
        batch = tokenizer(list(texts), truncation=True, max_length=longest)["input_ids"]
        results = runtime.translate_batch(
            [list(map(str, row)) for row in batch],
            beam_size=1,
            end_token=[end],
            max_batch_size=0,
            max_decoding_length=longest,
        )
        ids = [[int(token) for token in result.hypotheses[0]] for result in results]
        return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]

    return write


def untrained_restorers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, longest: int
) -> dict[str, Restorer]:
    """
    For speed alone: a deep encoder with one decoder layer, with random weights and as many parameters as the model, in
    CTranslate2. It writes as many tokens as the longest source of its batch has.
    """

    def restorer(system) -> Restorer:
        def write(texts: Sequence[str]) -> list[str]:
            batch = tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True, max_length=longest)
            ids = system.write(batch["input_ids"], batch["input_ids"].shape[1])
            return tokenizer.batch_decode(ids, skip_special_tokens=True)

        return write

    systems = ctranslate2_baselines(shallow_decoder_baseline(model))
    return {f"{system.name}, random weights": restorer(system) for system in systems}


def time_restorers(
    restorers: dict[str, Restorer], texts: Sequence[str], batch_size: int, rounds: int = 3
) -> dict[str, dict[str, float]]:
    """
    Milliseconds of a call for one text, and texts a second in batches, of all systems in turn.

    Args:
        texts: one call each for the first, all of them in batches for the second.
        rounds: how often; the median of all single calls, and the fastest round of batches.

    Returns:
        Name -> `ms` and `texts_per_second`.
    """
    calls: dict[str, list[float]] = {name: [] for name in restorers}
    whole: dict[str, list[float]] = {name: [] for name in restorers}
    for restorer in restorers.values():
        restorer(texts[:2])
    for _ in range(rounds):
        for name, restorer in restorers.items():
            for text in texts:
                start = time.perf_counter()
                restorer([text])
                calls[name].append(time.perf_counter() - start)
            start = time.perf_counter()
            in_batches(restorer, texts, batch_size)
            whole[name].append(time.perf_counter() - start)
    return {
        name: {
            "ms": round(1000 * statistics.median(calls[name]), 2),
            "texts_per_second": round(len(texts) / min(whole[name]), 1),
        }
        for name in restorers
    }
