"""The emissions report: one HTML page without scripts or links to elsewhere, so that it reads the same offline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from curtail_pipeline.emissions.baselines import Compared, by_name
from curtail_pipeline.emissions.basis import is_synthetic, label_of
from curtail_pipeline.emissions.footprint import Footprint, FootprintInput, beside_rows, footprint
from curtail_pipeline.emissions.formats import mass, percent, short
from curtail_pipeline.emissions.grams import Totals, below_share, pieces, sum_ledger, totals, totals_by
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.signals.held import Signal
from curtail_pipeline.storage.manifest import Manifest
from curtail_pipeline.storage.tables import BETWEEN
from curtail_pipeline.times import TIME

if TYPE_CHECKING:
    from curtail_pipeline.emissions.chart_style import Chart, Size

LOSS_SCHEMA: dict[str, pl.DataType] = {
    "checkpoint": pl.String(),
    "site": pl.String(),
    "time": TIME,
    "tokens": pl.Int64(),
    "loss": pl.Float64(),
}
"""Mean training loss of a site's round, nat per token, at its end and the cumulative tokens after it."""

HELDOUT_SCHEMA: dict[str, pl.DataType] = {
    "checkpoint": pl.String(),
    "time": TIME,
    "tokens": pl.Int64(),
    "loss": pl.Float64(),
}
"""Held-out loss of a checkpoint, nat per token."""


CHARTS = (
    "timeline", "power", "cumulative", "baselines", "curtailed", "grams", "checkpoints", "progress", "loss",
)  # fmt: skip
"""In the order of the page."""


@dataclass(frozen=True)
class ReportInput:
    """Everything a report is made of; tables as the modules that make them define them."""

    name: str
    """Of the experiment."""
    experiment_sha256: str
    policy: str
    sites: Sequence[Site]
    manifests: Sequence[Manifest]
    traces: pl.DataFrame
    signals: Mapping[str, Signal]
    """What the ledger was accounted with, by region."""
    windows: pl.DataFrame
    intervals: pl.DataFrame
    """`grams.INTERVAL_SCHEMA`, all checkpoints."""
    ledger: pl.DataFrame
    """`grams.LEDGER_SCHEMA`, all checkpoints."""
    baselines: Sequence[Compared]
    losses: pl.DataFrame
    """LOSS_SCHEMA."""
    heldout: pl.DataFrame
    """HELDOUT_SCHEMA."""
    threshold: float | None
    """gCO2/kWh below which the policy opens a window, if it has one."""
    written: datetime
    tool_version: str
    forecast: Mapping[str, Signal] = field(default_factory=dict)
    """`footprint.FootprintInput.forecast`."""
    power_error: float = 0.1
    oracle_g: float | None = None
    """The least CO2 that the same steps could have had; None where nobody can tell."""
    stale: Sequence[str] = ()
    """Checkpoints that were counted with other signals than are stored now."""

    @property
    def signal_versions(self) -> list[str]:
        """Of the signals that the ledger was counted with."""
        return sorted(self.ledger["signal_version"].drop_nulls().unique())

    @property
    def synthetic(self) -> bool:
        """Whether any of the traces is made up."""
        return is_synthetic(self.traces)

    @property
    def basis(self) -> str | None:
        """What energy and CO2 rest on."""
        return label_of(self.ledger, synthetic=self.synthetic)

    @property
    def span(self) -> tuple[datetime, datetime]:
        """From the initialised model to the end of the last segment, or of what is booked since."""
        ends = [*(m.end for m in self.manifests), *self.intervals["end"]]
        return min(m.start for m in self.manifests), max(ends)


@dataclass(frozen=True)
class Numbers:
    """The report's numbers."""

    ours: Totals
    below_threshold_share: float | None
    """`grams.below_share` at the threshold, which is what the paper calls energy in curtailment windows;
    `curtailed_share` uses the derived windows, exit delay included."""
    steps: int
    tokens: int
    g_per_million_tokens: float | None
    beside: Footprint


def summary(data: ReportInput) -> Numbers:
    """What the page says in figures."""
    ours = totals(data.ledger)
    last = max(data.manifests, key=lambda m: m.key)
    tokens, grams = last.tokens.total, ours.co2_g
    below = None
    if data.threshold is not None:
        below = below_share(data.intervals, data.signals, data.sites, data.threshold)
    rate = grams / (tokens / 1e6) if grams is not None and tokens else None
    beside = footprint(
        FootprintInput(
            data.sites,
            data.traces,
            data.intervals,
            data.ledger,
            data.windows,
            data.signals,
            data.forecast,
            tokens,
            data.power_error,
        )
    )
    return Numbers(ours, below, last.steps.end, tokens, rate, beside)


def build_charts(data: ReportInput, size: "Size | None" = None) -> "dict[str, Chart]":
    """The report's charts by name; those without data are left out.

    Args:
        size: `chart_style.WIDE` when not given.
    """
    from curtail_pipeline.emissions import charts, run_charts
    from curtail_pipeline.emissions.chart_style import WIDE

    size = size or WIDE
    made: dict[str, Chart] = {}
    (start, end), sites = data.span, data.sites
    ours, cut = totals(data.ledger), pieces(data.intervals, data.signals, data.sites, data.windows)
    if end > start:
        made["timeline"] = charts.timeline(
            data.manifests,
            sites,
            data.traces,
            data.signals,
            data.windows,
            data.intervals,
            data.span,
            data.threshold,
            size,
        )
        if not cut.is_empty():
            made["power"] = run_charts.power(cut, sites, data.span, size)
            made["curtailed"] = run_charts.curtailed(cut, data.windows, sites, data.span, size)
        if ours.co2_g is not None and not cut.is_empty():
            made["cumulative"] = run_charts.cumulative(
                cut, data.baselines, sites, data.signals, data.oracle_g, data.span, size
            )
    if not data.losses.is_empty() or not data.heldout.is_empty():
        made["progress"] = run_charts.progress(data.losses, data.heldout, sites, data.signals, data.span, size)
        made["loss"] = charts.loss_chart(data.losses, data.heldout, sites, size)
    by_checkpoint = sum_ledger(data.ledger, ["checkpoint", "site"]).filter(pl.col("kwh") > 0)
    if not by_checkpoint.is_empty():
        made["checkpoints"] = charts.per_checkpoint(by_checkpoint, sites, size)
    if ours.co2_g:
        made["grams"] = run_charts.where_each_gram_went(data.ledger, sites, size)
    if ours.co2_g is not None and any(baseline.co2_g is not None for baseline in data.baselines):
        made["baselines"] = charts.against_baselines(ours.co2_g, data.baselines, data.oracle_g, size)
    return made


@cache
def _templates() -> Environment:
    made = Environment(
        loader=PackageLoader("curtail_pipeline.emissions"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters |= {"mass": mass, "percent": percent, "short": short}
    return made


def build_report(data: ReportInput, wide: Mapping[str, str], narrow: Mapping[str, str]) -> str:
    """The page; `wide` and `narrow`: the charts of `build_charts` for such screens as SVG, of which it shows one."""
    from curtail_pipeline.emissions.chart_style import dark_rules

    def drawn(name: str) -> Markup:
        if name not in wide:
            return Markup("")
        return Markup(f'<div class="wide">{wide[name]}</div><div class="narrow">{narrow[name]}</div>')

    numbers = summary(data)
    start, end = data.span
    below = numbers.below_threshold_share
    own = " or from on-site generation" if any(site.on_site is not None for site in data.sites) else ""
    clean = "" if below is None else f"{percent(below)} at a signal below {data.threshold:g} gCO2/kWh{own}"
    return (
        _templates()
        .get_template("report.html.j2")
        .render(
            data=data,
            numbers=numbers,
            ours=numbers.ours,
            start=start,
            end=end,
            charts={name: drawn(name) for name in CHARTS},
            dark=Markup(dark_rules("svg ")),
            beside=numbers.beside,
            rows=beside_rows(numbers.beside, numbers.g_per_million_tokens, data.power_error),
            rate=_rate(numbers),
            spread=_spread(data.baselines),
            baselines=by_name(data.baselines),
            below_threshold=clean,
            last_loss=None if data.heldout.is_empty() else float(data.heldout.sort("tokens")["loss"][-1]),
            by_site=_by_site(data),
            checkpoints=_checkpoints(data),
            since=totals_by(data.ledger, "checkpoint").get(BETWEEN),
            kinds=sorted(data.traces["kind"].unique()),
            sources=sorted(data.traces["source"].unique()),
        )
    )


def _spread(baselines: Sequence[Compared]) -> str:
    """Our share of the baselines, from the least to the most."""
    ratios = [row.ours_of_baseline for row in baselines if row.ours_of_baseline is not None]
    if not ratios:
        return "–"
    low, high = percent(min(ratios)), percent(max(ratios))
    return low if low == high else f"{low.removesuffix(' %')} to {high}"


def _rate(numbers: Numbers) -> str:
    parts = []
    if numbers.ours.g_per_kwh is not None:
        parts.append(f"{numbers.ours.g_per_kwh:.3g} g/kWh")
    if numbers.g_per_million_tokens is not None:
        parts.append(f"{mass(numbers.g_per_million_tokens)} per million tokens")
    return ", ".join(parts)


def _by_site(data: ReportInput) -> list[tuple[str, Totals, float]]:
    """Name, use and training hours of every site that drew power, and of all of them."""
    used = totals_by(data.ledger, "site")
    training = totals_by(data.ledger.filter(pl.col("state") == "training"), "site")
    rows = [
        (
            site.name if site.name == site.region else f"{site.name} ({site.region})",
            used[site.name],
            training[site.name].hours if site.name in training else 0.0,
        )
        for site in data.sites
        if site.name in used
    ]
    return [*rows, ("all sites", totals(data.ledger), sum(row.hours for row in training.values()))]


def _checkpoints(data: ReportInput) -> list[tuple[Manifest, Totals | None, float | None]]:
    used = totals_by(data.ledger, "checkpoint")
    losses = dict(zip(data.heldout["checkpoint"], data.heldout["loss"], strict=True))
    ordered = sorted(data.manifests, key=lambda manifest: manifest.key)
    return [(manifest, used.get(manifest.key), losses.get(manifest.key)) for manifest in ordered]
