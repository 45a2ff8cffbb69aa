"""THE step-held signal: a value holds from its stamp to the next one, or until it is too old. Never interpolated.

Window rules, simulator and ledger hold a signal by the same class, so that they agree on what is known when.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import polars as pl

from curtail_pipeline.settings.trace_settings import Kind
from curtail_pipeline.times import HOUR, SECOND, Floats, Micros, duration_us, micros_of

CADENCES_PER_AGE: Final = 2
"""A value counts until the next one or for this many cadences, so that one late value opens no hole and two do."""
DEFAULT_CADENCE_US: Final = 300 * SECOND
"""Assumed of a feed until two stamps have been seen; the cadence of every signal the product reads live."""


def max_age_us(cadence_us: int, given_s: float | None = None) -> int:
    """How long a value counts without a newer one: `given_s`, else two cadences."""
    return CADENCES_PER_AGE * cadence_us if given_s is None else duration_us(given_s)


def cadence_of(stamps: Micros, alone: int = DEFAULT_CADENCE_US) -> int:
    """The usual distance of ascending stamps; `alone` where there is only one."""
    return int(np.median(np.diff(stamps))) if len(stamps) > 1 else alone


@dataclass(frozen=True)
class Signal:
    """One step-held trace: `values[i]` holds from `times[i]` to the next stamp, but for `max_age_us` at most.

    Not empty, ascending, and no nulls inside: they were dropped. Where no value holds, nothing is known.
    """

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
    def edges(self) -> Micros:
        """Where the value may change: every stamp, and where a value becomes too old before the next one."""
        return self._steps[0]

    @cached_property
    def _steps(self) -> tuple[Micros, Floats]:
        """`edges`, and what holds from each of them on; NaN where nothing does."""
        too_old = self.times + self.max_age_us
        hole = np.append(too_old[:-1] < self.times[1:], True)
        edges = np.concatenate((self.times, too_old[hole]))
        held = np.concatenate((self.values, np.full(int(hole.sum()), np.nan)))
        order = np.argsort(edges, kind="stable")
        return edges[order], held[order]

    @cached_property
    def _known(self) -> Micros:
        """Microseconds with a value before each stamp."""
        return np.concatenate(([0], np.cumsum(self._held_us)))

    @cached_property
    def _held_us(self) -> Micros:
        """How long each value but the last one holds."""
        return np.minimum(np.diff(self.times), self.max_age_us)

    @cached_property
    def _cumulative(self) -> Floats:
        """Integral of the value from the first stamp to each stamp, value x hours."""
        return np.concatenate(([0.0], np.cumsum(self.values[:-1] * (self._held_us / HOUR))))

    @cached_property
    def _slopes(self) -> Floats:
        """Of the straight line from each value to the next, per hour; 0 after the last."""
        return np.append(np.diff(self.values) / (np.diff(self.times) / HOUR), 0.0)

    @cached_property
    def _cumulative_linear(self) -> Floats:
        hours = self._held_us / HOUR
        return np.concatenate(([0.0], np.cumsum((self.values[:-1] + self._slopes[:-1] * hours / 2) * hours)))

    def at(self, us: int) -> float:
        """The value that holds at `us`; NaN before the first stamp and once it is older than the maximum age."""
        index = int(np.searchsorted(self.times, us, side="right")) - 1
        if index < 0 or us >= self.times[index] + self.max_age_us:
            return float("nan")
        return float(self.values[index])

    def held_at(self, us: Micros) -> Floats:
        """`at` of many times."""
        edges, held = self._steps
        index = np.searchsorted(edges, us, side="right") - 1
        return np.where(index >= 0, held[np.maximum(index, 0)], np.nan)

    def integral(self, start: Micros, end: Micros, *, interpolate: bool = False) -> tuple[Floats, Micros]:
        """Of each `[start, end)`: the value x hours of the time with a value, and how many microseconds that is.

        In time that depends on the number of values by its logarithm only. `interpolate` joins the values by straight
        lines, which is what the paper's notebook does; it exists only to compare with the paper.
        """
        first = np.searchsorted(self.times, start, side="right") - 1
        # Seen from the left, so that a stretch within one step is its value times its length, to the last bit.
        last = np.maximum(np.searchsorted(self.times, end, side="left") - 1, first)
        begun, ended = (self._age(index, us) for index, us in ((first, start), (last, end)))
        first, last = np.maximum(first, 0), np.maximum(last, 0)
        known = self._known[last] - self._known[first] + ended - begun
        if interpolate:
            whole = self._cumulative_linear[last] - self._cumulative_linear[first]
            return whole + self._linear(last, ended) - self._linear(first, begun), known
        value = self.values[last]
        whole = self._cumulative[last] - self._cumulative[first]
        across = whole + value * (ended / HOUR) - self.values[first] * (begun / HOUR)
        return np.where(first == last, value * ((ended - begun) / HOUR), across), known

    def _age(self, index: Micros, us: Micros) -> Micros:
        """For how long the value at `index` has counted by `us`; 0 before the first."""
        return np.where(index < 0, 0, np.clip(us - self.times[np.maximum(index, 0)], 0, self.max_age_us))

    def _linear(self, index: Micros, us: Micros) -> Floats:
        hours = us / HOUR
        return self.values[index] * hours + self._slopes[index] * hours**2 / 2


ACCOUNTING_KINDS: Final[tuple[Kind, ...]] = ("marginal_intensity", "average_intensity")
"""Kinds that CO2 is accounted by, the preferred one first."""


def accounting_kind(kinds: Iterable[Kind]) -> Kind:
    """The kind that accounts among those of a region; its first kind by name when it has no intensity."""
    known = set(kinds)
    return next((kind for kind in ACCOUNTING_KINDS if kind in known), min(known))


def read_signals(traces: pl.DataFrame, max_age_s: Mapping[str, float | None] | None = None) -> dict[str, Signal]:
    """One accounting signal per region (gCO2/kWh): that of its `accounting_kind`.

    Of a region without any intensity the other kind is enough to know how old its signal is.

    Args:
        traces: normalised traces; a null is a missing value, and its stamp still tells the cadence of the feed.
        max_age_s: seconds that a value counts without a newer one; two cadences unless given for the region.
    """
    signals = {}
    parts = traces.partition_by("region", as_dict=True)
    for region, rows in sorted((str(key[0]), part) for key, part in parts.items()):
        kinds = rows.drop_nulls("value")["kind"].unique()
        if kinds.is_empty():
            continue
        own = rows.filter(pl.col("kind") == accounting_kind(kinds))
        known = own.drop_nulls("value").unique("time", keep="last").sort("time")
        cadence = cadence_of(micros_of(own["time"].unique().sort()))
        age = max_age_us(cadence, (max_age_s or {}).get(region))
        signals[region] = Signal(micros_of(known["time"]), known["value"].to_numpy(), cadence, age)
    return signals
