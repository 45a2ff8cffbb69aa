"""The store: one root under which everything an experiment makes is kept by key.

A key is a relative POSIX path (`checkpoints/ckpt-000003/manifest.json`). Writes are atomic: a reader sees the old
object or the new one, never a part. Another kind of root (`s3://`) is another class with these methods.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from curtail_pipeline.errors import StoreError
from curtail_pipeline.storage.atomic import replacing
from curtail_pipeline.storage.records import Json, Message, R, read_record


def file_sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """JSON whose bytes depend on the value alone, so that it can be hashed."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


class Store:
    """A folder. Every method takes keys relative to its root."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).resolve()

    def path(self, key: str) -> Path:
        """Where the object of this key is, whether or not it exists.

        Raises:
            StoreError: the key would leave the root.
        """
        path = (self.root / key).resolve()
        if not path.is_relative_to(self.root):
            raise StoreError(f"key {key!r} leaves the store {self.root}; keys are relative paths without '..'")
        return path

    def key(self, path: Path) -> str:
        return path.resolve().relative_to(self.root).as_posix()

    def exists(self, key: str) -> bool:
        return self.path(key).exists()

    def read_bytes(self, key: str) -> bytes:
        try:
            return self.path(key).read_bytes()
        except FileNotFoundError as error:
            raise StoreError(f"{key} is not in the store {self.root}") from error

    def read_json(self, key: str) -> Json:
        try:
            value: Json = json.loads(self.read_bytes(key))
        except ValueError as error:
            raise StoreError(
                f"{key} in the store {self.root} is not valid JSON ({error}); restore or remove it"
            ) from error
        return value

    def read_record(self, key: str, kind: type[R]) -> R:
        """What was written with `write_record`.

        Raises:
            StoreError: there is none.
            MessageError: it is no such record, or one of another version.
        """
        source = f"{key} in the store {self.root}"
        if issubclass(kind, Message):
            return kind.read(self.read_bytes(key), source)
        return read_record(kind, self.read_json(key), source)

    def write_bytes(self, key: str, data: bytes) -> None:
        with replacing(self.path(key), sync=True) as scratch:
            scratch.write_bytes(data)

    def write_json(self, key: str, value: Any) -> None:
        self.write_bytes(key, canonical_json(value))

    def write_record(self, key: str, record: BaseModel) -> None:
        self.write_json(key, record.model_dump(mode="json"))

    def put_file(self, source: Path, key: str) -> None:
        """Copy a file to the key (a hard link where the file system allows; stored objects are never edited)."""
        with replacing(self.path(key)) as scratch:
            try:
                os.link(source, scratch)
            except OSError:
                shutil.copyfile(source, scratch)

    def list(self, prefix: str) -> list[str]:
        """The names directly under a prefix, sorted; empty when there is none."""
        folder = self.path(prefix)
        return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []

    def delete(self, key: str) -> None:
        """Remove an object or everything under a prefix; absent is fine."""
        path = self.path(key)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
