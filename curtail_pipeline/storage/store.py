"""The store: one root under which everything an experiment makes is kept by key.

A key is a relative POSIX path (`checkpoints/ckpt-000003/manifest.json`). Writes are atomic: a reader sees the old
object or the new one, never a part. The root is a folder (`folder_store`) or `s3://bucket/prefix` (`s3_store`);
`stores.open_store` tells which.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

from curtail_pipeline.errors import StoreError
from curtail_pipeline.storage.records import Json, Message, R, read_record

Method = Literal["GET", "PUT"]


class NotStored(StoreError):
    """There is no object of this key."""


class CorruptObject(StoreError):
    """What arrived is not what was written."""


class StoreUnavailable(StoreError):
    """The store did not answer, or not with what was asked for, as long as it was worth trying."""


class Stamp(NamedTuple):
    """By which an object is taken as unchanged."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class StoredObject(NamedTuple):
    """What an object holds."""

    sha256: str
    bytes: int


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """JSON whose bytes depend on the value alone, so that it can be hashed."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


class Store(ABC):
    """Objects by key. Every method may raise `StoreUnavailable` where the root is not of this machine."""

    uri: str
    """The root, as messages between processes and errors name it: an absolute path, or `s3://bucket/prefix`."""

    # Small objects

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is an object of this key. Ask for objects: a prefix is there in a folder only."""

    @abstractmethod
    def read_bytes(self, key: str) -> bytes:
        """The object's content.

        Raises:
            NotStored: there is none.
            CorruptObject: it is not what was written.
        """

    @abstractmethod
    def write_bytes(self, key: str, data: bytes) -> None:
        """Replace the object."""

    @abstractmethod
    def create_bytes(self, key: str, data: bytes) -> bool:
        """Write the object where there is none; False where there is one. Of several writers one gets True."""

    @abstractmethod
    def list(self, prefix: str) -> list[str]:
        """The names directly under a prefix, sorted; empty when there is none."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object or everything under a prefix; absent is fine."""

    # Files

    @abstractmethod
    def local(self, key: str) -> AbstractContextManager[Path]:
        """A file of this machine with the object's content, checked; there until the block ends, and not to be changed.

        Raises:
            NotStored, CorruptObject: as `read_bytes`.
        """

    @abstractmethod
    def new_file(self, key: str) -> AbstractContextManager[Path]:
        """A name on this machine for a new file, which becomes the object when the block ends well."""

    @abstractmethod
    def put_file(self, source: Path, key: str) -> None:
        """Make the object of a copy of the file (a hard link where that will do: stored objects are never edited)."""

    @abstractmethod
    def adopt(self, source: Path, key: str) -> None:
        """Make the object of this file, which is gone afterwards."""

    @abstractmethod
    def copy(self, source: str, key: str) -> None:
        """Make the object of another one's content."""

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Bytes of the object; None where there is none."""

    @abstractmethod
    def stat(self, key: str) -> StoredObject:
        """What the object holds, by the cheapest way: a bucket says what its writer said, a file is read.

        Raises:
            NotStored: there is none.
        """

    @abstractmethod
    def digest(self, key: str) -> StoredObject:
        """What the object holds, every byte of it read where it lies.

        Raises:
            NotStored: there is none.
        """

    @abstractmethod
    def stamps(self, keys: Iterable[str]) -> Iterator[Stamp | None]:
        """By what each object can be taken as unchanged, lazily; None where there is none."""

    def changed(self, known: Iterable[tuple[str, Sequence[int] | None]]) -> Iterator[tuple[Stamp | None, bytes | None]]:
        """The stamp of each object, lazily, and its content where the stamp is another one than that which is known.

        Args:
            known: keys, and the stamp with which each was read before.

        Returns:
            No stamp where there is no object; no content where it cannot be read.
        """
        before = [*known]
        for (key, stamp), now in zip(before, self.stamps([key for key, _ in before]), strict=True):
            data = None
            if now is not None and now != stamp:
                with suppress(NotStored, CorruptObject, OSError):
                    data = self.read_bytes(key)
            yield now, data

    @abstractmethod
    def sign(self, method: Method, key: str, seconds: int) -> str:
        """An address by which whoever has it may read (GET) or replace (PUT) the object for so long.

        Raises:
            StoreError: a folder, which has none.
        """

    # This machine

    @abstractmethod
    def here(self, name: str) -> Path:
        """A place on this machine for what no other one needs: locks, logs, indexes, work that is not done."""

    @abstractmethod
    def held(self, sha256: str) -> AbstractContextManager[Path | None]:
        """A file of this machine with this content that an object was read from; None where there is none, or where
        reading an object costs nothing. There until the block ends."""

    @abstractmethod
    def keep(self, source: Path, sha256: str) -> None:
        """Move a file with this content to where objects of that content are read from."""

    @abstractmethod
    def mirror(self, key: str) -> Path:
        """A lasting copy on this machine of the object, or a folder with those directly under a prefix and no others.

        It need not exist where there are no objects.
        """

    @abstractmethod
    def publish(self, key: str, last: str) -> None:
        """Store the files that were made in a mirrored folder; the one called `last` after all others."""

    @abstractmethod
    def under(self, prefix: str) -> "Store":
        """The store whose root is this prefix."""

    # Records

    def read_json(self, key: str) -> Json:
        try:
            value: Json = json.loads(self.read_bytes(key))
        except ValueError as error:
            raise StoreError(
                f"{key} in the store {self.uri} is not valid JSON ({error}); restore or remove it"
            ) from error
        return value

    def read_record(self, key: str, kind: type[R]) -> R:
        """What was written with `write_record`.

        Raises:
            StoreError: there is none.
            MessageError: it is no such record, or one of another version.
        """
        source = f"{key} in the store {self.uri}"
        if issubclass(kind, Message):
            return kind.read(self.read_bytes(key), source)
        return read_record(kind, self.read_json(key), source)

    def write_json(self, key: str, value: Any) -> None:
        self.write_bytes(key, canonical_json(value))

    def write_record(self, key: str, record: BaseModel) -> None:
        self.write_json(key, record.model_dump(mode="json"))
