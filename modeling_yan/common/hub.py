"""Writing a complete model folder, all or nothing, and uploading it."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def check_destination(folder: Path) -> None:
    """
    Raises:
        ValueError: if something is there already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--output_dir {folder} is not an empty folder; choose another or empty it")
    folder.parent.mkdir(parents=True, exist_ok=True)


def write_folder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    card: str,
    check: Callable[[PreTrainedModel], None],
) -> None:
    """
    Writes model, code, tokenizer and card to a temporary folder, loads the model again, and moves the folder into place
    only when `check` (which raises) has nothing against the loaded one.
    """
    check_destination(folder)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        written = Path(temporary) / "model"
        model.save_pretrained(written)
        if tokenizer is not None:
            tokenizer.save_pretrained(written)
        (written / "README.md").write_text(card, encoding="utf-8")
        check(type(model).from_pretrained(written, dtype=model.dtype).eval())
        if folder.exists():
            folder.rmdir()
        shutil.move(written, folder)


def push_folder(folder: Path, repository: str) -> None:
    """Uploads a folder to a repository of the Hub, which is created if it is not there."""
    api = HfApi()
    api.create_repo(repository, exist_ok=True)
    api.upload_folder(repo_id=repository, folder_path=folder)
