"""The paper's charts of a whole run: progress, power, cumulative CO2, use of curtailment, and where each gram went."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import altair as alt
import numpy as np
import polars as pl

from curtail_pipeline.emissions.baselines import Compared, by_name
from curtail_pipeline.emissions.chart_style import (
    GRID,
    INK,
    OURS_COLOUR,
    PALE,
    SITE_COLOURS,
    SOFT,
    STATE_NAMES,
    Chart,
    Size,
    colour_scale,
    inline,
    legend,
    state_scale,
    time_axis,
)
from curtail_pipeline.emissions.charts import signal_steps, step_points
from curtail_pipeline.emissions.grams import count_grams
from curtail_pipeline.settings.sites import Site, power_kw
from curtail_pipeline.signals.held import Signal
from curtail_pipeline.times import Cell, Floats, Micros, from_us, micros_of, seconds, to_us

BUCKETS = 240
"""Equal spans of time that power and CO2 are drawn by."""

Span = tuple[datetime, datetime]


def _edges(span: Span) -> Micros:
    return np.linspace(to_us(span[0]), to_us(span[1]), BUCKETS + 1).astype(np.int64)


def _up_to(rows: pl.DataFrame, column: str, edges: Micros) -> Floats:
    """How much of a column of pieces had come together by each edge."""
    ordered = rows.sort("start")
    amounts = ordered[column].fill_null(0.0).to_numpy()
    found = np.zeros(len(edges))
    for first, last, amount in zip(micros_of(ordered["start"]), micros_of(ordered["end"]), amounts, strict=True):
        if last > first:
            found += amount * np.clip((edges - first) / (last - first), 0.0, 1.0)
    return found


def progress(
    losses: pl.DataFrame,
    heldout: pl.DataFrame,
    sites: Sequence[Site],
    signals: Mapping[str, Signal],
    span: Span,
    size: Size,
) -> Chart:
    """Loss and perplexity over time, above the intensity of each site's grid."""
    start, end = span
    x = time_axis(start, end, size, labels=True, field="time")
    both = [
        losses.select("time", "loss", pl.lit("training").alias("series")),
        heldout.select("time", "loss", pl.lit("held-out").alias("series")),
    ]
    rows = pl.concat(both).with_columns(perplexity=pl.col("loss").exp())
    scale = alt.Scale(domain=["training", "held-out"], range=[SITE_COLOURS[0], SITE_COLOURS[4]])
    panels: list[Chart] = []
    for column, title in (("loss", "loss, nat per token"), ("perplexity", "perplexity")):
        scaled = alt.Scale(type="log", zero=False) if column == "perplexity" else alt.Scale(zero=False)
        shown = legend(size=size) if column == "loss" else None
        base = alt.Chart(inline(rows.rows(named=True))).encode(
            x=x,
            y=alt.Y(f"{column}:Q", title=title, scale=scaled, axis=alt.Axis(tickCount=4)),
            color=alt.Color("series:N", scale=scale, legend=shown),
        )
        layers = alt.layer(base.mark_line(strokeWidth=1.4), base.mark_circle(size=24))
        panels.append(layers.properties(width=size.width, height=120))
    lines: list[dict[str, Cell]] = [
        {**point, "region": region, "run": f"{region} {point['run']}"}
        for region in dict.fromkeys(site.region for site in sites)
        for point in step_points(signal_steps(signals.get(region), start, end, most=1_000))
    ]
    regions = list(dict.fromkeys(site.region for site in sites))
    colours = alt.Scale(domain=regions, range=[SITE_COLOURS[i % len(SITE_COLOURS)] for i in range(len(regions))])
    grid = alt.Chart(inline(lines)).mark_line(interpolate="step-after", strokeWidth=1.1)
    panels.append(
        grid.encode(
            x=time_axis(start, end, size, labels=True),
            y=alt.Y("value:Q", title="gCO2/kWh", axis=alt.Axis(tickCount=3)),
            color=alt.Color("region:N", scale=colours, legend=legend(size=size)),
            detail="run:N",
        ).properties(width=size.width, height=110)
    )
    return alt.vconcat(*panels, spacing=8)


def power(pieces: pl.DataFrame, sites: Sequence[Site], span: Span, size: Size) -> Chart:
    """Mean power drawn, stacked by site, and the rate of emission; `pieces`: `grams.PIECE_SCHEMA`."""
    start, end = span
    edges = _edges(span)
    hours = (end - start) / timedelta(hours=1) / BUCKETS
    rows: list[dict[str, Cell]] = []
    for site in sites:
        kwh = np.diff(_up_to(pieces.filter(pl.col("site") == site.name), "kwh", edges))
        rows += [
            {"start": from_us(int(edges[i])), "site": site.name, "kw": float(kwh[i] / hours)} for i in range(BUCKETS)
        ]
    rate = np.diff(_up_to(pieces, "co2_g", edges)) / hours
    rates: list[dict[str, Cell]] = [{"start": from_us(int(edges[i])), "rate": float(rate[i])} for i in range(BUCKETS)]
    colour = alt.Color("site:N", scale=colour_scale(sites), legend=legend(size=size))
    x = time_axis(start, end, size, labels=True)
    y = alt.Y("kw:Q", title="power, kW", stack="zero", axis=alt.Axis(tickCount=4))
    area = alt.Chart(inline(rows)).mark_area(interpolate="step-after").encode(x=x, y=y, color=colour)
    line = alt.Chart(inline(rates)).mark_line(interpolate="step-after", color=INK, strokeWidth=1.2)
    line = line.encode(x=x, y=alt.Y("rate:Q", title="g CO2 per hour", axis=alt.Axis(tickCount=4)))
    return alt.vconcat(
        area.properties(width=size.width, height=140), line.properties(width=size.width, height=100), spacing=8
    )


def cumulative(
    pieces: pl.DataFrame,
    baselines: Sequence[Compared],
    sites: Sequence[Site],
    signals: Mapping[str, Signal],
    oracle_g: float | None,
    span: Span,
    size: Size,
) -> Chart:
    """CO2 so far: ours, that of every baseline, and the least that the same steps could have had."""
    start, end = span
    edges = _edges(span)
    lines = {"this run": _up_to(pieces, "co2_g", edges)}
    clusters = {site.name: site for site in sites}
    for name, row in by_name(baselines).items():
        signal = signals.get(row.region)
        if row.co2_g is None or signal is None:
            continue
        stops = np.minimum(edges, to_us(start + seconds(3_600 * row.hours)))
        used = count_grams(np.full(len(edges), edges[0]), stops, power_kw(clusters[row.site], "training"), signal)
        whole = np.nan_to_num(used.co2_g)
        # A cluster with a battery or generation of its own emits less than that at every time alike.
        lines[f"always on, {name}"] = whole * (row.co2_g / whole[-1] if whole[-1] and stops[-1] < edges[-1] else 1)
    names = list(lines)
    others = [colour for colour in SITE_COLOURS if colour != SITE_COLOURS[2]]  # whose green is too like ours
    shades = [OURS_COLOUR, *(others[i % len(others)] for i in range(len(names) - 1))]
    rows: list[dict[str, Cell]] = [
        {"start": from_us(int(edges[i])), "kg": float(values[i]) / 1_000, "name": name}
        for name, values in lines.items()
        for i in range(0, len(edges), 3)
    ]
    x = time_axis(start, end, size, labels=True)
    y = alt.Y("kg:Q", title="kg CO2 so far", axis=alt.Axis(tickCount=5))
    scale = alt.Scale(domain=names, range=shades)
    shown = legend(size=size)
    found = [
        alt.Chart(inline(rows))
        .mark_line(strokeWidth=1.8)
        .encode(x=x, y=y, color=alt.Color("name:N", scale=scale, legend=shown))
    ]
    if oracle_g is not None:
        least = alt.Chart(inline([{"kg": oracle_g / 1_000, "text": "least possible", "start": end}]))
        found.append(least.mark_rule(color=SOFT, strokeDash=[5, 4]).encode(y=y))
        found.append(
            least.mark_text(color=SOFT, align="right", dx=-4, dy=-6, fontSize=11).encode(x=x, y=y, text="text:N")
        )
    return alt.layer(*found).properties(width=size.width, height=240)


def curtailed(pieces: pl.DataFrame, windows: pl.DataFrame, sites: Sequence[Site], span: Span, size: Size) -> Chart:
    """Hours of each region's windows that were trained in, or not, and hours of training outside them."""
    start, end = span
    hours = (pl.col("end") - pl.col("start")).dt.total_microseconds() / 3.6e9
    shown = {"trained in windows": OURS_COLOUR, "windows not used": PALE, "trained outside": SITE_COLOURS[1]}
    rows: list[dict[str, Cell]] = []
    names = [site.name if site.name == site.region else f"{site.name} ({site.region})" for site in sites]
    for name, site in zip(names, sites, strict=True):
        own = windows.filter(pl.col("site") == site.name).select(
            pl.max_horizontal("start", pl.lit(start)).alias("start"),
            pl.min_horizontal(pl.col("end").fill_null(end), pl.lit(end)).alias("end"),
        )
        trained = pieces.filter((pl.col("site") == site.name) & (pl.col("state") == "training"))
        inside = float(trained.filter(pl.col("curtailed")).select(hours.sum()).item())
        outside = float(trained.filter(~pl.col("curtailed")).select(hours.sum()).item())
        whole = float(own.filter(pl.col("start") < pl.col("end")).select(hours.sum()).item())
        for order, (what, length) in enumerate(zip(shown, (inside, max(0.0, whole - inside), outside), strict=True)):
            rows.append({"site": name, "what": what, "hours": length, "order": order})
    bars = (
        alt.Chart(inline(rows))
        .mark_bar(size=18)
        .encode(
            y=alt.Y(
                "site:N", title=None, sort=names, axis=alt.Axis(ticks=False, domain=False, grid=False, labelLimit=150)
            ),
            x=alt.X("hours:Q", title="hours", axis=alt.Axis(tickCount=size.ticks)),
            color=alt.Color(
                "what:N", scale=alt.Scale(domain=[*shown], range=[*shown.values()]), legend=legend(size=size)
            ),
            order="order:Q",
        )
    )
    drawn: Chart = bars.properties(width=size.width - (110 if size.narrow else 130), height=30 * len(sites))
    return drawn


def where_each_gram_went(table: pl.DataFrame, sites: Sequence[Site], size: Size) -> Chart:
    """CO2 by site and by what its power was for; `table`: `grams.LEDGER_SCHEMA`."""
    sums = table.group_by("site", "state", maintain_order=True).agg(pl.col("co2_g").sum()).filter(pl.col("co2_g") > 0)
    order = {name: i for i, name in enumerate(STATE_NAMES)}
    rows: list[dict[str, Cell]] = [
        {"site": site, "what": STATE_NAMES[state], "g": grams, "order": order[state]}
        for site, state, grams in sums.iter_rows()
    ]
    bars = (
        alt.Chart(inline(rows))
        .mark_bar(size=18)
        .encode(
            y=alt.Y(
                "site:N",
                title=None,
                sort=[site.name for site in sites],
                axis=alt.Axis(ticks=False, domain=False, grid=False, labelLimit=150),
            ),
            x=alt.X("g:Q", title="g CO2", axis=alt.Axis(tickCount=size.ticks, gridColor=GRID)),
            color=alt.Color("what:N", scale=state_scale(sums["state"]), legend=legend(size=size)),
            order="order:Q",
        )
    )
    height = 30 * max(1, sums["site"].n_unique())
    drawn: Chart = bars.properties(width=size.width - (110 if size.narrow else 130), height=height)
    return drawn
