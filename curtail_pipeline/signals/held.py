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
from curtail_pipeline.times import HOUR, SECOND, Floats, Micros, duration_us


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


ACCOUNTING_KINDS: Final[tuple[Kind, ...]] = ("marginal_intensity", "average_intensity")
"""Kinds that CO2 is accounted by, the preferred one first."""


def accounting_kind(kinds: Iterable[Kind]) -> Kind:
    """The kind that accounts among those of a region; its first kind by name when it has no intensity."""
    known = set(kinds)
    return next((kind for kind in ACCOUNTING_KINDS if kind in known), min(known))


def read_signals(traces: pl.DataFrame, max_age_s: Mapping[str, float | None] | None = None) -> dict[str, Signal]:
    """One accounting signal per region (gCO2/kWh): that of its `accounting_kind`.

    Of a region without any intensity the other kind is enough to know how old its signal is. The maximum age is two
    cadences unless given for the region.
    """
    rank = (
        pl.col("kind")
        .replace_strict({kind: rank for rank, kind in enumerate(ACCOUNTING_KINDS)}, default=len(ACCOUNTING_KINDS))
        .alias("rank")
    )
    kept = (
        traces.lazy()
        .filter(pl.col("value").is_not_null())
        .with_columns(rank)
        .filter(pl.col("rank") == pl.col("rank").min().over("region"))
        .filter(pl.col("kind") == pl.col("kind").min().over("region"))
        .select("region", pl.col("time").dt.epoch("us").alias("us"), "value")
        .unique(["region", "us"], keep="last")
        .sort("region", "us")
        .collect()
    )
    signals = {}
    for key, part in kept.partition_by("region", as_dict=True, maintain_order=True).items():
        times = part["us"].to_numpy()
        cadence = int(np.median(np.diff(times))) if len(times) > 1 else 300 * SECOND
        given = (max_age_s or {}).get(str(key[0]))
        max_age = 2 * cadence if given is None else duration_us(given)
        signals[str(key[0])] = Signal(times, part["value"].to_numpy(), cadence, max_age)
    return signals
