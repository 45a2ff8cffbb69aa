"""How charts look, at two widths and in two schemes, and how they become SVG or PNG without a browser or a network.

A chart that is shrunk to a phone's width cannot be read: each is drawn for its width. Colours are those of the light
scheme; in a page, or in an SVG by itself, the reader's `prefers-color-scheme` replaces those of ink, lines and ground.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import altair as alt

from curtail_pipeline.emissions.grams import CHARGING
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.times import Cell, iso, iso_cells

SITE_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
"""Okabe and Ito: distinguishable with any colour vision, on light and on dark. Repeats from the seventh site on."""
STATE_COLOURS = {
    "training": "#1B8A62",
    "idle": "#E0A030",
    "start_up": "#C9B07A",
    "transfer": "#6FA8A0",
    "failed": "#C4515E",
    CHARGING: "#8B80BD",
}
STATE_NAMES = {
    "training": "training",
    "idle": "idle, warm",
    "start_up": "start-up",
    "transfer": "loading, sending, merging",
    "failed": "lost training",
    CHARGING: "battery charging",
}
MODE_COLOURS = {"local": "#5B9BC8", "federated": "#22577A"}
OURS_COLOUR = "#1B8A62"
WINDOW_COLOUR = "#CFEBDD"
SIGNAL_COLOUR = "#3B4252"
INK, SOFT = "#1F2933", "#6B7785"
GROUND, GRID, DOMAIN, VOID, FRAME, PALE = "#FFFFFF", "#E9EDF2", "#C5CDD6", "#F6F8FA", "#E3E8EE", "#B7C1CC"
SHORT = "datum.value === 0 ? '0' : format(datum.value, '~s')"

_DARK: Final = {
    WINDOW_COLOUR: "#1E4A38",
    SIGNAL_COLOUR: "#C9D1DC",
    INK: "#E6EAF0",
    SOFT: "#9AA6B4",
    GROUND: "#161B22",
    GRID: "#2A313B",
    DOMAIN: "#46505D",
    VOID: "#1B2129",
    FRAME: "#2F3742",
    PALE: "#5A6675",
    SITE_COLOURS[0]: "#3D9BDC",
    MODE_COLOURS["federated"]: "#3F7CA8",
}
"""By the light scheme's colour. Those of sites and states are the same in both but for dark blues."""

Chart = alt.Chart | alt.LayerChart | alt.VConcatChart | alt.HConcatChart | alt.FacetChart


@dataclass(frozen=True)
class Size:
    """What a chart is drawn for."""

    name: str
    width: int
    """Of the plot, without its axis, pixels."""
    ticks: int
    """On an axis of time."""

    @property
    def narrow(self) -> bool:
        return self.width < 500


WIDE = Size("wide", 860, 12)
NARROW = Size("narrow", 268, 4)
"""For a screen of 390 pixels, with the page's margins and the axis."""


def colour_scale(sites: Sequence[Site]) -> alt.Scale:
    names = [site.name for site in sites]
    return alt.Scale(domain=names, range=[SITE_COLOURS[i % len(SITE_COLOURS)] for i in range(len(names))])


def state_scale(states: Iterable[str]) -> alt.Scale:
    """Of the names of these states, in the order in which they are always shown; of all where there is none."""
    wanted = set(states) or set(STATE_NAMES)
    shown = [name for name in STATE_NAMES if name in wanted]
    return alt.Scale(domain=[STATE_NAMES[name] for name in shown], range=[STATE_COLOURS[name] for name in shown])


def inline(rows: Iterable[Mapping[str, Cell]]) -> alt.InlineData:
    """The data of a chart; a tuple, since altair copies a list, row by row, whenever it puts charts together."""
    return alt.InlineData(tuple(iso_cells(rows)))


def time_axis(start: datetime, end: datetime, size: Size, *, labels: bool, field: str = "start") -> alt.X:
    """A shared UTC axis; ticks with the date at midnight."""
    axis = alt.Axis(
        title=None,
        labels=labels,
        ticks=labels,
        domain=labels,
        grid=False,
        tickCount=size.ticks,
        labelOverlap=True,
        labelExpr="utchours(datum.value) == 0 && utcminutes(datum.value) == 0"
        " ? utcFormat(datum.value, '%b %d') : utcFormat(datum.value, '%H:%M')",
    )
    return alt.X(f"{field}:T", scale=alt.Scale(type="utc", domain=[iso(start), iso(end)], nice=False), axis=axis)


def heading(text: str) -> alt.TitleParams:
    """Of one panel."""
    return alt.TitleParams(text, anchor="start", frame="group", fontSize=12, color=INK, offset=4)


def legend(title: str | None = None, size: Size = WIDE) -> alt.Legend:
    """Above the chart, in as many lines as a narrow one needs."""
    return alt.Legend(title=title, orient="top", columns=2 if size.narrow else 0, labelLimit=180)


def _spec(chart: Chart) -> str:
    styled = chart.resolve_scale(color="independent") if isinstance(chart, alt.VConcatChart) else chart
    # all at once: every call copies the chart
    spec: str = styled.configure(
        font="Helvetica, Arial, sans-serif",
        background=GROUND,
        padding=4,
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(
            labelColor=SOFT,
            titleColor=SOFT,
            gridColor=GRID,
            domainColor=DOMAIN,
            tickColor=DOMAIN,
            titleFontWeight="normal",
            labelFontSize=11,
            titleFontSize=11,
        ),
        legend=alt.LegendConfig(
            labelColor=INK, titleColor=SOFT, titleFontWeight="normal", labelFontSize=11, titleFontSize=11
        ),
    ).to_json(indent=None, validate=False)
    return spec


def dark_rules(within: str = "") -> str:
    """CSS that gives charts the dark scheme's colours where the reader prefers it; `within`: a selector before each."""
    rules = "".join(
        f'{within}[{name}="{light}" i]{{{name}:{dark}}}' for light, dark in _DARK.items() for name in ("fill", "stroke")
    )
    return f"@media (prefers-color-scheme:dark){{{rules}}}"


def to_svg(chart: Chart, prefix: str) -> str:
    """An SVG for use inside a page, at its own size: `prefix` keeps its ids apart from other charts'."""
    import vl_convert

    svg: str = vl_convert.vegalite_to_svg(_spec(chart))
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = svg.replace("url(#", f"url(#{prefix}-").replace('href="#', f'href="#{prefix}-')
    return svg.replace("<svg ", '<svg role="img" style="max-width:100%;height:auto" ', 1)


def as_file(svg: str) -> str:
    """What `to_svg` returns as a file by itself, which follows the reader's scheme too."""
    begin = svg.index(">", svg.index("<svg ")) + 1
    return f"{svg[:begin]}<style>{dark_rules()}</style>{svg[begin:]}"


def as_png(svg: str, scale: float = 2.0) -> bytes:
    """What `to_svg` returns as pixels, in the light scheme: without drawing the chart again."""
    import vl_convert

    png: bytes = vl_convert.svg_to_png(svg, scale=scale)
    return png


def to_png(chart: Chart, scale: float = 2.0) -> bytes:
    """A PNG, e.g. for the metadata of a materialisation."""
    import vl_convert

    png: bytes = vl_convert.vegalite_to_png(_spec(chart), scale=scale)
    return png
