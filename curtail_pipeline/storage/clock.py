"""What time it is for an experiment: the wall clock, a replay of recorded time, or time that only work moves.

The state of a clock is in the store, so that every process of an experiment (sensor, runs, command line) agrees.
"""

from datetime import datetime
from typing import Protocol

from pydantic import Field

from curtail_pipeline.errors import MessageError, StoreError
from curtail_pipeline.storage.records import Message, R, Utc
from curtail_pipeline.storage.store import Store, canonical_json
from curtail_pipeline.times import utc_now

HEADLESS_KEY = "clock.json"
REPLAY_KEY = "replay_clock.json"


class VirtualNow(Message):
    """`clock.json`: the time that a headless run has come to."""

    now: Utc


class Anchor(Message):
    """`replay_clock.json`: which recorded time it was at which wall-clock time, and how fast it goes on."""

    virtual: Utc
    wall: Utc
    speed: float = Field(gt=0)


class Clock(Protocol):
    """The experiment's time, aware UTC."""

    def now(self) -> datetime: ...


class LiveClock:
    """The wall clock."""

    def now(self) -> datetime:
        return utc_now()


class HeadlessClock:
    """Virtual time that stands still until work moves it.

    Move it only after what happened up to then is committed: a run that is killed goes on from the stored time.
    """

    def __init__(self, store: Store, start: datetime) -> None:
        self._store, self._start = store, start

    def now(self) -> datetime:
        """The stored time; `start` before the first move."""
        if not self._store.exists(HEADLESS_KEY):
            return self._start
        return _read(self._store, HEADLESS_KEY, VirtualNow).now

    def advance_to(self, stamp: datetime) -> datetime:
        """Move forward; an earlier time changes nothing. Returns the time it is then."""
        now = self.now()
        if stamp > now:
            self._store.write_record(HEADLESS_KEY, VirtualNow(now=stamp))
            return stamp
        return now


def is_anchored(store: Store) -> bool:
    """Whether a replay has begun, so that it does not matter where another one would."""
    return store.exists(REPLAY_KEY)


class ReplayClock:
    """Recorded time replayed at a speed: `virtual = virtual anchor + (wall - wall anchor) * speed`.

    The first process to ask anchors it; the others, now and later, read the anchor. It stands still at `end`.
    """

    def __init__(self, store: Store, start: datetime, speed: float, end: datetime | None = None) -> None:
        if speed <= 0:
            raise ValueError(f"replay speed {speed} is not positive; 120 replays two hours in a minute")
        self._store, self._end = store, end
        if not is_anchored(store):
            self._anchor_once(start, speed)

    def _anchor_once(self, virtual: datetime, speed: float) -> None:
        anchor = Anchor(virtual=virtual, wall=utc_now(), speed=speed)
        # Another process may be first; its anchor then counts.
        self._store.create_bytes(REPLAY_KEY, canonical_json(anchor.model_dump(mode="json")))

    def anchor(self, virtual: datetime, speed: float, wall: datetime | None = None) -> None:
        """Say that it is `virtual` now: after a break, so that the time nobody watched is not skipped."""
        self._store.write_record(REPLAY_KEY, Anchor(virtual=virtual, wall=wall or utc_now(), speed=speed))

    def _anchor(self) -> Anchor:
        return _read(self._store, REPLAY_KEY, Anchor)

    @property
    def speed(self) -> float:
        return self._anchor().speed

    def to_virtual(self, wall: datetime) -> datetime:
        """The recorded time at a wall-clock time."""
        anchor = self._anchor()
        stamp = anchor.virtual + (wall - anchor.wall) * anchor.speed
        return stamp if self._end is None else min(stamp, self._end)

    def now(self) -> datetime:
        return self.to_virtual(utc_now())


def _read(store: Store, key: str, kind: type[R]) -> R:
    try:
        return store.read_record(key, kind)
    except MessageError as error:
        raise StoreError(f"{error}; or remove {store.uri}/{key} to start the clock again") from error
