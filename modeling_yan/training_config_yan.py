"""What only training reads of a configuration, and the check of numbers that all of it shares."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from huggingface_hub.dataclasses import strict

from .losses_yan import LOSS_TERMS


def check_numbers(holder: Any, positive: tuple[str, ...] = (), not_negative: tuple[str, ...] = ()) -> None:
    """
    Raises:
        ValueError: for a number that is not finite or out of its range.
    """
    for field in dataclasses.fields(holder):
        value = getattr(holder, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field.name}={value} must be a finite number")
    for name in positive:
        value = getattr(holder, name)
        if value is not None and value <= 0:
            raise ValueError(f"{name}={value} must be greater than 0")
    for name in not_negative:
        value = getattr(holder, name)
        if value is not None and value < 0:
            raise ValueError(f"{name}={value} must not be negative")


@dataclass(kw_only=True)
class _TrainingSettings:
    """
    What only training reads.

    Args:
        velocity_std (`float`, defaults to 1.0): Standard deviation sigma of each expert's Gaussian over velocities.
        latent_noise (`float`, defaults to 0.1): Largest scale of the noise added to latents.
        time_sampling_alpha, time_sampling_beta (`float`, defaults to 1.0): Beta distribution of training times.
        unroll_steps (`int`, defaults to 3): Euler steps of the endpoint that the loss unrolls.
        glancing_ratio (`float`, defaults to 0.0): Of the positions that the endpoint gets wrong, the share whose tokens
            are shown: their embeddings stand in the place of noise, at positions drawn from the whole canvas (glancing,
            arXiv 2008.07905). It costs a second endpoint without gradients. For sources with many right answers.
        canvas_jitter (`float`, defaults to 0.15): With `canvas_ratio` above 1, canvases are up to this share shorter or
            longer than the ratio says, for a predicted length is off, too.
        loss_chunk_size (`int`, *optional*): Positions whose logits the loss holds at once, for vocabularies so large
            that all of them do not fit. The models then return no `logits` in training.
        label_smoothing (`float`, defaults to 0.0): Of the cross-entropy over tokens.
    """

    velocity_std: float | int = 1.0
    latent_noise: float | int = 0.1
    time_sampling_alpha: float | int = 1.0
    time_sampling_beta: float | int = 1.0
    unroll_steps: int = 3
    glancing_ratio: float | int = 0.0
    canvas_jitter: float | int = 0.15
    loss_chunk_size: int | None = None
    label_smoothing: float | int = 0.0

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each loss term by its name."""
        return {name: getattr(self, term.weight_name) for name, term in LOSS_TERMS.items()}

    def __post_init__(self):
        self.check()

    def check(self) -> None:
        """
        Raises:
            ValueError: for a value out of its range, and for settings that exclude each other.
        """
        check_numbers(
            self,
            positive=("velocity_std", "time_sampling_alpha", "time_sampling_beta", "unroll_steps", "loss_chunk_size"),
            not_negative=("latent_noise", "glancing_ratio", *(term.weight_name for term in LOSS_TERMS.values())),
        )
        for name in ("label_smoothing", "canvas_jitter"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and less than 1")
        if self.loss_chunk_size is None:
            return
        whole = [t.weight_name for t in LOSS_TERMS.values() if t.needs_all_logits]
        for name in ("glancing_ratio", *whole):
            if getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)} needs the logits of all positions at once; leave loss_chunk_size out"
                )

    def check_canvas(self, canvas_ratio: float) -> None:
        """
        Raises:
            ValueError: for a loss term that is not defined on canvases of this ratio.
        """
        for term in LOSS_TERMS.values():
            weight = getattr(self, term.weight_name)
            if weight and term.needs_blanks and canvas_ratio == 1:
                raise ValueError(
                    f"{term.weight_name}={weight} is for canvases with blanks; set canvas_ratio above 1, or "
                    f"{term.weight_name}=0"
                )
        if canvas_ratio == 1:
            return
        placed = [term.weight_name for term in LOSS_TERMS.values() if term.needs_place]
        for name in (*placed, "label_smoothing"):
            if getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)} needs a place for every token, which canvas_ratio={canvas_ratio} "
                    f"does not give: set {name}=0, or canvas_ratio=1"
                )
        if self.loss_chunk_size is not None:
            raise ValueError(
                f"canvas_ratio={canvas_ratio} needs the logits of all positions at once; leave loss_chunk_size out"
            )


# The settings with a weight for each entry of the table of loss terms.
YanTrainingConfig = strict(
    dataclasses.make_dataclass(
        "YanTrainingConfig",
        [(term.weight_name, float | int, term.weight) for term in LOSS_TERMS.values()],
        bases=(_TrainingSettings,),
        kw_only=True,
        namespace={
            "__module__": __name__,
            "__doc__": _TrainingSettings.__doc__
            + "\n".join(
                f"        {term.weight_name} (`float`, defaults to {term.weight}): {term.description}"
                for term in LOSS_TERMS.values()
            ),
        },
    )
)
TRAINING_FIELDS = tuple(field.name for field in dataclasses.fields(YanTrainingConfig))
