"""
What writes texts, each in the form that somebody would deploy on a CPU: texts in, texts out.

    writers = {"YAN": yan_writer(model, tokenizer, 128), **ctranslate2_writers(bart, tokenizer, 128)}
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_yan.data.tokenization import end_token_id
from modeling_yan.evaluation.ctranslate2_baselines import load_runtime
from modeling_yan.evaluation.text_generation import generate_texts

Writer = Callable[[Sequence[str]], list[str]]
PRECISIONS = ("float32", "int8")
# Share of the texts of two ways to compute the same that may differ by rounding.
MOST_DIFFERENT = 0.02


def in_batches(writer: Writer, texts: Sequence[str], batch_size: int) -> list[str]:
    """What is written for all texts, those of similar lengths together."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    written = [""] * len(texts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        for index, text in zip(chosen, writer([texts[i] for i in chosen]), strict=True):
            written[index] = text
    return written


def yan_writer(model, tokenizer: PreTrainedTokenizerBase, longest: int, **options) -> Writer:
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


def sequence_writer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, longest: int) -> Writer:
    """
    A sequence-to-sequence model by transformers' own `generate()`, greedy: the reference of the next one.

    Args:
        longest: tokens of a source that are read, and of an answer that are written.
    """
    options = {"max_source_length": longest, "max_new_tokens": longest, "do_sample": False, "num_beams": 1}
    return lambda texts: generate_texts(model, tokenizer, texts, **options)


def ctranslate2_writer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, longest: int, compute_type: str = "float32"
) -> Writer:
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


def ctranslate2_writers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, longest: int) -> dict[str, Writer]:
    """A BART in CTranslate2, by "CTranslate2 float32" and "CTranslate2 int8"."""
    return {f"CTranslate2 {kind}": ctranslate2_writer(model, tokenizer, longest, kind) for kind in PRECISIONS}


def check_same(reference: Writer, writer: Writer, texts: Sequence[str], name: str) -> None:
    """
    Holds a runtime to what it computes in another way.

    Args:
        name: of the writer, for the error.

    Raises:
        ValueError: where more than one answer in fifty differs.
    """
    pairs = zip(in_batches(reference, texts, len(texts)), in_batches(writer, texts, len(texts)), strict=True)
    different = sum(a != b for a, b in pairs)
    if different > MOST_DIFFERENT * len(texts):
        raise ValueError(f"{name}: {different} of {len(texts)} texts are not those of torch; it cannot be compared")


def time_calls(writers: dict[str, Writer], texts: Sequence[str], rounds: int = 3) -> dict[str, float]:
    """
    Milliseconds of a call for one text, the median over all texts and rounds, by name. The systems take turns by
    rounds, in turned order every other one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in writers}
    for round_ in range(rounds):
        for name in list(writers)[:: 1 if round_ % 2 == 0 else -1]:
            writers[name](texts[:1])
            for text in texts:
                start = time.perf_counter()
                writers[name]([text])
                seconds[name].append(time.perf_counter() - start)
    return {name: round(1000 * statistics.median(own), 2) for name, own in seconds.items()}


def time_batches(
    writers: dict[str, Writer], texts: Sequence[str], batch_size: int, rounds: int = 3
) -> dict[str, float]:
    """Texts a second in batches, of the fastest round, by name; turns as in `time_calls`."""
    seconds: dict[str, list[float]] = {name: [] for name in writers}
    for round_ in range(rounds):
        for name in list(writers)[:: 1 if round_ % 2 == 0 else -1]:
            writers[name](texts[:batch_size])
            start = time.perf_counter()
            in_batches(writers[name], texts, batch_size)
            seconds[name].append(time.perf_counter() - start)
    return {name: round(len(texts) / min(own), 1) for name, own in seconds.items()}
