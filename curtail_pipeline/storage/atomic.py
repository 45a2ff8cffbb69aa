"""Files and folders that readers see whole: written beside their place and renamed into it."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path, mode: int | None = None, exclusive: bool = False, sync: bool = False) -> Iterator[Path]:
    """A name beside `path` for a new file or folder: in its place when the block ends well, else removed.

    Nobody can guess the name; writers of one path do not disturb each other, and the last one wins.

    Args:
        mode: permissions; with it the file is there, empty, before the block writes to it.
        exclusive: only where there is nothing yet.
        sync: on disk before it is in its place.

    Raises:
        FileExistsError: `exclusive`, and another was first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        if mode is not None:
            os.close(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        yield scratch
        if sync:
            sync_file(scratch)
        if exclusive:
            os.link(scratch, path)
        else:
            scratch.replace(path)
    finally:
        if scratch.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)
        else:
            scratch.unlink(missing_ok=True)


def write_whole(path: Path, data: bytes, mode: int | None = None) -> None:
    """Replace a file's content."""
    with replacing(path, mode) as scratch:
        scratch.write_bytes(data)


def sync_file(path: Path) -> None:
    """Have what was written to a file, or the names in a folder, on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
