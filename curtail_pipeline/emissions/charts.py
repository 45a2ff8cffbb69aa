"""The charts of the emissions report, as Vega-Lite rendered to SVG or PNG without a browser or a network."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import zip_longest

import altair as alt
import polars as pl

from curtail_pipeline.emissions.baselines import Compared
from curtail_pipeline.emissions.basis import is_synthetic
from curtail_pipeline.emissions.formats import mass
from curtail_pipeline.emissions.grams import CHARGING
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.signals.held import Signal
from curtail_pipeline.storage.manifest import Manifest
from curtail_pipeline.times import Cell, iso, iso_cells, times_column

WIDTH = 900
SITE_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
"""Okabe and Ito: distinguishable with any colour vision. Repeats from the seventh site on."""
STATE_COLOURS = {
    "training": "#0B6E4F",
    "idle": "#E0A030",
    "start_up": "#F2D6A0",
    "transfer": "#6FA8A0",
    "failed": "#B23A48",
    CHARGING: "#7A6FAC",
}
STATE_NAMES = {
    "training": "training",
    "idle": "idle, warm",
    "start_up": "start-up",
    "transfer": "loading, sending, merging",
    "failed": "lost training",
    CHARGING: "battery charging",
}
MODE_COLOURS = {"local": "#7FB2D6", "federated": "#22577A"}
WINDOW_COLOUR = "#CFEBDD"
SIGNAL_COLOUR = "#3B4252"
INK, SOFT = "#1F2933", "#6B7785"
SHORT = "datum.value === 0 ? '0' : format(datum.value, '~s')"
MOST_POINTS = 2500
"""Signal values drawn per site; a longer trace is drawn as means."""

Chart = alt.Chart | alt.LayerChart | alt.VConcatChart | alt.HConcatChart | alt.FacetChart


def colour_scale(sites: Sequence[Site]) -> alt.Scale:
    names = [site.name for site in sites]
    return alt.Scale(domain=names, range=[SITE_COLOURS[i % len(SITE_COLOURS)] for i in range(len(names))])


@dataclass(frozen=True)
class Step:
    """A stretch of constant signal, gCO2/kWh."""

    start: datetime
    end: datetime
    value: float


def _data(rows: Iterable[Mapping[str, Cell]]) -> alt.InlineData:
    return alt.InlineData(iso_cells(rows))


def _time_axis(start: datetime, end: datetime, labels: bool) -> alt.X:
    """A shared UTC axis; ticks with the date at midnight."""
    axis = alt.Axis(
        title=None,
        labels=labels,
        ticks=labels,
        domain=labels,
        tickCount=12,
        labelExpr="utchours(datum.value) == 0 && utcminutes(datum.value) == 0"
        " ? utcFormat(datum.value, '%b %d') : utcFormat(datum.value, '%H:%M')",
    )
    return alt.X("start:T", scale=alt.Scale(type="utc", domain=[iso(start), iso(end)], nice=False), axis=axis)


def signal_steps(signal: Signal | None, start: datetime, end: datetime) -> list[Step]:
    """The known steps inside the range; means over equal spans where there are too many to draw."""
    if signal is None:
        return []
    stamps = times_column(signal.edges)
    held = signal.held_at(signal.edges)
    steps = pl.DataFrame({"start": stamps[:-1], "end": stamps[1:], "value": held[:-1]}).fill_nan(None)
    steps = steps.filter((pl.col("end") > start) & (pl.col("start") < end)).with_columns(
        pl.max_horizontal("start", pl.lit(start)).alias("start"), pl.min_horizontal("end", pl.lit(end)).alias("end")
    )
    if len(steps) > MOST_POINTS:
        every = (end - start) / MOST_POINTS + timedelta(microseconds=1)
        steps = (
            steps.group_by_dynamic("start", every=every, start_by="datapoint")
            .agg(pl.col("end").last(), pl.col("value").mean())
            .select("start", "end", "value")
        )
    return [Step(*row) for row in steps.drop_nulls().rows()]


def timeline(
    manifests: Sequence[Manifest],
    sites: Sequence[Site],
    traces: pl.DataFrame,
    signals: Mapping[str, Signal],
    windows: pl.DataFrame,
    intervals: pl.DataFrame,
    start: datetime,
    end: datetime,
    threshold: float | None,
) -> Chart:
    """Signal, windows and what each site did, one panel per site over one time axis; segments below.

    `intervals` as of `grams.INTERVAL_SCHEMA`; `threshold` in gCO2/kWh, drawn dashed.
    """
    panels: list[Chart] = [_timeline_legend(threshold)]
    for site in sites:
        name = site.name if site.name == site.region else f"{site.name} ({site.region})"
        if is_synthetic(traces.filter(pl.col("region") == site.region)):
            name += " · synthetic signal"
        own = windows.filter(pl.col("site") == site.name)
        panels.append(_signal_panel(name, signals.get(site.region), own, start, end, threshold))
        panels.append(_state_strip(site, intervals, start, end))
    panels.append(_segment_strip(manifests, start, end))
    return alt.vconcat(*panels, spacing=6)


def _timeline_legend(threshold: float | None) -> Chart:
    """One legend for all panels."""
    entries = [("curtailment window", WINDOW_COLOUR)]
    entries += [(STATE_NAMES[name], colour) for name, colour in STATE_COLOURS.items() if name != CHARGING]
    entries += [(f"{name} segment", colour) for name, colour in MODE_COLOURS.items()]
    if threshold is not None:
        entries.append((f"- - {threshold:g} gCO2/kWh", "white"))
    rows: list[dict[str, Cell]] = []
    at = 6.0
    for name, colour in entries:
        rows.append({"x": at, "text": at + 10, "name": name, "colour": colour})
        at += 34 + 6.2 * len(name)
    base, scale = alt.Chart(_data(rows)), alt.Scale(domain=[0, WIDTH], nice=False)
    x, text = (alt.X(f"{field}:Q", scale=scale, axis=None) for field in ("x", "text"))
    squares = base.mark_square(size=110, opacity=1).encode(x=x, color=alt.Color("colour:N", scale=None))
    names = base.mark_text(align="left", fontSize=11, color=INK).encode(x=text, text="name:N")
    legend: Chart = alt.layer(squares, names).properties(width=WIDTH, height=18)
    return legend


def _signal_panel(
    title: str, signal: Signal | None, windows: pl.DataFrame, start: datetime, end: datetime, threshold: float | None
) -> Chart:
    steps = signal_steps(signal, start, end)
    own = windows.select(
        pl.max_horizontal("start", pl.lit(start)).alias("start"),
        pl.min_horizontal(pl.col("end").fill_null(end), pl.lit(end)).alias("end"),
    )
    own = own.filter(pl.col("start") < pl.col("end"))
    x = _time_axis(start, end, labels=False)
    bands = alt.Chart(_data(own.rows(named=True))).mark_rect(color=WINDOW_COLOUR).encode(x=x, x2="end:T")
    top = max([step.value for step in steps] + [threshold or 0, 1]) * 1.05
    bottom = min([step.value for step in steps] + [0])
    y = alt.Y(
        "value:Q",
        title="gCO2/kWh",
        scale=alt.Scale(domain=[bottom, top], nice=False),
        axis=alt.Axis(tickCount=3, titleColor=SOFT, grid=False),
    )
    line = alt.Chart(_data(_step_points(steps))).mark_line(
        interpolate="step-after", color=SIGNAL_COLOUR, strokeWidth=1.2, strokeJoin="bevel"
    )
    line = line.encode(x=x, y=y, detail="run:N")
    layers = [bands, line]
    if threshold is not None:
        limit = alt.Chart(_data([{"value": threshold}])).mark_rule(color="#C0392B", strokeDash=[4, 3], strokeWidth=1)
        layers.append(limit.encode(y=y))
    heading = alt.TitleParams(title, anchor="start", frame="group", fontSize=12, color=INK, offset=4)
    return alt.layer(*layers).properties(width=WIDTH, height=92, title=heading)


def _step_points(steps: Sequence[Step]) -> list[dict[str, Cell]]:
    """Points of a step line: a new `run` after every gap, and the end of each run as a point of its own."""
    points: list[dict[str, Cell]] = []
    run = 0
    for step, following in zip_longest(steps, steps[1:]):
        points.append({"start": step.start, "value": step.value, "run": run})
        if following is None or following.start != step.end:
            points.append({"start": step.end, "value": step.value, "run": run})
            run += 1
    return points


def _state_strip(site: Site, intervals: pl.DataFrame, start: datetime, end: datetime) -> alt.Chart:
    shown = (pl.col("site") == site.name) & (pl.col("state") != CHARGING)
    own = intervals.filter(shown & (pl.col("end") > start) & (pl.col("start") < end))
    rows = own.select("start", "end", pl.col("state").replace_strict(STATE_NAMES).alias("state")).rows(named=True)
    scale = alt.Scale(domain=[*STATE_NAMES.values()], range=[STATE_COLOURS[name] for name in STATE_NAMES])
    colour = alt.Color("state:N", scale=scale, legend=None)
    strip: alt.Chart = (
        alt.Chart(_data(rows))
        .mark_rect()
        .encode(x=_time_axis(start, end, labels=False), x2="end:T", color=colour)
        .properties(width=WIDTH, height=10, view=alt.ViewConfig(stroke="#E3E8EE", fill="#F6F8FA"))
    )
    return strip


def _segment_strip(manifests: Sequence[Manifest], start: datetime, end: datetime) -> Chart:
    """One box per segment with the number of its checkpoint, where it is wide enough for it."""
    rows: list[dict[str, Cell]] = [
        {
            "start": max(m.start, start),
            "end": min(m.end, end),
            "middle": m.start + (m.end - m.start) / 2,
            "mode": m.mode,
            "label": str(int(m.key.removeprefix("ckpt-"))) if (m.end - m.start) / (end - start) > 0.012 else "",
        }
        for m in manifests
        if m.mode != "init" and m.end > m.start
    ]
    scale = alt.Scale(domain=[*MODE_COLOURS], range=[*MODE_COLOURS.values()])
    x = _time_axis(start, end, labels=True)
    boxes = alt.Chart(_data(rows)).mark_rect(stroke="white", strokeWidth=1)
    boxes = boxes.encode(x=x, x2="end:T", color=alt.Color("mode:N", scale=scale, legend=None))
    labels = alt.Chart(_data(rows)).mark_text(fontSize=9, color="white", fontWeight="bold")
    labels = labels.encode(x=alt.X("middle:T", scale=alt.Scale(type="utc")), text="label:N")
    title = alt.TitleParams(
        "segments (number of their checkpoint)", anchor="start", frame="group", fontSize=12, color=INK, offset=4
    )
    view = alt.ViewConfig(stroke="#E3E8EE", fill="#F6F8FA")
    return alt.layer(boxes, labels).properties(width=WIDTH, height=18, title=title, view=view)


def loss_chart(losses: pl.DataFrame, heldout: pl.DataFrame, sites: Sequence[Site]) -> Chart:
    """Training loss per round and site as points, held-out loss per checkpoint as a line, over tokens.

    `losses`: `site, tokens, loss`; `heldout`: `checkpoint, tokens, loss`; tokens cumulative, losses in nat per token.
    """
    x = alt.X("tokens:Q", title="tokens", axis=alt.Axis(labelExpr=SHORT, grid=False))
    y = alt.Y("loss:Q", title="loss, nat per token", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5))
    legend = alt.Legend(title="training loss of a round", orient="top", symbolType="circle")
    points = alt.Chart(_data(losses.rows(named=True))).mark_circle(size=42, opacity=0.85)
    points = points.encode(x=x, y=y, color=alt.Color("site:N", scale=colour_scale(sites), legend=legend))
    base = alt.Chart(_data(heldout.with_columns(series=pl.lit("held-out loss of a checkpoint")).rows(named=True)))
    dash = alt.StrokeDash("series:N", legend=alt.Legend(title=None, orient="top"), scale=alt.Scale(range=[[1, 0]]))
    line = base.mark_line(color=INK, strokeWidth=1.6).encode(x=x, y=y, strokeDash=dash)
    marks = base.mark_point(color=INK, filled=True, size=30, shape="diamond").encode(x=x, y=y)
    return alt.layer(points, line, marks).properties(width=WIDTH, height=240)


def per_checkpoint(by_checkpoint: pl.DataFrame, sites: Sequence[Site]) -> Chart:
    """Energy and CO2 of each checkpoint, stacked by site. `by_checkpoint`: `checkpoint, site, kwh, co2_g`."""
    number = pl.col("checkpoint").str.strip_prefix("ckpt-").cast(pl.Int64, strict=False).cast(pl.String)
    rows = by_checkpoint.with_columns(checkpoint=number.fill_null("since")).rows(named=True)
    order = sorted({row["checkpoint"] for row in rows}, key=lambda name: (name == "since", name.zfill(9)))
    colour = alt.Color("site:N", scale=colour_scale(sites), legend=alt.Legend(title=None, orient="top"))
    panels = []
    for column, title in (("kwh", "energy, kWh"), ("co2_g", "emissions, g CO2")):
        axis = alt.Axis(labelAngle=0, labelOverlap=True)
        chart = alt.Chart(_data(rows)).mark_bar(size=max(3, min(26, int(300 / max(len(order), 1)))))
        chart = chart.encode(
            x=alt.X("checkpoint:O", title="checkpoint", sort=order, axis=axis),
            y=alt.Y(f"{column}:Q", title=title, stack="zero", axis=alt.Axis(tickCount=5)),
            color=colour,
        )
        panels.append(chart.properties(width=(WIDTH - 80) / 2, height=200))
    return alt.hconcat(*panels, spacing=40)


def against_baselines(ours_g: float, baselines: Sequence[Compared]) -> Chart:
    """Our CO2 and that of each baseline where it is known, as bars with their amounts."""
    known = [("this run", ours_g)]
    known += [(f"always on, {row.region}", row.co2_g) for row in baselines if row.co2_g is not None]
    rows: list[dict[str, Cell]] = [
        {"name": name, "kg": g / 1000, "label": mass(g), "ours": name == "this run"} for name, g in known
    ]
    order = [name for name, _ in known]
    y = alt.Y(
        "name:N", title=None, sort=order, axis=alt.Axis(labelLimit=260, labelFontSize=12, ticks=False, domain=False)
    )
    top = max(grams for _, grams in known) / 1000 * 1.12 or 1
    x = alt.X("kg:Q", title="kg CO2", scale=alt.Scale(domain=[0, top]), axis=alt.Axis(tickCount=6))
    bars = alt.Chart(_data(rows)).mark_bar(size=20, cornerRadiusEnd=2)
    bars = bars.encode(y=y, x=x, color=alt.condition("datum.ours", alt.value("#0B6E4F"), alt.value("#B7C1CC")))
    text = alt.Chart(_data(rows)).mark_text(align="left", dx=5, color=INK, fontSize=12).encode(y=y, x=x, text="label:N")
    return alt.layer(bars, text).properties(width=WIDTH - 160, height=30 * len(rows))


def _spec(chart: Chart) -> str:
    styled = chart.resolve_scale(color="independent") if isinstance(chart, alt.VConcatChart) else chart
    spec: str = (
        styled.configure(font="Helvetica, Arial, sans-serif", background="white", padding=4)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=SOFT,
            titleColor=SOFT,
            gridColor="#E9EDF2",
            domainColor="#C5CDD6",
            tickColor="#C5CDD6",
            titleFontWeight="normal",
            labelFontSize=11,
            titleFontSize=11,
        )
        .configure_legend(labelColor=INK, titleColor=SOFT, titleFontWeight="normal", labelFontSize=11, titleFontSize=11)
        .to_json(indent=None)
    )
    return spec


def to_svg(chart: Chart, prefix: str) -> str:
    """An SVG for use inside a page: `prefix` keeps its ids apart from other charts', and it shrinks with the page."""
    import vl_convert

    svg: str = vl_convert.vegalite_to_svg(_spec(chart))
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-").replace('href="#', f'href="#{prefix}-')
    return svg.replace("<svg ", '<svg role="img" style="max-width:100%;height:auto" ', 1)


def to_png(chart: Chart, scale: float = 2.0) -> bytes:
    """A PNG, e.g. for the metadata of a materialisation."""
    import vl_convert

    png: bytes = vl_convert.vegalite_to_png(_spec(chart), scale=scale)
    return png
