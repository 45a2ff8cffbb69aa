"""Whether a site still works on the order it was sent, told from its heartbeats."""

import time
from collections.abc import Callable

from curtail_pipeline.errors import MessageError, StoreError
from curtail_pipeline.federation.orders import Heartbeat, agent_key
from curtail_pipeline.storage.store import Store, StoreUnavailable


class Liveness:
    """Watches the heartbeats of sites.

    Only changes of the heartbeat count, on this machine's monotonic clock; the clocks of sites need not agree. While
    the store does not answer nothing is known of any site, so that none is lost for it.
    """

    def __init__(self, store: Store, liveness_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._limit, self._clock = store, liveness_s, clock
        self._seen: dict[str, tuple[float, Heartbeat | None]] = {}
        self._pid: dict[str, int | None] = {}

    def _read(self, site: str) -> Heartbeat | None:
        try:
            return self._store.read_record(agent_key(site), Heartbeat)
        except StoreUnavailable:
            raise
        except (StoreError, MessageError):  # what is no heartbeat shows no life
            return None

    def watch(self, site: str) -> None:
        """Start watching: an order goes out now."""
        beat = self._read(site)
        self._seen[site] = (self._clock(), beat)
        self._pid[site] = beat.pid if beat else None

    def lost(self, site: str) -> str | None:
        """Why the site counts as lost, or None while it is alive."""
        try:
            beat, now = self._read(site), self._clock()
        except StoreUnavailable:
            self._seen[site] = (self._clock(), self._seen[site][1])
            return None
        since, last = self._seen[site]
        if beat is not None and beat != last:
            self._seen[site] = (now, beat)
            if self._pid[site] is None:
                self._pid[site] = beat.pid
            elif beat.pid != self._pid[site]:
                return f"its agent restarted (process {self._pid[site]} became {beat.pid})"
            return None
        return f"no heartbeat for {now - since:.0f} s" if now - since > self._limit else None
