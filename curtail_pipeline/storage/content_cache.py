"""A cache of objects by the sha256 of their content, on this machine and with a limit.

    objects/ab/abcd...   whole objects; only ever renamed into place
    partial/abcd...      what is being fetched, kept when the process dies
    new/...              what is being made, and removed a day after the process died

The least recently used go first; one that a process holds stays, so that the limit is passed for as long as what is
held at one time is larger. Any number of processes may use a folder: an object is fetched by one of them.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

STALE_PARTIAL_S = 24 * 3600.0
"""What nobody went on fetching, or making, for so long is removed."""


class ContentCache:
    """See the module.

    Args:
        folder: made when it is not there.
        limit_bytes: of all objects together.
    """

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes

    @contextmanager
    def hold(self, sha256: str, fetch: Callable[[Path], None]) -> Iterator[Path]:
        """The file with this content, there until the block ends.

        Args:
            fetch: asked where the content is not here: writes it to the given path, which may hold what an earlier
                call has fetched before it was interrupted, and raises unless all of it is right.
        """
        path = self._path(sha256)
        while (handle := _hold(path)) is None:
            self._fill(sha256, fetch)
        try:
            self.evict()
            yield path
        finally:
            os.close(handle)
            self.evict()

    @contextmanager
    def hold_known(self, sha256: str) -> Iterator[Path | None]:
        """As `hold`, but None for a content that is not here."""
        handle = _hold(self._path(sha256))
        try:
            yield self._path(sha256) if handle is not None else None
        finally:
            if handle is not None:
                os.close(handle)

    def add(self, source: Path, sha256: str) -> None:
        """Move a file with this content into the cache."""
        self._place(source, sha256)
        self.evict()

    def _place(self, source: Path, sha256: str) -> None:
        path = self._path(sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        source.replace(path)

    def scratch(self) -> Path:
        """The folder for files that will be added: of the same file system."""
        folder = self.folder / "new"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _path(self, sha256: str) -> Path:
        return self.folder / "objects" / sha256[:2] / sha256

    def _fill(self, sha256: str, fetch: Callable[[Path], None]) -> None:
        partial = self.folder / "partial" / sha256
        partial.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{partial}.lock"):
            if self._path(sha256).exists():
                return  # another process was fetching it
            fetch(partial)
            self._place(partial, sha256)  # room is made once it is held, or it might be the first to go

    def evict(self) -> None:
        """Remove the least recently used objects until the limit is kept."""
        found: list[tuple[float, int, Path]] = []
        for entry in (self.folder / "objects").glob("*/*"):
            try:
                known = entry.stat()
            except FileNotFoundError:
                continue
            found.append((known.st_mtime, known.st_size, entry))
        excess = sum(size for _, size, _ in found) - self.limit_bytes
        for _, size, path in sorted(found):
            if excess <= 0:
                break
            if _remove(path):
                excess -= size
        self._remove_stale()

    def _remove_stale(self) -> None:
        for lock in (self.folder / "partial").glob("*.lock"):
            partial = lock.with_suffix("")
            try:
                if time.time() - max(p.stat().st_mtime for p in (lock, partial) if p.exists()) < STALE_PARTIAL_S:
                    continue
                with FileLock(lock, timeout=0):
                    for path in (partial, partial.with_suffix(".parts"), lock):
                        path.unlink(missing_ok=True)
            except (Timeout, ValueError, FileNotFoundError):
                continue
        for left in (self.folder / "new").glob("*"):
            with suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime >= STALE_PARTIAL_S:
                    left.unlink()


def _hold(path: Path) -> int | None:
    """A descriptor that keeps the file from being evicted until it is closed; None where there is no such file."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    fcntl.flock(handle, fcntl.LOCK_SH)
    try:
        if os.fstat(handle).st_nlink and os.path.samestat(os.fstat(handle), path.stat()):
            os.utime(path)
            return handle
    except FileNotFoundError:
        pass  # evicted between opening and locking
    os.close(handle)
    return None


def _remove(path: Path) -> bool:
    """Whether it is gone; False when a process holds it."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
