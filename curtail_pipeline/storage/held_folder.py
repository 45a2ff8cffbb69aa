"""Scratch folders that do not outlive the process that made them for long, also where it was killed."""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from curtail_pipeline.errors import StoreError


@contextmanager
def held_folder(root: Path) -> Iterator[Path]:
    """A new folder in `root`, which holds nothing else. What processes that are gone have left there goes first.

    A folder is locked as long as it is used. The kernel drops the lock with the process: a free one is nobody's.
    """
    root.mkdir(parents=True, exist_ok=True)
    with _opened(root) as whole:
        fcntl.flock(whole, fcntl.LOCK_EX)  # a folder between its making and its lock looks like one that was left
        for left in root.iterdir():
            _remove_unheld(left)
        folder = Path(tempfile.mkdtemp(dir=root))
        held = os.open(folder, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        os.close(held)


def own_temporary(name: str) -> Path:
    """A folder for temporary files that is this user's alone.

    Raises:
        StoreError: somebody else has put something in its place.
    """
    path = Path(tempfile.gettempdir()) / f"{name}-{os.geteuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise StoreError(f"{path} is not a folder of user {os.geteuid()}; remove it, or set TMPDIR to another place")
    return path


def _remove_unheld(folder: Path) -> None:
    with _opened(folder) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        shutil.rmtree(folder)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield handle
    finally:
        os.close(handle)
