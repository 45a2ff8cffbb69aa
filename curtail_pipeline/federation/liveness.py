"""Whether a site still works on the order it was sent: told from its progress, not from a beating thread.

A trainer's heartbeat carries what its training thread does and a count that only that thread moves. While the count
stands still, what the thread is at says how long it may: a step five times the median one, a transfer or a compilation
a declared time. Only changes count, on this machine's monotonic clock; the clocks of sites need not agree.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from curtail_pipeline.errors import MessageError, StoreError
from curtail_pipeline.federation.orders import Activity, Heartbeat, Order, agent_key
from curtail_pipeline.settings.federation_settings import LivenessLimits
from curtail_pipeline.storage.store import Store, StoreUnavailable

STEPS = 5
"""Median steps that a step may take."""
SILENT = 0.8
"""Share of `liveness_s` without a heartbeat after which a site is lost. Its last one is seen up to a look late, and
that none follows at another look: with a second between looks the loss is known within all of it."""
UNWAITED_S = 4.0
"""How long a trainer may work on an order whose ClientApp is gone. It would finish, and nobody would send the result;
Flower alone takes 55 s to tell."""


def longest_still(activity: Activity, limits: LivenessLimits) -> float:
    """Seconds for which the activity may show no progress."""
    if activity.phase in ("fetch", "store"):
        return limits.transfer_s
    if activity.phase == "compile" or activity.step_s is None:
        return limits.compile_s
    return max(limits.liveness_s, min(STEPS * activity.step_s, limits.compile_s))


@dataclass
class Pulse:
    """What is known of one trainer's life.

    Args:
        order: the one it is to work on; without it whatever it does counts, and so does nothing at all.
    """

    limits: LivenessLimits
    now: float
    beat: Heartbeat | None
    order: Order | None = None

    def __post_init__(self) -> None:
        self._beat_at = self._moved_at = self.now
        self._activity = self._mine(self.beat)
        self._awaited = False
        """Whether anybody was seen to wait for this order's result."""
        self._unwaited_at: float | None = None
        self._beats = self.order is None or self.order.links is None
        """Whether it can: a site without credentials of the store has its addresses from an order that reached it."""
        self._pid = self.beat.pid if self.beat and self._beats else None  # else it may have restarted in silence

    def _mine(self, beat: Heartbeat | None) -> Activity | None:
        activity = beat.activity if beat else None
        return activity if activity and (self.order is None or activity.name == self.order.name) else None

    def lost(self, beat: Heartbeat | None, now: float) -> str | None:
        """Why the trainer counts as lost, given its last heartbeat; None while it is alive."""
        if beat is not None and beat != self.beat:
            self.beat, self._beat_at, self._beats = beat, now, True
            if self._pid is None:
                self._pid = beat.pid
            elif beat.pid != self._pid:
                return f"its agent restarted (process {self._pid} became {beat.pid})"
        elif now - self._beat_at > self._silent_s():
            return f"no heartbeat for {now - self._beat_at:.0f} s"
        activity = self._mine(self.beat)
        if activity != self._activity:
            self._activity, self._moved_at = activity, now
        still = now - self._moved_at
        if activity is not None:
            if self.order is not None and self._is_deserted(activity, now):
                return "nobody there waits for its result any more: its ClientApp or its SuperNode has ended"
            if still > longest_still(activity, self.limits):
                return f"no progress for {still:.0f} s: {activity.phase} after {activity.count} signs of it"
        elif self.order is not None and still > self._delivery_s():
            return f"it has not worked on its order for {still:.0f} s and no result has come"
        return None

    def _silent_s(self) -> float:
        """How long without a heartbeat. Who watches over the process kills it for that, and takes all the time."""
        if not self._beats:
            return self.limits.delivery_s
        return self.limits.liveness_s * (SILENT if self.order is not None else 1.0)

    def _is_deserted(self, activity: Activity, now: float) -> bool:
        """An order that was just sent may find a trainer at it already, left by a run that was lost."""
        self._awaited |= activity.waited_for
        if activity.waited_for or not self._awaited:
            self._unwaited_at = None
        elif self._unwaited_at is None:
            self._unwaited_at = now
        return self._unwaited_at is not None and now - self._unwaited_at > UNWAITED_S

    def unseen(self, now: float) -> None:
        """The store did not answer: the time since the last look says nothing of the trainer."""
        self._beat_at = self._moved_at = now
        self._unwaited_at = None

    def _delivery_s(self) -> float:
        """How long an order or a result may be on its way; a trainer at something else ends its step before."""
        other = self.beat.activity if self.beat else None
        return max(self.limits.delivery_s, longest_still(other, self.limits) if other else 0.0)


class Liveness:
    """Watches the sites of a segment.

    While the store does not answer nothing is known of any site, so that none is lost for it.
    """

    def __init__(self, store: Store, limits: LivenessLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._limits, self._clock = store, limits, clock
        self._pulses: dict[str, Pulse] = {}

    def watch(self, site: str, order: Order | None) -> None:
        """Start watching: the order goes out now; without one the site need not be at anything."""
        try:
            beat = last_beat(self._store, site)
        except StoreUnavailable:
            beat = None
        self._pulses[site] = Pulse(self._limits, self._clock(), beat, order)

    def lost(self, site: str) -> str | None:
        """Why the site counts as lost, or None while it is alive."""
        pulse = self._pulses[site]
        try:
            beat = last_beat(self._store, site)
        except StoreUnavailable:
            pulse.unseen(self._clock())
            return None
        return pulse.lost(beat, self._clock())


def last_beat(store: Store, site: str) -> Heartbeat | None:
    """The heartbeat of a site's trainer; what is no heartbeat shows no life.

    Raises:
        StoreUnavailable: nothing can be said of it now.
    """
    try:
        return store.read_record(agent_key(site), Heartbeat)
    except StoreUnavailable:
        raise
    except (StoreError, MessageError):
        return None
