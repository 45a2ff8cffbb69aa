"""What is known of an experiment's trace files, so that they are read and hashed once: `trace_index.json` in its store.

A file is taken as unchanged while its size, modification time and inode are.
"""

from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from pydantic import JsonValue

from curtail_pipeline.errors import MessageError
from curtail_pipeline.signals.provider import Provider
from curtail_pipeline.storage.records import Message, Record, Sha256, Utc
from curtail_pipeline.storage.store import Store, canonical_json, file_sha256

INDEX_KEY = "trace_index.json"


class TraceFile(Record):
    """A file as it was when it was hashed."""

    path: str
    size: int
    mtime_ns: int
    inode: int
    sha256: Sha256

    @classmethod
    def hashed(cls, path: Path) -> "TraceFile":
        found = path.stat()
        return cls(
            path=str(path.resolve()),
            size=found.st_size,
            mtime_ns=found.st_mtime_ns,
            inode=found.st_ino,
            sha256=file_sha256(path),
        )

    def unchanged(self) -> bool:
        try:
            found = Path(self.path).stat()
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns, found.st_ino) == (self.size, self.mtime_ns, self.inode)


class TraceIndex(Message):
    """Of the whole trace: what a file covers depends on how it is read, and on the files beside it."""

    settings_sha256: Sha256
    """Of the settings of the traces, their paths resolved."""
    files: tuple[TraceFile, ...]
    start: Utc | None
    """Where a recorded trace starts; None for a live one."""
    end: Utc | None
    regions: tuple[str, ...] | None
    """None when any name may be asked for."""
    fingerprint: str
    """sha256 of all that the values depend on; empty for a live source."""

    @property
    def span(self) -> tuple[datetime, datetime] | None:
        return None if self.start is None or self.end is None else (self.start, self.end)

    def unchanged(self) -> bool:
        """Whether every file is as it was."""
        return all(file.unchanged() for file in self.files)


def stored_index(store: Store, settings: dict[str, JsonValue]) -> TraceIndex | None:
    """The index of the traces with these settings, whether or not the files have changed since; None without one.

    Args:
        settings: of the traces, with their paths resolved.
    """
    if not store.exists(INDEX_KEY):
        return None
    try:
        index = store.read_record(INDEX_KEY, TraceIndex)
    except MessageError:
        return None  # it is made again from the files
    return index if index.settings_sha256 == _digest(settings) else None


def index_traces(provider: Provider, settings: dict[str, JsonValue], known: TraceIndex | None) -> TraceIndex:
    """The index of what a provider reads; a file that is as in `known` is not read again.

    Raises:
        TraceError: a file cannot be read.
    """
    before = {file.path: file for file in known.files if file.unchanged()} if known else {}
    files = tuple(before.get(str(path.resolve())) or TraceFile.hashed(path) for path in provider.files())
    hashes = {file.path: file.sha256 for file in files}
    if known is not None and known.files == files:
        regions: Sequence[str] | None = known.regions
        span = known.span
    else:
        regions, span = provider.regions(), provider.span()
    return TraceIndex(
        settings_sha256=_digest(settings),
        files=files,
        start=span[0] if span else None,
        end=span[1] if span else None,
        regions=None if regions is None else tuple(regions),
        fingerprint=provider.fingerprint(lambda path: hashes[str(path.resolve())]),
    )


def write_index(store: Store, index: TraceIndex, known: TraceIndex | None) -> None:
    """Keep an index that differs from the known one; one without files is made faster than it is read."""
    if index.files and index != known:
        store.write_record(INDEX_KEY, index)


def _digest(settings: dict[str, JsonValue]) -> str:
    return sha256(canonical_json(settings)).hexdigest()
