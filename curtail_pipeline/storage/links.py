"""Objects by pre-signed addresses: for a machine that has no credentials of the store.

An address is good for one object and one method until it expires. It is a secret as long as it is: errors name the
object only. What is read is checked against the hash that its writer gave, where the server says it.
"""

import atexit
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import httpx

from curtail_pipeline.errors import StoreError
from curtail_pipeline.storage.atomic import replacing
from curtail_pipeline.storage.records import Record, Sha256
from curtail_pipeline.storage.s3_calls import PATIENCE_S, is_passing, trying_again
from curtail_pipeline.storage.s3_transfer import SHA256
from curtail_pipeline.storage.store import CorruptObject, Method, NotStored, StoreUnavailable, file_sha256

T = TypeVar("T")

BROUGHT = "linked"
"""Folder of a site's own store for what orders bring by addresses, under its keys."""
TRIES = 3
"""At an object that arrives damaged."""
KEPT_S = 50.0
"""How long an idle connection is kept; servers close theirs after a minute or so."""
LARGEST = 5 << 30
"""Bytes that S3 takes in one request."""
_PIECE = 1 << 20
_CODE = re.compile(rb"<Code>(\w+)</Code>")


class Links(Record):
    """Pre-signed addresses by store key."""

    get: dict[str, str]
    put: dict[str, str]

    def read(self, key: str, patience_s: float = PATIENCE_S) -> bytes:
        """The content of a small object.

        Raises:
            NotStored: there is none, or no address for it.
            StoreUnavailable: the server did not answer, or with errors only, for `patience_s`.
            StoreError: the address was refused: it has expired, or is not what was signed.
        """
        url = self._address(self.get, key)
        for _ in range(TRIES):
            answer = _patiently(key, patience_s, lambda: _request("GET", url))
            expected = answer.headers.get(f"x-amz-meta-{SHA256}")
            if expected in (None, hashlib.sha256(answer.content).hexdigest()):
                return answer.content
        raise CorruptObject(f"{key} is corrupt: it has not the sha256 {expected} that its writer gave; restore it")

    def fetch(self, key: str, path: Path, sha256: Sha256 | None = None) -> None:
        """Write an object to a file, which is there when it is whole. An interrupted transfer is gone on with.

        Args:
            sha256: of the content; what the server says when not given.

        Raises:
            CorruptObject: its content is another.
            NotStored, StoreUnavailable, StoreError: as `read`.
        """
        url = self._address(self.get, key)
        with replacing(path) as scratch:
            for _ in range(TRIES):
                scratch.unlink(missing_ok=True)
                said = _whole(key, _Download(url, scratch))
                expected, found = sha256 or said, file_sha256(scratch)
                if expected in (None, found):
                    return
            raise CorruptObject(f"{key} is corrupt: expected sha256 {expected}, found {found}; restore it from a copy")

    def write(self, key: str, data: bytes, patience_s: float = PATIENCE_S) -> None:
        """Replace a small object. Errors as of `read`."""
        url = self._address(self.put, key)
        _patiently(key, patience_s, lambda: _request("PUT", url, content=data))

    def send(self, key: str, path: Path) -> None:
        """Make the object of a file's content. Errors as of `read`."""
        url, size = self._address(self.put, key), path.stat().st_size
        if size > LARGEST:
            raise StoreError(
                f"{key} has {size / 2**30:.1f} GiB, and a pre-signed address takes {LARGEST / 2**30:.0f} at most; "
                "choose a smaller rounds.upload_codec and state_codec, or give the site an account and --store"
            )
        _patiently(
            key,
            PATIENCE_S,
            lambda: _request("PUT", url, content=_pieces(path), headers={"Content-Length": str(size)}),
        )

    def _address(self, addresses: dict[str, str], key: str) -> str:
        if key not in addresses:
            raise NotStored(f"the order brought no address for {key}; give the site credentials, or sign it")
        return addresses[key]


@cache
def _client(process: int) -> httpx.Client:
    """A process' own, kept: on a long line a new connection is three round trips to one of an open one."""
    limits = httpx.Limits(keepalive_expiry=KEPT_S)
    client = httpx.Client(timeout=httpx.Timeout(30.0, connect=5.0), limits=limits)
    atexit.register(client.close)
    return client


def _patiently(key: str, patience_s: float, do: Callable[[], T]) -> T:
    try:
        return trying_again(patience_s, _passes)(do)
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if status == 404:
            raise NotStored(f"{key} is not in the store") from None
        if _passes(error):
            raise StoreUnavailable(f"{key}: the store answered {status} for {patience_s:.0f} s; try again") from None
        raise StoreError(
            f"{key}: its pre-signed address was refused with {status}: it has expired or was changed, or the clock of "
            "the machine that signed it is off; the next order brings new ones"
        ) from None
    except httpx.HTTPError as error:
        raise StoreUnavailable(
            f"{key}: the store did not answer for {patience_s:.0f} s ({type(error).__name__}); see that this machine "
            "can reach it"
        ) from None


def _passes(error: BaseException) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        said = _CODE.search(error.response.content)
        return is_passing(error.response.status_code, said[1].decode() if said else "")
    return isinstance(error, httpx.TransportError)


def _request(
    method: Method, url: str, content: bytes | Iterator[bytes] | None = None, headers: dict[str, str] | None = None
) -> httpx.Response:
    return _client(os.getpid()).request(method, url, content=content, headers=headers).raise_for_status()


@dataclass
class _Download:
    """One object on its way into a file."""

    url: str
    path: Path
    tag: str = ""
    """Of the content that the file has the begin of, by the server; another one is sent from its begin."""
    farthest: int = 0
    """Bytes of this content that had arrived at most."""

    def go_on(self) -> str | None:
        """Fetch what the file does not hold yet; the sha256 that the object's writer gave."""
        have = self.path.stat().st_size if self.path.exists() else 0
        headers = {"Range": f"bytes={have}-"} if have else {}
        if headers and self.tag:
            headers["If-Range"] = self.tag
        with _client(os.getpid()).stream("GET", self.url, headers=headers) as answer:
            if answer.status_code == 416:
                return answer.headers.get(f"x-amz-meta-{SHA256}")
            if answer.is_error:
                answer.read()  # what it says is in its body
            answer.raise_for_status()
            tag = answer.headers.get("ETag", "")
            tag = "" if tag.startswith("W/") else tag  # a weak one does not say that every byte is the same
            if tag != self.tag:
                self.tag, self.farthest = tag, 0
            with self.path.open("ab" if answer.status_code == 206 else "wb") as out:
                for data in answer.iter_raw():  # in pieces of a size, what had come of one would be lost with the line
                    out.write(data)
                    self.farthest = max(self.farthest, out.tell())
        return answer.headers.get(f"x-amz-meta-{SHA256}")


def _whole(key: str, download: _Download) -> str | None:
    """All of an object, however often the line breaks: patience begins anew whenever more of it has arrived."""
    while True:
        before = download.tag, download.farthest
        try:
            return _patiently(key, PATIENCE_S, download.go_on)
        except StoreUnavailable:
            if (download.tag, download.farthest) == before:
                raise


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while data := stream.read(_PIECE):
            yield data
