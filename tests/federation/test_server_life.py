"""A segment's server is watched through a sign that only its own loop writes."""

from pathlib import Path

import pytest

from curtail_pipeline.federation.server_life import Doing, LifeWriter, ServerWatch, life_key
from curtail_pipeline.settings.federation_settings import LivenessLimits
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.store import StoreUnavailable

LIMITS = LivenessLimits(liveness_s=10, transfer_s=100)


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.mark.parametrize("doing", ["merging", "resuming"])
def test_a_server_that_falls_silent_is_lost(tmp_path: Path, time: Time, doing: Doing) -> None:
    store = FolderStore(tmp_path)
    LifeWriter(store, "scratch/x/1", time).beat("merging")  # of an earlier server, which was killed
    watch = ServerWatch(store, "scratch/x/1", LIMITS, 60, time)
    time.now = 59
    assert watch.lost() is None
    time.now = 61
    assert watch.lost() == "it did not begin within 61 s"
    life = LifeWriter(store, "scratch/x/1", time)
    for time.now in range(70, 90):
        life.beat("collecting")
        assert watch.lost() is None
    time.now = 99
    assert watch.lost() == "it has shown no life for 11 s while collecting"
    life.beat(doing)  # many GB take their time
    for time.now, said in ((99, False), (190, False), (200, True)):
        assert (watch.lost() is not None) == said
    life.close()
    assert not store.exists(life_key("scratch/x/1"))


def test_an_outage_of_the_store_is_no_servers_death(
    tmp_path: Path, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> bytes:
        raise StoreUnavailable("nobody answers")

    store = FolderStore(tmp_path)
    life, watch = LifeWriter(store, "scratch/x/1", time), ServerWatch(store, "scratch/x/1", LIMITS, 60, time)
    life.beat("collecting")
    assert watch.lost() is None
    with monkeypatch.context() as patch:
        patch.setattr(store, "read_bytes", away)
        patch.setattr(store, "write_bytes", away)
        for time.now in range(2, 60, 2):
            life.beat("collecting")
            assert watch.lost() is None
    time.now = 66
    assert watch.lost() is None, "the time without the store does not count"
    time.now = 70
    assert watch.lost() == "it has shown no life for 12 s while collecting"


def test_a_server_that_has_died_is_known_within_the_limit(tmp_path: Path, time: Time) -> None:
    """Whenever it dies: its last sign is seen up to a second late."""
    store = FolderStore(tmp_path)
    life, watch = LifeWriter(store, "scratch/x/1", time), ServerWatch(store, "scratch/x/1", LIMITS, 60, time)
    life.beat("collecting")
    died, time.now = 0.0, 0.99
    assert watch.lost() is None
    while watch.lost() is None:
        time.now += 1.0
    assert time.now - died <= LIMITS.liveness_s
