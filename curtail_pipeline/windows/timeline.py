"""Integer time, step-held signals and site timelines: the arrays that decisions and the simulator read.

Times are microseconds since 1970 as int64 (`us`), so that sums of step durations are exact and a result does not
depend on the order of additions. `FOREVER` stands for an end that is not known yet.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property

import numpy as np
import numpy.typing as npt

Micros = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECOND = 1_000_000
HOUR = 3_600 * SECOND
FOREVER = 2**61
_TICK = timedelta(microseconds=1)


def to_us(stamp: datetime) -> int:
    """Microseconds since 1970 of an aware datetime."""
    return (stamp - EPOCH) // _TICK


def from_us(us: int) -> datetime:
    return EPOCH + timedelta(microseconds=int(us))


def duration_us(seconds: float) -> int:
    return round(seconds * SECOND)


@dataclass(frozen=True)
class Signal:
    """One step-held trace: `values[i]` holds from `times[i]` to the next stamp. No nulls inside: they were dropped."""

    times: Micros
    values: Floats
    cadence_us: int
    max_age_us: int

    @property
    def end(self) -> int:
        """End of the last recorded value's own cadence step."""
        return int(self.times[-1]) + self.cadence_us

    @property
    def valid_until(self) -> int:
        """When the last value becomes too old to decide on."""
        return int(self.times[-1]) + self.max_age_us

    @cached_property
    def _cumulative(self) -> Floats:
        """Integral of the value from the first stamp to each stamp, value x hours."""
        hours = np.diff(self.times) / HOUR
        return np.concatenate(([0.0], np.cumsum(self.values[:-1] * hours)))

    @cached_property
    def _cumulative_linear(self) -> Floats:
        hours = np.diff(self.times) / HOUR
        return np.concatenate(([0.0], np.cumsum((self.values[:-1] + self.values[1:]) / 2 * hours)))

    def at(self, us: int) -> float:
        """The value that holds at `us`; NaN before the first stamp and once it is older than the maximum age."""
        index = int(np.searchsorted(self.times, us, side="right")) - 1
        if index < 0 or us >= self.times[index] + self.max_age_us:
            return float("nan")
        return float(self.values[index])

    def integral(self, start: Micros, end: Micros, *, interpolate: bool = False) -> Floats:
        """Integral of the value over each `[start, end)`, in value x hours.

        A gap is accounted at the last value before it (training never happens there, since windows close); time
        outside the record must be refused by the caller. `interpolate` joins the values by straight lines, which is
        what the paper's notebook does; it exists only to compare with the paper.
        """
        return self._primitive(end, interpolate) - self._primitive(start, interpolate)

    def _primitive(self, us: Micros, interpolate: bool) -> Floats:
        index = np.clip(np.searchsorted(self.times, us, side="right") - 1, 0, len(self.times) - 1)
        hours = (us - self.times[index]) / HOUR
        if not interpolate:
            return self._cumulative[index] + self.values[index] * hours
        following = np.minimum(index + 1, len(self.times) - 1)
        span = np.maximum(self.times[following] - self.times[index], 1) / HOUR
        slope = (self.values[following] - self.values[index]) / span
        return self._cumulative_linear[index] + self.values[index] * hours + slope * hours**2 / 2


@dataclass(frozen=True)
class Timeline:
    """When one site is provisioned and when it trains, as a policy that needs no knowledge of the job gives it.

    Stretch i: start-up begins at `up[i]`, may train from `ready[i]` (possibly after `down[i]`: the window was too
    short), is told to stop at `down[i]`. Training stretches `[train[j], until[j])` lie inside `[ready, down)`.
    All arrays ascend and stretches do not overlap.
    """

    up: Micros
    ready: Micros
    down: Micros
    train: Micros
    until: Micros
    opened: list[str]
    """Why each stretch began."""
    closed: list[str]
    """Why each stretch ended; empty while it is open."""

    def clipped(self, start: int, start_up: int) -> "Timeline":
        """The same timeline for a job that starts at `start`: a site that would be up by then starts up only now."""
        kept = self.down > start
        if not len(self.up) or (kept.all() and self.up[0] >= start):
            return self
        up = np.maximum(self.up[kept], start)
        ready = np.where(self.up[kept] < start, np.maximum(up + start_up, self.ready[kept]), self.ready[kept])
        stretch = np.maximum(np.searchsorted(up, self.until, side="left") - 1, 0)
        train = np.maximum(self.train, ready[stretch]) if len(up) else self.train
        some = (train < self.until) & (self.until > start)
        return Timeline(
            up,
            ready,
            self.down[kept],
            train[some],
            self.until[some],
            [text for text, keep in zip(self.opened, kept, strict=True) if keep],
            [text for text, keep in zip(self.closed, kept, strict=True) if keep],
        )

    @cached_property
    def events(self) -> Micros:
        """Every instant at which the state changes, ascending."""
        ready = self.ready[self.ready < self.down]
        stamps = np.unique(np.concatenate((self.up, ready, self.down, self.train, self.until)))
        return stamps[stamps < FOREVER]
