"""The sign of life of a resident trainer: a small record in the store, written anew every 2 s."""

import logging
import os
import threading
from collections.abc import Callable

from curtail_pipeline.federation.orders import Activity, Heartbeat, agent_key
from curtail_pipeline.storage.store import Store
from curtail_pipeline.times import utc_now

log = logging.getLogger("curtail.trainer")

HEARTBEAT_S = 2.0


class HeartbeatWriter:
    """Writes as long as it is not closed; then the sign is taken away.

    Args:
        activity: what the training thread does now; None while there is no order.
    """

    def __init__(self, store: Store, site: str, activity: Callable[[], Activity | None]) -> None:
        self._store, self._site, self._activity = store, site, activity
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        self._store.delete(agent_key(self._site))

    def _beat(self) -> None:
        silent = False
        while True:
            doing = self._activity()
            life = Heartbeat(site=self._site, pid=os.getpid(), at=utc_now(), busy=doing is not None, activity=doing)
            try:
                self._store.write_record(agent_key(self._site), life)
                silent = False
            except OSError as error:  # a full disk: late is better than dead
                if not silent:
                    log.error("no heartbeat: %s", error)
                silent = True
            if self._closed.wait(HEARTBEAT_S):
                return
