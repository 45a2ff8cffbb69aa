"""What ends a round from afar, through a store that does not always answer."""

from pathlib import Path

import pytest
from training_case import SITE

from curtail_pipeline.federation.orders import Order
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.training import order_watch
from curtail_pipeline.training.order_watch import OrderWatch

ORDER = Order.model_validate(
    {
        "key": "ckpt-000001", "attempt": 0, "round": 0, "site": SITE, "experiment_uri": "experiment.json",
        "store": "/nowhere", "parent": {"key": "w", "sha256": "0" * 64}, "config": "c", "inner_state": "fresh",
        "first_step": 0, "members": 1, "total_steps": 1, "max_steps": 1, "deadline_s": None, "lease": [], "seed": 0,
        "out": "o", "stop": "stopped.json",
    }
)  # fmt: skip


def test_a_file_system_that_was_away_does_not_end_the_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Away(FolderStore):
        reads = 0

        def read_bytes(self, key: str) -> bytes:
            Away.reads += 1
            if Away.reads < 3:
                raise OSError(116, "Stale file handle")
            return super().read_bytes(key)

    monkeypatch.setattr(order_watch, "LOOK_S", 0.0)
    monkeypatch.setattr(order_watch, "WATCH_S", 0.01)
    store = Away(tmp_path)
    store.write_bytes("stopped.json", b"{}")
    with OrderWatch(store, SITE, ORDER) as watch:
        assert watch.left.wait(20)
