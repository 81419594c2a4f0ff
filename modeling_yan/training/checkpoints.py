"""Checkpoints that survive: which one is whole, where to go on, and a clear word when one cannot be written."""

import json
import logging
import tempfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = logging.getLogger(__name__)
# Trainer writes it last.
TRAINER_STATE = "trainer_state.json"


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: its state can be read, and so can all of its weights."""
    try:
        json.loads((checkpoint / TRAINER_STATE).read_text(encoding="utf-8"))
        weights = list(checkpoint.glob("*.safetensors"))
        for file in weights:
            # Compares the size of the file with what its header says.
            with safe_open(file, framework="pt"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return bool(weights) or any(checkpoint.glob("pytorch_model_fsdp_*"))


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest complete checkpoint in a folder; None if there is none. Incomplete ones are named in a warning."""
    folders = [p for p in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if p.name.split("-")[-1].isdigit()]
    for folder in sorted(folders, key=lambda path: int(path.name.split("-")[-1]), reverse=True):
        if is_complete(folder):
            return folder
        logger.warning(f"{folder} was not written to its end and is passed over")
    return None


def resolve_resume(training: TrainingArguments) -> str | None:
    """
    The checkpoint that `resume_from_checkpoint` means: a path, or with "last" the newest complete one in `output_dir`
    (a fresh start if there is none).

    Raises:
        ValueError: for a path that holds no complete checkpoint.
    """
    wanted = training.resume_from_checkpoint
    if not wanted:
        return None
    if str(wanted).lower() in ("last", "true"):
        found = last_complete_checkpoint(training.output_dir)
        logger.warning(
            f"going on from {found}" if found else f"no checkpoint in {training.output_dir} yet: a fresh start"
        )
        return None if found is None else str(found)
    if not is_complete(Path(wanted)):
        last = last_complete_checkpoint(Path(wanted).parent)
        raise ValueError(
            f"resume_from_checkpoint={wanted} is not a complete checkpoint; the last one beside it is {last}"
        )
    return str(wanted)


def check_writable(output_dir: str | Path) -> None:
    """
    Raises:
        ValueError: if nothing can be written to a folder, before any work is done for it.
    """
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise ValueError(f"output_dir={output_dir} cannot be written to: {error.strerror}") from None
