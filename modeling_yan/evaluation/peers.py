"""
A trained left-to-right model beside YAN on one source, each with its own answer and clock: through transformers, or
through CTranslate2 (extra `benchmark`).
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from modeling_yan import YanForConditionalGeneration
from modeling_yan.canvas_yan import text_room
from modeling_yan.common.hub import read_tokenizer
from modeling_yan.common.reports import device_name
from modeling_yan.evaluation.drafts import check_seed, check_source
from modeling_yan.evaluation.masked_diffusion import MaskedDiffusionLM
from modeling_yan.evaluation.speed import System, measure_side_by_side
from modeling_yan.evaluation.text_generation import is_seq2seq, load_text_model

# What a folder has that one of CTranslate2's converters wrote.
CONVERTED = "model.bin"
COMPUTE_TYPES = ("float32", "int8")
# Calls of each that are timed, after two to warm up; and seconds after which one is timed no further.
CALLS, PATIENCE = 10, 10.0


@dataclass(frozen=True)
class Peer:
    """
    A model that writes from left to right, greedily.

    Args:
        name: of its folder.
        runtime: what computes it, in words.
        tokenizer: its own.
        write: ids of a source and the most tokens of an answer -> ids of the answer, EOS included where it comes.
        seq2seq: whether source and answer have positions of their own.
        positions: how many it has; None where its folder does not say.
        parameters: how many it has; None where its folder does not say.
    """

    name: str
    runtime: str
    tokenizer: PreTrainedTokenizerBase
    write: Callable[[list[int], int], list[int]]
    seq2seq: bool
    positions: int | None = None
    parameters: int | None = None

    def read_source(self, source: str) -> list[int]:
        """
        The ids of a source.

        Raises:
            ValueError: for a source that leaves no position for an answer.
        """
        ids = self.tokenizer(source)["input_ids"]
        if self.positions is not None and len(ids) > self.positions - (not self.seq2seq):
            raise ValueError(
                f"source has {len(ids)} tokens of the baseline {self.name}, which has {self.positions} positions; "
                "shorten it"
            )
        return ids

    def answer(self, ids: list[int], longest: int) -> list[int]:
        """The answer to a source, of at most `longest` tokens and no more than there are positions for."""
        if self.positions is not None:
            longest = min(longest, self.positions - (0 if self.seq2seq else len(ids)))
        return self.write(ids, longest)


@dataclass(frozen=True)
class Lane:
    """
    What one model did in a race.

    Args:
        name, runtime, parameters: of the model.
        text: its answer.
        tokens: of that, EOS included.
        milliseconds: median over `calls` calls, from the ids of the source to those of the answer.
        quartiles: around the median.
    """

    name: str
    runtime: str
    parameters: int | None
    text: str
    tokens: int
    milliseconds: float
    quartiles: tuple[float, float]
    calls: int


def _with_torch(model: PreTrainedModel) -> Callable[[list[int], int], list[int]]:
    @torch.no_grad()
    def write(source: list[int], longest: int) -> list[int]:
        ids = torch.tensor([source], device=model.device)
        options = {"max_new_tokens": longest, "do_sample": False, "num_beams": 1}
        answer = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0].tolist()
        # The answer of an encoder-decoder begins with the token that starts its decoder.
        return answer[1 if is_seq2seq(model) else len(source) :]

    return write


def _with_ctranslate2(
    folder: str | Path, tokenizer: PreTrainedTokenizerBase
) -> tuple[Callable[[list[int], int], list[int]], bool]:
    """What writes, and whether it is an encoder-decoder."""
    import ctranslate2

    settings = {"device": "cpu", "inter_threads": 1, "intra_threads": torch.get_num_threads()}
    # An encoder-decoder's is called shared, or source and target.
    seq2seq = not any((Path(folder) / f"vocabulary.{ending}").is_file() for ending in ("json", "txt"))
    runtime = (ctranslate2.Translator if seq2seq else ctranslate2.Generator)(str(folder), **settings)

    def translate(source: list[int], longest: int) -> list[int]:
        tokens = [tokenizer.convert_ids_to_tokens(source)]
        options = {"beam_size": 1, "max_decoding_length": longest, "return_end_token": True}
        return tokenizer.convert_tokens_to_ids(runtime.translate_batch(tokens, **options)[0].hypotheses[0])

    def generate(source: list[int], longest: int) -> list[int]:
        tokens = [tokenizer.convert_ids_to_tokens(source)]
        options = {"beam_size": 1, "sampling_topk": 1, "max_length": longest, "return_end_token": True}
        return runtime.generate_batch(tokens, include_prompt_in_result=False, **options)[0].sequences_ids[0]

    return translate if seq2seq else generate, seq2seq


def read_peer(folder: str, compute_type: str | None = None, *, device: torch.device | str = "cpu") -> Peer:
    """
    A trained baseline with its tokenizer, as it will be raced.

    Args:
        folder: of a causal or encoder-decoder model of transformers, or one that CTranslate2's converter wrote, with
            the tokenizer's files in it; or a name on the Hub.
        compute_type: run a BART or GPT-2 of transformers through CTranslate2, in "float32" or "int8"; None for eager
            torch.
        device: of eager torch; CTranslate2 runs on the CPU.

    Raises:
        ValueError: for what cannot be read, does not write from left to right, or cannot be run that way.
        OSError: if there is no such model.
        ImportError: if CTranslate2 is to run it and is not installed.
    """
    name, device = Path(folder).name, torch.device(device)
    converted = (Path(folder) / CONVERTED).is_file()
    if compute_type is not None and compute_type not in COMPUTE_TYPES:
        raise ValueError(f"baseline_compute_type={compute_type!r} must be one of {COMPUTE_TYPES}")
    if device.type != "cpu" and (converted or compute_type):
        raise ValueError(f"baseline={folder} in CTranslate2 runs on the CPU, YAN on {device}: that is no race")
    tokenizer = read_tokenizer(folder)
    if converted:
        if compute_type:
            raise ValueError(f"baseline={folder} is converted already; leave out baseline_compute_type={compute_type}")
        write, seq2seq = _with_ctranslate2(folder, tokenizer)
        return Peer(name, "CTranslate2 as it was converted, greedy, CPU", tokenizer, write, seq2seq)
    model = load_text_model(folder, dtype=torch.float32).to(device)
    if model.config.model_type == "yan" or isinstance(model, MaskedDiffusionLM):
        raise ValueError(f"baseline={folder} does not write from left to right; name a model that does")
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(
            f"baseline={folder}: its tokenizer has {len(tokenizer)} ids, its model {model.config.vocab_size}; they do "
            "not belong together"
        )
    facts = {"positions": getattr(model.config, "max_position_embeddings", None), "parameters": model.num_parameters()}
    if compute_type is None:
        runtime = f"eager torch with a KV cache (CTranslate2 is faster), greedy, float32, {device_name(device)}"
        return Peer(name, runtime, tokenizer, _with_torch(model), is_seq2seq(model), **facts)
    from modeling_yan.evaluation.ctranslate2_baselines import convert

    tokens = tokenizer.convert_ids_to_tokens(list(range(model.config.vocab_size)))
    with tempfile.TemporaryDirectory() as converted_folder:
        convert(model, converted_folder, compute_type, tokens)
        write, seq2seq = _with_ctranslate2(converted_folder, tokenizer)
    return Peer(name, f"CTranslate2 {compute_type}, greedy, CPU", tokenizer, write, seq2seq, **facts)


def race(
    model: YanForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    peer: Peer,
    source: str,
    *,
    steps: int,
    seed: int = 0,
    calls: int = CALLS,
) -> tuple[Lane, Lane]:
    """
    Times YAN and a peer on one source, call by call in turns and on as many threads, after two calls of each to warm
    up. Each writes its own answer, as long as it finds right.

    Args:
        steps: of YAN's solver; its other options are the model's own.
        seed: decides everything random in YAN's answer.
        calls: timed calls of each, an even number.

    Returns:
        YAN's lane and the peer's.

    Raises:
        ValueError: for a source that is empty or too long for one of them, and for a seed that is none.
    """
    check_source(model, tokenizer, source)
    seed, ids = check_seed(seed), peer.read_source(source)
    batch = tokenizer(source, return_tensors="pt").to(model.device)
    longest = min(
        model.generation_options().longest, text_room(model.config.max_position_embeddings, model.config.canvas_ratio)
    )
    answers: dict[str, list[int]] = {}

    def write_yan(_: dict) -> int:
        answers["yan"] = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            generator=torch.Generator(model.device).manual_seed(seed),
            num_inference_steps=steps,
            num_return_sequences=1,
        )[0].tolist()
        return len(answers["yan"])

    def write_peer(_: dict) -> int:
        answers["peer"] = peer.answer(ids, longest)
        return len(answers["peer"])

    systems = [System("yan", write_yan, [{}, {}]), System("peer", write_peer, [{}, {}])]
    results = measure_side_by_side(systems, repeats=max(calls // 2, 1), seconds=PATIENCE)

    def lane(key: str, name: str, runtime: str, parameters: int | None, reader: PreTrainedTokenizerBase) -> Lane:
        clock = results[key]["latency_ms"]
        return Lane(
            name=name,
            runtime=runtime,
            parameters=parameters,
            text=reader.decode(answers[key], skip_special_tokens=True).strip(),
            tokens=len(answers[key]),
            milliseconds=clock["median"],
            quartiles=tuple(clock["quartiles"]),
            calls=results[key]["calls"],
        )

    dtype = str(model.dtype).removeprefix("torch.")
    yan_runtime = f"eager torch, {dtype}, {device_name(model.device)}"
    return (
        lane("yan", f"YAN, {steps} step{'s' * (steps > 1)}", yan_runtime, model.num_parameters(), tokenizer),
        lane("peer", peer.name, peer.runtime, peer.parameters, peer.tokenizer),
    )
