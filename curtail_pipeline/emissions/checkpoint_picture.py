"""A checkpoint as one small picture: how the loss got there, and what power and CO2 each site took for it."""

from collections.abc import Sequence
from dataclasses import dataclass

import altair as alt
import polars as pl

from curtail_pipeline.emissions.basis import label_of
from curtail_pipeline.emissions.chart_style import (
    INK,
    SHORT,
    SOFT,
    STATE_NAMES,
    Chart,
    as_png,
    colour_scale,
    inline,
    state_scale,
    to_svg,
)
from curtail_pipeline.emissions.formats import mass, short
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.storage.manifest import Manifest
from curtail_pipeline.times import Cell

MOST_BYTES = 50_000
"""The picture stands in the event log, base64-coded, once per checkpoint."""
CURVE_WIDTH, BARS_WIDTH, HEIGHT = 400, 250, 190
ROW_HEIGHT = 26
SCALES = (1.0, 0.75, 0.6)
"""At 1.25 the picture of one site without a round is above `MOST_BYTES` (63 kB)."""
SHRINKS = 1.5
"""Bytes of a PNG fall with no more than this power of its scale (1.43 measured): what cannot fit is not drawn."""


@dataclass(frozen=True)
class Shown:
    """What the picture is made of."""

    manifest: Manifest
    sites: Sequence[Site]
    losses: pl.DataFrame
    """`checkpoint, site, tokens, loss`: of every round, tokens cumulative, nat per token."""
    heldout: pl.DataFrame
    """`checkpoint, tokens, loss`."""
    ledger: pl.DataFrame
    """Of this checkpoint, as `grams.LEDGER_SCHEMA`."""
    synthetic: bool
    """Whether a model made the signal that its CO2 was counted with."""


def picture(shown: Shown) -> bytes:
    """The PNG, below `MOST_BYTES`."""
    chart = alt.hconcat(_curve(shown), _bars(shown), spacing=28).properties(title=_title(shown))
    svg, (largest, *smaller) = to_svg(chart, "picture"), SCALES
    found = first = as_png(svg, largest)
    for scale in smaller:
        if len(found) <= MOST_BYTES:
            break
        if scale == smaller[-1] or len(first) * (scale / largest) ** SHRINKS <= MOST_BYTES:
            found = as_png(svg, scale)
    return found


def _title(shown: Shown) -> alt.TitleParams:
    manifest = shown.manifest
    own = shown.heldout.filter(pl.col("checkpoint") == manifest.key)["loss"]
    heldout = f"held-out loss {own[0]:.3f}" if len(own) else "held-out loss not evaluated yet"
    tokens = f"{short(manifest.tokens.segment)} tokens of {short(manifest.tokens.total)}"
    who = f"{manifest.mode}, {', '.join(manifest.members)}" if manifest.members else manifest.mode
    kwh = float(shown.ledger["kwh"].sum())
    unknown = float(shown.ledger["unaccounted_kwh"].fill_null(0.0).sum()) > 0
    grams = float(shown.ledger["co2_g"].fill_null(0.0).sum())
    energy = f"{kwh:.3g} kWh, {mass(grams)} CO2{' of what is accounted' if unknown else ''}"
    basis = label_of(shown.ledger, synthetic=shown.synthetic)
    return alt.TitleParams(
        f"{manifest.key} · {tokens} · {heldout}",
        subtitle=f"{who} · {energy}{f': {basis}' if basis else ''}",
        anchor="start",
        offset=12,
        fontSize=13,
        color=INK,
        subtitleColor=SOFT,
        subtitleFontSize=11,
    )


def _curve(shown: Shown) -> Chart:
    """Training loss per round and site, held-out loss per checkpoint, over tokens; this checkpoint's part is shaded."""
    manifest = shown.manifest
    losses, heldout = shown.losses.rows(named=True), shown.heldout.rows(named=True)
    x = alt.X("tokens:Q", title="tokens", axis=alt.Axis(labelExpr=SHORT, grid=False, tickCount=5))
    y = alt.Y("loss:Q", title="loss, nat per token", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=4))
    begin = manifest.tokens.total - manifest.tokens.segment
    part: list[dict[str, Cell]] = [{"tokens": begin, "until": manifest.tokens.total}]
    band = alt.Chart(inline(part)).mark_rect(color="#EEF3F8").encode(x=x, x2="until:Q")
    legend = alt.Legend(title=None, orient="bottom", symbolType="circle")
    points = alt.Chart(inline(losses)).mark_circle(size=26, opacity=0.85)
    points = points.encode(x=x, y=y, color=alt.Color("site:N", scale=colour_scale(shown.sites), legend=legend))
    base = alt.Chart(inline(heldout)).encode(x=x, y=y)
    line, marks = base.mark_line(color=INK, strokeWidth=1.4), base.mark_point(color=INK, filled=True, shape="diamond")
    title = alt.TitleParams("training loss (dots), held-out loss (line)", anchor="start", fontSize=11, color=SOFT)
    layers = [band, points, line, marks] if losses or heldout else [band]
    return alt.layer(*layers).properties(width=CURVE_WIDTH, height=HEIGHT, title=title)


def _bars(shown: Shown) -> Chart:
    """Energy by power state and gCO2, a row per site."""
    by_site = shown.ledger.group_by("site", maintain_order=True).agg(
        pl.col("kwh").sum(), pl.col("co2_g").sum(), pl.col("unaccounted_kwh").sum()
    )
    sites = [site.name for site in shown.sites if site.name in by_site["site"].to_list()]
    states = shown.ledger.select("site", "kwh", pl.col("state").replace_strict(STATE_NAMES).alias("state"))
    y = alt.Y("site:N", title=None, sort=sites, axis=alt.Axis(labelLimit=110, ticks=False, domain=False))
    height = max(1, len(sites)) * ROW_HEIGHT
    energy = (
        alt.Chart(inline(states.rows(named=True)))
        .mark_bar(size=14)
        .encode(
            y=y,
            x=alt.X("kwh:Q", title="kWh", axis=alt.Axis(tickCount=4)),
            color=alt.Color(
                "state:N", scale=state_scale(shown.ledger["state"]), legend=alt.Legend(title=None, orient="bottom")
            ),
        )
        .properties(width=BARS_WIDTH, height=height)
    )
    rows: list[dict[str, Cell]] = [
        {"site": site, "g": grams or 0.0, "label": "no accounting signal" if unknown >= kwh > 0 else mass(grams)}
        for site, kwh, grams, unknown in by_site.iter_rows()
    ]
    top = max([grams or 0.0 for grams in by_site["co2_g"]], default=0.0) * 1.25 or 1.0  # room for the labels
    base = alt.Chart(inline(rows)).encode(
        y=y, x=alt.X("g:Q", title="g CO2", scale=alt.Scale(domain=[0, top]), axis=alt.Axis(tickCount=4))
    )
    bars = base.mark_bar(size=14, color="#6B7785")
    labels = base.mark_text(align="left", dx=4, color=INK, fontSize=10).encode(text="label:N")
    carbon = alt.layer(bars, labels).properties(width=BARS_WIDTH, height=height)
    both: Chart = alt.vconcat(energy, carbon, spacing=8).resolve_scale(color="independent")
    return both
