"""What decided the texts that a run wrote, kept beside them, so that a run that would write others is refused."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

# Hidden, so that `load_dataset` on the folder reads the texts alone.
SETTINGS_FILE = ".settings.json"


def fingerprint(parts: Iterable) -> str:
    """Changes with any of the parts, which are texts or arrays of bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "big"))
        digest.update(content)
    return digest.hexdigest()


def fingerprint_files(folder: Path, *patterns: str) -> str:
    """Changes with the name and the content of any file of a folder that has one of these patterns."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted({file for pattern in patterns for file in folder.glob(pattern)}):
        with file.open("rb") as content:
            digest.update(fingerprint([file.name, hashlib.file_digest(content, "blake2b").digest()]).encode())
    return digest.hexdigest()


def settle(folder: Path, settings: dict, *, argument: str, written: str, writes: bool = True) -> None:
    """
    Compares the settings with those of the run that began this folder, or begins it.

    Args:
        settings: all that decides what is written, as JSON keeps it.
        argument: what an error calls the folder.
        written: pattern of the files that hold what was written.
        writes: whether this process may begin it.

    Raises:
        ValueError: naming the settings that differ, and for what a run wrote that kept none.
    """
    path = folder / SETTINGS_FILE
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} cannot be read: {error}; choose another {argument}") from None
        changed = [
            f"{name} (now {value!r}, then {before.get(name)!r})"
            for name, value in settings.items()
            if value != before.get(name)
        ]
        if changed:
            raise ValueError(
                f"{argument} {folder} was begun with other settings: {'; '.join(changed)}. Give the same command to "
                "go on, or choose another folder"
            )
        return
    found = next(folder.glob(written), None)
    if found is not None:
        raise ValueError(f"{found} was written with settings that are not known; choose another {argument}")
    if writes:
        temporary = folder / f"{SETTINGS_FILE}.new"
        temporary.write_text(json.dumps(settings, indent=1), encoding="utf-8")
        os.replace(temporary, path)
