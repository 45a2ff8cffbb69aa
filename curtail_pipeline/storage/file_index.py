"""What is known of many small files without reading them again: the index that thousands of checkpoints are listed by.

It is a cache, `index.sqlite` in the store: what it says of a file counts while the file's size, times and inode are
those it was read with, and not a moment longer. Lost, damaged or out of reach it is made again from the files.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

SETTLED_NS = 2_000_000_000
"""A file changed more recently is read every time: its next change may leave the same times (the racy file of git)."""
_BUSY_S = 0.5
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    kind TEXT, name TEXT, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, inode INTEGER, content TEXT,
    PRIMARY KEY (kind, name)) WITHOUT ROWID
"""


class Stamp(NamedTuple):
    """By which a file is taken as unchanged."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, path: str) -> "Stamp | None":
        """None where there is no such file."""
        try:
            found = os.stat(path)  # noqa: PTH116 - a Path costs more than the call, thousands of times
        except OSError:
            return None
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


class _Known(NamedTuple):
    stamp: Stamp
    content: str | None


class FileIndex:
    """The index of a store. Every process has its own copy in memory, read from the file once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, dict[str, _Known]] | None = None

    def look(
        self, kind: str, files: Iterable[tuple[str, str]], read: Callable[[str, bytes], str | None]
    ) -> Iterator[tuple[str, str | None]]:
        """Each file's name with what it says, in the given order; lazily, so that a caller may stop early.

        Args:
            kind: which summary of a file is meant.
            files: name and path.
            read: from a file's name and bytes to the summary that is kept; None for a file that is not what it should
                be. A file that is absent or cannot be read is None without being asked for.
        """
        known = self._loaded().setdefault(kind, {})
        found: dict[str, _Known] = {}
        settled = time.time_ns() - SETTLED_NS
        try:
            for name, path in files:
                stamp = Stamp.of(path)
                before = known.get(name)
                if stamp is None:
                    yield name, None
                elif before is not None and before.stamp == stamp:
                    yield name, before.content
                else:
                    content = _content(name, path, read)
                    if stamp.ctime_ns < settled:
                        found[name] = _Known(stamp, content)
                    yield name, content
        finally:
            if found:
                known.update(found)
                self._write(kind, found)

    def forget(self, kind: str, name: str) -> None:
        """Have a file read again, whatever its times say."""
        self._loaded().get(kind, {}).pop(name, None)
        with contextlib.suppress(sqlite3.Error), contextlib.closing(self._open()) as database, database:
            database.execute("DELETE FROM files WHERE kind = ? AND name = ?", (kind, name))

    def _loaded(self) -> dict[str, dict[str, _Known]]:
        if self._known is None:
            known: dict[str, dict[str, _Known]] = {}
            if self._path.exists():
                try:
                    with contextlib.closing(self._open()) as database:
                        for kind, name, *stamp, content in database.execute("SELECT * FROM files"):
                            known.setdefault(kind, {})[name] = _Known(Stamp(*stamp), content)
                except sqlite3.OperationalError:
                    known = {}  # busy, or empty as yet: others may be using it
                except (sqlite3.Error, TypeError):
                    known = {}
                    self._discard()
            self._known = known
        return self._known

    def _write(self, kind: str, found: dict[str, _Known]) -> None:
        rows = [(kind, name, *known.stamp, known.content) for name, known in found.items()]
        try:
            with contextlib.closing(self._open()) as database, database:
                database.execute(_SCHEMA)
                database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.OperationalError:
            return  # read-only, full or busy: it is a cache, and this process knows now
        except sqlite3.DatabaseError:
            self._discard()

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=_BUSY_S)
        database.execute("PRAGMA synchronous = OFF")  # a torn index is found and made again
        return database

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def _content(name: str, path: str, read: Callable[[str, bytes], str | None]) -> str | None:
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            data = os.read(handle, os.fstat(handle).st_size + 1)
        finally:
            os.close(handle)
    except OSError:
        return None
    return read(name, data)
