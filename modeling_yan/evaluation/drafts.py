"""
What stands on YAN's canvas after every step, position by position: the token, how sure the decoder is of it, and the
expert that moves it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from modeling_yan import YanForConditionalGeneration
from modeling_yan.copying_yan import CopySource
from modeling_yan.evaluation.speed import timed
from modeling_yan.flow_matching_yan import time_grid
from modeling_yan.generation_options_yan import GenerationOptions

# What ends a decoded text in the middle of a character.
REPLACEMENT = "\ufffd"
# Calls that the clock is a median of.
CALLS = 5


@dataclass(frozen=True)
class Position:
    """
    One position of the canvas.

    Args:
        text: what it adds to the text, with the space before it; "" for a blank, for a token that the neighbour before
            holds already, for one that `merge_repeats` leaves out, and behind the end.
        token_id: what the decoder reads there.
        expert: the velocity field that moves it, from 0.
        probability: the decoder's, of this token.
    """

    text: str
    token_id: int
    expert: int
    probability: float


@dataclass(frozen=True)
class Writing:
    """
    An answer and how it came about.

    Args:
        drafts: canvases of equally many positions: the noise, then one for each step.
        num_experts: of the model.
        source_tokens, answer_tokens: special tokens included.
        milliseconds: median over `CALLS` calls of `generate()` without drafts, after two to warm up.
        restored: what `restore()` makes of the source; None where nobody asked.
    """

    drafts: list[list[Position]]
    num_experts: int
    source_tokens: int
    answer_tokens: int
    milliseconds: float
    restored: str | None = None

    @property
    def text(self) -> str:
        """The answer."""
        return draft_text(self.drafts[-1])


def draft_text(positions: Sequence[Position]) -> str:
    """The text that a canvas holds."""
    return "".join(position.text for position in positions).strip()


def check_source(model: YanForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, source: str) -> int:
    """
    How many tokens a source has, special tokens included.

    Raises:
        ValueError: for a source without text, and for one that is longer than the model reads.
    """
    if not source or not source.strip():
        raise ValueError("source is empty; write at least one word")
    count, most = len(tokenizer(source)["input_ids"]), model.config.max_position_embeddings
    if count > most:
        raise ValueError(
            f"source has {count} tokens, this model reads at most {most}; shorten it by {count - most} tokens"
        )
    return count


def check_seed(seed: int | None) -> int:
    """
    The seed.

    Raises:
        ValueError: unless it is a whole number that a generator takes.
    """
    if seed is None or seed != int(seed) or not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed} must be a whole number of at least 0 and less than 2**63")
    return int(seed)


def kept_positions(
    ids: Sequence[int],
    *,
    blank_id: int | None,
    bos_token_id: int | None = None,
    eos_token_ids: Sequence[int] = (),
    longest: int | None = None,
    merge_repeats: int = 0,
) -> list[int]:
    """
    The positions whose tokens make up the text, as `generate()` makes it from the same ids.

    Args:
        ids: the token of each position (L,).
        blank_id: of a canvas with blanks; None where every token has its place.
        longest: most tokens that are kept.
        merge_repeats: runs of up to so many tokens that stand twice in a row are kept once.
    """
    kept: list[int] = []
    for index, token in enumerate(ids):
        if blank_id is not None and (token == blank_id or (index > 0 and token == ids[index - 1])):
            continue
        if token in eos_token_ids or len(kept) == longest:
            break
        kept.append(index)
    if kept and ids[kept[0]] == bos_token_id:
        kept = kept[1:]
    text: list[int] = []
    for index in kept:
        text.append(index)
        tokens = [ids[place] for place in text[-2 * merge_repeats :]] if merge_repeats else []
        runs = range(1, len(tokens) // 2 + 1)
        repeated = next((n for n in runs if tokens[-n:] == tokens[-2 * n : -n]), 0)
        del text[len(text) - repeated :]
    return text


def token_pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """
    What each token adds to the decoded text. A character of several tokens belongs to the last of them; special tokens
    add nothing.
    """
    pieces, shown = [], ""
    for end in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        whole = end == len(ids) or not text.endswith(REPLACEMENT)
        pieces.append(text[len(shown) :] if whole else "")
        shown = text if whole else shown
    return pieces


def step_endpoints(states: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """
    Where each step of Euler's expects the flow to end: what its draft is decoded from.

    Args:
        states: along a trajectory (steps + 1, …).
        grid: their times (steps + 1,), from 0 to 1.

    Returns:
        (steps, …).
    """
    ratio = (grid[-1] - grid[:-1]) / (grid[1:] - grid[:-1])
    return torch.lerp(states[:-1], states[1:], ratio.to(states).view(-1, *[1] * (states.dim() - 1)))


class ExpertRecorder:
    """As a context: the expert of every position that the model's velocity field moves meanwhile."""

    def __init__(self, model: YanForConditionalGeneration):
        self.module, self.experts = model.model.flow.experts, None

    def __enter__(self) -> "ExpertRecorder":
        def record(module: torch.nn.Module, arguments: tuple) -> None:
            self.experts = arguments[1].experts

        self.handle = self.module.register_forward_pre_hook(record)
        return self

    def __exit__(self, *error: object) -> None:
        self.handle.remove()


@torch.no_grad()
def read_canvas(
    model: YanForConditionalGeneration,
    tokenizer: PreTrainedTokenizerBase,
    latents: torch.Tensor,
    experts: Sequence[int],
    options: GenerationOptions,
    copied: CopySource | None = None,
) -> list[Position]:
    """
    A canvas as the decoder reads it.

    Args:
        latents: (L, d).
        experts: of each position (L,).
        options: of the call that they come from, as `model.generation_options` gives them.
        copied: of one row, as `model.copy_source` gives it.
    """
    logits = model.decoder(latents.unsqueeze(0), copied)[0].float()
    ids = (logits + model.token_bias(options.sampling, logits.device)).argmax(-1)
    probabilities = logits.softmax(-1).gather(1, ids.unsqueeze(1)).squeeze(1).tolist()
    ids = ids.tolist()
    kept = kept_positions(
        ids,
        blank_id=model.config.pad_token_id if model.config.canvas_ratio > 1 else None,
        bos_token_id=options.bos_token_id,
        eos_token_ids=options.sampling.eos_token_ids,
        longest=options.longest,
        merge_repeats=options.merge_repeats,
    )
    pieces = dict(zip(kept, token_pieces(tokenizer, [ids[index] for index in kept]), strict=True))
    return [
        Position(pieces.get(index, ""), *facts)
        for index, facts in enumerate(zip(ids, experts, probabilities, strict=True))
    ]


def write_with_drafts(
    model: YanForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, source: str, *, steps: int, seed: int = 0
) -> Writing:
    """
    Writes an answer with Euler's steps, one canvas, the most probable tokens, and tells how it came about.

    Args:
        source: one text.
        steps: of the solver.
        seed: decides everything random.

    Raises:
        ValueError: for a source that is empty or too long, a seed that is none, and what `generate()` refuses.
    """
    count, seed = check_source(model, tokenizer, source), check_seed(seed)
    batch = tokenizer(source, return_tensors="pt").to(model.device)
    chosen = {
        "num_inference_steps": steps,
        "solver": "euler",
        "do_sample": False,
        "num_candidates": 1,
        "num_length_candidates": 1,
        "num_return_sequences": 1,
        "min_new_tokens": 0,
        "min_length": 0,
        "compile": False,
    }
    options = model.generation_options(**chosen)

    def generate(**more):
        return model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            generator=torch.Generator(model.device).manual_seed(seed),
            **chosen,
            **more,
        )

    with ExpertRecorder(model) as recorder:
        output = generate(return_dict_in_generate=True, output_trajectory=True)
    experts = recorder.experts.tolist()
    states = output.trajectory[:, 0]
    grid = time_grid(steps, shift=options.sampling.time_shift, device=states.device)
    latents = torch.cat([states[:1], step_endpoints(states, grid)])
    copied = None
    if model.config.copies_source:
        copied_ids = model.copied_ids(latents.shape[1], batch["input_ids"], None)
        copied = model.copy_source(copied_ids, model.get_encoder()(batch["input_ids"]).last_hidden_state, None)
    return Writing(
        drafts=[read_canvas(model, tokenizer, canvas, experts, options, copied) for canvas in latents],
        num_experts=model.config.num_experts,
        source_tokens=count,
        answer_tokens=output.sequences.shape[1],
        milliseconds=timed(generate, CALLS)["median_ms"],
    )
