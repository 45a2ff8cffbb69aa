"""Large files to and from an S3 server, in parts and several at a time; what was interrupted goes on where it was."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from curtail_pipeline.errors import MessageError
from curtail_pipeline.storage.atomic import write_whole
from curtail_pipeline.storage.records import Message
from curtail_pipeline.storage.s3_calls import Calls, code_of
from curtail_pipeline.storage.store import CorruptObject, NotStored, file_sha256

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

SHA256 = "sha256"
"""Name of the metadata that every object of a store carries."""
MOST_PARTS = 10_000
"""That S3 takes."""
TRIES = 3
"""At an object that is replaced, or arrives damaged, while it is fetched."""
LARGEST_WHOLE = 256 << 20
"""Bytes of a record or a table: some are written by sites, and nobody's memory is theirs to fill."""
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Parts:
    """How files are divided: 16 MiB at a time, four in flight."""

    bytes: int = 16 << 20
    """S3 takes no part below 5 MiB but the last."""
    threads: int = 4

    def of(self, size: int) -> int:
        """Bytes of a part of a file of this size."""
        return max(self.bytes, -(-size // MOST_PARTS))


class Head(NamedTuple):
    """What the server says of an object."""

    bytes: int
    etag: str
    sha256: str | None
    """As its writer said; None for an object that no store has written."""


class Unfinished(Message):
    """An upload that was begun: its parts are at the server."""

    upload_id: str
    part_bytes: int


class _UploadGone(Exception):
    """The server does not know the upload: it was completed, given up, or cleaned away."""


class _Replaced(Exception):
    """The object is another one than the head that was read."""


def head(calls: Calls, key: str, name: str) -> Head:
    """
    Raises:
        NotStored: there is no such object.
    """
    found = calls.of(name, lambda s3: s3.head_object(Bucket=calls.place.bucket, Key=key))
    return Head(found["ContentLength"], found["ETag"], found["Metadata"].get(SHA256))


def upload(calls: Calls, key: str, name: str, path: Path, sha256: str, parts: Parts, notes: Path) -> None:
    """Store a file under an object key.

    Args:
        name: the store key, for errors.
        notes: folder where unfinished uploads are noted, so that another process goes on with them.
    """
    bucket, size = calls.place.bucket, path.stat().st_size
    if size <= parts.bytes:
        data = path.read_bytes()
        calls.of(name, lambda s3: s3.put_object(Bucket=bucket, Key=key, Body=data, Metadata={SHA256: sha256}))
        return
    note = notes / f"{hashlib.sha256(f'{calls.place.bucket}/{key}'.encode()).hexdigest()[:16]}-{sha256}.json"
    while True:
        try:
            _upload_parts(calls, key, name, path, sha256, parts, note)
            break
        except _UploadGone:
            note.unlink(missing_ok=True)
            with suppress(NotStored):  # the answer to its completion may have been lost
                if head(calls, key, name).sha256 == sha256:
                    break
    note.unlink(missing_ok=True)


def _upload_parts(calls: Calls, key: str, name: str, path: Path, sha256: str, parts: Parts, note: Path) -> None:
    bucket, size = calls.place.bucket, path.stat().st_size
    known = _begun(note)
    if known is None:
        answer = calls.of(
            name, lambda s3: s3.create_multipart_upload(Bucket=bucket, Key=key, Metadata={SHA256: sha256})
        )
        known = Unfinished(upload_id=answer["UploadId"], part_bytes=parts.of(size))
        write_whole(note, known.model_dump_json().encode())
    upload_id, step = known.upload_id, known.part_bytes
    there = calls.of(name, lambda s3: _uploaded(s3, bucket, key, upload_id))

    def send(number: int) -> "CompletedPartTypeDef":
        offset = (number - 1) * step
        wanted = min(step, size - offset)
        etag, held = there.get(number, ("", -1))
        if held != wanted:
            with path.open("rb") as stream:
                stream.seek(offset)
                data = stream.read(wanted)
            etag = calls.of(name, lambda s3: _send(s3, bucket, key, upload_id, number, data))
        return {"ETag": etag, "PartNumber": number}

    with ThreadPoolExecutor(parts.threads) as threads:
        done = list(threads.map(send, range(1, -(-size // step) + 1)))

    def complete(s3: "S3Client") -> None:
        with _upload_known():
            s3.complete_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": done})

    calls.of(name, complete)


def _begun(note: Path) -> Unfinished | None:
    try:
        return Unfinished.read(note.read_bytes(), str(note))
    except (FileNotFoundError, MessageError):
        return None


@contextmanager
def _upload_known() -> Iterator[None]:
    """Tells an upload that is gone from everything else that a request may fail for."""
    import botocore.exceptions as aws

    try:
        yield
    except aws.ClientError as error:
        if code_of(error) == "NoSuchUpload":
            raise _UploadGone from error
        raise


def _uploaded(s3: "S3Client", bucket: str, key: str, upload_id: str) -> dict[int, tuple[str, int]]:
    """Per part that the server has its tag and bytes. They are this file's: the note is named by its hash."""
    with _upload_known():
        pages = s3.get_paginator("list_parts").paginate(Bucket=bucket, Key=key, UploadId=upload_id)
        return {part["PartNumber"]: (part["ETag"], part["Size"]) for page in pages for part in page.get("Parts", ())}


def _send(s3: "S3Client", bucket: str, key: str, upload_id: str, number: int, data: bytes) -> str:
    with _upload_known():
        sent = s3.upload_part(Bucket=bucket, Key=key, UploadId=upload_id, PartNumber=number, Body=data)
    return sent["ETag"]


def download(calls: Calls, key: str, name: str, partial: Path, parts: Parts, wanted: Head) -> None:
    """Fetch an object into a file, which may hold what an earlier call has fetched of it; its hash is checked.

    Parts that are whole are noted in a file beside it.

    Raises:
        CorruptObject: it does not have the sha256 that its writer gave.
        NotStored: it is gone, or is another one now.
    """
    for attempt in range(1, TRIES + 1):
        try:
            _download_parts(calls, key, name, partial, parts, wanted)
        except _Replaced as error:
            _forget(partial)
            raise NotStored(f"{name} in {calls.place.uri} was replaced while it was fetched; fetch it again") from error
        found = file_sha256(partial)
        if wanted.sha256 is None or found == wanted.sha256:
            _noted(partial).unlink(missing_ok=True)
            return
        size = partial.stat().st_size
        _forget(partial)
        if attempt == TRIES:
            raise damaged(calls, name, wanted.sha256, found, size)


def _download_parts(calls: Calls, key: str, name: str, partial: Path, parts: Parts, wanted: Head) -> None:
    note = _noted(partial)
    form = f"{wanted.etag} {wanted.bytes} {parts.bytes}"
    lines = note.read_text().splitlines() if note.exists() and partial.exists() else []
    if not lines or lines[0] != form:
        partial.unlink(missing_ok=True)
        note.write_text(f"{form}\n")
    have = {int(line) for line in lines[1:] if line.isdigit()} if lines and lines[0] == form else set()
    handle = os.open(partial, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        os.truncate(handle, wanted.bytes)
        with note.open("a") as progress, ThreadPoolExecutor(parts.threads) as threads:
            left = [offset for offset in range(0, wanted.bytes, parts.bytes) if offset not in have]

            def fetch(offset: int) -> int:
                size = min(parts.bytes, wanted.bytes - offset)
                calls.of(name, lambda s3: _fetch(s3, calls.place.bucket, key, wanted.etag, handle, offset, size))
                return offset

            for offset in threads.map(fetch, left):
                progress.write(f"{offset}\n")
                progress.flush()
    finally:
        os.close(handle)


def _fetch(s3: "S3Client", bucket: str, key: str, etag: str, handle: int, offset: int, size: int) -> None:
    import botocore.exceptions as aws

    try:
        answer = s3.get_object(Bucket=bucket, Key=key, Range=f"bytes={offset}-{offset + size - 1}", IfMatch=etag)
    except aws.ClientError as error:
        if code_of(error) in ("PreconditionFailed", "412", "InvalidRange"):
            raise _Replaced from error
        raise
    at, end = offset, offset + size
    for data in answer["Body"].iter_chunks(_READ_BYTES):
        os.pwrite(handle, data[: end - at], at)
        at += len(data)
    if at != end:
        raise aws.IncompleteReadError(actual_bytes=at - offset, expected_bytes=size)


def read_whole(calls: Calls, key: str, name: str) -> bytes:
    """A small object, checked.

    Raises:
        NotStored: there is none.
        CorruptObject: it does not have the sha256 that its writer gave, or is larger than `LARGEST_WHOLE`.
    """

    def get(s3: "S3Client") -> tuple[bytes, str | None]:
        answer = s3.get_object(Bucket=calls.place.bucket, Key=key)
        if (size := answer["ContentLength"]) > LARGEST_WHOLE:
            answer["Body"].close()
            raise CorruptObject(
                f"{name} in {calls.place.uri} has {size} bytes, and {LARGEST_WHOLE} at most are read into memory; see "
                "who wrote it, and remove it"
            )
        return answer["Body"].read(), answer["Metadata"].get(SHA256)

    for _ in range(TRIES):
        data, expected = calls.of(name, get)
        found = hashlib.sha256(data).hexdigest()
        if expected is None or found == expected:
            return data
    raise damaged(calls, name, str(expected), found, len(data))


def hash_whole(calls: Calls, key: str, name: str) -> tuple[str, int]:
    """sha256 and bytes of an object, read where it lies and kept nowhere."""

    def read(s3: "S3Client") -> tuple[str, int]:
        digest, size = hashlib.sha256(), 0
        for data in _chunks(s3, calls.place.bucket, key):
            digest.update(data)
            size += len(data)
        return digest.hexdigest(), size

    return calls.of(name, read)


def _chunks(s3: "S3Client", bucket: str, key: str) -> Iterator[bytes]:
    yield from s3.get_object(Bucket=bucket, Key=key)["Body"].iter_chunks(_READ_BYTES)


def damaged(calls: Calls, name: str, expected: str, found: str, size: int) -> CorruptObject:
    return CorruptObject(
        f"{name} in {calls.place.uri} is corrupt: expected sha256 {expected}, found {found} ({size} bytes); "
        "restore it from a copy"
    )


def _noted(partial: Path) -> Path:
    return partial.with_suffix(".parts")


def _forget(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _noted(partial).unlink(missing_ok=True)
