"""What time it is for an experiment: the wall clock, a replay of recorded time, or time that only work moves.

The state of a clock is in the store, so that every process of an experiment (sensor, runs, command line) agrees.
"""

import os
import uuid
from datetime import datetime
from typing import Protocol

from curtail_pipeline.errors import StoreError
from curtail_pipeline.storage.store import Store, canonical_json
from curtail_pipeline.times import iso, parse_utc, seconds, utc_now

HEADLESS_KEY = "clock.json"
REPLAY_KEY = "replay_clock.json"


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
        return _stamp(self._store, HEADLESS_KEY, "now")

    def advance_to(self, stamp: datetime) -> datetime:
        """Move forward; an earlier time changes nothing. Returns the time it is then."""
        now = self.now()
        if stamp > now:
            self._store.write_json(HEADLESS_KEY, {"now": iso(stamp)})
            return stamp
        return now


class ReplayClock:
    """Recorded time replayed at a speed: `virtual = virtual anchor + (wall - wall anchor) * speed`.

    The first process to ask anchors it; the others, now and later, read the anchor. It stands still at `end`.
    """

    def __init__(self, store: Store, start: datetime, speed: float, end: datetime | None = None) -> None:
        if speed <= 0:
            raise ValueError(f"replay speed {speed} is not positive; 120 replays two hours in a minute")
        self._store, self._end = store, end
        if not store.exists(REPLAY_KEY):
            self._anchor_once(start, speed)

    def _anchor_once(self, virtual: datetime, speed: float) -> None:
        path = self._store.path(REPLAY_KEY)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        scratch.write_bytes(canonical_json(_anchor(virtual, utc_now(), speed)))
        try:
            os.link(scratch, path)  # fails when another process was first, whose anchor then counts
        except FileExistsError:
            return
        finally:
            scratch.unlink(missing_ok=True)

    def anchor(self, virtual: datetime, speed: float, wall: datetime | None = None) -> None:
        """Say that it is `virtual` now: after a break, so that the time nobody watched is not skipped."""
        self._store.write_json(REPLAY_KEY, _anchor(virtual, wall or utc_now(), speed))

    def _state(self) -> tuple[datetime, datetime, float]:
        wall, virtual = (_stamp(self._store, REPLAY_KEY, name) for name in ("wall", "virtual"))
        return wall, virtual, float(self._store.read_json(REPLAY_KEY)["speed"])

    @property
    def speed(self) -> float:
        return self._state()[2]

    def to_virtual(self, wall: datetime) -> datetime:
        """The recorded time at a wall-clock time."""
        wall_anchor, virtual_anchor, speed = self._state()
        stamp = virtual_anchor + (wall - wall_anchor) * speed
        return stamp if self._end is None else min(stamp, self._end)

    def to_wall(self, virtual: datetime) -> datetime:
        """The wall-clock time at which it will be `virtual`."""
        wall_anchor, virtual_anchor, speed = self._state()
        return wall_anchor + seconds((virtual - virtual_anchor).total_seconds() / speed)

    def now(self) -> datetime:
        return self.to_virtual(utc_now())


def _anchor(virtual: datetime, wall: datetime, speed: float) -> dict[str, object]:
    return {"virtual": iso(virtual), "wall": iso(wall), "speed": speed}


def _stamp(store: Store, key: str, name: str) -> datetime:
    content = store.read_json(key)
    try:
        return parse_utc(content[name])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            f"{store.path(key)} has no usable time {name!r} ({content!r}); remove it to start the clock again"
        ) from error
