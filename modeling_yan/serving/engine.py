"""
What writes behind the server: a model in torch or in ONNX Runtime, and rows of several requests in one batch. A row's
text depends on its prompt, options and seed alone.
"""

import itertools
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import torch
from transformers import PreTrainedTokenizerBase

from modeling_yan import YanForConditionalGeneration
from modeling_yan.common.hub import read_model, read_tokenizer
from modeling_yan.evaluation.text_generation import count_tokens
from modeling_yan.generation_options_yan import GenerationOptions
from modeling_yan.restoration_yan import Restoration, restore
from modeling_yan.serving.onnx_runtime import YanOrtForConditionalGeneration

RUNTIMES = ("torch", "onnx")
DTYPES = ("float32", "bfloat16", "float16", "auto")
# Windows of a document that are written at once: completions wait for no more of them.
WINDOWS = 8


@dataclass(frozen=True)
class Row:
    """
    One prompt to answer.

    Args:
        prompt: the source.
        seed: decides everything random.
        options: of `generate()`, as pairs in the order of their names: rows with equal ones are written together.
    """

    prompt: str
    seed: int
    options: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True)
class Answer:
    """
    Args:
        texts: one for each of `num_return_sequences`, best first.
        finish_reasons: "length" for a text that has as many tokens as it may have and no EOS, otherwise "stop".
        scores: mean token log-probability of each.
        prompt_tokens: of the source, special tokens included.
        completion_tokens: of each text, EOS included.
        batch_size: rows of the batch, said of its first row alone.
    """

    texts: list[str]
    finish_reasons: list[str]
    scores: list[float]
    prompt_tokens: int
    completion_tokens: list[int]
    batch_size: int | None = None


@dataclass(frozen=True)
class Draft:
    """A text as it stands after a step, counted from 1."""

    step: int
    text: str


@dataclass(frozen=True)
class Refusal:
    """
    Why a row cannot be answered.

    Args:
        message: what must hold, and what to do.
        field: argument of `generate()` that is to blame, or "prompt"; None where none is named.
    """

    message: str
    field: str | None = None


def refuse(error: ValueError, arguments: Collection[str]) -> Refusal:
    """Of an error whose message begins with the argument that it is about."""
    name = re.match(r"\w+", str(error))
    return Refusal(str(error), name[0] if name and name[0] in arguments else None)


def refuse_numbers(options: Mapping[str, object]) -> Refusal:
    """Of a row whose scores are not finite; `options` are those that it names."""
    named = [name for name, value in options.items() if isinstance(value, float)]
    given = ", ".join(f"{name}={options[name]}" for name in named) or "the model's own options"
    message = f"{given}: these options led to numbers that are not finite; choose values nearer to the defaults"
    return Refusal(message, named[0] if len(named) == 1 else None)


class DraftStreamer:
    """Hands each step's draft on as ids."""

    def __init__(self, on_draft: Callable[[torch.Tensor], None]):
        self.on_draft = on_draft

    def put_draft(self, value: torch.Tensor) -> None:
        self.on_draft(value)

    def put(self, value: torch.Tensor) -> None:
        """The final text is what `generate()` returns."""

    def end(self) -> None:
        """Nothing is held back."""


class TurnTaker:
    """
    A model that holds a lock while it writes, and not between two calls.

    Args:
        model: with `generate()`; everything else is its own, too.
        lock: of all who write with it.
    """

    def __init__(self, model: YanForConditionalGeneration | YanOrtForConditionalGeneration, lock: threading.Lock):
        self._model, self._lock = model, lock

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def generate(self, **inputs):
        with self._lock:
            return self._model.generate(**inputs)


class Engine:
    """
    Args:
        model: with `generate()`, in torch or in ONNX Runtime.
        tokenizer: the model's.
        max_candidates: texts that are written for a prompt at most: priors times lengths; None for no limit.
    """

    def __init__(
        self,
        model: YanForConditionalGeneration | YanOrtForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        max_candidates: int | None = None,
    ):
        self.model, self.tokenizer, self.max_candidates = model, tokenizer, max_candidates
        # Graphs return tokens, not the state after each step.
        self.has_drafts = not isinstance(model, YanOrtForConditionalGeneration)
        self._one_at_a_time = threading.Lock()

    @classmethod
    def load(
        cls,
        model: str,
        runtime: str = "torch",
        *,
        dtype: str = "float32",
        trust_remote_code: bool = False,
        max_candidates: int | None = None,
    ) -> "Engine":
        """
        Args:
            model: folder or Hub name; for "onnx" a folder that `yan export` wrote.
            runtime: "torch" (on the GPU if there is one) or "onnx".
            dtype: of the weights in torch, "auto" for that of their file. In 16 bits two tokens may be equally
                probable, and what shares a batch then decides between them.
            trust_remote_code: whether code that comes with the tokenizer may run.
            max_candidates: texts that are written for a prompt at most.

        Raises:
            ValueError: for another runtime, and for a model or tokenizer that cannot be read.
            OSError: if there is no such model.
        """
        tokenizer = read_tokenizer(model, trust_remote_code=trust_remote_code)
        if runtime == "onnx":
            return cls(YanOrtForConditionalGeneration.from_pretrained(model), tokenizer, max_candidates)
        if runtime != "torch":
            raise ValueError(f"runtime={runtime!r} must be one of {RUNTIMES}")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = dtype if dtype == "auto" else getattr(torch, dtype)
        read = read_model(YanForConditionalGeneration, model, dtype=dtype).to(device)
        return cls(read, tokenizer, max_candidates)

    def answer(self, rows: Sequence[Row]) -> list[Answer | Refusal]:
        """Answers rows, those with equal options in one call of `generate()`; what cannot be answered says why."""
        ids = self.tokenizer([row.prompt for row in rows])["input_ids"] if rows else []
        results: list[Answer | Refusal | None] = [
            self._refuse_prompt(row.prompt, source) for row, source in zip(rows, ids, strict=True)
        ]
        groups: dict[tuple, list[int]] = {}
        for index, row in enumerate(rows):
            if results[index] is None:
                # As text: 1 and 1.0 and True are equal to Python, and not to `generate()`.
                groups.setdefault(repr(row.options), []).append(index)
        for members in groups.values():
            written = self._answer_group([rows[index] for index in members], [ids[index] for index in members])
            for index, result in zip(members, written, strict=True):
                results[index] = result
        return results

    def restore(self, text: str, options: Mapping[str, object]) -> Restoration | Refusal:
        """
        A document restored, or why it cannot be; `options` are those of `restore()`. Others write between its windows.
        """
        model = TurnTaker(self.model, self._one_at_a_time)
        try:
            return restore(model, self.tokenizer, text, **{"batch_size": WINDOWS, **options})
        except ValueError as error:
            return refuse(error, options)

    def stream(self, row: Row) -> Iterator[Draft | Answer | Refusal]:
        """The draft after each step, and at last the answer; without drafts where the runtime has none."""
        events: SimpleQueue = SimpleQueue()
        steps = itertools.count(1)

        def on_draft(ids: torch.Tensor) -> None:
            events.put(Draft(next(steps), self._decode(ids)))

        def write() -> None:
            try:
                ids = self.tokenizer([row.prompt])["input_ids"]
                refusal = self._refuse_prompt(row.prompt, ids[0])
                streamer = DraftStreamer(on_draft) if self.has_drafts else None
                events.put(refusal or self._answer_group([row], ids, streamer)[0])
            except Exception as error:
                events.put(error)

        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        while True:
            event = events.get()
            if isinstance(event, Exception):
                raise event
            yield event
            if not isinstance(event, Draft):
                return

    def _refuse_prompt(self, prompt: str, source: list[int]) -> Refusal | None:
        most = self.model.config.max_position_embeddings
        if not source or not prompt.strip():
            return Refusal("prompt is empty; write at least one word", "prompt")
        if len(source) > most:
            return Refusal(
                f"prompt has {len(source)} tokens, this model reads at most {most}; shorten it by "
                f"{len(source) - most} tokens",
                "prompt",
            )
        return None

    def _check_candidates(self, options: GenerationOptions) -> None:
        """
        Raises:
            ValueError: for more texts than may be written for a prompt, those that the model itself asks for included.
        """
        lengths = options.num_length_candidates if options.length_mode == "predicted" else 1
        texts = options.num_priors * lengths
        if self.max_candidates is not None and texts > self.max_candidates:
            raise ValueError(
                f"num_candidates={options.num_priors} times num_length_candidates={lengths} (named, or the model's "
                f"own) is {texts} texts for a prompt, at most {self.max_candidates} are written; lower one of them"
            )

    def _answer_group(
        self, rows: list[Row], ids: list[list[int]], streamer: DraftStreamer | None = None
    ) -> list[Answer | Refusal]:
        """Rows of equal options, and their ids."""
        options = dict(rows[0].options)
        batch = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self.model.device)
        try:
            with self._one_at_a_time:
                resolved = self.model.generation_options(**options)
                self._check_candidates(resolved)
                output = self.model.generate(
                    input_ids=batch["input_ids"],
                    attention_mask=batch["attention_mask"],
                    generator=[torch.Generator(self.model.device).manual_seed(row.seed) for row in rows],
                    streamer=streamer,
                    return_dict_in_generate=True,
                    **options,
                )
        except ValueError as error:
            return [refuse(error, {*options, "max_new_tokens"})] * len(rows)
        count = resolved.num_return_sequences
        texts = output.sequences.cpu().split(count)
        scores = output.sequences_scores.cpu().split(count)
        return [
            self._read_row(len(source), *written, resolved) if written[1].isfinite().all() else refuse_numbers(options)
            for source, *written in zip(ids, texts, scores, strict=True)
        ]

    def _read_row(
        self, prompt_tokens: int, ids: torch.Tensor, scores: torch.Tensor, options: GenerationOptions
    ) -> Answer:
        counts, reasons = [], []
        for row in ids:
            # A text has one end at most: it is cut there.
            end = next((token for token in row.tolist() if token in options.sampling.eos_token_ids), None)
            counts.append(count_tokens(row.unsqueeze(0), options.pad_token_id, end))
            reasons.append("length" if end is None and counts[-1] >= options.longest else "stop")
        return Answer(
            texts=[self._decode(row) for row in ids],
            finish_reasons=reasons,
            scores=scores.tolist(),
            prompt_tokens=prompt_tokens,
            completion_tokens=counts,
        )

    def _decode(self, ids: torch.Tensor) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()
