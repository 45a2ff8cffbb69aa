"""The sign of life of the process that runs a segment's rounds, and whoever waits for it.

The ServerApp writes `server.json` beside the plan from the loop that does its work, so that a dead, stopped or hung one
falls silent; the caller that follows the segment watches it.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from pydantic import Field

from curtail_pipeline.errors import MessageError, StoreError
from curtail_pipeline.federation.liveness import SILENT
from curtail_pipeline.settings.federation_settings import LivenessLimits
from curtail_pipeline.storage.records import Message, Utc
from curtail_pipeline.storage.store import Store, StoreUnavailable
from curtail_pipeline.times import utc_now

BEAT_S = 2.0

Doing = Literal["collecting", "resuming", "merging"]
"""Asking sites, for their nodes too; reading what an earlier server has merged; merging. The latter two read and write
whole weights."""


class ServerLife(Message):
    """`server.json`."""

    pid: int
    count: int
    doing: Doing
    at: Utc
    """By the clock of the server's machine: until when a run worked that then fell silent."""


class ServerFailure(Message):
    """`failure.json`: why a server gave the segment up. One that was killed leaves none."""

    error: str
    sites: dict[str, str] = Field(default_factory=dict)
    """Those that were not there, where that is why."""


def failure_key(folder: str) -> str:
    return f"{folder}/failure.json"


def life_key(folder: str) -> str:
    return f"{folder}/server.json"


class LifeWriter:
    """Written from the loop itself: a thread of its own would beat for a loop that hangs."""

    def __init__(self, store: Store, folder: str, clock: Callable[[], float]) -> None:
        self._store, self._key, self._clock = store, life_key(folder), clock
        self._last: tuple[float, Doing] | None = None
        self._count = 0

    def beat(self, doing: Doing) -> None:
        """Show life, every 2 s at most while nothing else begins."""
        now = self._clock()
        if self._last is None or self._last[1] != doing or now - self._last[0] >= BEAT_S:
            self._last, self._count = (now, doing), self._count + 1
            with suppress(StoreUnavailable):  # whoever waits does not count the time without the store
                self._store.write_record(
                    self._key, ServerLife(pid=os.getpid(), count=self._count, doing=doing, at=utc_now())
                )

    def close(self) -> None:
        with suppress(StoreUnavailable):
            self._store.delete(self._key)


class ServerWatch:
    """Whether a segment's server lives; to be asked about once a second.

    Args:
        start_s: how long it may take until its first sign.
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        limits: LivenessLimits,
        start_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._key, self._limits, self._start_s, self._clock = (
            store,
            life_key(folder),
            limits,
            start_s,
            clock,
        )
        self._since = clock()
        self._seen: ServerLife | None = None
        self._old = self._read()
        """Of an earlier server: no sign of this one."""

    def _read(self) -> ServerLife | None:
        try:
            return self._store.read_record(self._key, ServerLife)
        except StoreUnavailable:
            raise
        except (StoreError, MessageError):
            return None

    def lost(self) -> str | None:
        """Why it counts as lost; None while it lives or may still start."""
        try:
            found, now = self._read(), self._clock()
        except StoreUnavailable:  # says nothing of the server
            self._since = self._clock()
            return None
        if found is not None and found not in (self._seen, self._old):
            self._seen, self._since = found, now
        still = now - self._since
        if self._seen is None:
            return f"it did not begin within {still:.0f} s" if still > self._start_s else None
        limit = SILENT * self._limits.liveness_s if self._seen.doing == "collecting" else self._limits.transfer_s
        return f"it has shown no life for {still:.0f} s while {self._seen.doing}" if still > limit else None
