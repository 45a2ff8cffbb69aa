"""Processes that live and do nothing: told from their state, their progress, and whether they answer."""

import http.client
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import psutil

from curtail_pipeline.federation.liveness import Pulse, last_beat
from curtail_pipeline.settings.federation_settings import LivenessLimits
from curtail_pipeline.storage.store import Store, StoreUnavailable

HANGS_S = 1.0
"""Between two looks."""
ASLEEP_S = 8.0
"""Between two looks: nothing that was known before says anything of now."""
ANSWER_S = 2.0
"""How long a SuperLink may take to say that it is well."""


def healthy(address: str, timeout_s: float) -> bool:
    """Whether a SuperLink answers at `host:port`."""
    host, port = address.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=timeout_s)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped (SIGSTOP) and not continued."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


@dataclass
class Hangs:
    """What of a federation hangs. `found` is to be asked about once a second."""

    store: Store
    limits: LivenessLimits
    _stopped: dict[int, float] = field(default_factory=dict)
    _mute: dict[int, float] = field(default_factory=dict)
    _pulses: dict[int, Pulse] = field(default_factory=dict)
    _looked: float = 0.0

    def hold_to(self, limits: LivenessLimits) -> None:
        """Have these count from now on."""
        self.limits = limits
        for pulse in self._pulses.values():
            pulse.limits = limits

    def found(
        self, pids: Collection[int], trainers: Mapping[str, int], superlink: tuple[int, str] | None, now: float
    ) -> dict[int, str]:
        """Process ids of those that hang, with the reason.

        Args:
            pids: all processes.
            trainers: process ids of the sites' trainers.
            superlink: process id and address of the SuperLink, once it is ready.
            now: monotonic seconds.
        """
        if now - self._looked > ASLEEP_S:  # who looks was stopped itself, perhaps with all of them
            for known in (self._stopped, self._mute, self._pulses):
                known.clear()
        self._looked = now
        hung = {}
        for pid in pids:
            if (since := _since(self._stopped, pid, is_stopped(pid), now)) > self.limits.liveness_s:
                hung[pid] = f"it has been stopped for {since:.0f} s"
        for site, pid in trainers.items():
            if reason := self._without_progress(site, pid, now):
                hung.setdefault(pid, reason)
        if superlink is not None:
            pid, address = superlink
            if (since := _since(self._mute, pid, not healthy(address, ANSWER_S), now)) > self.limits.liveness_s:
                hung.setdefault(pid, f"it has not answered for {since:.0f} s")
        for known in (self._stopped, self._mute, self._pulses):
            for pid in [pid for pid in known if pid not in pids]:
                del known[pid]
        return hung

    def _without_progress(self, site: str, pid: int, now: float) -> str | None:
        """Why a trainer counts as hung by its heartbeats; None before the first one, and while nothing is known."""
        try:
            beat = last_beat(self.store, site)
        except StoreUnavailable:
            if pid in self._pulses:
                self._pulses[pid].unseen(now)
            return None
        if beat is not None and beat.pid != pid:
            beat = None  # another process's, of its predecessor most likely
        if pid not in self._pulses and beat is None:  # it has not begun
            return None
        return self._pulses.setdefault(pid, Pulse(self.limits, now, beat)).lost(beat, now)


def _since(begins: dict[int, float], pid: int, holds: bool, now: float) -> float:
    """Seconds for which something has held of a process."""
    if not holds:
        begins.pop(pid, None)
        return 0.0
    return now - begins.setdefault(pid, now)
