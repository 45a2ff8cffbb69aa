"""WHERE A GRAM IS COUNTED, once: power times a step-held signal, exactly.

`count_grams` is the only place that turns power and intensity into CO2. The ledger, the baselines and the simulator
call it, so that they agree on what a hole in a trace is: energy at a time without a value is unaccounted, never 0 g
and never the last value before it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import polars as pl

from curtail_pipeline.emissions.basis import Clock
from curtail_pipeline.emissions.holes import Bounds, hole_bounds
from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.sites import PowerState, Site
from curtail_pipeline.signals.held import ACCOUNTING_KINDS, Signal, read_signals
from curtail_pipeline.storage.manifest import Interval
from curtail_pipeline.times import FOREVER, HOUR, TIME, Bools, Floats, Micros, micros_of, times_column

INTERVAL_SCHEMA: dict[str, pl.DataType] = {
    "checkpoint": pl.String(),
    "site": pl.String(),
    "state": pl.String(),
    "start": TIME,
    "end": TIME,
    "kw": pl.Float64(),
    "on_site_kw": pl.Float64(),
    "battery_kw": pl.Float64(),
    "lost_kw": pl.Float64(),
    "measured": pl.Boolean(),
}
"""Power intervals. `kw`: what is drawn from the grid and from on-site generation, PUE included; `on_site_kw`: of it,
from on-site generation, which emits nothing; `battery_kw`: what the battery gives to the load beside `kw`, booked when
it was charged; `lost_kw`: what the battery loses; `measured`: by the site's counters. The state `charging` is beside
the states of the site."""

PIECE_SCHEMA: dict[str, pl.DataType] = {
    **INTERVAL_SCHEMA,
    "interval": pl.UInt32(),
    "region": pl.String(),
    "g_per_kwh": pl.Float64(),
    "curtailed": pl.Boolean(),
    "kwh": pl.Float64(),
    "co2_g": pl.Float64(),
}
"""Intervals cut where intensity or curtailment changes. `interval`: the row they were cut from; `g_per_kwh`, `co2_g`:
of the grid, null where no intensity is known."""

LEDGER_SCHEMA: dict[str, pl.DataType] = {
    "checkpoint": pl.String(),
    "site": pl.String(),
    "state": pl.String(),
    "start": TIME,
    "end": TIME,
    "hours": pl.Float64(),
    "kwh": pl.Float64(),
    "co2_g": pl.Float64(),
    "co2_g_low": pl.Float64(),
    "co2_g_high": pl.Float64(),
    "curtailed_kwh": pl.Float64(),
    "unaccounted_kwh": pl.Float64(),
    "on_site_kwh": pl.Float64(),
    "battery_kwh": pl.Float64(),
    "lost_kwh": pl.Float64(),
    "clock": pl.String(),
    "power": pl.String(),
    "signal": pl.String(),
    "signal_version": pl.String(),
}
"""One row per stretch of a site in one power state, or `charging` its battery.

`kwh`: taken from the grid and from on-site generation (`on_site_kwh`, 0 g) in this time. `co2_g` covers
`kwh - unaccounted_kwh` and is null when that is nothing; `co2_g_low` and `co2_g_high`: with the unaccounted energy at
its day's lowest and highest intensity, null where a day has none; `curtailed_kwh`: inside the site's windows or from
on-site generation, null when no windows were given. `battery_kwh`: given by the battery to the load on top of `kwh`,
which is booked where it was charged; `lost_kwh`: lost in it. `clock`, `power` and `signal`: what the row rests on
(`basis.Basis`); `signal` is null where the region has none. `signal_version`: of the traces it was counted with."""

CHARGING = "charging"
"""The state of energy that a battery takes; its hours are beside those of the site's own states."""


@dataclass(frozen=True)
class PowerInterval:
    """A stretch of constant facility power of one site."""

    site: str
    state: PowerState
    start: datetime
    end: datetime
    kw: float
    """PUE included."""
    measured: bool = False
    """By the site's counters, on average over it."""


@dataclass(frozen=True)
class Counted:
    """Energy and CO2 of intervals of power, one value each."""

    kwh: Floats
    co2_g: Floats
    """Of the time with a known intensity; NaN of an interval that has none."""
    unaccounted_kwh: Floats
    """Of the time without."""


def energy_kwh(start: Micros, end: Micros, kw: Floats | float) -> Floats:
    """Energy of constant power over each `[start, end)`, microseconds."""
    return kw * ((end - start) / HOUR)


def count_grams(
    start: Micros, end: Micros, kw: Floats | float, signal: Signal | None, *, interpolate: bool = False
) -> Counted:
    """Energy and CO2 of constant power over each `[start, end)`, microseconds.

    Args:
        kw: facility power, PUE included.
        signal: gCO2/kWh with the age up to which a value counts; None where there is none.
        interpolate: straight lines between the values, as the paper's analysis does, to compare with the paper only.
    """
    length, kwh = end - start, energy_kwh(start, end, kw)
    if signal is None:
        return Counted(kwh, np.where(length > 0, np.nan, 0.0), kwh)
    integral, known = signal.integral(start, end, interpolate=interpolate)
    grams = np.where((known > 0) | (length == 0), kw * integral, np.nan)
    # Whole microseconds, so that nothing is unaccounted when all is known.
    return Counted(kwh, grams, kw * ((length - known) / HOUR))


def accounting_signals(traces: pl.DataFrame, max_age_s: Mapping[str, float | None] | None = None) -> dict[str, Signal]:
    """The one gCO2/kWh signal of each region: marginal intensity, or the average where there is no marginal.

    Args:
        traces: normalised traces; null values are missing stamps and end nothing.
        max_age_s: as of `read_signals`.
    """
    return read_signals(traces.filter(pl.col("kind").is_in(ACCOUNTING_KINDS)), max_age_s)


def intervals_table(intervals: Sequence[Interval | PowerInterval], checkpoint: str | None = None) -> pl.DataFrame:
    """INTERVAL_SCHEMA of power intervals, e.g. a manifest's: all of it from the grid."""
    rows = [
        (checkpoint, part.site, part.state, part.start, part.end, part.kw, 0.0, 0.0, 0.0, part.measured)
        for part in intervals
    ]
    return pl.DataFrame(rows, schema=INTERVAL_SCHEMA, orient="row")


def _region_edges(signal: Signal | None, windows: pl.DataFrame | None) -> Micros:
    parts = [] if signal is None else [signal.edges]
    if windows is not None:
        parts += [micros_of(windows[name].drop_nulls()) for name in ("start", "end")]
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, np.int64)


def _inside(windows: pl.DataFrame, times: Micros) -> Bools:
    """Whether each time lies in one of the (disjoint) windows; an open window has no end."""
    if windows.is_empty():
        return np.zeros(len(times), bool)
    ordered = windows.sort("start")
    starts = micros_of(ordered["start"])
    ends = ordered["end"].dt.epoch("us").fill_null(FOREVER).to_numpy()
    index = np.searchsorted(starts, times, side="right") - 1
    return (index >= 0) & (times < ends[np.clip(index, 0, None)])


def pieces(
    intervals: pl.DataFrame, signals: Mapping[str, Signal], sites: Sequence[Site], windows: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Intervals cut where intensity or curtailment changes: PIECE_SCHEMA.

    Args:
        intervals: INTERVAL_SCHEMA.
        signals: `accounting_signals`, by region.
        windows: the windows table; `curtailed` is null without it.

    Raises:
        TraceError: an interval of a site that is not among `sites`, that ends before it starts, or with negative power.
    """
    region_of = {site.name: site.region for site in sites}
    unknown = set(intervals["site"]) - region_of.keys()
    if unknown:
        raise TraceError(f"power of unknown site {sorted(unknown)[0]!r}; the experiment has {', '.join(region_of)}")
    wrong = intervals.filter((pl.col("end") < pl.col("start")) | (pl.col("kw") < 0) | ~pl.col("kw").is_finite())
    if not wrong.is_empty():
        raise TraceError(f"{wrong.row(0, named=True)} is not a power interval; it needs start <= end and 0 <= kw")
    parts = [pl.DataFrame(schema=PIECE_SCHEMA)]
    numbered = intervals.with_row_index("interval")
    for (site,), rows in numbered.partition_by("site", as_dict=True).items():
        region = region_of[str(site)]
        own = None if windows is None else windows.filter(pl.col("site") == site)
        parts.append(_cut(rows, region, signals.get(region), own))
    return pl.concat(parts).sort("start", "site", maintain_order=True)


def _cut(rows: pl.DataFrame, region: str, signal: Signal | None, windows: pl.DataFrame | None) -> pl.DataFrame:
    starts, ends = micros_of(rows["start"]), micros_of(rows["end"])
    edges = _region_edges(signal, windows)
    # Edge indices strictly inside each interval: [first, last).
    first, last = np.searchsorted(edges, starts, side="right"), np.searchsorted(edges, ends, side="left")
    counts = np.maximum(last - first, 0) + 1
    owner = np.repeat(np.arange(len(rows)), counts)
    offset = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    padded = np.append(edges, 0)
    begin = np.where(offset == 0, starts[owner], padded[np.clip(first[owner] + offset - 1, 0, len(edges))])
    is_last = offset == counts[owner] - 1
    end = np.where(is_last, ends[owner], padded[np.clip(first[owner] + offset, 0, len(edges))])
    kw = rows["kw"].to_numpy()[owner]
    from_grid = count_grams(begin, end, kw - rows["on_site_kw"].to_numpy()[owner], signal)
    value = np.full(len(owner), np.nan) if signal is None else signal.held_at(begin)
    cut = rows[owner].with_columns(
        start=times_column(begin),
        end=times_column(end),
        region=pl.lit(region),
        g_per_kwh=pl.Series(value).fill_nan(None),
        curtailed=pl.lit(None, pl.Boolean) if windows is None else pl.Series(_inside(windows, begin)),
        kwh=pl.Series(energy_kwh(begin, end, kw)),
        co2_g=pl.Series(from_grid.co2_g).fill_nan(None),
    )
    return cut.select(list(PIECE_SCHEMA)).cast(pl.Schema(PIECE_SCHEMA))


def ledger(
    intervals: pl.DataFrame,
    signals: Mapping[str, Signal],
    sites: Sequence[Site],
    windows: pl.DataFrame | None = None,
    *,
    clock: Clock = "virtual",
    synthetic: Collection[str] = (),
    versions: Mapping[str, str] | None = None,
) -> pl.DataFrame:
    """Energy and CO2 of each interval: LEDGER_SCHEMA. Other arguments, and errors, as of `pieces`.

    Args:
        clock: whose time the intervals are of.
        synthetic: regions whose signal is made up.
        versions: of the signals, by region.
    """
    origin = {region: "synthetic" if region in synthetic else "recorded" for region in signals}
    hours = (pl.col("end") - pl.col("start")).dt.total_microseconds() / HOUR
    energy, known = pl.col("kwh"), pl.col("g_per_kwh").is_not_null()
    own = {name: (pl.col(f"{name}_kw") * hours).alias(f"{name}_kwh") for name in ("on_site", "battery", "lost")}
    lost = (energy - own["on_site"]).filter(~known).sum()
    curtailed = energy.filter("curtailed").sum() + own["on_site"].filter(~pl.col("curtailed")).sum()
    sums = [
        *(pl.col(name).first() for name in ("checkpoint", "site", "state", "start")),
        pl.col("end").last(),
        hours.sum().alias("hours"),
        energy.sum().alias("kwh"),
        pl.when((energy.sum() > lost) | (energy.sum() == 0)).then(pl.col("co2_g").sum()).alias("co2_g"),
        pl.when(pl.col("curtailed").is_not_null().all()).then(curtailed).alias("curtailed_kwh"),
        lost.alias("unaccounted_kwh"),
        *(part.sum() for part in own.values()),
        pl.lit(clock).alias("clock"),
        pl.when(pl.col("measured").all()).then(pl.lit("measured")).otherwise(pl.lit("modelled")).alias("power"),
        pl.col("region").first().replace_strict(origin, default=None, return_dtype=pl.String).alias("signal"),
        pl.col("region")
        .first()
        .replace_strict(versions or {}, default=None, return_dtype=pl.String)
        .alias("signal_version"),
    ]
    cut = pieces(intervals, signals, sites, windows)
    table = cut.group_by("interval", maintain_order=True).agg(sums).sort("checkpoint", "site", "start", "state")
    table = _with_bounds(table, intervals, {site.name: signals.get(site.region) for site in sites})
    return table.select(list(LEDGER_SCHEMA)).cast(pl.Schema(LEDGER_SCHEMA))


def _with_bounds(table: pl.DataFrame, intervals: pl.DataFrame, signals: Mapping[str, Signal | None]) -> pl.DataFrame:
    """`co2_g_low` and `co2_g_high` of a ledger's rows; signals by site."""
    low, high = [], []
    for row in table.select("interval", "site", "unaccounted_kwh", "co2_g").iter_rows():
        index, site, lost, known = row
        hole: Bounds | None = Bounds(0.0, 0.0)
        if lost > 0:
            whole = intervals[int(index)]
            kw = float(whole["kw"][0] - whole["on_site_kw"][0])
            hole = hole_bounds(micros_of(whole["start"]), micros_of(whole["end"]), kw, signals[site])
        low.append(None if hole is None else (known or 0.0) + hole.low_g)
        high.append(None if hole is None else (known or 0.0) + hole.high_g)
    return table.with_columns(co2_g_low=pl.Series(low, dtype=pl.Float64), co2_g_high=pl.Series(high, dtype=pl.Float64))


def below_share(
    intervals: pl.DataFrame, signals: Mapping[str, Signal], sites: Sequence[Site], threshold: float
) -> float | None:
    """Of the energy, what was drawn while the signal was below `threshold` gCO2/kWh or from on-site generation.

    That is what the paper calls energy in curtailment windows. None where there is no energy.
    """
    cut = pieces(intervals, signals, sites)
    hours = (pl.col("end") - pl.col("start")).dt.total_microseconds() / HOUR
    clean = pl.when(pl.col("g_per_kwh") < threshold).then(pl.col("kwh")).otherwise(pl.col("on_site_kw") * hours)
    below, kwh = cut.select(clean.sum().alias("below"), pl.col("kwh").sum()).row(0)
    return below / kwh if kwh else None


def sum_ledger(table: pl.DataFrame, by: Sequence[str] = ()) -> pl.DataFrame:
    """Sums of a ledger per combination of `by`, in order of first mention; one row without it.

    `co2_g` stays null where nothing is accounted, `curtailed_kwh` and bounds where any part is unknown. `hours`: of
    sites.
    """
    sums = [
        pl.col("hours").filter(pl.col("state") != CHARGING).sum(),
        pl.col("kwh").sum(),
        pl.when((pl.col("co2_g").is_not_null() & (pl.col("kwh") > 0)).any() | (pl.col("kwh").sum() == 0))
        .then(pl.col("co2_g").sum())
        .alias("co2_g"),
        pl.when(pl.col("curtailed_kwh").is_not_null().all()).then(pl.col("curtailed_kwh").sum()).alias("curtailed_kwh"),
        pl.col("unaccounted_kwh").sum(),
        *(
            pl.when(pl.col(name).is_not_null().all()).then(pl.col(name).sum()).alias(name)
            for name in ("co2_g_low", "co2_g_high")
        ),
    ]
    return table.group_by(list(by), maintain_order=True).agg(sums) if by else table.select(sums)


@dataclass(frozen=True)
class Totals:
    """Sums of a ledger."""

    hours: float
    """Site-hours of any power state."""
    kwh: float
    co2_g: float | None
    """Of `kwh - unaccounted_kwh`; None where that is nothing."""
    curtailed_kwh: float | None
    """None where any part is unknown."""
    unaccounted_kwh: float
    co2_g_low: float | None = None
    co2_g_high: float | None = None
    """With the unaccounted energy at its day's lowest and highest intensity; None where a day has none."""

    @property
    def g_per_kwh(self) -> float | None:
        """Over the accounted energy."""
        accounted = self.kwh - self.unaccounted_kwh
        return self.co2_g / accounted if self.co2_g is not None and accounted > 0 else None

    @property
    def curtailed_share(self) -> float | None:
        """Of all energy."""
        return self.curtailed_kwh / self.kwh if self.curtailed_kwh is not None and self.kwh > 0 else None


def totals(table: pl.DataFrame) -> Totals:
    """All of a ledger."""
    return Totals(**sum_ledger(table).row(0, named=True))


def totals_by(table: pl.DataFrame, column: str) -> dict[str, Totals]:
    """A ledger's sums per value of a column."""
    return {row.pop(column): Totals(**row) for row in sum_ledger(table, [column]).rows(named=True)}
