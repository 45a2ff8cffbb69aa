"""A checkpoint as one small picture: how the loss got there, and what power and CO2 each site took for it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import polars as pl

from curtail_pipeline.emissions.basis import label_of
from curtail_pipeline.emissions.formats import mass, short
from curtail_pipeline.emissions.palette import GRID, INK, SOFT, STATE_COLOURS, STATE_NAMES, site_colours
from curtail_pipeline.emissions.svg_drawing import (
    PADDING,
    Drawing,
    Scale,
    fitted,
    nice_scale,
    short_tick,
    width_of,
)
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.storage.manifest import Manifest

CURVE_WIDTH, BARS_WIDTH, HEIGHT = 400.0, 250.0, 190.0
ROW_HEIGHT, BAR = 26.0, 14.0
TOP = 58.0
"""Of both halves, below the title."""
APART = 28.0
LONGEST_NAME = 110.0
PART = "#EEF3F8"
"""Behind what this checkpoint trained."""
MOST_DOTS = 2_000
"""More cannot be told apart. The picture stands in the event log, base64-coded, and twice per checkpoint."""


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


def picture(shown: Shown) -> str:
    """The SVG."""
    drawing = Drawing()
    title, subtitle = titles(shown)
    drawing.text(PADDING, 16, title, size=13, bold=True)
    drawing.text(PADDING, 31, subtitle, colour=SOFT)
    right = _curve(drawing, shown)
    if len(shown.ledger):
        _bars(drawing, shown, right + APART)
    return drawing.svg()


def titles(shown: Shown) -> tuple[str, str]:
    """The first line and the second."""
    manifest = shown.manifest
    own = shown.heldout.filter(pl.col("checkpoint") == manifest.key)["loss"]
    heldout = f"held-out loss {own[0]:.3f}" if len(own) else "held-out loss not evaluated yet"
    tokens = f"{short(manifest.tokens.segment)} tokens of {short(manifest.tokens.total)}"
    who = f"{manifest.mode}, {', '.join(manifest.members)}" if manifest.members else manifest.mode
    if width_of(who, 11) > CURVE_WIDTH:
        who = f"{manifest.mode}, {len(manifest.members)} sites"
    kwh = float(shown.ledger["kwh"].sum())
    unknown = float(shown.ledger["unaccounted_kwh"].fill_null(0.0).sum()) > 0
    grams = float(shown.ledger["co2_g"].fill_null(0.0).sum())
    energy = f"{kwh:.3g} kWh, {mass(grams)} CO2{' of what is accounted' if unknown else ''}"
    basis = label_of(shown.ledger, synthetic=shown.synthetic)
    first = f"{manifest.key} · {tokens} · {heldout}"
    return first, f"{who} · {energy}{f': {basis}' if basis else ''}"


def _curve(drawing: Drawing, shown: Shown) -> float:
    """Training loss per round and site, held-out loss per checkpoint, over tokens; this checkpoint's part is shaded.

    Where it ends on the right.
    """
    manifest, known = shown.manifest, pl.col("loss").is_finite()
    losses, heldout = shown.losses.filter(known), shown.heldout.filter(known)
    begin, total = manifest.tokens.total - manifest.tokens.segment, manifest.tokens.total
    tokens = [begin, total, *losses["tokens"], *heldout["tokens"]]
    values = [*losses["loss"], *heldout["loss"]]
    bottom = TOP + HEIGHT
    up = nice_scale(min(values), max(values), 4, bottom, TOP) if values else None
    labels = {tick: up.label(tick) for tick in up.ticks} if up else {}
    left = PADDING + (20 + max(width_of(label, 11) for label in labels.values()) if labels else 0)
    across = nice_scale(min(tokens), max(tokens), 5, left, left + CURVE_WIDTH)
    drawing.text(left, TOP - 9, "training loss (dots), held-out loss (line)", colour=SOFT, bold=True)
    drawing.box(across(begin), TOP, across(total) - across(begin), HEIGHT, PART)
    counts = {tick: short_tick(tick) for tick in across.ticks if tick.is_integer()}
    drawing.axis(across, bottom, "tokens", counts, (bottom, GRID))
    if up is not None:
        for tick, label in labels.items():
            drawing.line(left, up(tick), across.end, up(tick), GRID)
            drawing.text(left - 5, up(tick) + 4, label, colour=SOFT, anchor="end")
        drawing.turned(PADDING + 9, (TOP + bottom) / 2, "loss, nat per token")
        _losses(drawing, shown, losses, heldout, across, up)
    return left + CURVE_WIDTH


def _losses(
    drawing: Drawing, shown: Shown, losses: pl.DataFrame, heldout: pl.DataFrame, across: Scale, up: Scale
) -> None:
    def placed(rows: pl.DataFrame) -> list[tuple[float, float]]:
        return [(across(tokens), up(loss)) for tokens, loss in rows.select("tokens", "loss").iter_rows()]

    colours = site_colours([site.name for site in shown.sites])
    for site, colour in colours.items():
        own = losses.filter(pl.col("site") == site)
        most = MOST_DOTS // len(colours)
        if len(own):
            drawing.dots(placed(own.gather_every(math.ceil(len(own) / most))), colour, 5.8)
    if len(heldout):
        drawing.curve(placed(heldout), INK, 1.4)
        drawing.diamonds(placed(heldout), INK, 6)
    drawn = {site: colour for site, colour in colours.items() if site in losses["site"]}
    drawing.legend(across.begin, up.begin + 58, drawn, CURVE_WIDTH, round_ones=True)


def _bars(drawing: Drawing, shown: Shown, left: float) -> None:
    """Energy by power state and gCO2, a row per site."""
    by_site = shown.ledger.group_by("site", maintain_order=True).agg(
        pl.col("kwh").sum(), pl.col("co2_g").sum(), pl.col("unaccounted_kwh").sum()
    )
    order = {site.name: n for n, site in enumerate(shown.sites)}
    sums = sorted(by_site.iter_rows(), key=lambda row: order.get(row[0], len(order)))
    names = [fitted(site, 11, LONGEST_NAME) for site, *_ in sums]
    begin = left + max(width_of(name, 11) for name in names) + 5
    height = len(sums) * ROW_HEIGHT
    states = shown.ledger.group_by("site", "state").agg(pl.col("kwh").sum())
    kwh = {(site, state): amount for site, state, amount in states.iter_rows()}
    energy = nice_scale(0, max(row[1] for row in sums), 4, begin, begin + BARS_WIDTH)
    _rows(drawing, names, left, energy, TOP, "kWh")
    shades = {state: colour for state, colour in STATE_COLOURS.items() if state in states["state"]}
    for n, (site, *_) in enumerate(sums):
        amounts = [kwh.get((site, state), 0.0) for state in shades]
        ends = [sum(amounts[:i]) for i in range(len(amounts) + 1)]
        for (low, high), colour in zip(pairwise(ends), shades.values(), strict=True):
            if high > low:
                drawing.box(energy(low), _bar(TOP, n), energy(high) - energy(low), BAR, colour)
    entries = {STATE_NAMES[state]: colour for state, colour in shades.items()}
    top = 22 + drawing.legend(begin, TOP + height + 56, entries, BARS_WIDTH, round_ones=False)
    known = [grams or 0.0 for _, _, grams, _ in sums]
    carbon = nice_scale(0, max(known), 4, begin, begin + BARS_WIDTH)
    _rows(drawing, names, left, carbon, top, "g CO2")
    for n, (_, used, grams, unknown) in enumerate(sums):
        drawing.box(begin, _bar(top, n), carbon(grams or 0.0) - begin, BAR, SOFT)
        label = "no accounting signal" if unknown >= used > 0 else mass(grams)
        drawing.text(carbon(grams or 0.0) + 4, _bar(top, n) + 11, label, size=10)


def _bar(top: float, row: int) -> float:
    return top + row * ROW_HEIGHT + (ROW_HEIGHT - BAR) / 2


def _rows(drawing: Drawing, names: Iterable[str], left: float, scale: Scale, top: float, unit: str) -> None:
    """The names of the sites, and an axis below them."""
    rows = 0
    for rows, name in enumerate(names, start=1):
        drawing.text(scale.begin - 5, _bar(top, rows - 1) + 11, name, colour=SOFT, anchor="end")
    drawing.axis(scale, top + rows * ROW_HEIGHT, unit, {tick: scale.label(tick) for tick in scale.ticks}, (top, GRID))
