"""Pre-signed addresses at a server that has too much to do, or a line that is too slow."""

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from curtail_pipeline.errors import StoreError
from curtail_pipeline.storage import links
from curtail_pipeline.storage.links import Links
from curtail_pipeline.storage.store import StoreUnavailable

SECRET = "http://store/bucket/x?X-Amz-Signature=abc"
LINKS = Links(get={"x": SECRET}, put={"x": SECRET})
SLOW_LINE = (400, b"<Error><Code>RequestTimeout</Code><Message>Your socket was idle</Message></Error>")
BUSY = (429, b"<Error><Code>TooManyRequests</Code></Error>")
REFUSED = (403, b"<Error><Code>AccessDenied</Code></Error>")

Answer = tuple[int, bytes]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Answer]:
    """What the server says, one after the other; 200 behind the last."""
    left: list[Answer] = []

    def answer(request: httpx.Request) -> httpx.Response:
        request.read()
        status, body = left.pop(0) if left else (200, b"content")
        return httpx.Response(status, stream=httpx.ByteStream(body))

    client = httpx.Client(transport=httpx.MockTransport(answer))
    monkeypatch.setattr(links, "_client", lambda process: client)
    return left


@pytest.mark.parametrize("passing", [SLOW_LINE, BUSY, (503, b"<Error><Code>SlowDown</Code></Error>")])
def test_what_passes_is_tried_again(answers: list[Answer], tmp_path: Path, passing: Answer) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"content")
    does: list[Callable[[], object]] = [
        lambda: LINKS.read("x"),
        lambda: LINKS.write("x", b"content"),
        lambda: LINKS.send("x", path),
        lambda: LINKS.fetch("x", tmp_path / "fetched"),
    ]
    for do in does:
        answers.append(passing)
        do()
        assert not answers
    assert (tmp_path / "fetched").read_bytes() == b"content"


def test_what_lasts_is_a_store_that_does_not_answer(answers: list[Answer]) -> None:
    answers += [SLOW_LINE] * 50
    with pytest.raises(StoreUnavailable, match=r"x: the store answered 400 for 0 s; try again"):
        LINKS.read("x", patience_s=0.3)


def test_a_refusal_is_one_at_once_and_names_no_address(answers: list[Answer], tmp_path: Path) -> None:
    for do in (lambda: LINKS.read("x"), lambda: LINKS.fetch("x", tmp_path / "x")):
        answers.append(REFUSED)
        with pytest.raises(StoreError, match="its pre-signed address was refused with 403") as caught:
            do()
        assert not answers and "Signature" not in str(caught.value)


def test_what_no_address_takes_is_not_sent(answers: list[Answer], tmp_path: Path) -> None:
    path = tmp_path / "x"
    with path.open("wb") as stream:
        stream.truncate(links.LARGEST + (1 << 29))
    answers.append(REFUSED)
    with pytest.raises(StoreError, match=r"x has 5\.5 GiB, and a pre-signed address takes 5 at most; choose a smaller"):
        LINKS.send("x", path)
    assert answers == [REFUSED]


class Breaking(httpx.SyncByteStream):
    """A line that breaks after so many bytes."""

    def __init__(self, data: bytes, after: int) -> None:
        self.data, self.after = data, after

    def __iter__(self) -> Iterator[bytes]:
        yield self.data[: self.after]
        if self.after < len(self.data):
            raise httpx.ReadError("the line broke")


@pytest.mark.parametrize("conditions", [True, False], ids=["If-Range", "a server that ignores it"])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_download_goes_on_where_it_broke_and_never_joins_two_contents(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, conditions: bool, replaced: bool
) -> None:
    """However often it breaks: patience is for a server from which nothing comes."""
    contents, sent = [b"a" * 1_000, b"b" * 1_000], list[int]()

    def answer(request: httpx.Request) -> httpx.Response:
        new = replaced and len(sent) >= 2
        content, tag = contents[new], f'"{new:d}"'
        begin = int(request.headers.get("Range", "bytes=0-")[6:-1])
        if conditions and request.headers.get("If-Range", tag) != tag:
            begin = 0
        sent.append(begin)
        headers = {"ETag": tag}
        return httpx.Response(206 if begin else 200, stream=Breaking(content[begin:], 300), headers=headers)

    client = httpx.Client(transport=httpx.MockTransport(answer))
    monkeypatch.setattr(links, "_client", lambda process: client)
    monkeypatch.setattr(links, "PATIENCE_S", 0.0)
    expected = contents[replaced]
    LINKS.fetch("x", tmp_path / "x", hashlib.sha256(expected).hexdigest())
    assert (tmp_path / "x").read_bytes() == expected
    if not replaced:
        assert sent == [0, 300, 600, 900]
    elif conditions:
        assert sent == [0, 300, 0, 300, 600, 900], "the new content from its begin"
    else:
        assert sent == [0, 300, 600, 900, 0, 300, 600, 900], "the sha256 tells"


@pytest.mark.parametrize("after", [0, 3])
def test_a_server_from_which_nothing_comes_is_waited_for_no_longer_than_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after: int
) -> None:
    """Or the same begin again and again."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=Breaking(b"content", after))

    client = httpx.Client(transport=httpx.MockTransport(answer))
    monkeypatch.setattr(links, "_client", lambda process: client)
    monkeypatch.setattr(links, "PATIENCE_S", 0.1)
    with pytest.raises(StoreUnavailable, match="x: the store did not answer"):
        LINKS.fetch("x", tmp_path / "x")
    assert not [*tmp_path.iterdir()]


def test_patience_begins_when_a_request_fails_not_when_it_began(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A large file is longer on its way than anybody waits for a server."""
    path, tries = tmp_path / "x", list[bytes]()
    path.write_bytes(b"content")

    def answer(request: httpx.Request) -> httpx.Response:
        tries.append(request.read())
        if len(tries) == 1:
            time.sleep(0.4)
            raise httpx.WriteError("the line broke")
        return httpx.Response(200)

    client = httpx.Client(transport=httpx.MockTransport(answer))
    monkeypatch.setattr(links, "_client", lambda process: client)
    monkeypatch.setattr(links, "PATIENCE_S", 0.3)
    LINKS.send("x", path)
    assert tries == [b"content"] * 2
