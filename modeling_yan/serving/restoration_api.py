"""`POST /v1/restore`: what a request may hold, and what is answered."""

from dataclasses import asdict
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modeling_yan.restoration_yan import Restoration
from modeling_yan.serving.api import ApiError, Limits, validation_error

# What is no argument of `restore()`.
OWN_FIELDS = {"text", "model"}


class RestorationRequest(BaseModel):
    """
    The body of `POST /v1/restore`: a document, and arguments of `restore()` by their names. What a request leaves out
    is by `restore()`'s own defaults.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    text: str
    model: str | None = None
    max_edit: float | None = None
    max_word_edit: float | None = None
    min_confidence: float | None = None
    min_spelling_confidence: float | None = None
    min_comma_confidence: float | None = None
    lexicon: Literal["model"] | None = "model"
    split_lines: bool = False
    num_inference_steps: int | None = None
    seed: int = Field(0, ge=0, lt=2**63)

    @classmethod
    def read(cls, body: bytes, limits: Limits) -> "RestorationRequest":
        """
        Raises:
            ApiError: with status 400, for what is no JSON, an unknown field, a value of another type, and one beyond
                the limits.
        """
        try:
            request = cls.model_validate_json(body)
        except ValidationError as error:
            raise validation_error(error) from None
        if len(request.text) > limits.characters:
            raise ApiError(
                400,
                f"text has {len(request.text)} characters, at most {limits.characters} are restored at once; cut it "
                "between two paragraphs",
                "text",
            )
        if request.num_inference_steps is not None and not 1 <= request.num_inference_steps <= limits.steps:
            message = f"num_inference_steps={request.num_inference_steps} must be 1 to {limits.steps}"
            raise ApiError(400, message, "num_inference_steps")
        return request

    @property
    def options(self) -> dict[str, object]:
        """Arguments of `restore()` that the request names; null is one."""
        return {name: getattr(self, name) for name in sorted(self.model_fields_set - OWN_FIELDS)}


def restoration_body(restored: Restoration, model: str) -> dict:
    """
    Args:
        model: name that the server goes by.
    """
    return {"object": "restoration", "model": model, "text": restored.text, "edits": list(map(asdict, restored.edits))}
