"""OpenAI's completions API: what a request may hold, how it reads as options of `generate()`, and what is answered."""

import secrets
import time
import uuid
from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modeling_yan.serving.engine import Answer, Draft, Row

# Name in a request -> name in `generate()`.
RENAMED = {
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "n": "num_return_sequences",
    "best_of": "num_candidates",
}
# Options of `generate()` that a request names as they are.
YAN_OPTIONS = (
    "num_inference_steps",
    "solver",
    "time_shift",
    "expert_selection",
    "prior_temperature",
    "blank_penalty",
    "length_mode",
    "num_length_candidates",
    "num_candidates",
    "top_k",
)
# What asks for nothing, and the reason why everything else is refused.
REFUSED = {
    "logprobs": ((None, False), "YAN scores whole texts; every choice has its mean_logprob"),
    "echo": ((None, False), "an answer does not begin with its prompt"),
    "suffix": ((None, ""), "YAN answers a prompt and knows no text behind it"),
    "presence_penalty": ((None, 0), "all positions are written at once, without looking at what stands there"),
    "frequency_penalty": ((None, 0), "all positions are written at once, without looking at what stands there"),
    "logit_bias": ((None, {}), "the tokens of an answer cannot be weighed one by one"),
}


class ApiError(Exception):
    """
    An answer that is an error.

    Args:
        status: of HTTP.
        message: names the field, its value, what must hold and what to do.
        param: the field.
        code: OpenAI's, where it has one.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    @property
    def body(self) -> dict:
        kinds = {429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class StreamOptions(BaseModel):
    """OpenAI's options of a stream."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Limits(BaseModel):
    """
    What one request may ask for.

    Args:
        prompts: in one request.
        candidates: texts that are written for a prompt: priors times lengths.
        steps: of the solver.
        characters: of a document that is restored.
    """

    prompts: int = 64
    candidates: int = 16
    steps: int = 32
    characters: int = 200_000


class CompletionRequest(BaseModel):
    """The body of `POST /v1/completions`: OpenAI's fields, then those of YAN."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str | list[str]
    model: str | None = None
    max_tokens: int | None = None
    n: int | None = None
    best_of: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    logprobs: int | bool | None = None
    echo: bool | None = None
    suffix: str | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    min_tokens: int | None = None
    num_inference_steps: int | None = None
    solver: str | None = None
    time_shift: float | None = None
    expert_selection: str | None = None
    prior_temperature: float | None = None
    blank_penalty: float | None = None
    length_mode: str | None = None
    num_length_candidates: int | None = None
    num_candidates: int | None = None
    top_k: int | None = None

    @classmethod
    def read(cls, body: bytes, limits: Limits) -> "CompletionRequest":
        """
        Raises:
            ApiError: with status 400, for what is no JSON, an unknown field, a value of another type, one that cannot
                be honoured, and one beyond the limits.
        """
        try:
            request = cls.model_validate_json(body)
        except ValidationError as error:
            raise validation_error(error) from None
        request.check(limits)
        return request

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def stops(self) -> list[str]:
        """Texts that an answer is cut before."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]

    def check(self, limits: Limits) -> None:
        """
        Raises:
            ApiError: with status 400, for a value that cannot be honoured and one beyond the limits.
        """
        for name, (neutral, reason) in REFUSED.items():
            value = getattr(self, name)
            # To Python 0 is False, and as a value of logprobs it asks for something.
            if not any(value is x or (value == x and bool not in (type(value), type(x))) for x in neutral):
                raise ApiError(400, f"{name}={value!r} cannot be honoured: {reason}; leave it out", name)
        self._check_sizes(limits)
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options is for stream=true; leave it out", "stream_options")
        if self.stream and (len(self.prompts) > 1 or (self.n or 1) > 1):
            raise ApiError(
                400,
                f"stream=true takes one prompt and n=1, got {len(self.prompts)} prompts and n={self.n or 1}; send a "
                "request for each",
                "stream",
            )
        if self.best_of is not None and (self.num_candidates is not None or self.best_of < (self.n or 1)):
            raise ApiError(
                400,
                f"best_of={self.best_of} must be at least n={self.n or 1}, and is another name of num_candidates; "
                "give one of them",
                "best_of",
            )

    def _check_sizes(self, limits: Limits) -> None:
        count = len(self.prompts)
        if not 1 <= count <= limits.prompts:
            raise ApiError(
                400, f"prompt has {count} texts, must have 1 to {limits.prompts}; send several requests", "prompt"
            )
        for name in ("n", "best_of", "num_candidates", "num_length_candidates"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= limits.candidates:
                raise ApiError(400, f"{name}={value} must be 1 to {limits.candidates}", name)
        texts = max(self.n or 1, self.best_of or 1, self.num_candidates or 1) * (self.num_length_candidates or 1)
        if texts > limits.candidates:
            raise ApiError(
                400,
                f"num_length_candidates={self.num_length_candidates} times the candidates of each length is {texts} "
                f"texts for a prompt, at most {limits.candidates} are written; lower one of them",
                "num_length_candidates",
            )
        steps = self.num_inference_steps
        if steps is not None and not 1 <= steps <= limits.steps:
            raise ApiError(400, f"num_inference_steps={steps} must be 1 to {limits.steps}", "num_inference_steps")
        for name in ("temperature", "top_p"):
            value, most = getattr(self, name), {"temperature": 100, "top_p": 1}[name]
            if value is not None and not 0 <= value <= most:
                raise ApiError(400, f"{name}={value} must be 0 to {most}", name)

    def rows(self) -> list[Row]:
        """A row for each prompt. Without a seed, each gets one of its own."""
        options = {name: getattr(self, name) for name in YAN_OPTIONS}
        options |= {other: getattr(self, name) for name, other in RENAMED.items() if getattr(self, name) is not None}
        if self.temperature == 0:
            options["do_sample"] = False
        elif self.temperature is not None or self.top_p not in (None, 1) or self.top_k:
            # All tokens may be drawn unless the request says otherwise; transformers would take the 50 best.
            options |= {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p}
            options["top_k"] = self.top_k or 0
        chosen = tuple(sorted((name, value) for name, value in options.items() if value is not None))
        return [
            Row(prompt, secrets.randbits(62) if self.seed is None else self.seed, chosen) for prompt in self.prompts
        ]


def validation_error(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a body, by the name of its field."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first['ctx']['error']}")
    # A field of two types is followed by the type that was tried.
    param = str(first["loc"][0]) if first["loc"] else None
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{param} is no field of this request; leave it out", param)
    if first["type"] == "missing":
        return ApiError(400, f"{param} is missing; give a text", param)
    reasons = [part["msg"] for part in error.errors(include_url=False) if part["loc"][:1] == first["loc"][:1]]
    said = "; or ".join(dict.fromkeys(reasons))
    where = param or "the body"
    return ApiError(400, f"{where}={first['input']!r:.60}: {said}", param)


def refused_field(name: str | None) -> str | None:
    """What a request calls an argument of `generate()`."""
    return {other: name for name, other in RENAMED.items()}.get(name, name)


def cut_at(text: str, stops: Sequence[str]) -> str:
    """The text before the first of these."""
    places = [text.find(stop) for stop in stops]
    return text[: min([place for place in places if place >= 0], default=len(text))]


class CompletionBody:
    """
    Bodies of the answers to one request.

    Args:
        request: what is answered.
        model: name that the server goes by.
    """

    def __init__(self, request: CompletionRequest, model: str):
        self.request, self.model = request, model
        self.id, self.created = f"cmpl-{uuid.uuid4().hex}", int(time.time())

    def whole(self, answers: Sequence[Answer]) -> dict:
        """One body with all choices and the usage."""
        choices = []
        for answer in answers:
            choices += [{"index": len(choices) + i, **choice} for i, choice in enumerate(self._choices(answer))]
        return {**self._head(), "choices": choices, "usage": self.usage(answers)}

    def draft(self, draft: Draft) -> dict:
        """An event whose `draft` takes the place of the one before; what clients add up, `text`, is empty."""
        choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": None}
        return {**self._head(), "choices": [{**choice, "draft": draft.text, "step": draft.step}]}

    def last(self, answer: Answer) -> Iterator[dict]:
        """The event with the text, and the usage where it was asked for."""
        yield {**self._head(), "choices": [{"index": 0, **self._choices(answer)[0]}]}
        if self.request.stream_options is not None and self.request.stream_options.include_usage:
            yield {**self._head(), "choices": [], "usage": self.usage([answer])}

    @staticmethod
    def usage(answers: Sequence[Answer]) -> dict[str, int]:
        """Tokens read and written; of several texts for a prompt, its own count once."""
        read = sum(answer.prompt_tokens for answer in answers)
        written = sum(sum(answer.completion_tokens) for answer in answers)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def _head(self) -> dict:
        return {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}

    def _choices(self, answer: Answer) -> list[dict]:
        choices = []
        for text, reason, score in zip(answer.texts, answer.finish_reasons, answer.scores, strict=True):
            cut = cut_at(text, self.request.stops)
            reason = "stop" if cut != text else reason
            choices.append({"text": cut, "logprobs": None, "finish_reason": reason, "mean_logprob": score})
        return choices
