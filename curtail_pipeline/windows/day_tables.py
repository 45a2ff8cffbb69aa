"""Windows for people: hours per site, a plot of signal and windows, and what a new table changed."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

import polars as pl

from curtail_pipeline.settings.sites import Site
from curtail_pipeline.times import TIME, iso, iso_cells

if TYPE_CHECKING:
    import altair

_UNITS: Final = {"marginal_intensity": "g/kWh", "price": "currency/MWh", "curtailed_power": "MW"}
_POINTS: Final = 5_000


def window_hours(windows: pl.DataFrame, start: datetime, end: datetime) -> pl.DataFrame:
    """The windows that have a part in `[start, end)`, with the `hours` of that part. An open window counts to `end`."""
    first, last = pl.lit(start).cast(TIME), pl.lit(end).cast(TIME)
    begun = pl.max_horizontal("start", first)
    over = pl.min_horizontal(pl.col("end").fill_null(last), last)
    return windows.with_columns(hours=(over - begun).dt.total_microseconds() / 3.6e9).filter(pl.col("hours") > 0)


def day_summary(windows: pl.DataFrame, sites: Sequence[Site], start: datetime, end: datetime) -> pl.DataFrame:
    """One row per site, in the experiment's order, of a range: how many windows, how long.

    Returns:
        site, region, windows (that have a part in the range), hours, longest_hours, open (whether one goes on past the
        range), mean_signal (of the windows, weighted by hours; null without one).
    """
    timed = window_hours(windows, start, end)
    found = timed.group_by("site").agg(
        pl.len().cast(pl.Int64).alias("windows"),
        pl.col("hours").sum(),
        pl.col("hours").max().alias("longest_hours"),
        (pl.col("end").is_null() | (pl.col("end") > pl.lit(end).cast(TIME))).any().alias("open"),
        (
            (pl.col("mean_signal") * pl.col("hours")).sum()
            / pl.col("hours").filter(pl.col("mean_signal").is_not_null()).sum()
        )
        .fill_nan(None)
        .alias("mean_signal"),
    )
    names = pl.DataFrame({"site": [s.name for s in sites], "region": [s.region for s in sites]})
    return names.join(found, on="site", how="left", maintain_order="left").with_columns(
        pl.col("windows").fill_null(0),
        pl.col("hours", "longest_hours").fill_null(0.0),
        pl.col("open").fill_null(False),
    )


def diff_windows(old: pl.DataFrame | None, new: pl.DataFrame) -> pl.DataFrame:
    """What a new table of windows changed against the one it replaces.

    Returns:
        change (`added`, `removed`, `ended` for an open window that has closed since, `changed` for another end), site,
        start, old_end, new_end. Windows are the same when site and start are. Empty when nothing changed or there was
        no table.
    """
    schema: dict[str, pl.DataType] = {
        "change": pl.String(),
        "site": pl.String(),
        "start": TIME,
        "old_end": TIME,
        "new_end": TIME,
    }
    if old is None:
        return pl.DataFrame(schema=schema)
    before = old.select("site", "start", pl.col("end").alias("old_end"), pl.lit(True).alias("was"))
    after = new.select("site", "start", pl.col("end").alias("new_end"), pl.lit(True).alias("is"))
    both = before.join(after, on=["site", "start"], how="full", coalesce=True)
    change = (
        pl.when(pl.col("was").is_null())
        .then(pl.lit("added"))
        .when(pl.col("is").is_null())
        .then(pl.lit("removed"))
        .when(pl.col("old_end").is_null() & pl.col("new_end").is_not_null())
        .then(pl.lit("ended"))
        .when(~pl.col("old_end").eq_missing(pl.col("new_end")))
        .then(pl.lit("changed"))
    )
    return both.with_columns(change=change).drop_nulls("change").select(list(schema)).sort("site", "start")


def plot_windows(
    traces: pl.DataFrame, windows: pl.DataFrame, *, start: datetime | None = None, end: datetime | None = None
) -> "altair.Chart | altair.LayerChart | altair.VConcatChart | altair.FacetChart":
    """Each region's signal as a step line with its windows shaded; one row of the chart per region and kind.

    Args:
        traces: time, region, value, kind. Of long ones so many values are drawn as a screen can show.
        start, end: the range to draw; that of the traces when not given.
    """
    import altair as alt

    rows = traces.drop_nulls("value")
    low = start or rows["time"].min()
    high = end or rows["time"].max()
    if not isinstance(low, datetime) or not isinstance(high, datetime):
        return alt.Chart(alt.InlineData([])).mark_line()
    rows = rows.filter(pl.col("time").is_between(pl.lit(low).cast(TIME), pl.lit(high).cast(TIME)))
    shaded = windows.with_columns(
        start=pl.max_horizontal("start", pl.lit(low).cast(TIME)),
        end=pl.min_horizontal(pl.col("end").fill_null(pl.lit(high).cast(TIME)), pl.lit(high).cast(TIME)),
    ).filter(pl.col("start") < pl.col("end"))
    axis = alt.Axis(format="%d %b %H:%M", labelOverlap=True)
    charts = []
    for region, kind in rows.select("region", "kind").unique(maintain_order=True).sort("region", "kind").iter_rows():
        signal = rows.filter(region=region, kind=kind).sort("time")
        signal = signal.gather_every(max(1, signal.height // _POINTS)).select("time", "value")
        own = shaded.filter(region=region).unique(["start", "end"]).sort("start")
        own = own.select("start", "end", "site", "opened_by", "closed_by")
        time = alt.X("time:T", title="UTC", scale=alt.Scale(domain=[iso(low), iso(high)], type="utc"), axis=axis)
        line = (
            alt.Chart(alt.InlineData(iso_cells(signal.rows(named=True))))
            .mark_line(interpolate="step-after", strokeWidth=1.2, color="#33475b")
            .encode(x=time, y=alt.Y("value:Q", title=f"{kind} ({_UNITS.get(kind, 'g/kWh')})"))
        )
        band = (
            alt.Chart(alt.InlineData(iso_cells(own.rows(named=True))))
            .mark_rect(color="#2e9e6b", opacity=0.25)
            .encode(x="start:T", x2="end:T", tooltip=["site:N", "start:T", "end:T", "opened_by:N", "closed_by:N"])
        )
        charts.append(alt.layer(band, line).properties(title=region, width=760, height=130))
    return alt.vconcat(*charts) if charts else alt.Chart(alt.InlineData([])).mark_line()
