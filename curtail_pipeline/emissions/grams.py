"""Energy and CO2: power intervals times a step-held trace, exactly.

Every interval is cut at each stamp of its region's accounting trace, where a value becomes too old, and at window
boundaries; within a piece power and intensity are constant, so that the sum of products is the integral. Energy
without a known intensity is counted as unaccounted, never as 0 g.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.sites import PowerState, Site

TIME = pl.Datetime("us", "UTC")
STATES = ("training", "idle", "start_up")
US_PER_HOUR = 3_600_000_000
MAX_AGE_CADENCES = 2
"""A value counts until the next one or for this many cadences, whichever comes first."""

INTERVAL_SCHEMA: dict[str, pl.DataType] = {
    "checkpoint": pl.String(),
    "site": pl.String(),
    "state": pl.String(),
    "start": TIME,
    "end": TIME,
    "kw": pl.Float64(),
}
"""Power intervals. `kw`: facility power, PUE included."""

PIECE_SCHEMA: dict[str, pl.DataType] = {
    **INTERVAL_SCHEMA,
    "region": pl.String(),
    "g_per_kwh": pl.Float64(),
    "curtailed": pl.Boolean(),
    "kwh": pl.Float64(),
    "co2_g": pl.Float64(),
}
"""Intervals cut where intensity or curtailment changes. `g_per_kwh`, `co2_g`: null where no intensity is known."""

LEDGER_SCHEMA: dict[str, pl.DataType] = {
    "checkpoint": pl.String(),
    "site": pl.String(),
    "state": pl.String(),
    "hours": pl.Float64(),
    "kwh": pl.Float64(),
    "co2_g": pl.Float64(),
    "curtailed_kwh": pl.Float64(),
    "unaccounted_kwh": pl.Float64(),
}
"""One row per checkpoint, site and power state. `co2_g` covers `kwh - unaccounted_kwh` and is null when that is
nothing; `curtailed_kwh`: inside the site's curtailment windows, null when no windows were given."""


@dataclass(frozen=True)
class PowerInterval:
    """A stretch of constant facility power of one site."""

    site: str
    state: PowerState
    start: datetime
    end: datetime
    kw: float
    """PUE included."""


@dataclass(frozen=True)
class AccountingSignal:
    """The intensity that a region's energy is accounted with.

    `edges` [n] are microseconds since 1970, ascending; `values` [n - 1] hold on `[edges[i], edges[i + 1])`, NaN where
    nothing is known. `stamps`, `stamp_values`: the known values themselves. `end`: one cadence after the last of them.
    """

    edges: np.ndarray
    values: np.ndarray
    stamps: np.ndarray
    stamp_values: np.ndarray
    end: int

    def at(self, times: np.ndarray) -> np.ndarray:
        """Step-held value at each time, NaN where none is known."""
        index = np.searchsorted(self.edges, times, side="right") - 1
        known = (index >= 0) & (index < len(self.values))
        return np.where(known, self.values[np.clip(index, 0, len(self.values) - 1)], np.nan)

    def interpolated(self, times: np.ndarray) -> np.ndarray:
        """Value on the straight line between its neighbours: what the paper's analysis uses, for comparison only."""
        return np.interp(times, self.stamps, self.stamp_values)


def accounting_signals(
    traces: pl.DataFrame, max_age: timedelta | None = None, kinds: Mapping[str, str] | None = None
) -> dict[str, AccountingSignal]:
    """The one gCO2/kWh signal of each region: marginal intensity, or the average where there is no marginal.

    Args:
        traces: normalised traces; null values are missing stamps and end nothing.
        max_age: how long a value counts without a newer one; two cadences when not given.
        kinds: region -> kind, for regions that are to be accounted with another kind than by default.
    """
    signals = {}
    usable = traces.filter((pl.col("unit") == "g/kWh") & pl.col("value").is_not_null())
    for (region,), rows in usable.partition_by("region", as_dict=True).items():
        have = rows["kind"].unique().to_list()
        wanted = (kinds or {}).get(str(region))
        if wanted is not None and wanted not in have:
            raise TraceError(
                f"region {region!r} is to be accounted with {wanted!r}, but its trace has {', '.join(sorted(have))}"
            )
        kind = wanted or ("marginal_intensity" if "marginal_intensity" in have else "average_intensity")
        series = rows.filter(pl.col("kind") == kind).unique("time", keep="last").sort("time")
        stamps, values = series["time"].dt.epoch("us").to_numpy(), series["value"].to_numpy()
        every_stamp = traces.filter((pl.col("region") == region) & (pl.col("kind") == kind))["time"].unique().sort()
        steps = np.diff(every_stamp.dt.epoch("us").to_numpy())
        cadence = int(np.median(steps)) if len(steps) else 300_000_000
        age = max_age // timedelta(microseconds=1) if max_age is not None else MAX_AGE_CADENCES * cadence
        upto = np.minimum(np.append(stamps[1:], np.iinfo(np.int64).max), stamps + age)
        gap = np.append(upto[:-1] < stamps[1:], True)
        edges = np.concatenate([stamps, upto[gap]])
        order = np.argsort(edges, kind="stable")
        held = np.concatenate([values, np.full(int(gap.sum()), np.nan)])[order]
        signals[str(region)] = AccountingSignal(edges[order], held[:-1], stamps, values, int(stamps[-1]) + cadence)
    return signals


def intervals_table(intervals: Sequence[Mapping[str, Any]], checkpoint: str | None = None) -> pl.DataFrame:
    """INTERVAL_SCHEMA of a manifest's `intervals` (or any rows with its keys)."""
    rows = [{"checkpoint": checkpoint, **interval} for interval in intervals]
    return pl.DataFrame([{name: row[name] for name in INTERVAL_SCHEMA} for row in rows], schema=INTERVAL_SCHEMA)


def _region_edges(signal: AccountingSignal | None, windows: pl.DataFrame | None) -> np.ndarray:
    parts = [] if signal is None else [signal.edges]
    if windows is not None:
        parts += [windows[name].drop_nulls().dt.epoch("us").to_numpy() for name in ("start", "end")]
    return np.unique(np.concatenate(parts)) if parts else np.empty(0, np.int64)


def _inside(windows: pl.DataFrame, times: np.ndarray) -> np.ndarray:
    """Whether each time lies in one of the (disjoint) windows; an open window has no end."""
    if windows.is_empty():
        return np.zeros(len(times), bool)
    ordered = windows.sort("start")
    starts = ordered["start"].dt.epoch("us").to_numpy()
    ends = ordered["end"].dt.epoch("us").fill_null(np.iinfo(np.int64).max).to_numpy()
    index = np.searchsorted(starts, times, side="right") - 1
    return (index >= 0) & (times < ends[np.clip(index, 0, None)])


def pieces(
    intervals: pl.DataFrame,
    traces: pl.DataFrame,
    sites: Sequence[Site],
    windows: pl.DataFrame | None = None,
    *,
    max_age: timedelta | None = None,
    kinds: Mapping[str, str] | None = None,
    interpolate: bool = False,
) -> pl.DataFrame:
    """Intervals cut where intensity or curtailment changes: PIECE_SCHEMA.

    Args:
        intervals: INTERVAL_SCHEMA.
        windows: the windows table; `curtailed` is null without it.
        interpolate: straight lines between stamps, as the paper's analysis does, to compare with the paper only.

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
    signals = accounting_signals(traces, max_age, kinds)
    parts = [pl.DataFrame(schema=PIECE_SCHEMA)]
    for (site,), rows in intervals.partition_by("site", as_dict=True).items():
        region = region_of[str(site)]
        own = None if windows is None else windows.filter(pl.col("site") == site)
        parts.append(_cut(rows, region, signals.get(region), own, interpolate))
    return pl.concat(parts).sort("start", "site", maintain_order=True)


def _cut(
    rows: pl.DataFrame,
    region: str,
    signal: AccountingSignal | None,
    windows: pl.DataFrame | None,
    interpolate: bool,
) -> pl.DataFrame:
    starts, ends = (rows[name].dt.epoch("us").to_numpy() for name in ("start", "end"))
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
    value = np.full(len(owner), np.nan) if signal is None else signal.at(begin)
    if interpolate and signal is not None:
        value = np.where(np.isnan(value), np.nan, signal.interpolated((begin + end) / 2))
    cut = rows[owner].with_columns(
        start=_stamps(begin),
        end=_stamps(end),
        region=pl.lit(region),
        g_per_kwh=pl.Series(value).fill_nan(None),
        curtailed=pl.lit(None, pl.Boolean) if windows is None else pl.Series(_inside(windows, begin)),
        kwh=pl.col("kw") * pl.Series((end - begin) / US_PER_HOUR),
    )
    return (
        cut.with_columns(co2_g=pl.col("kwh") * pl.col("g_per_kwh"))
        .select(list(PIECE_SCHEMA))
        .cast(pl.Schema(PIECE_SCHEMA))
    )


def _stamps(us: np.ndarray) -> pl.Series:
    return pl.Series(us.astype(np.int64)).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def _sums() -> list[pl.Expr]:
    energy, known = pl.col("kwh"), pl.col("co2_g").is_not_null()
    return [
        ((pl.col("end") - pl.col("start")).dt.total_microseconds().sum() / US_PER_HOUR).alias("hours"),
        energy.sum().alias("kwh"),
        pl.when(known.any() | (energy.sum() == 0)).then(pl.col("co2_g").sum()).alias("co2_g"),
        pl.when(pl.col("curtailed").is_not_null().all()).then(energy.filter("curtailed").sum()).alias("curtailed_kwh"),
        energy.filter(~known).sum().alias("unaccounted_kwh"),
    ]


def ledger(
    intervals: pl.DataFrame,
    traces: pl.DataFrame,
    sites: Sequence[Site],
    windows: pl.DataFrame | None = None,
    *,
    max_age: timedelta | None = None,
    kinds: Mapping[str, str] | None = None,
    interpolate: bool = False,
) -> pl.DataFrame:
    """Energy and CO2 per checkpoint, site and power state: LEDGER_SCHEMA. Arguments and errors as of `pieces`."""
    cut = pieces(intervals, traces, sites, windows, max_age=max_age, kinds=kinds, interpolate=interpolate)
    keys = ["checkpoint", "site", "state"]
    return cut.group_by(keys).agg(_sums()).sort(keys).select(list(LEDGER_SCHEMA)).cast(pl.Schema(LEDGER_SCHEMA))


def sum_ledger(table: pl.DataFrame, by: Sequence[str] = ()) -> pl.DataFrame:
    """Sums of a ledger per combination of `by`; one row without it.

    `co2_g` stays null where nothing is accounted, `curtailed_kwh` where any part is unknown.
    """
    sums = [
        *(pl.col(name).sum() for name in ("hours", "kwh")),
        pl.when(pl.col("co2_g").is_not_null().any() | (pl.col("kwh").sum() == 0))
        .then(pl.col("co2_g").sum())
        .alias("co2_g"),
        pl.when(pl.col("curtailed_kwh").is_not_null().all()).then(pl.col("curtailed_kwh").sum()).alias("curtailed_kwh"),
        pl.col("unaccounted_kwh").sum(),
    ]
    if not by:
        return table.select(sums)
    return table.group_by(list(by), maintain_order=True).agg(sums)


def totals(table: pl.DataFrame) -> dict[str, float | None]:
    """A ledger's sums, with `g_per_kwh` over the accounted energy and `curtailed_share` of all energy."""
    row = sum_ledger(table).row(0, named=True)
    accounted = row["kwh"] - row["unaccounted_kwh"]
    known = row["co2_g"] is not None and accounted > 0
    share = row["curtailed_kwh"] / row["kwh"] if row["curtailed_kwh"] is not None and row["kwh"] > 0 else None
    return {**row, "g_per_kwh": row["co2_g"] / accounted if known else None, "curtailed_share": share}


def is_synthetic(traces: pl.DataFrame) -> bool:
    """Whether any value is made up."""
    return "source" in traces.columns and bool((traces["source"] == "synthetic").any())
