"""What is known of many small files without reading them again: the index that thousands of checkpoints are listed by.

It is a cache, `index.sqlite` on this machine: what it says of a file counts while the file's size, times and inode are
those it was read with, and not a moment longer. Lost, damaged or out of reach it is made again from the files.
"""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence

from curtail_pipeline.storage.store import Store

SETTLED_NS = 2_000_000_000
"""A file changed more recently is read every time: its next change may leave the same times (the racy file of git)."""
_BUSY_S = 0.5
_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    kind TEXT, name TEXT, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, inode INTEGER, content TEXT,
    PRIMARY KEY (kind, name)) WITHOUT ROWID
"""
_READ = "SELECT name, size, mtime_ns, ctime_ns, inode, content FROM files WHERE kind = ?"
_Known = tuple[str, int, int, int, int, str | None]
"""A row of the table but for its kind: name, stamp and content. Plain, as there may be ten thousand in a tick."""


class FileIndex:
    """The index of a store. Every process has its own copy in memory, each kind of it read from the file once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._path = store.here("index.sqlite")
        self._known: dict[str, dict[str, _Known]] = {}

    def look(
        self,
        kind: str,
        names: Sequence[str],
        key_of: Callable[[str], str],
        read: Callable[[str, bytes], str | None],
    ) -> Iterator[tuple[str, str | None]]:
        """Each file's name with what it says, in the given order; lazily, so that a caller may stop early.

        Args:
            kind: which summary of a file is meant.
            names: of the files.
            key_of: from a file's name to its store key.
            read: from a file's name and bytes to the summary that is kept; None for a file that is not what it should
                be. A file that is absent or cannot be read now is None without being asked for.
        """
        known = self._loaded(kind)
        found: dict[str, _Known] = {}
        settled = time.time_ns() - SETTLED_NS
        before = [known.get(name) for name in names]  # what another thread changes meanwhile is for the next look
        stamped = ((key_of(name), row and row[1:5]) for name, row in zip(names, before, strict=True))
        try:
            for name, row, (stamp, data) in zip(names, before, self._store.changed(stamped), strict=True):
                if stamp is not None and data is not None:
                    content = read(name, data)
                    if stamp.ctime_ns < settled:
                        found[name] = (name, *stamp, content)
                    yield name, content
                else:
                    yield name, row[5] if row is not None and row[1:5] == stamp else None
        finally:
            if found:
                known.update(found)
                self._write(kind, found)

    def forget(self, kind: str, name: str) -> None:
        """Have a file read again, whatever its times say."""
        self._loaded(kind).pop(name, None)
        with contextlib.suppress(sqlite3.Error), contextlib.closing(self._open()) as database, database:
            database.execute("DELETE FROM files WHERE kind = ? AND name = ?", (kind, name))

    def _loaded(self, kind: str) -> dict[str, _Known]:
        if kind not in self._known:
            known: dict[str, _Known] = {}
            if self._path.exists():
                try:
                    with contextlib.closing(self._open()) as database:
                        known = {row[0]: row for row in database.execute(_READ, (kind,))}
                except sqlite3.OperationalError as error:  # busy, or empty as yet: others may be using it
                    if "no such column" in str(error):
                        self._discard()
                except sqlite3.Error:
                    self._discard()
            self._known[kind] = known
        return self._known[kind]

    def _write(self, kind: str, found: dict[str, _Known]) -> None:
        rows = ((kind, *known) for known in found.values())
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
        database.execute("PRAGMA page_size = 65536")  # of a new one: a twentieth of the calls that pages of 4 KiB take
        database.execute("PRAGMA synchronous = OFF")  # a torn index is found and made again
        return database

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
