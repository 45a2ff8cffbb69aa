"""When a site counts as lost: by its heartbeats alone, and never for a store that does not answer."""

from pathlib import Path

import pytest

from curtail_pipeline.federation.liveness import Liveness
from curtail_pipeline.federation.orders import Heartbeat, agent_key
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.store import StoreUnavailable
from curtail_pipeline.times import EPOCH, seconds


def test_an_outage_of_the_store_is_no_sites_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, now = FolderStore(tmp_path), [0.0]
    liveness = Liveness(store, 10.0, lambda: now[0])

    def beat() -> None:
        store.write_record(agent_key("TX"), Heartbeat(site="TX", pid=1, at=EPOCH + seconds(now[0]), busy=True))

    beat()
    liveness.watch("TX")
    now[0] = 9.0
    assert liveness.lost("TX") is None

    def away(key: str) -> bytes:
        raise StoreUnavailable(f"{key}: nobody answers")

    with monkeypatch.context() as patch:
        patch.setattr(store, "read_bytes", away)
        for now[0] in (15.0, 40.0):
            assert liveness.lost("TX") is None
    now[0] = 49.0
    assert liveness.lost("TX") is None, "the time without the store does not count"
    now[0] = 51.0
    assert liveness.lost("TX") == "no heartbeat for 11 s"
    beat()
    assert liveness.lost("TX") is None
