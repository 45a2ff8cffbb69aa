"""The normalised trace: one schema, one unit per kind, a regular grid in UTC, null where a stamp is missing.

A value is valid from its stamp until the next one (step-hold). A source that changes its cadence is brought to its
finest one by holding; a hole in it stays a hole.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import numpy as np
import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.trace_settings import UNITS, Kind, Reason, Unit
from curtail_pipeline.signals.cadence import local_cadence
from curtail_pipeline.times import TIME, iso, times_column

TRACE_SCHEMA: dict[str, pl.DataType] = {
    "time": TIME,
    "region": pl.String(),
    "value": pl.Float64(),
    "kind": pl.String(),
    "unit": pl.String(),
    "source": pl.String(),
    "model": pl.String(),
    "estimated": pl.Boolean(),
    "retrieved_at": TIME,
    "warnings": pl.String(),
}
"""A trace. `time`: the value is valid from here. `value`: in the kind's canonical unit, null for a missing stamp.
`model`: version of the source's model, null where it has none. `estimated`: the source imputed the value.
`warnings`: what the source said about the value, null for nothing."""

FORECAST_SCHEMA: dict[str, pl.DataType] = {
    "issued_at": TIME,
    "target": TIME,
    "region": pl.String(),
    "value": pl.Float64(),
}
"""A forecast: the value in the kind's canonical unit that was expected at `issued_at` for `target`."""

POINT_SCHEMA: dict[str, pl.DataType] = {
    "time": TIME,
    "value": pl.Float64(),
    "model": pl.String(),
    "estimated": pl.Boolean(),
    "warnings": pl.String(),
    "updated": TIME,
}
"""What a provider hands to `normalise`: one row per value as the source gives it. All but `time` and `value` may be
absent. `updated`: when the source last revised the value; the later of two values for one stamp wins."""

CANONICAL_UNIT: dict[Kind, Unit] = {kind: units[0] for kind, units in UNITS.items()}
"""The unit every stored value of a kind is in."""

TO_G_PER_KWH: dict[Unit, float] = {"g/kWh": 1.0, "kg/kWh": 1000.0, "lb/MWh": 0.45359237}
"""Factors to g/kWh. 1 lb = 0.45359237 kg exactly (international avoirdupois pound), so 1 lb/MWh = 0.45359237 g/kWh."""


def conversion_factor(kind: Kind, unit: Unit) -> float:
    """What a value in `unit` is multiplied by to be in the canonical unit of `kind`.

    Raises:
        TraceError: the unit cannot measure that kind.
    """
    if unit not in UNITS[kind]:
        raise TraceError(f"unit {unit!r} cannot measure {kind}; set unit to one of: {', '.join(UNITS[kind])}")
    return TO_G_PER_KWH.get(unit, 1.0)


@dataclass(frozen=True)
class Conflict:
    """Two different values for one stamp; the latest revision was kept."""

    time: datetime
    kept: float
    dropped: float


@dataclass(frozen=True)
class Withheld:
    """Neighbouring values that became null because they are no measurement (`signals/withhold.py`)."""

    reason: Reason
    time: datetime
    until: datetime
    value: float
    """As the source gave it."""
    count: int


@dataclass(frozen=True)
class Report:
    """What normalisation found in a provider's answer. Counts are of stamps."""

    cadence_s: int
    duplicates: int = 0
    """Rows dropped because an equal value for the stamp is kept."""
    conflicts: int = 0
    """Stamps for which the source gave different values."""
    disagreeing: int = 0
    """Rows dropped because another value for the stamp is kept."""
    conflict_examples: tuple[Conflict, ...] = ()
    nulls: int = 0
    """Grid stamps without a value."""
    off_grid: int = 0
    """Source stamps beside the grid, held from the next grid stamp on."""
    warnings: tuple[str, ...] = ()
    withheld: tuple[Withheld, ...] = ()
    screened: bool = False
    """Values that are no measurement were looked for, by a history of the source."""
    rounded: int = 0
    """Small negative powers that were read as 0."""
    chosen: bool = False
    """The settings say which of several values for a stamp counts."""


@dataclass(frozen=True)
class Ingested:
    """A normalised trace and what was found on the way."""

    trace: pl.DataFrame
    report: Report


LONGEST_GAP = timedelta(days=366)
"""A longer hole in a trace is taken for a wrong stamp."""
YEARS = (1970, 2200)

_DROPPED_SCHEMA = {
    "time": TIME,
    "dropped": pl.Float64(),
    "kept": pl.Float64(),
    "conflict": pl.Boolean(),
    "revised": pl.Boolean(),
}


@dataclass(frozen=True)
class Series:
    """A source's values of one region on its own stamps: sorted, unique, canonical, with how long each is valid.

    `points` has POINT_SCHEMA plus `valid_until`. `dropped`: rows that lost against another one for their stamp. The
    grid is every `anchor_s + k * cadence_s` (seconds since the epoch).
    """

    points: pl.DataFrame
    dropped: pl.DataFrame
    cadence_s: int
    anchor_s: int
    withheld: tuple[Withheld, ...] = ()
    factor: float = 1.0
    """What the source's values were multiplied by."""
    absent_is_zero: bool = False
    """The source lists what is not zero: between the first and the last stamp, where nothing is valid, it is 0."""

    @property
    def span(self) -> tuple[datetime, datetime] | None:
        """From the first stamp until the last value is no longer valid."""
        if self.points.is_empty():
            return None
        first, last = self.points["time"][0], self.points["valid_until"][-1]
        return first, last


def _complete(points: pl.DataFrame) -> pl.DataFrame:
    columns = [
        (pl.col(name) if name in points.columns else pl.lit(None)).cast(dtype).alias(name)
        for name, dtype in POINT_SCHEMA.items()
    ]
    return points.select(columns).with_columns(
        pl.when(pl.col("value").is_finite()).then(pl.col("value")), pl.col("estimated").fill_null(False)
    )


def _unique(points: pl.DataFrame, keep: Literal["first", "last"] = "last") -> tuple[pl.DataFrame, pl.DataFrame]:
    """One row per stamp, the last revision that has a value; and the others (_DROPPED_SCHEMA)."""
    if points["time"].is_unique().all():
        return points.sort("time"), pl.DataFrame(schema=_DROPPED_SCHEMA)
    order = pl.int_range(pl.len()) if keep == "last" else -pl.int_range(pl.len())
    ordered = points.with_columns(order=order).sort("time", pl.col("value").is_not_null(), "updated", "order")
    kept = ordered.unique("time", keep="last", maintain_order=True)
    others = ordered.join(kept.select("order"), on="order", how="anti", maintain_order="left").join(
        kept.select("time", kept="value", later="updated"), on="time", how="left", maintain_order="left"
    )
    # A null beside a value is a gap that was filled later, not a disagreement.
    differs = (pl.col("value") - pl.col("kept")).abs() > 1e-9 * pl.col("kept").abs().clip(1e-6)
    dropped = others.select(
        "time",
        pl.col("value").alias("dropped"),
        "kept",
        differs.fill_null(False).alias("conflict"),
        (pl.col("updated") < pl.col("later")).fill_null(False).alias("revised"),
    )
    return kept.drop("order"), dropped


def build_series(
    points: pl.DataFrame,
    *,
    kind: Kind,
    unit: Unit,
    cadence_s: int | None = None,
    end_stamped: bool = False,
    keep: Literal["first", "last"] = "last",
) -> Series:
    """Clean a source's values of one region and find their cadence.

    Args:
        points: POINT_SCHEMA, values in `unit`, any order.
        cadence_s: the source's cadence where it is known; found from the stamps otherwise.
        end_stamped: a stamp marks the end of its interval; it is moved to the interval's begin.
        keep: which of several rows for a stamp of one revision.

    Raises:
        TraceError: the unit cannot measure the kind, or a stamp is far from all others.
    """
    factor = conversion_factor(kind, unit)
    rows, dropped = _unique(_complete(points).with_columns(pl.col("value") * factor), keep)
    stamps = rows["time"].dt.epoch("us").to_numpy()
    _require_one_period(rows["time"])
    seconds = stamps / 1_000_000
    if cadence_s is None:
        valid, finest = local_cadence(seconds)
    else:
        finest = cadence_s
        valid = np.minimum(np.diff(seconds, append=np.inf), cadence_s)
    if end_stamped and len(seconds):
        seconds = seconds - np.r_[valid[:1], valid[:-1]]
        valid = np.r_[valid[:1], valid[:-1]]
    anchor = 0
    if len(seconds):
        offsets, counts = np.unique(np.floor(seconds) % finest, return_counts=True)
        anchor = int(offsets[np.argmax(counts)])
    rows = rows.with_columns(
        time=times_column((seconds * 1e6).round().astype(np.int64)),
        valid_until=times_column(((seconds + valid) * 1e6).round().astype(np.int64)),
    )
    return Series(rows, dropped, finest, anchor, factor=factor)


def _require_one_period(times: pl.Series) -> None:
    """A typing error in a year would else make millions of missing values."""
    if times.is_empty():
        return
    gaps = times.diff().slice(1).dt.total_seconds().to_numpy()
    if len(gaps) and gaps.max() > LONGEST_GAP.total_seconds():
        before = int(gaps.argmax())
        raise TraceError(
            f"there is nothing between {iso(times[before])} and {iso(times[before + 1])}; correct the stray time, or "
            "give each period on its own"
        )
    for stamp in (times[0], times[-1]):
        if not YEARS[0] <= stamp.year < YEARS[1]:
            raise TraceError(f"the time {iso(stamp)} is not in the years {YEARS[0]} to {YEARS[1] - 1}; correct it")


def _grid(start: datetime, end: datetime, cadence_s: int, anchor_s: int) -> pl.Series:
    origin = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=anchor_s)
    step = timedelta(seconds=cadence_s)
    first = origin + -((origin - start) // step) * step
    if first >= end:
        return pl.Series("time", [], dtype=TIME)
    return pl.datetime_range(first, end, step, closed="left", time_unit="us", eager=True).alias("time")


def to_trace(
    series: Series, *, region: str, kind: Kind, source: str, start: datetime, end: datetime, retrieved_at: datetime
) -> Ingested:
    """A series on its grid over `[start, end)`: TRACE_SCHEMA, every grid stamp there, null where no value is valid."""
    if start.tzinfo is None or end.tzinfo is None:
        raise TraceError(f"range {start} to {end} has no time zone; give aware UTC times")
    grid = pl.DataFrame({"time": _grid(start, end, series.cadence_s, series.anchor_s)})
    points = series.points.filter((pl.col("valid_until") > start) & (pl.col("time") < end))
    held = grid.join_asof(points, on="time", strategy="backward").with_columns(
        valid=(pl.col("time") < pl.col("valid_until")).fill_null(False)
    )
    absent = pl.lit(None, pl.Float64)
    if series.absent_is_zero and series.span is not None:
        absent = pl.when(pl.col("time").is_between(*series.span, closed="left")).then(0.0)
    trace = held.select(
        "time",
        pl.lit(region).alias("region"),
        pl.when("valid").then(pl.col("value")).otherwise(absent).alias("value"),
        pl.lit(kind).alias("kind"),
        pl.lit(CANONICAL_UNIT[kind]).alias("unit"),
        pl.lit(source).alias("source"),
        pl.when("valid").then(pl.col("model")).alias("model"),
        (pl.col("estimated").fill_null(False) & pl.col("valid")).alias("estimated"),
        pl.lit(retrieved_at).cast(TIME).alias("retrieved_at"),
        pl.when("valid").then(pl.col("warnings")).alias("warnings"),
    ).cast(pl.Schema(TRACE_SCHEMA))
    inside = pl.col("time").is_between(start, end, closed="left")
    beside = (pl.col("time").dt.epoch("us") - series.anchor_s * 1_000_000) % (series.cadence_s * 1_000_000) != 0
    dropped = series.dropped.filter(inside)
    conflicts = dropped.filter("conflict").unique("time", keep="first", maintain_order=True)
    report = Report(
        cadence_s=series.cadence_s,
        duplicates=len(dropped.filter(~pl.col("conflict"))),
        conflicts=len(conflicts),
        disagreeing=len(dropped.filter("conflict")),
        conflict_examples=tuple(
            Conflict(row["time"], row["kept"], row["dropped"]) for row in conflicts.head(5).iter_rows(named=True)
        ),
        nulls=trace["value"].null_count(),
        off_grid=len(points.filter(inside & beside)),
        warnings=tuple(trace["warnings"].drop_nulls().unique(maintain_order=True).to_list()),
        withheld=tuple(part for part in series.withheld if part.time < end and part.until > start),
    )
    return Ingested(trace, report)


def normalise(
    points: pl.DataFrame,
    *,
    region: str,
    kind: Kind,
    unit: Unit,
    source: str,
    start: datetime,
    end: datetime,
    retrieved_at: datetime,
    cadence_s: int | None = None,
) -> Ingested:
    """`build_series` and `to_trace` in one: a source's raw values to the trace of `[start, end)`.

    Raises:
        TraceError: the unit cannot measure the kind, or a time has no zone.
    """
    series = build_series(points, kind=kind, unit=unit, cadence_s=cadence_s)
    return to_trace(series, region=region, kind=kind, source=source, start=start, end=end, retrieved_at=retrieved_at)


def empty_forecast() -> pl.DataFrame:
    return pl.DataFrame(schema=FORECAST_SCHEMA)
