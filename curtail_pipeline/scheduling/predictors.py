"""Forecasts of a region's signal, as policies that look ahead ask for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from curtail_pipeline.errors import PolicyError
from curtail_pipeline.signals.held import Signal
from curtail_pipeline.times import DAY, TIME, Floats, Micros, from_us, iso

HISTORY_DAYS = 14
"""How many past days the seasonal forecast looks back on; days further ahead see them again."""


class Forecast(Protocol):
    """What is expected of a signal, as known at some time."""

    @property
    def name(self) -> str: ...

    def predict(self, region: str, now: int, targets: Micros) -> Floats:
        """Expected value per target time (microseconds), as known at `now`; NaN where the forecast says nothing."""
        ...


def _held(signal: Signal, at: Micros) -> Floats:
    """Step-held values; NaN outside the record."""
    index = np.searchsorted(signal.times, at, side="right") - 1
    values = signal.values[np.maximum(index, 0)]
    return np.where((index >= 0) & (at < signal.end), values, np.nan)


@dataclass(frozen=True)
class PerfectForecast:
    """What will really happen, holes included, to the record's end. For studies only: it is not causal."""

    signals: Mapping[str, Signal]
    name: str = "perfect"

    def predict(self, region: str, now: int, targets: Micros) -> Floats:
        signal = self.signals[region]
        return np.where(targets < signal.end, signal.held_at(targets), np.nan)


@dataclass(frozen=True)
class PersistenceForecast:
    """The value of now, for ever."""

    signals: Mapping[str, Signal]
    name: str = "persistence"

    def predict(self, region: str, now: int, targets: Micros) -> Floats:
        return np.full(len(targets), self.signals[region].at(now))


@dataclass(frozen=True)
class SeasonalForecast:
    """Seasonal-naive: the k-th day ahead will be like the k-th day back, time of day by time of day.

    So that a week ahead has the spread of the week before, not seven copies of yesterday. Where the record does not
    reach back, the value of now.
    """

    signals: Mapping[str, Signal]
    name: str = "seasonal"

    def predict(self, region: str, now: int, targets: Micros) -> Floats:
        signal = self.signals[region]
        recorded = min(HISTORY_DAYS, (now - int(signal.times[0])) // DAY)
        if recorded < 1:
            return np.full(len(targets), signal.at(now))
        ahead = np.maximum((targets - now) // DAY, 0) + 1
        back = (ahead - 1) % recorded + 1
        values = _held(signal, targets - (ahead + back - 1) * DAY)
        return np.where(np.isnan(values), signal.at(now), values)


@dataclass(frozen=True)
class IssuedForecasts:
    """All forecasts of one region: row i was issued at `issued[i]` and says `values[i, k]` from `issued[i] + k steps`.

    `values[i, 0]` is the value at issue; NaN where a forecast has none.
    """

    issued: Micros
    values: npt.NDArray[np.floating]
    step_us: int


@dataclass(frozen=True)
class TableForecast:
    """Recorded forecasts, the latest one issued by `now`; beyond their horizon the seasonal forecast."""

    regions: Mapping[str, IssuedForecasts]
    beyond: Forecast
    name: str = "table"

    def predict(self, region: str, now: int, targets: Micros) -> Floats:
        values = self.beyond.predict(region, now, targets)
        table = self.regions.get(region)
        if table is None:
            return values
        row = int(np.searchsorted(table.issued, now, side="right")) - 1
        width = table.values.shape[1]
        if row < 0 or now - table.issued[row] >= table.step_us * width:
            return values
        ahead = (targets - table.issued[row]) // table.step_us
        within = (ahead >= 0) & (ahead < width)
        said = table.values[row, np.clip(ahead, 0, width - 1)]
        return np.where(within & ~np.isnan(said), said, values)


def issued_forecasts(rows: pl.DataFrame) -> dict[str, IssuedForecasts]:
    """Forecast tables per region from long rows.

    Args:
        rows: issued_at, target (UTC), region, value; targets at a fixed step after their issue.
    """
    tables = {}
    for key, part in rows.drop_nulls("value").partition_by("region", as_dict=True).items():
        part = part.with_columns(
            issued=pl.col("issued_at").dt.epoch("us"),
            ahead=(pl.col("target") - pl.col("issued_at")).dt.total_microseconds(),
        ).filter(pl.col("ahead") >= 0)
        aheads = part["ahead"].unique().sort().to_numpy()
        positive = aheads[aheads > 0]
        if not len(positive):
            continue
        step = int(np.gcd.reduce(positive))
        issued = part["issued"].unique().sort().to_numpy()
        values = np.full((len(issued), int(positive[-1]) // step + 1), np.nan, dtype=np.float32)
        values[np.searchsorted(issued, part["issued"].to_numpy()), part["ahead"].to_numpy() // step] = part["value"]
        tables[str(key[0])] = IssuedForecasts(issued, values, step)
    return tables


def forecast_like(forecast: Forecast, signals: Mapping[str, Signal]) -> Forecast:
    """A forecast of other signals by the same method; seasonal where that is a table, which knows nothing of them."""
    kinds: dict[str, Callable[[Mapping[str, Signal]], Forecast]] = {
        "perfect": PerfectForecast,
        "persistence": PersistenceForecast,
    }
    return kinds.get(forecast.name, SeasonalForecast)(signals)


def make_forecast(name: str, signals: Mapping[str, Signal]) -> Forecast:
    """A forecast by name, or from a file of long rows (Parquet or CSV: issued_at, target, region, value in g/kWh).

    Raises:
        PolicyError: neither a known name nor a readable file.
    """
    if name == "perfect":
        return PerfectForecast(signals)
    if name == "persistence":
        return PersistenceForecast(signals)
    if name == "seasonal":
        return SeasonalForecast(signals)
    path = Path(name)
    if not path.is_file():
        raise PolicyError(
            f"unknown forecast {name!r}: give perfect, persistence, seasonal, or a file with the columns issued_at, "
            "target, region, value"
        )
    try:
        rows = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, try_parse_dates=True)
        unread = [column for column in ("issued_at", "target") if rows.schema.get(column) == pl.String]
        if unread:
            raise PolicyError(f"forecast file {name}: the times in {unread[0]} are not all ISO 8601, UTC; correct them")
        table = issued_forecasts(
            rows.with_columns(pl.col("issued_at", "target").cast(TIME), pl.col("value").cast(pl.Float64))
        )
    except (pl.exceptions.PolarsError, OSError) as error:
        raise PolicyError(
            f"forecast file {name}: {' '.join(str(error).split())[:200]}; it needs the columns issued_at, target "
            "(UTC), region, value"
        ) from error
    _require_use(name, table, signals)
    return TableForecast(table, SeasonalForecast(signals), f"table {path.name}")


def _require_use(name: str, table: Mapping[str, IssuedForecasts], signals: Mapping[str, Signal]) -> None:
    """A forecast that no decision could read would pass for the seasonal one in silence."""
    used = {region: table[region] for region in signals if region in table}
    if not used:
        known = ", ".join(sorted(table)) or "none at all"
        raise PolicyError(f"forecast file {name}: no value for {', '.join(signals)}; it has {known}")
    for region, issued in used.items():
        signal = signals[region]
        if np.isinf(issued.values).any():
            raise PolicyError(f"forecast file {name}: infinite values for {region}; leave unknown values empty")
        first, last = int(issued.issued[0]), int(issued.issued[-1])
        begin, end = int(signal.times[0]), signal.end
        if first >= end or last < begin:
            raise PolicyError(
                f"forecast file {name}: its forecasts of {region} were issued from {iso(from_us(first))} to "
                f"{iso(from_us(last))}, none of them while the trace runs, from {iso(from_us(begin))} to "
                f"{iso(from_us(end))}"
            )
