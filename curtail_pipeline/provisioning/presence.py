"""Whether a site can take orders: its node at the SuperLink is online, or its trainer shows life in the store."""

import time
from pathlib import Path

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation.liveness import last_beat
from curtail_pipeline.federation.orders import Heartbeat
from curtail_pipeline.flower.control_api import Control
from curtail_pipeline.settings.federation_settings import LivenessLimits
from curtail_pipeline.storage.store import Store, StoreUnavailable


class Presence:
    """Of the sites of one store. A node has its site's name once its key is registered; without keys beats tell.

    Args:
        superlink: `host:port`; None where only the store can be asked.
    """

    def __init__(
        self, store: Store, limits: LivenessLimits, superlink: str | None = None, authority: Path | None = None
    ) -> None:
        self._store, self._limits, self._superlink, self._authority = store, limits, superlink, authority
        self._beats: dict[str, tuple[Heartbeat | None, float | None]] = {}
        """Per site: the last beat, and when another one than before was first seen."""

    def __call__(self, site: str) -> bool:
        return self._beats_now(site) or self._online(site)

    def _beats_now(self, site: str) -> bool:
        try:
            beat = last_beat(self._store, site)
        except StoreUnavailable:
            return False
        now = time.monotonic()
        if site not in self._beats:
            self._beats[site] = (beat, None)
        elif beat != self._beats[site][0]:
            self._beats[site] = (beat, now if beat is not None else None)
        seen = self._beats[site][1]
        return seen is not None and now - seen <= self._limits.liveness_s

    def _online(self, site: str) -> bool:
        if self._superlink is None:
            return False
        try:
            with Control(self._superlink, self._authority) as control:
                return any(node.name == site and node.status == "online" for node in control.nodes())
        except FederationError:
            return False
