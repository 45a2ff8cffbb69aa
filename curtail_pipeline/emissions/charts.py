"""Charts of what happened and of what it is compared with; each is drawn for a `Size`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import zip_longest

import altair as alt
import polars as pl

from curtail_pipeline.emissions.baselines import Compared, by_name
from curtail_pipeline.emissions.basis import is_synthetic
from curtail_pipeline.emissions.chart_style import (
    FRAME,
    INK,
    MODE_COLOURS,
    OURS_COLOUR,
    PALE,
    SHORT,
    SIGNAL_COLOUR,
    SOFT,
    STATE_COLOURS,
    STATE_NAMES,
    VOID,
    WINDOW_COLOUR,
    Chart,
    Size,
    colour_scale,
    heading,
    inline,
    legend,
    state_scale,
    time_axis,
)
from curtail_pipeline.emissions.formats import mass
from curtail_pipeline.emissions.grams import CHARGING
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.signals.held import Signal
from curtail_pipeline.storage.manifest import Manifest
from curtail_pipeline.times import Cell, times_column

MOST_POINTS = 2500
"""Signal values drawn per site; a longer trace is drawn as means."""


@dataclass(frozen=True)
class Step:
    """A stretch of constant signal, gCO2/kWh."""

    start: datetime
    end: datetime
    value: float


def signal_steps(signal: Signal | None, start: datetime, end: datetime, most: int = MOST_POINTS) -> list[Step]:
    """The known steps inside the range; means over equal spans where there are too many to draw."""
    if signal is None:
        return []
    stamps = times_column(signal.edges)
    held = signal.held_at(signal.edges)
    steps = pl.DataFrame({"start": stamps[:-1], "end": stamps[1:], "value": held[:-1]}).fill_nan(None)
    steps = steps.filter((pl.col("end") > start) & (pl.col("start") < end)).with_columns(
        pl.max_horizontal("start", pl.lit(start)).alias("start"), pl.min_horizontal("end", pl.lit(end)).alias("end")
    )
    if len(steps) > most:
        every = (end - start) / most + timedelta(microseconds=1)
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
    span: tuple[datetime, datetime],
    threshold: float | None,
    size: Size,
) -> Chart:
    """Signal, windows and what each site did, one panel per site over one time axis; segments below.

    `intervals` as of `grams.INTERVAL_SCHEMA`; `threshold` in gCO2/kWh, drawn dashed.
    """
    panels: list[Chart] = [_timeline_legend(threshold, set(intervals["state"]), size)]
    for site in sites:
        name = site.name if site.name == site.region else f"{site.name} ({site.region})"
        if is_synthetic(traces.filter(pl.col("region") == site.region)):
            name += " · synthetic signal"
        own = windows.filter(pl.col("site") == site.name)
        panels.append(_signal_panel(name, signals.get(site.region), own, span, threshold, size))
        panels.append(_state_strip(site, intervals, span, size))
    panels.append(_segment_strip(manifests, span, size))
    return alt.vconcat(*panels, spacing=6)


def _timeline_legend(threshold: float | None, states: set[str], size: Size) -> Chart:
    """One legend for all panels, in as many lines as it needs."""
    entries = [("curtailment window", WINDOW_COLOUR)]
    entries += [
        (STATE_NAMES[name], colour)
        for name, colour in STATE_COLOURS.items()
        if name != CHARGING and (name in states or name in ("training", "idle"))
    ]
    entries += [(f"{name} segment", colour) for name, colour in MODE_COLOURS.items()]
    if threshold is not None:
        entries.append((f"- - {threshold:g} gCO2/kWh", VOID))
    rows: list[dict[str, Cell]] = []
    at, line = 6.0, 0
    for name, colour in entries:
        wide = 34 + 6.2 * len(name)
        if at + wide > size.width + 30 and at > 6:
            at, line = 6.0, line + 1
        rows.append({"x": at, "text": at + 10, "line": line, "name": name, "colour": colour})
        at += wide
    base = alt.Chart(inline(rows))
    y = alt.Y("line:Q", scale=alt.Scale(domain=[line + 0.5, -0.5], nice=False), axis=None)
    scale = alt.Scale(domain=[0, size.width], nice=False)
    x, text = (alt.X(f"{field}:Q", scale=scale, axis=None) for field in ("x", "text"))
    squares = base.mark_square(size=110, opacity=1).encode(x=x, y=y, color=alt.Color("colour:N", scale=None))
    names = base.mark_text(align="left", fontSize=11, color=INK).encode(x=text, y=y, text="name:N")
    found: Chart = alt.layer(squares, names).properties(width=size.width, height=18 * (line + 1))
    return found


def _signal_panel(
    title: str,
    signal: Signal | None,
    windows: pl.DataFrame,
    span: tuple[datetime, datetime],
    threshold: float | None,
    size: Size,
) -> Chart:
    start, end = span
    steps = signal_steps(signal, start, end)
    own = windows.select(
        pl.max_horizontal("start", pl.lit(start)).alias("start"),
        pl.min_horizontal(pl.col("end").fill_null(end), pl.lit(end)).alias("end"),
    )
    own = own.filter(pl.col("start") < pl.col("end"))
    x = time_axis(start, end, size, labels=False)
    bands = alt.Chart(inline(own.rows(named=True))).mark_rect(color=WINDOW_COLOUR).encode(x=x, x2="end:T")
    top = max([step.value for step in steps] + [threshold or 0, 1]) * 1.05
    bottom = min([step.value for step in steps] + [0])
    y = alt.Y(
        "value:Q",
        title="gCO2/kWh",
        scale=alt.Scale(domain=[bottom, top], nice=False),
        axis=alt.Axis(tickCount=3, titleColor=SOFT, grid=False),
    )
    line = alt.Chart(inline(step_points(steps))).mark_line(
        interpolate="step-after", color=SIGNAL_COLOUR, strokeWidth=1.2, strokeJoin="bevel"
    )
    line = line.encode(x=x, y=y, detail="run:N")
    layers = [bands, line]
    if threshold is not None:
        limit = alt.Chart(inline([{"value": threshold}])).mark_rule(color="#C4515E", strokeDash=[4, 3], strokeWidth=1)
        layers.append(limit.encode(y=y))
    return alt.layer(*layers).properties(width=size.width, height=92, title=heading(title))


def step_points(steps: Sequence[Step]) -> list[dict[str, Cell]]:
    """Points of a step line: a new `run` after every gap, and the end of each run as a point of its own."""
    points: list[dict[str, Cell]] = []
    run = 0
    for step, following in zip_longest(steps, steps[1:]):
        points.append({"start": step.start, "value": step.value, "run": run})
        if following is None or following.start != step.end:
            points.append({"start": step.end, "value": step.value, "run": run})
            run += 1
    return points


def _state_strip(site: Site, intervals: pl.DataFrame, span: tuple[datetime, datetime], size: Size) -> alt.Chart:
    start, end = span
    shown = (pl.col("site") == site.name) & (pl.col("state") != CHARGING)
    own = intervals.filter(shown & (pl.col("end") > start) & (pl.col("start") < end))
    rows = own.select("start", "end", pl.col("state").replace_strict(STATE_NAMES).alias("state")).rows(named=True)
    colour = alt.Color("state:N", scale=state_scale(STATE_NAMES), legend=None)
    strip: alt.Chart = (
        alt.Chart(inline(rows))
        .mark_rect()
        .encode(x=time_axis(start, end, size, labels=False), x2="end:T", color=colour)
        .properties(width=size.width, height=10, view=alt.ViewConfig(stroke=FRAME, fill=VOID))
    )
    return strip


def _segment_strip(manifests: Sequence[Manifest], span: tuple[datetime, datetime], size: Size) -> Chart:
    """One box per segment with the number of its checkpoint, where it is wide enough for it."""
    start, end = span
    rows: list[dict[str, Cell]] = [
        {
            "start": max(m.start, start),
            "end": min(m.end, end),
            "middle": m.start + (m.end - m.start) / 2,
            "mode": m.mode,
            "label": number if (m.end - m.start) / (end - start) * size.width > 8 * len(number) + 4 else "",
        }
        for m in manifests
        if m.mode != "init" and m.end > m.start
        for number in (str(int(m.key.removeprefix("ckpt-"))),)
    ]
    scale = alt.Scale(domain=[*MODE_COLOURS], range=[*MODE_COLOURS.values()])
    x = time_axis(start, end, size, labels=True)
    boxes = alt.Chart(inline(rows)).mark_rect(stroke=VOID, strokeWidth=1)
    boxes = boxes.encode(x=x, x2="end:T", color=alt.Color("mode:N", scale=scale, legend=None))
    labels = alt.Chart(inline(rows)).mark_text(fontSize=11, color="white", fontWeight="bold")
    labels = labels.encode(x=alt.X("middle:T", scale=alt.Scale(type="utc")), text="label:N")
    view = alt.ViewConfig(stroke=FRAME, fill=VOID)
    title = heading("segments (number of their checkpoint)")
    return alt.layer(boxes, labels).properties(width=size.width, height=18, title=title, view=view)


def loss_chart(losses: pl.DataFrame, heldout: pl.DataFrame, sites: Sequence[Site], size: Size) -> Chart:
    """Training loss per round and site as points, held-out loss per checkpoint as a line, over tokens.

    `losses`: `site, tokens, loss`; `heldout`: `checkpoint, tokens, loss`; tokens cumulative, losses in nat per token.
    """
    x = alt.X("tokens:Q", title="tokens", axis=alt.Axis(labelExpr=SHORT, grid=False, tickCount=size.ticks))
    y = alt.Y("loss:Q", title="loss, nat per token", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5))
    points = alt.Chart(inline(losses.rows(named=True))).mark_circle(size=42, opacity=0.85)
    shown = legend("training loss of a round", size)
    points = points.encode(x=x, y=y, color=alt.Color("site:N", scale=colour_scale(sites), legend=shown))
    base = alt.Chart(inline(heldout.with_columns(series=pl.lit("held-out loss of a checkpoint")).rows(named=True)))
    dash = alt.StrokeDash("series:N", legend=legend(size=size), scale=alt.Scale(range=[[1, 0]]))
    line = base.mark_line(color=INK, strokeWidth=1.6).encode(x=x, y=y, strokeDash=dash)
    marks = base.mark_point(color=INK, filled=True, size=30, shape="diamond").encode(x=x, y=y)
    return alt.layer(points, line, marks).properties(width=size.width, height=240)


def per_checkpoint(by_checkpoint: pl.DataFrame, sites: Sequence[Site], size: Size) -> Chart:
    """Energy and CO2 of each checkpoint, stacked by site. `by_checkpoint`: `checkpoint, site, kwh, co2_g`."""
    number = pl.col("checkpoint").str.strip_prefix("ckpt-").cast(pl.Int64, strict=False).cast(pl.String)
    rows = by_checkpoint.with_columns(checkpoint=number.fill_null("since")).rows(named=True)
    order = sorted({row["checkpoint"] for row in rows}, key=lambda name: (name == "since", name.zfill(9)))
    width = size.width if size.narrow else (size.width - 60) / 2
    panels: list[alt.Chart] = []
    for column, title in (("kwh", "energy, kWh"), ("co2_g", "emissions, g CO2")):
        axis = alt.Axis(labelAngle=0, labelOverlap=True)
        chart = alt.Chart(inline(rows)).mark_bar(size=max(2, min(26, int(0.75 * width / max(len(order), 1)))))
        chart = chart.encode(
            x=alt.X("checkpoint:O", title="checkpoint", sort=order, axis=axis),
            y=alt.Y(f"{column}:Q", title=title, stack="zero", axis=alt.Axis(tickCount=5)),
            color=alt.Color("site:N", scale=colour_scale(sites), legend=None if panels else legend(size=size)),
        )
        panels.append(chart.properties(width=width, height=200))
    return alt.vconcat(*panels, spacing=20) if size.narrow else alt.hconcat(*panels, spacing=40)


def against_baselines(ours_g: float, baselines: Sequence[Compared], oracle_g: float | None, size: Size) -> Chart:
    """Our CO2, that of each baseline where it is known, and the least possible, as bars with their amounts."""
    known = [("this run", ours_g)]
    known += [] if oracle_g is None else [("least possible", oracle_g)]
    known += [(f"always on, {name}", row.co2_g) for name, row in by_name(baselines).items() if row.co2_g is not None]
    rows: list[dict[str, Cell]] = [
        {"name": name, "kg": g / 1000, "label": mass(g), "ours": name == "this run"} for name, g in known
    ]
    order = [name for name, _ in known]
    axis = alt.Axis(labelLimit=150 if size.narrow else 260, labelFontSize=11, ticks=False, domain=False, grid=False)
    y = alt.Y("name:N", title=None, sort=order, axis=axis)
    top = max(grams for _, grams in known) / 1000 * (1.45 if size.narrow else 1.12) or 1
    x = alt.X("kg:Q", title="kg CO2", scale=alt.Scale(domain=[0, top]), axis=alt.Axis(tickCount=size.ticks / 2))
    bars = alt.Chart(inline(rows)).mark_bar(size=20, cornerRadiusEnd=2)
    bars = bars.encode(y=y, x=x, color=alt.condition("datum.ours", alt.value(OURS_COLOUR), alt.value(PALE)))
    text = alt.Chart(inline(rows)).mark_text(align="left", dx=5, color=INK, fontSize=12)
    width = size.width - (110 if size.narrow else 130)
    return alt.layer(bars, text.encode(y=y, x=x, text="label:N")).properties(width=width, height=30 * len(rows))
