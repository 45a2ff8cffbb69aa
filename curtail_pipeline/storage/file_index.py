"""What is known of many small files without reading them again: the index that thousands of checkpoints are listed by.

It is a cache, `index.sqlite` on this machine: what it says of a file counts while the file's size, times and inode are
those it was read with, and not a moment longer. Lost, damaged or out of reach it is made again from the files.
"""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from curtail_pipeline.storage.store import CorruptObject, NotStored, Stamp, Store

SETTLED_NS = 2_000_000_000
"""A file changed more recently is read every time: its next change may leave the same times (the racy file of git)."""
_BUSY_S = 0.5
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    kind TEXT, name TEXT, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, inode INTEGER, content TEXT,
    PRIMARY KEY (kind, name)) WITHOUT ROWID
"""


class _Known(NamedTuple):
    stamp: Stamp
    content: str | None


class FileIndex:
    """The index of a store. Every process has its own copy in memory, read from the file once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._path = store.here("index.sqlite")
        self._known: dict[str, dict[str, _Known]] | None = None

    def look(
        self, kind: str, files: Iterable[tuple[str, str]], read: Callable[[str, bytes], str | None]
    ) -> Iterator[tuple[str, str | None]]:
        """Each file's name with what it says, in the given order; lazily, so that a caller may stop early.

        Args:
            kind: which summary of a file is meant.
            files: name and store key.
            read: from a file's name and bytes to the summary that is kept; None for a file that is not what it should
                be. A file that is absent or cannot be read is None without being asked for.
        """
        known = self._loaded().setdefault(kind, {})
        found: dict[str, _Known] = {}
        settled = time.time_ns() - SETTLED_NS
        wanted = list(files)
        try:
            for (name, key), stamp in zip(wanted, self._store.stamps([key for _, key in wanted]), strict=True):
                before = known.get(name)
                if stamp is None:
                    yield name, None
                elif before is not None and before.stamp == stamp:
                    yield name, before.content
                else:
                    content = self._content(name, key, read)
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

    def _content(self, name: str, key: str, read: Callable[[str, bytes], str | None]) -> str | None:
        try:
            data = self._store.read_bytes(key)
        except (NotStored, CorruptObject, OSError):
            return None
        return read(name, data)

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
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
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
