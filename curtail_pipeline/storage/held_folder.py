"""Scratch folders that do not outlive the process that made them for long, also where it was killed."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def held_folder(root: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `root`. What processes of this user that are gone have left there under the prefix goes first.

    A folder is locked as long as it is used. The kernel drops the lock with the process: a free one is nobody's.

    Args:
        prefix: of its name; nothing else in `root` begins so.
    """
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob(f"{prefix}*"):
        if left.is_dir() and not left.is_symlink() and left.stat().st_uid == os.geteuid():
            _remove_unheld(left)
    folder, lock = _made(root, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        os.close(lock)


def _made(root: Path, prefix: str) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
        # Before it is locked another process may take it for one that was left.
        if (lock := _locked(folder)) is not None:
            return folder, lock


def _remove_unheld(folder: Path) -> None:
    if (lock := _locked(folder)) is not None:
        shutil.rmtree(folder)
        os.close(lock)


def _locked(folder: Path) -> int | None:
    """None where somebody else holds it, or it is gone."""
    with suppress(FileNotFoundError):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(folder.stat(), os.fstat(handle)):
                return handle
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(handle)
    return None
