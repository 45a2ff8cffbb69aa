"""A segment's server is watched through a sign that only its own loop writes."""

from pathlib import Path

import pytest

from curtail_pipeline.federation.server_life import LifeWriter, ServerWatch, life_key
from curtail_pipeline.settings.federation_settings import LivenessLimits
from curtail_pipeline.storage.folder_store import FolderStore

LIMITS = LivenessLimits(liveness_s=10, transfer_s=100)


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


def test_a_server_that_falls_silent_is_lost(tmp_path: Path, time: Time) -> None:
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
    life.beat("merging")  # a merge of many GB takes its time
    for time.now, said in ((99, False), (190, False), (200, True)):
        assert (watch.lost() is not None) == said
    life.close()
    assert not store.exists(life_key("scratch/x/1"))
