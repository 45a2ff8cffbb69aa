"""Pre-signed addresses at a server that has too much to do, or a line that is too slow."""

from collections.abc import Callable
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
