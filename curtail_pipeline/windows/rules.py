"""Curtailment windows of sites from traces: causal, day by day with a carried state, or a whole range at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import numpy as np
import polars as pl

from curtail_pipeline.errors import PolicyError, TraceError
from curtail_pipeline.settings.job import PolicySettings
from curtail_pipeline.settings.rule_settings import RuleSettings, rule_of
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.settings.trace_settings import Kind
from curtail_pipeline.times import FOREVER, SECOND, TIME, iso
from curtail_pipeline.windows.candidates import combined, described, forecast_openings, history_waits
from curtail_pipeline.windows.columns import Columns, columns_of_frame, to_micros
from curtail_pipeline.windows.hysteresis import SignalState, Valid, intervals, valid_values
from curtail_pipeline.windows.state import RegionState, RuleState, rule_digest
from curtail_pipeline.windows.stats import window_stats

WINDOW_SCHEMA: Final[dict[str, pl.DataType]] = {
    "site": pl.String(),
    "region": pl.String(),
    "start": TIME,
    "end": TIME,
    "opened_by": pl.String(),
    "closed_by": pl.String(),
    "mean_signal": pl.Float64(),
    "min_signal": pl.Float64(),
    "as_of": TIME,
    "policy": pl.String(),
}
"""A table of windows. `end` and `closed_by` are null while the window is open. `mean_signal` (time-weighted) and
`min_signal` are of the rule's first signal, in its unit, over the window; null where that signal had no value. `as_of`
is the instant up to which the signal had been read when the row last changed: the end of a closed window."""


def _checked(traces: pl.DataFrame) -> pl.DataFrame:
    missing = [name for name in ("time", "region", "value", "kind") if name not in traces.columns]
    if missing:
        raise TraceError(f"a trace needs a column {missing[0]!r}; this one has {', '.join(traces.columns)}")
    dtype = traces.schema["time"]
    if not isinstance(dtype, pl.Datetime) or dtype.time_zone is None:
        raise TraceError(f"the trace's column 'time' is {dtype}; it has to be a UTC datetime")
    return traces


Cadences = Mapping[tuple[str, Kind], float]
"""Seconds between values, by region and kind."""


@dataclass
class _Group:
    """Regions that share one rule."""

    rule: RuleSettings
    regions: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RegionWindows:
    """Windows of regions: region (index), start, end (microseconds, `FOREVER`), reasons, mean and least signal."""

    table: pl.DataFrame
    states: list[RegionState]


def windows_of_columns(
    signals: Sequence[Columns],
    rule: RuleSettings,
    states: Sequence[RegionState],
    end: int,
    *,
    since: int,
    cadence_us: Sequence[Sequence[int | None]],
    forecasts: pl.DataFrame | None = None,
) -> RegionWindows:
    """Windows of many regions under one rule: the part of `derive_windows` that is fast on very long columns.

    Args:
        signals: one per signal of the rule, in its order, all over the same regions.
        states: per region, as of `since`.
        end: microseconds; nothing at or after it is read.
        cadence_us: known cadence per signal and region; None where it is to be learned from the stamps.
        forecasts: region (index), kind, issued, target (microseconds), value.
    """
    tables: list[pl.DataFrame] = []
    after: list[list[SignalState]] = []
    leading: Valid | None = None
    for position, (columns, signal) in enumerate(zip(signals, rule.signals, strict=True)):
        before = [state.signals[position] for state in states]
        valid, stamps = valid_values(columns, before, signal, list(cadence_us[position]))
        found, later = intervals(valid, signal, end, stamps)
        tables.append(described(found, signal))
        after.append(later)
        leading = valid if leading is None else leading
    assert leading is not None
    candidates = _continued(combined(tables, rule.needs_all), states, since)
    candidates, windows, past = _opened(candidates, rule, states, since, end, forecasts)
    region, start, stop = (windows[name].to_numpy() for name in ("region", "start", "end"))
    before_sums = {r: state.sums for r, state in enumerate(states) if state.sums is not None}
    stats = window_stats(leading, region, start, stop, end, before_sums)
    table = windows.with_columns(
        pl.Series("mean_signal", stats.mean).fill_nan(None), pl.Series("min_signal", stats.least).fill_nan(None)
    )
    sums = dict(zip(region[stop == FOREVER].tolist(), stats.carried, strict=True))
    waiting = candidates.filter(pl.col("end") == FOREVER).select("region", "start", "opens", "opened_by").rows()
    pending = {r: (begun, opens, text) for r, begun, opens, text in waiting}
    out = []
    for r, state in enumerate(states):
        begun, opens, text = pending.get(r, (None, None, None))
        out.append(
            RegionState(state.rule, tuple(later[r] for later in after), begun, opens, text, sums.get(r), tuple(past[r]))
        )
    return RegionWindows(table, out)


def _continued(candidates: pl.DataFrame, states: Sequence[RegionState], since: int) -> pl.DataFrame:
    """Give a candidate that was open at the state's time the start and reason it began with."""
    known = [(r, s.since, s.opened_by, s.opens) for r, s in enumerate(states) if s.since is not None]
    if not known:
        return candidates.with_columns(opens=pl.lit(None, pl.Int64), carried=pl.lit(False))
    columns = {"region": pl.Int64, "begun": pl.Int64, "text": pl.String, "opens": pl.Int64}
    carried = pl.DataFrame(known, schema=columns, orient="row")
    here = pl.col("begun").is_not_null() & (pl.col("start") < since)
    return candidates.join(carried, on="region", how="left", maintain_order="left").select(
        "region",
        pl.when(here).then("begun").otherwise("start").alias("start"),
        "end",
        pl.when(here).then("text").otherwise("opened_by").alias("opened_by"),
        "closed_by",
        pl.when(here).then("opens").alias("opens"),
        here.alias("carried"),
    )


def _opened(
    candidates: pl.DataFrame,
    rule: RuleSettings,
    states: Sequence[RegionState],
    since: int,
    end: int,
    forecasts: pl.DataFrame | None,
) -> tuple[pl.DataFrame, pl.DataFrame, list[list[int]]]:
    """Candidates with the instant `opens`, the windows among them, and the durations known afterwards."""
    required = round(rule.required_s * SECOND)
    if not required:
        plain = candidates.with_columns(opens=pl.col("start"))
        return plain, plain, [[] for _ in states]
    begin, stop = candidates["start"].to_numpy(), candidates["end"].to_numpy()
    durations = np.where(stop == FOREVER, FOREVER, stop - begin)
    offsets = np.searchsorted(candidates["region"].to_numpy(), np.arange(len(states) + 1))
    waits, past = history_waits(durations, offsets, [state.past for state in states], required)
    base = pl.when("carried").then("opens").otherwise(pl.col("start") + pl.Series(waits, dtype=pl.Int64))
    if forecasts is not None and forecasts.height:
        numbered = candidates.with_columns(id=pl.int_range(pl.len()))
        verdicts = forecast_openings(numbered.select("id", "region", "start", "end"), forecasts, rule, since).rename(
            {"opens": "allowed"}
        )
        candidates = (
            numbered.with_columns(base.alias("opens"))
            .join(verdicts, on="id", how="left", maintain_order="left")
            .with_columns(opens=pl.when(pl.col("judged").fill_null(False)).then(None).otherwise("opens"))
            .with_columns(opens=pl.min_horizontal("opens", "allowed"))
            .drop("id", "judged", "allowed")
        )
    else:
        candidates = candidates.with_columns(base.alias("opens"))
    late = pl.format(
        "{} (after {} s in which it was expected to end too soon)",
        "opened_by",
        (pl.col("opens") - pl.col("start")) // SECOND,
    )
    windows = candidates.filter((pl.col("opens") < end) & (pl.col("opens") < pl.col("end"))).with_columns(
        start=pl.col("opens"), opened_by=pl.when(pl.col("opens") > pl.col("start")).then(late).otherwise("opened_by")
    )
    return candidates, windows, past


def _forecast_rows(forecasts: pl.DataFrame | None, regions: Sequence[str], end: int) -> pl.DataFrame | None:
    """Forecasts issued before `end`, times in microseconds, regions by index."""
    if forecasts is None:
        return None
    if "kind" not in forecasts.columns:
        forecasts = forecasts.with_columns(kind=pl.lit("marginal_intensity"))
    return forecasts.filter(
        pl.col("region").is_in(list(regions)),
        pl.col("value").is_not_null(),
        pl.col("issued_at") < pl.lit(end).cast(TIME),
    ).select(
        pl.col("region").replace_strict(list(regions), list(range(len(regions))), return_dtype=pl.Int64),
        "kind",
        pl.col("issued_at").dt.cast_time_unit("us").to_physical().alias("issued"),
        pl.col("target").dt.cast_time_unit("us").to_physical(),
        "value",
    )


def derive_windows(
    traces: pl.DataFrame,
    sites: Sequence[Site],
    policy: PolicySettings,
    *,
    start: datetime,
    end: datetime,
    state: RuleState | None = None,
    rules: Mapping[str, RuleSettings] | None = None,
    forecasts: pl.DataFrame | None = None,
    cadence_s: float | Cadences | None = None,
) -> tuple[pl.DataFrame, RuleState]:
    """The windows of the sites' regions in `[start, end)`, as known at `end`.

    Causal: nothing stamped at or after `end` is read. Deriving day by day with the returned state and joining the
    tables by `merge_days` gives the table, and the state, of the whole range at once. A day's table holds every window
    that was open at some time of the day, with the start it really had. A window that a rule would close exactly at
    `end` is still open: whether it goes on depends on the value stamped `end`. Missing, null, over-age and
    over-estimated values are never curtailed.

    Args:
        traces: columns time (UTC), region, value (canonical unit of its kind), kind, and optionally estimated. Rows in
            any order; rows outside the range and of other regions and kinds are ignored.
        policy: names the rule of every region that has none in `rules`; see `rule_of` for the parameters that change
            it.
        state: from the range before. Rows from `state.at` on are read, also when that is before `start`.
        rules: region -> its own rule.
        forecasts: issued_at, target (UTC), region, value, and optionally kind (marginal_intensity when absent). Used by
            rules with a minimum duration. Pass the issues from one horizon before `start` on.
        cadence_s: cadence of the feed (or per region and kind) for the default maximum age of two cadences. When not
            given it is the shortest distance of stamps so far, and 300 s until there are two.

    Returns:
        A table of WINDOW_SCHEMA in order of site and start, and the state at `end`.

    Raises:
        PolicyError: unknown policy, invalid parameters, a range that is empty or starts before the state, or a state
            that was made under another rule.
        TraceError: the trace lacks a column or its times are not UTC.
    """
    _checked(traces)
    first, last = to_micros(start, "start"), to_micros(end, "end")
    if last <= first:
        raise PolicyError(f"the range {iso(start)} to {iso(end)} is empty; give an end after the start")
    if state is not None and state.at > start:
        raise PolicyError(
            f"the window state is as of {iso(state.at)}, after the start {iso(start)}; "
            "pass the state of the range before"
        )
    since = first if state is None else to_micros(state.at, "state.at")
    known = {} if state is None else state.regions
    groups: dict[str, _Group] = {}
    for region in dict.fromkeys(site.region for site in sites):
        rule = rule_of(policy, region, rules)
        digest = rule_digest(rule)
        if region in known and known[region].rule != digest:
            raise PolicyError(
                f"the window state of region {region!r} was made under another rule; "
                "derive its windows again from the first day"
            )
        groups.setdefault(digest, _Group(rule)).regions.append(region)
    tables: list[pl.DataFrame] = []
    after: dict[str, RegionState] = {}
    for group in groups.values():
        names = group.regions
        result = windows_of_columns(
            [columns_of_frame(traces, names, signal.kind, since, last) for signal in group.rule.signals],
            group.rule,
            [known.get(name, RegionState.fresh(group.rule)) for name in names],
            last,
            since=since,
            cadence_us=[[_cadence(cadence_s, name, signal.kind) for name in names] for signal in group.rule.signals],
            forecasts=_forecast_rows(forecasts, names, last) if group.rule.required_s else None,
        )
        tables.append(
            result.table.with_columns(
                pl.col("region").replace_strict(list(range(len(names))), names, return_dtype=pl.String)
            )
        )
        after.update(zip(names, result.states, strict=True))
    return window_table(pl.concat(tables), sites, policy.name, last), RuleState(at=end, regions=after)


def _cadence(cadence_s: float | Cadences | None, region: str, kind: Kind) -> int | None:
    given = cadence_s.get((region, kind)) if isinstance(cadence_s, Mapping) else cadence_s
    return None if given is None else round(given * SECOND)


def recorded_cadences(traces: pl.DataFrame) -> dict[tuple[str, Kind], float]:
    """The cadence of each signal of a record, whose first value is judged by it too; columns as of `derive_windows`.

    Signals with one stamp are not in it.
    """
    steps = traces.group_by("region", "kind").agg(pl.col("time").unique().sort().diff().min().dt.total_microseconds())
    return {(region, kind): step / SECOND for region, kind, step in steps.drop_nulls("time").iter_rows()}


def window_table(windows: pl.DataFrame, sites: Sequence[Site], policy: str, end: int) -> pl.DataFrame:
    """WINDOW_SCHEMA from region windows (region names, times in microseconds): one row per site and window."""
    owners = pl.DataFrame(
        {"site": [site.name for site in sites], "region": [site.region for site in sites]},
        schema={"site": pl.String, "region": pl.String},
    )
    return (
        windows.join(owners, on="region")
        .with_columns(
            as_of=pl.min_horizontal("end", pl.lit(end)),
            end=pl.when(pl.col("end") != FOREVER).then("end"),
            policy=pl.lit(policy),
        )
        .with_columns(pl.col("start", "end", "as_of").cast(TIME))
        .select(list(WINDOW_SCHEMA))
        .sort("site", "start")
    )


def merge_days(days: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """One table from consecutive days' tables: a window that went on over midnight is one row, as last seen."""
    if not days:
        return pl.DataFrame(schema=WINDOW_SCHEMA)
    return pl.concat(days).unique(["site", "start"], keep="last", maintain_order=True).sort("site", "start")
