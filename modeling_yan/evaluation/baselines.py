"""
What YAN's speed is measured against, at equal parameter count: the best ways to run the alternatives, each with a check
of what it wrote against a plain computation. Weights are random: speed does not depend on what they are.
"""

import dataclasses
import gc
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import SequenceMatcher

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    StaticCache,
)

from modeling_yan.canvas_yan import canvas_lengths
from modeling_yan.ctc_yan import ctc_collapse
from modeling_yan.data.tokenization import config_end_id
from modeling_yan.evaluation.masked_diffusion import MaskedDiffusionLM
from modeling_yan.sampling_yan import draw_noise, row_seeds

LAYERS, HEADS = 6, 4
# Positions that the cached masked diffusion fills before it goes on.
BLOCK_LENGTH = 16
# A compiled call in half precision rounds elsewhere than the plain one, and a drawn expert or a close argmax can fall
# otherwise.
ENOUGH_AGREEMENT = 0.9


@dataclass
class WritingSystem:
    """
    Args:
        write: sources (B, Lx) and a number of tokens -> answers (B, that many), no more and no fewer.
        is_right: sources, answers -> whether a plain computation gives these answers.
        plain: what `write` writes, by the plain computation; a compiled system whose rounding decides tokens needs it.
        next_token_logits: sources, answers -> logits (B, L, V) of every token after those before it, without a cache;
            of a system that writes from left to right.
        beams, threads: what the system decodes with; a cell compares systems that have the same.
        is_right_in_any_dtype: whether `is_right` allows for rounding; if not, it is to be asked in float32 (`check`).
        compiled: whether it computes outside of eager torch, where its work cannot be counted.
        evaluations: passes through the network (its decoder, where it has one) for so many tokens.
        largest_check: longest answer that `is_right` can check in reasonable time; None for any.
    """

    name: str
    model: PreTrainedModel
    write: Callable[[torch.LongTensor, int], torch.LongTensor]
    is_right: Callable[[torch.LongTensor, torch.LongTensor], bool]
    evaluations: Callable[[int], int]
    largest_check: int | None = None
    compiled: bool = field(default=False)
    plain: Callable[[torch.LongTensor, int], torch.LongTensor] | None = None
    is_right_in_any_dtype: bool = False
    next_token_logits: Callable[[torch.LongTensor, torch.LongTensor], torch.Tensor] | None = None
    beams: int = 1
    threads: int = field(default_factory=torch.get_num_threads)


@contextmanager
def full_precision(model: PreTrainedModel) -> Iterator[None]:
    """The model in float32, its values unchanged: back in its dtype it is what it was."""
    dtype = model.dtype
    model.float()
    try:
        yield
    finally:
        model.to(dtype)


def check(system: WritingSystem, source: torch.LongTensor, length: int) -> str | None:
    """
    Holds a system to its own plain computation. Where rounding in the model's dtype decides tokens, the system writes
    again in float32 for this; a compiled one, which would have to be compiled again, must agree with the plain call in
    at least nine of ten tokens.

    Returns:
        How it passed, or None where it did not.
    """
    if system.largest_check is not None and length > system.largest_check:
        return f"passed up to {system.largest_check} tokens"
    if system.is_right_in_any_dtype or system.model.dtype == torch.float32:
        return "passed" if system.is_right(source, system.write(source, length)) else None
    if system.compiled:
        agreement = float((system.write(source, length) == system.plain(source, length)).float().mean())
        return f"{agreement:.1%} of the plain call's tokens" if agreement >= ENOUGH_AGREEMENT else None
    with full_precision(system.model):
        return "passed in float32" if system.is_right(source, system.write(source, length)) else None


def are_best(logits: torch.Tensor, ids: torch.LongTensor, slack: float | None = None) -> bool:
    """
    Whether every id (B, L) is the argmax of its logits (B, L, V), up to a share `slack` of the largest logit; rounding
    in their dtype by default.
    """
    tolerance = (16 * torch.finfo(logits.dtype).eps if slack is None else slack) * logits.abs().amax()
    return bool((logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1) >= logits.amax(-1) - tolerance).all())


def _ids(config) -> dict:
    ids = {"pad_token_id": config.pad_token_id, "bos_token_id": config.bos_token_id}
    return {**ids, "eos_token_id": config_end_id(config)}


def _gpt2_config(config, width: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=2 * config.max_position_embeddings,
        n_embd=width,
        n_layer=LAYERS,
        n_head=HEADS,
        **_ids(config),
    )


def _bart_config(config, width: int, encoder_layers: int, decoder_layers: int) -> BartConfig:
    ids = _ids(config)
    return BartConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings + 1,
        d_model=width,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        decoder_start_token_id=ids["bos_token_id"],
        forced_eos_token_id=None,
        **ids,
    )


def closest_width(make_model: Callable[[int], PreTrainedModel], num_parameters: int, multiple: int) -> int:
    """
    The width, a multiple of `multiple` and at least two of it, whose model comes closest to a number of parameters.

    Args:
        make_model: a model of a width; more width, more parameters. It is called about ten times, on the meta device.
    """

    def count(factor: int) -> int:
        with torch.device("meta"):
            return make_model(factor * multiple).num_parameters()

    low, high = 2, 4
    while count(high) < num_parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < num_parameters else (low, middle)
    return multiple * min((low, high), key=lambda factor: abs(count(factor) - num_parameters))


def of_equal_size(
    model_class: type[PreTrainedModel], make_config: Callable[[int], object], like: PreTrainedModel, seed: int = 0
) -> PreTrainedModel:
    """
    The model whose width makes its parameter count come closest to that of `like`, on its device and in its dtype.
    """
    width = closest_width(lambda width: model_class(make_config(width)), like.num_parameters(), HEADS)
    with torch.random.fork_rng(), like.device:
        torch.manual_seed(seed)
        made = model_class(make_config(width))
    return made.to(like.dtype).eval()


def agreement(expected: torch.LongTensor, answers: torch.LongTensor) -> float:
    """
    Share of tokens (B, L) that two sets of answers have in common, in order; 1 where they are equal. On a canvas with
    blanks a token more or less moves all that follow, which counts once.
    """
    pairs = zip(expected.tolist(), answers.tolist(), strict=True)
    return statistics.mean(SequenceMatcher(None, *pair, autojunk=False).ratio() for pair in pairs)


def yan_system(
    model,
    steps: int,
    *,
    compiled: bool = False,
    seed: int = 0,
    runtime: object = None,
    runtime_name: str = "",
    least_agreement: float = 1.0,
) -> WritingSystem:
    """
    YAN at a number of steps; its encoder, length head, candidate scores and draws are all part of the call.

    Args:
        runtime: has the model's `generate()` and writes in its place; the model checks it.
        runtime_name: of that, for tables.
        least_agreement: `agreement` with the plain computation; less than 1 where weights are rounded.
    """
    writer = model if runtime is None else runtime

    def write(source: torch.LongTensor, length: int) -> torch.LongTensor:
        return writer.generate(
            source,
            target_lengths=length,
            # Exactly so many tokens, whatever they are.
            merge_repeats=0,
            max_new_tokens=length,
            num_inference_steps=steps,
            eos_token_id=None,
            bos_token_id=None,
            compile=compiled,
            generator=torch.Generator(source.device).manual_seed(seed),
        )

    def plain(source: torch.LongTensor, length: int) -> torch.LongTensor:
        return plain_answers(model, source, length, steps, seed)

    def is_right(source: torch.LongTensor, answers: torch.LongTensor) -> bool:
        return agreement(plain(source, answers.shape[1]), answers) >= least_agreement

    kind = ", compiled" if compiled else f", {runtime_name}" if runtime is not None else ""
    name = f"YAN, {steps} step{'s' * (steps > 1)}{kind}"
    outside = compiled or runtime is not None
    return WritingSystem(name, model, write, is_right, lambda length: steps, compiled=outside, plain=plain)


@torch.no_grad()
def plain_answers(model, source: torch.LongTensor, length: int, steps: int, seed: int) -> torch.LongTensor:
    """YAN's tokens by the reference path: all experts at every evaluation, no tables, all logits at once."""
    config = model.config
    options = model.generation_options(num_inference_steps=steps).sampling
    seeds = row_seeds(source, None, len(source), torch.Generator(source.device).manual_seed(seed))
    canvas = int(canvas_lengths(torch.tensor(length), config.canvas_ratio, config.max_position_embeddings))
    lengths = [canvas] * len(source)
    x_0, uniform = draw_noise(seeds, lengths, 1, config.hidden_size, std=config.prior_std, device=source.device)
    states = model.get_encoder()(source).last_hidden_state
    condition = model.model.condition(canvas, None, states, None)
    latents = model.solve_plain(x_0[:, 0], condition, uniform[0][:, 0], options)
    logits = model.decoder(latents, model.copy_source(model.copied_ids(canvas, source, None), states, None))
    ids = model.writable_logits(logits).argmax(-1)
    if config.canvas_ratio > 1:
        ids = ctc_collapse(ids, None, config.pad_token_id, config.pad_token_id)
    return ids[:, :length]


def _greedy_options(length: int) -> dict:
    return {
        "min_new_tokens": length,
        "max_new_tokens": length,
        "do_sample": False,
        "num_beams": 1,
        "eos_token_id": None,
    }


def _left_to_right(name: str, model: PreTrainedModel, write: Callable, logits: Callable) -> WritingSystem:
    """Greedy writing without a cache gives the same tokens if and only if each is the argmax after those before it."""

    def is_right(source: torch.LongTensor, answers: torch.LongTensor) -> bool:
        return are_best(logits(source, answers), answers)

    return WritingSystem(
        name, model, write, is_right, lambda length: length, is_right_in_any_dtype=True, next_token_logits=logits
    )


def gpt2_baseline(like: PreTrainedModel) -> WritingSystem:
    """GPT-2 as `generate()` runs it, with its KV cache."""
    model = of_equal_size(GPT2LMHeadModel, lambda width: _gpt2_config(like.config, width), like)

    def write(source: torch.LongTensor, length: int) -> torch.LongTensor:
        mask = torch.ones_like(source)
        return model.generate(source, attention_mask=mask, **_greedy_options(length))[:, source.shape[1] :]

    @torch.no_grad()
    def next_token_logits(source: torch.LongTensor, answers: torch.LongTensor) -> torch.Tensor:
        ids = torch.cat([source, answers[:, :-1]], 1)
        return model(ids, use_cache=False).logits[:, source.shape[1] - 1 :]

    return _left_to_right("GPT-2, KV cache", model, write, next_token_logits)


def compiled_gpt2_baseline(eager: WritingSystem) -> WritingSystem:
    """The same GPT-2, a static cache and one compiled graph per token; nothing else runs between tokens."""
    model = eager.model
    steps: dict = {}

    def make_step():
        def step(ids, position, cache):
            logits = model(ids, past_key_values=cache, position_ids=position, use_cache=True).logits
            return logits[:, -1:].argmax(-1)

        mode = "reduce-overhead" if model.device.type == "cuda" else "default"
        return torch.compile(step, fullgraph=True, dynamic=False, mode=mode)

    @torch.no_grad()
    def write(source: torch.LongTensor, length: int) -> torch.LongTensor:
        key = (source.shape, length)
        if key not in steps:
            steps.clear()
            torch.compiler.reset()
            cache = StaticCache(config=model.config, max_cache_len=source.shape[1] + length)
            steps[key] = (make_step(), cache)
        step, cache = steps[key]
        cache.reset()
        start = source.shape[1]
        positions = torch.arange(start + length, device=source.device).unsqueeze(0)
        ids = (
            model(source, past_key_values=cache, position_ids=positions[:, :start], use_cache=True)
            .logits[:, -1:]
            .argmax(-1)
        )
        answers = [ids]
        for index in range(start, start + length - 1):
            if model.device.type == "cuda":
                torch.compiler.cudagraph_mark_step_begin()
            ids = step(ids, positions[:, index : index + 1].clone(), cache).clone()
            answers.append(ids)
        return torch.cat(answers, 1)

    return dataclasses.replace(eager, name="GPT-2, static cache, compiled", write=write, compiled=True)


def _seq2seq_baseline(name: str, like: PreTrainedModel, encoder_layers: int, decoder_layers: int) -> WritingSystem:
    model = of_equal_size(
        BartForConditionalGeneration,
        lambda width: _bart_config(like.config, width, encoder_layers, decoder_layers),
        like,
    )

    def write(source: torch.LongTensor, length: int) -> torch.LongTensor:
        mask = torch.ones_like(source)
        return model.generate(source, attention_mask=mask, **_greedy_options(length))[:, 1:]

    @torch.no_grad()
    def next_token_logits(source: torch.LongTensor, answers: torch.LongTensor) -> torch.Tensor:
        start = torch.full_like(answers[:, :1], model.config.decoder_start_token_id)
        ids = torch.cat([start, answers[:, :-1]], 1)
        mask = torch.ones_like(source)
        return model(source, attention_mask=mask, decoder_input_ids=ids, use_cache=False).logits

    return _left_to_right(name, model, write, next_token_logits)


def bart_baseline(like: PreTrainedModel) -> WritingSystem:
    """BART as `generate()` runs it, three layers on either side."""
    return _seq2seq_baseline("BART, KV cache", like, LAYERS // 2, LAYERS // 2)


def shallow_decoder_baseline(like: PreTrainedModel) -> WritingSystem:
    """A deep encoder and one decoder layer (arXiv 2006.10369), the fast way to be autoregressive."""
    return _seq2seq_baseline("deep encoder, one decoder layer", like, LAYERS - 1, 1)


def diffusion_baselines(like: PreTrainedModel, fractions: tuple[int, ...] = (1, 2, 4)) -> list[WritingSystem]:
    """Masked diffusion with as many steps as tokens, half, a quarter; and by blocks with a cache, a quarter."""

    def config(width: int, block_length: int | None = None) -> GPT2Config:
        made = _gpt2_config(like.config, width)
        made.mask_token_id = like.config.mask_token_id
        made.block_length = block_length
        return made

    whole = of_equal_size(MaskedDiffusionLM, config, like)
    blocks = of_equal_size(MaskedDiffusionLM, lambda width: config(width, BLOCK_LENGTH), like)

    def make(name: str, model: MaskedDiffusionLM, fraction: int, use_cache: bool) -> WritingSystem:
        def steps(length: int) -> int:
            return max(1, length // fraction)

        def write(source: torch.LongTensor, length: int) -> torch.LongTensor:
            options = {"max_new_tokens": length, "num_inference_steps": steps(length), "use_cache": use_cache}
            return model.generate(source, **options)[:, source.shape[1] :]

        def is_right(source: torch.LongTensor, answers: torch.LongTensor) -> bool:
            options = {"max_new_tokens": answers.shape[1], "num_inference_steps": steps(answers.shape[1])}
            again = model.generate(source, use_cache=False, **options)[:, source.shape[1] :]
            return bool((again == answers).all()) and not bool((answers == model.config.mask_token_id).any())

        return WritingSystem(name, model, write, is_right, steps, largest_check=128)

    systems = [
        make(f"masked diffusion, {'length' if n == 1 else f'length/{n}'} steps", whole, n, False) for n in fractions
    ]
    return [*systems, make(f"masked diffusion, blocks of {BLOCK_LENGTH}, cached, length/4 steps", blocks, 4, True)]


def release() -> None:
    """Gives compiled graphs and memory of finished systems back."""
    torch.compiler.reset()
    gc.collect()
