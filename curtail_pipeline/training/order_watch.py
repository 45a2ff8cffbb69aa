"""What ends a site's round from afar: the membership has no more use for the site, its segment was cancelled,
or the round was merged without it."""

import logging
import threading
import time

from curtail_pipeline.errors import MessageError, StoreError
from curtail_pipeline.federation.orders import Order
from curtail_pipeline.scheduling.reconcile import Desired
from curtail_pipeline.storage.store import Store

log = logging.getLogger("curtail.trainer")

WATCH_S = 0.5
LOOK_S = 2.0
"""Between two looks whether an order was stopped."""


class OrderWatch:
    """Sets `left` when a newer generation of the desired membership does not have the site train, or the order was
    stopped from where its trainer cannot be reached."""

    def __init__(self, store: Store, site: str, order: Order) -> None:
        self.left = threading.Event()
        self._closed = threading.Event()
        self._store, self._site, self._watch, self._links = store, site, order.watch, order.links
        self._stops = [key for key in (order.stop, order.late) if key]
        self._thread = threading.Thread(target=self._poll, name="watch", daemon=True)

    def __enter__(self) -> "OrderWatch":
        if self._watch is not None or self._stops:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _poll(self) -> None:
        looked = -LOOK_S
        while not self._closed.is_set():
            now = time.monotonic()
            if self._stops and now - looked >= LOOK_S:
                looked = now
                for key in self._stops:
                    if self._read(key) is not None:
                        log.info("the order was stopped by %s", key)
                        self.left.set()
            if self.left.is_set() or self._leaves():
                self.left.set()
                return
            self._closed.wait(WATCH_S)

    def _leaves(self) -> bool:
        """Whether the membership has no more use for the site."""
        if self._watch is None or (data := self._read(self._watch.key)) is None:
            return False
        try:
            desired = Desired.read(data, self._watch.key)
        except MessageError as error:
            log.warning("%s; training goes on", error)
            return False
        return desired.generation > self._watch.generation and self._site not in desired.members

    def _read(self, key: str) -> bytes | None:
        """What the store has of it now."""
        try:
            return self._links.read(key, WATCH_S) if self._links else self._store.read_bytes(key)
        except (StoreError, OSError) as error:
            log.debug("%s cannot be read: %s", key, error)
            return None
