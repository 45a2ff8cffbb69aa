"""A store whose root is a prefix of an S3 bucket: AWS, or a server that speaks the same.

Every object carries the sha256 of its content as metadata, and whoever fetches it checks it. Files go through a cache
of this machine, so that one is fetched once. S3 has no folders and no renaming: what must appear as one (a checkpoint)
is decided by a conditional write (`object_commits`).
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from curtail_pipeline.errors import StoreError
from curtail_pipeline.storage import s3_transfer as transfer
from curtail_pipeline.storage.atomic import replacing
from curtail_pipeline.storage.content_cache import ContentCache
from curtail_pipeline.storage.s3_calls import PATIENCE_S, Calls, Place, code_of
from curtail_pipeline.storage.s3_transfer import SHA256, Parts
from curtail_pipeline.storage.store import Method, NotStored, Stamp, Store, StoredObject, file_sha256

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectIdentifierTypeDef, ObjectTypeDef

Connect = Callable[[], "S3Client"]

WRITER = "writer"
"""Metadata that tells the writer of a conditional write that the object is its own, when the answer was lost."""
COPY_PART_BYTES = 1 << 30
"""Above this a copy at the server is made in parts (S3 copies at most 5 GiB at once)."""


class S3Store(Store):
    """Objects are `prefix/key` of a bucket.

    Args:
        place: bucket and prefix.
        folder: of this machine, for the cache, and per store for what is only this machine's.
        cache_bytes: limit of the cache.
        connect: makes a client; with the usual AWS settings when not given.

    Raises:
        StoreError: (every method) the server refuses; says why.
    """

    def __init__(
        self,
        place: Place,
        folder: Path,
        cache_bytes: int,
        connect: Connect | None = None,
        *,
        patience_s: float = PATIENCE_S,
        parts: Parts | None = None,
    ) -> None:
        self.place, self.uri = place, place.uri
        self._made_with = (folder, cache_bytes, connect, patience_s, parts or Parts())
        self._parts = parts or Parts()
        self._calls = Calls(place, connect, patience_s)
        self._cache = ContentCache(folder / "cache", cache_bytes)
        self._here = folder / "stores" / hashlib.sha256(place.uri.encode()).hexdigest()[:16]

    def _key(self, key: str) -> str:
        """The object key.

        Raises:
            StoreError: it would leave the root.
        """
        if key.startswith("/") or {"", ".", ".."} & set(key.split("/")):
            raise StoreError(f"key {key!r} leaves the store {self.uri}; keys are relative paths without '..'")
        return f"{self.place.prefix}/{key}" if self.place.prefix else key

    # Small objects

    def exists(self, key: str) -> bool:
        return self._head(key) is not None

    def read_bytes(self, key: str) -> bytes:
        return transfer.read_whole(self._calls, self._key(key), key)

    def write_bytes(self, key: str, data: bytes) -> None:
        self._put(key, data)

    def _put(self, key: str, data: bytes) -> None:
        bucket, name, sha256 = self.place.bucket, self._key(key), hashlib.sha256(data).hexdigest()
        self._calls.of(key, lambda s3: s3.put_object(Bucket=bucket, Key=name, Body=data, Metadata={SHA256: sha256}))

    def create_bytes(self, key: str, data: bytes) -> bool:
        import botocore.exceptions as aws

        bucket, name, writer = self.place.bucket, self._key(key), uuid.uuid4().hex
        metadata = {SHA256: hashlib.sha256(data).hexdigest(), WRITER: writer}

        def create(s3: "S3Client") -> bool:
            try:
                s3.put_object(Bucket=bucket, Key=name, Body=data, Metadata=metadata, IfNoneMatch="*")
            except aws.ClientError as error:
                if code_of(error) not in ("PreconditionFailed", "412"):
                    raise
                # an earlier try of this call may have come through, and its answer may not
                return s3.head_object(Bucket=bucket, Key=name)["Metadata"].get(WRITER) == writer
            return True

        return self._calls.of(key, create)

    def list(self, prefix: str) -> list[str]:
        root = self._key(prefix.rstrip("/")) + "/"

        def names(s3: "S3Client") -> list[str]:
            pages = s3.get_paginator("list_objects_v2").paginate(Bucket=self.place.bucket, Prefix=root, Delimiter="/")
            found: set[str] = set()
            for page in pages:
                found |= {entry["Key"] for entry in page.get("Contents", ())}
                found |= {entry["Prefix"].rstrip("/") for entry in page.get("CommonPrefixes", ())}
            return sorted(name.removeprefix(root) for name in found if name != root)

        return self._calls.of(prefix, names)

    def delete(self, key: str) -> None:
        name = self._key(key)
        for batch in self._pages(name):
            doomed = [e["Key"] for e in batch if e["Key"] == name or e["Key"].startswith(f"{name}/")]
            if len(doomed) == 1:
                (one,) = doomed
                self._calls.of(key, lambda s3, one=one: s3.delete_object(Bucket=self.place.bucket, Key=one))  # type: ignore[misc]
            elif doomed:
                self._delete_all(key, doomed)
        here = self.here(key)
        if here.is_dir():
            shutil.rmtree(here)
        else:
            here.unlink(missing_ok=True)

    def _delete_all(self, key: str, doomed: Sequence[str]) -> None:
        objects: Sequence[ObjectIdentifierTypeDef] = [{"Key": one} for one in doomed]
        answer = self._calls.of(
            key,
            lambda s3: s3.delete_objects(Bucket=self.place.bucket, Delete={"Objects": objects, "Quiet": True}),
        )
        for error in answer.get("Errors", ()):
            raise StoreError(
                f"{error.get('Key')} in s3://{self.place.bucket} was not deleted ({error.get('Code')}); give "
                "credentials that may delete it"
            )

    def _pages(self, prefix: str) -> "Iterator[Sequence[ObjectTypeDef]]":
        """The objects whose keys begin so, at most 1000 at a time."""
        after = ""
        while True:
            page = self._calls.of(
                prefix,
                lambda s3, after=after: s3.list_objects_v2(  # type: ignore[misc]
                    Bucket=self.place.bucket, Prefix=prefix, StartAfter=after
                ),
            )
            found = page.get("Contents", [])
            yield found
            if not page["IsTruncated"] or not found:
                return
            after = found[-1]["Key"]

    # Files

    @contextmanager
    def local(self, key: str) -> Iterator[Path]:
        name = self._key(key)
        head = transfer.head(self._calls, name, key)
        if head.sha256 is None:
            scratch = self._cache.scratch() / uuid.uuid4().hex
            try:
                transfer.download(self._calls, name, key, scratch, self._parts, head)
                yield scratch
            finally:
                scratch.unlink(missing_ok=True)
            return

        def fetch(partial: Path) -> None:
            transfer.download(self._calls, name, key, partial, self._parts, head)

        with self._cache.hold(head.sha256, fetch) as path:
            yield path

    @contextmanager
    def new_file(self, key: str) -> Iterator[Path]:
        scratch = self._cache.scratch() / uuid.uuid4().hex
        try:
            yield scratch
            self.adopt(scratch, key)
        finally:
            scratch.unlink(missing_ok=True)

    def put_file(self, source: Path, key: str) -> None:
        self._upload(source, key)

    def adopt(self, source: Path, key: str) -> None:
        self.keep(source, self._upload(source, key))

    def _upload(self, source: Path, key: str) -> str:
        sha256 = file_sha256(source)
        transfer.upload(self._calls, self._key(key), key, source, sha256, self._parts, self.here(".uploads"))
        return sha256

    def copy(self, source: str, key: str) -> None:
        head = transfer.head(self._calls, self._key(source), source)
        metadata = {SHA256: head.sha256 or self.digest(source).sha256}

        def copy(s3: "S3Client") -> None:
            from boto3.s3.transfer import TransferConfig

            s3.copy(
                {"Bucket": self.place.bucket, "Key": self._key(source)},
                self.place.bucket,
                self._key(key),
                ExtraArgs={"Metadata": metadata, "MetadataDirective": "REPLACE"},
                Config=TransferConfig(multipart_threshold=COPY_PART_BYTES, multipart_chunksize=COPY_PART_BYTES),
            )

        self._calls.of(source, copy)

    def _head(self, key: str) -> transfer.Head | None:
        try:
            return transfer.head(self._calls, self._key(key), key)
        except NotStored:
            return None

    def size(self, key: str) -> int | None:
        head = self._head(key)
        return head.bytes if head else None

    def stat(self, key: str) -> StoredObject:
        head = transfer.head(self._calls, self._key(key), key)
        return StoredObject(head.sha256, head.bytes) if head.sha256 else self.digest(key)

    def digest(self, key: str) -> StoredObject:
        return StoredObject(*transfer.hash_whole(self._calls, self._key(key), key))

    def stamps(self, keys: Iterable[str]) -> Iterator[Stamp | None]:
        wanted = [*keys]
        if not wanted:
            return
        first = self._head(wanted[0])  # the caller may want no other one
        yield _stamp(first.bytes, first.etag) if first else None
        if len(wanted) > 1:
            folder = os.path.commonpath([os.path.dirname(key) for key in wanted])  # noqa: PTH120 - keys, not paths
            root = f"{self._key(folder)}/" if folder else self.place.prefix and f"{self.place.prefix}/"
            found = {e["Key"]: _stamp(e["Size"], e["ETag"]) for page in self._pages(root) for e in page}
            for key in wanted[1:]:
                yield found.get(self._key(key))

    def sign(self, method: Method, key: str, seconds: int) -> str:
        name, operation = self._key(key), "get_object" if method == "GET" else "put_object"
        return self._calls.of(
            key,
            lambda s3: s3.generate_presigned_url(
                operation, Params={"Bucket": self.place.bucket, "Key": name}, ExpiresIn=seconds
            ),
        )

    # This machine

    def here(self, name: str) -> Path:
        self._key(name)
        return self._here / name

    @contextmanager
    def held(self, sha256: str) -> Iterator[Path | None]:
        with self._cache.hold_known(sha256) as path:
            yield path

    def keep(self, source: Path, sha256: str) -> None:
        scratch = self._cache.scratch() / uuid.uuid4().hex
        shutil.move(source, scratch)
        self._cache.add(scratch, sha256)

    def mirror(self, key: str) -> Path:
        path = self._here / "mirror" / key
        if self.exists(key):
            self._refresh(key, path)
            return path
        names = self.list(key)
        for name in names:
            self._refresh(f"{key}/{name}", path / name)
        for left in _whole_files(path):
            if left.name not in names:
                left.unlink(missing_ok=True)
        return path

    def publish(self, key: str, last: str) -> None:
        found = _whole_files(self._here / "mirror" / key)
        for path in sorted(found, key=lambda path: (path.name == last, path.name)):
            self.put_file(path, f"{key}/{path.name}")

    def _refresh(self, key: str, path: Path) -> None:
        if not path.exists() or file_sha256(path) != self.stat(key).sha256:
            with self.local(key) as held, replacing(path) as scratch:
                shutil.copyfile(held, scratch)

    def under(self, prefix: str) -> "S3Store":
        folder, cache_bytes, connect, patience_s, parts = self._made_with
        place = Place(self.place.bucket, self._key(prefix))
        return S3Store(place, folder, cache_bytes, connect, patience_s=patience_s, parts=parts)


def _whole_files(folder: Path) -> list[Path]:
    """But for those that another process is writing (`replacing`)."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []


def _stamp(size: int, etag: str) -> Stamp:
    """The tag tells contents apart; times of servers are left out."""
    return Stamp(size, 0, 0, int.from_bytes(hashlib.sha256(etag.encode()).digest()[:7]))
