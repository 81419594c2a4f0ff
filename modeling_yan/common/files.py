"""Folders that appear whole or not at all, also where their writer is killed; and locks that end with their holder."""

import contextlib
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

# What marks a folder that is being written, between the name it will have and a random end.
PARTIAL = ".partial-"


def check_destination(folder: Path) -> None:
    """
    Raises:
        ValueError: if something is there already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"--output_dir {folder} is not an empty folder; choose another or empty it")
    folder.parent.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """
    Holds a lock file. The system frees it when its holder ends, however that happens: a file that is left behind, as it
    is, stops nobody.

    Raises:
        ValueError: if another process holds it.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"another run writes to {path.parent} (it holds {path.name}); wait for its end, or choose another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def cleaning_up_when_terminated() -> Iterator[None]:
    """SIGTERM ends what runs inside by an exception, as SIGINT does, so that it cleans up behind itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def remove_abandoned(parent: Path, name: str) -> None:
    """Removes what processes left of a folder of this name that they were killed in the middle of."""
    for partial in parent.glob(f".{name}{PARTIAL}*"):
        try:
            with locked(partial / "lock"):
                pass
        except (ValueError, OSError):
            # Somebody is still at it.
            continue
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """
    Gives an empty folder to write to, which becomes `folder` when the block ends. After an error, SIGINT or SIGTERM
    nothing is left; what SIGKILL leaves is hidden, and removed by the next call for the same folder.

    Raises:
        ValueError: if something is there already.
    """
    check_destination(folder)
    folder = folder.resolve()
    remove_abandoned(folder.parent, folder.name)
    with cleaning_up_when_terminated():
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}{PARTIAL}", dir=folder.parent))
        try:
            with locked(partial / "lock"):
                written = partial / "written"
                written.mkdir()
                yield written
                if folder.exists():
                    folder.rmdir()
                written.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
