"""The sign of life of a resident trainer: a small record in the store, written anew every 2 s."""

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from curtail_pipeline.errors import StoreError
from curtail_pipeline.federation.orders import Activity, Heartbeat, agent_key
from curtail_pipeline.storage.links import Links
from curtail_pipeline.storage.store import Store, StoreUnavailable, canonical_json
from curtail_pipeline.times import utc_now

log = logging.getLogger("curtail.trainer")

HEARTBEAT_S = 2.0


class Worker(Protocol):
    """Whose signs of life are written (`OrderQueue`)."""

    @property
    def site(self) -> str: ...

    @property
    def activity(self) -> Activity | None:
        """What the training thread does; None while there is nothing to do."""

    @property
    def links(self) -> Links | None:
        """Addresses by which the sign is written too, where the site has no credentials of the store."""


class HeartbeatWriter:
    """Writes as long as it is not closed; then the sign is taken away."""

    def __init__(self, store: Store, worker: Worker) -> None:
        self._store, self._worker, self._key = store, worker, agent_key(worker.site)
        self._closed = threading.Event()
        self._here = threading.Thread(target=self._beat, args=(self._write,), name="heartbeat", daemon=True)
        self._away = threading.Thread(target=self._beat, args=(self._send,), name="heartbeat away", daemon=True)
        """A line that is silent holds a request for half a minute; whoever watches over this process sees the other."""

    def start(self) -> None:
        self._here.start()
        self._away.start()

    def close(self) -> None:
        self._closed.set()
        self._here.join()
        self._away.join(HEARTBEAT_S)
        with suppress(StoreUnavailable):  # then nobody sees the sign either
            self._store.delete(self._key)

    def _write(self, life: Heartbeat) -> None:
        self._store.write_record(self._key, life)

    def _send(self, life: Heartbeat) -> None:
        if links := self._worker.links:
            links.write(self._key, canonical_json(life.model_dump(mode="json")), HEARTBEAT_S)

    def _beat(self, write: Callable[[Heartbeat], None]) -> None:
        silent = False
        while True:
            doing = self._worker.activity
            life = Heartbeat(
                site=self._worker.site, pid=os.getpid(), at=utc_now(), busy=doing is not None, activity=doing
            )
            try:
                write(life)
                silent = False
            except (OSError, StoreError) as error:  # a full disk, a server that is away: late is better than dead
                if not silent:
                    log.error("no heartbeat: %s", error)
                silent = True
            if self._closed.wait(HEARTBEAT_S):
                return
