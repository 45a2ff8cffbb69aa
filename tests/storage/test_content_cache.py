"""The cache keeps its limit, the least recently used go first, and nothing in use goes."""

import hashlib
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curtail_pipeline.storage.content_cache import STALE_PARTIAL_S, ContentCache


def named(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Origin:
    """Where contents are fetched from."""

    def __init__(self, cache: ContentCache) -> None:
        self.cache, self.fetched = cache, 0

    def use(self, data: bytes) -> None:
        with self.hold(data) as path:
            assert path.read_bytes() == data

    def hold(self, data: bytes):  # type: ignore[no-untyped-def]
        def fetch(partial: Path) -> None:
            self.fetched += 1
            partial.write_bytes(data)

        return self.cache.hold(named(data), fetch)


def held(cache: ContentCache) -> set[bytes]:
    return {path.read_bytes() for path in (cache.folder / "objects").glob("*/*")}


def later(cache: ContentCache, data: bytes, seconds: float) -> None:
    """As if it had been used then: file systems do not tell two uses in a row apart."""
    path = cache.folder / "objects" / named(data)[:2] / named(data)
    os.utime(path, (time.time() + seconds,) * 2)


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path, 30)
    origin = Origin(cache)
    one, two, three, four = (bytes([n]) * 10 for n in range(4))
    for n, data in enumerate((one, two, three)):
        origin.use(data)
        later(cache, data, n - 100)
    origin.use(one)
    assert origin.fetched == 3
    origin.use(four)
    assert held(cache) == {one, three, four}
    origin.use(two)
    assert origin.fetched == 5


def test_what_is_held_stays_and_what_is_too_large_goes_afterwards(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path, 15)
    origin = Origin(cache)
    with origin.hold(b"a" * 10) as first:
        with origin.hold(b"b" * 10) as second, origin.hold(b"c" * 20) as third:
            assert (first.read_bytes(), second.read_bytes(), third.read_bytes()) == (b"a" * 10, b"b" * 10, b"c" * 20)
        assert held(cache) == {b"a" * 10}
    assert held(cache) == {b"a" * 10}


def test_a_fetch_that_fails_leaves_no_object_and_is_gone_on_with(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path, 100)

    def fails(partial: Path) -> None:
        partial.write_bytes(b"ha")
        raise OSError("line cut")

    def goes_on(partial: Path) -> None:
        partial.write_bytes(partial.read_bytes() + b"lf")

    with pytest.raises(OSError, match="line cut"), cache.hold(named(b"half"), fails):
        pass
    assert held(cache) == set()
    with cache.hold(named(b"half"), goes_on) as path:
        assert path.read_bytes() == b"half"


def test_what_nobody_goes_on_fetching_is_removed(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path, 100)

    def fails(partial: Path) -> None:
        partial.write_bytes(b"ha")
        raise OSError

    for data in (b"old", b"new"):
        with pytest.raises(OSError), cache.hold(named(data), fails):
            pass
    for path in (tmp_path / "partial").glob(f"{named(b'old')}*"):
        os.utime(path, (time.time() - STALE_PARTIAL_S - 1,) * 2)
    cache.evict()
    assert {path.name for path in (tmp_path / "partial").iterdir()} == {named(b"new"), f"{named(b'new')}.lock"}


def test_what_a_killed_process_was_making_is_removed(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path, 100)
    old, new = cache.scratch() / "old", cache.scratch() / "new"
    for path in (old, new):
        path.write_bytes(b"weights")
    os.utime(old, (time.time() - STALE_PARTIAL_S - 1,) * 2)
    cache.evict()
    assert [*cache.scratch().iterdir()] == [new]


@settings(max_examples=40, deadline=None)
@given(uses=st.lists(st.integers(0, 9), max_size=30), limit=st.integers(1, 60))
def test_the_limit_holds_whatever_is_used(
    uses: list[int], limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = ContentCache(tmp_path_factory.mktemp("cache"), limit)
    origin = Origin(cache)
    for n in uses:
        origin.use(bytes([n]) * (n + 1))
        assert sum(map(len, held(cache))) <= limit
