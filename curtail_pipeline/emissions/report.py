"""The emissions report: one HTML page without scripts or links to elsewhere, so that it reads the same offline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, Any

import polars as pl

from curtail_pipeline.emissions.baselines import Baseline, baselines_table
from curtail_pipeline.emissions.formats import mass, percent, short
from curtail_pipeline.emissions.grams import is_synthetic, pieces, sum_ledger, totals
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.storage.manifest import Manifest

if TYPE_CHECKING:
    from curtail_pipeline.emissions.charts import Chart

LOSS_SCHEMA: dict[str, pl.DataType] = {
    "checkpoint": pl.String(),
    "site": pl.String(),
    "tokens": pl.Int64(),
    "loss": pl.Float64(),
}
"""Mean training loss of a site's round, nat per token, at the cumulative tokens after the round."""

HELDOUT_SCHEMA: dict[str, pl.DataType] = {"checkpoint": pl.String(), "tokens": pl.Int64(), "loss": pl.Float64()}
"""Held-out loss of a checkpoint, nat per token."""


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
    windows: pl.DataFrame
    intervals: pl.DataFrame
    """`power.INTERVAL_SCHEMA`, all checkpoints."""
    ledger: pl.DataFrame
    """`power.LEDGER_SCHEMA`, all checkpoints."""
    baselines: Sequence[Baseline]
    losses: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=LOSS_SCHEMA))
    heldout: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=HELDOUT_SCHEMA))
    threshold: float | None = None
    """gCO2/kWh below which the policy opens a window, if it has one."""
    power_source: str = "the constants of the site's settings"

    @property
    def synthetic(self) -> bool:
        """Whether any of the traces is made up."""
        return is_synthetic(self.traces)

    @property
    def span(self) -> tuple[datetime, datetime]:
        """From the initialised model to the end of the last segment."""
        return min(m.start for m in self.manifests), max(m.end for m in self.manifests)


def summary(data: ReportInput) -> dict[str, Any]:
    """The report's numbers: `power.totals`, baselines, tokens, steps, `g_per_million_tokens`, `below_threshold_share`.

    `below_threshold_share`: of the energy, what was drawn while the signal was below the threshold, which is what the
    paper calls energy in curtailment windows; `curtailed_share` uses the derived windows, exit delay included.
    """
    ours = totals(data.ledger)
    last = max(data.manifests, key=lambda m: m.key)
    tokens, grams = last.tokens.total, ours["co2_g"]
    below = None
    if data.threshold is not None and ours["kwh"]:
        cut = pieces(data.intervals, data.traces, data.sites)
        below = float(cut.filter(pl.col("g_per_kwh") < data.threshold)["kwh"].sum()) / ours["kwh"]
    return {
        **ours,
        "below_threshold_share": below,
        "steps": last.steps.end,
        "tokens": tokens,
        "checkpoints": len(data.manifests),
        "g_per_million_tokens": grams / (tokens / 1e6) if grams is not None and tokens else None,
        "baselines": baselines_table(data.baselines, ours).to_dicts(),
        "synthetic": data.synthetic,
    }


def build_charts(data: ReportInput) -> "dict[str, Chart]":
    """The report's charts by name: `timeline`, `loss`, `checkpoints`, `baselines`; those without data are left out."""
    from curtail_pipeline.emissions import charts

    start, end = data.span
    made: dict[str, Chart] = {}
    if end > start:
        made["timeline"] = charts.timeline(
            data.manifests, data.sites, data.traces, data.windows, data.intervals, start, end, data.threshold
        )
    if not data.losses.is_empty() or not data.heldout.is_empty():
        made["loss"] = charts.loss_chart(data.losses, data.heldout, data.sites)
    by_checkpoint = sum_ledger(data.ledger, ["checkpoint", "site"]).filter(pl.col("kwh") > 0)
    if not by_checkpoint.is_empty():
        made["checkpoints"] = charts.per_checkpoint(by_checkpoint, data.sites)
    ours = totals(data.ledger)
    table = baselines_table(data.baselines, ours)
    if ours["co2_g"] is not None and not table["co2_g"].is_null().all():
        made["baselines"] = charts.against_baselines(ours["co2_g"], table)
    return made


def build_report(data: ReportInput) -> str:
    """The page."""
    from curtail_pipeline.emissions.charts import to_svg

    made = {name: to_svg(chart, name) for name, chart in build_charts(data).items()}
    numbers = summary(data)
    start, end = data.span
    sections = [
        _notices(data, numbers),
        _tiles(data, numbers),
        _section(
            "Signal, windows and sites",
            "Each site's grid signal, its curtailment windows, and what the site did; all times UTC.",
            made.get("timeline"),
        ),
        _section(
            "Against always-on training",
            "The same steps on one cluster in one region, at its training power, without a pause from the job's start.",
            made.get("baselines", "") + _baselines(numbers),
        ),
        _section(
            "Energy and emissions of each checkpoint", "Stacked by site.", made.get("checkpoints", "") + _by_site(data)
        ),
        _section("Loss", "Natural logarithm, per token.", made.get("loss")),
        _section("Checkpoints", "Held-out loss in nat per token.", _checkpoints(data)),
        _section("How this is computed", "", _method(data)),
    ]
    title = f"{data.name}: energy and emissions"
    when = f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M} UTC"
    experiment = (
        f"policy <code>{escape(data.policy)}</code> · experiment <code>{escape(data.experiment_sha256[:12])}</code>"
    )
    heading = (
        f'<header><h1>{escape(data.name)}</h1><p class="sub">Energy and emissions · {when} · {experiment}</p></header>'
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><main>{heading}{''.join(sections)}</main></body></html>\n"
    )


def _section(title: str, note: str, body: str | None) -> str:
    if not body:
        return ""
    intro = f'<p class="note">{note}</p>' if note else ""
    return f"<section><h2>{title}</h2>{intro}{body}</section>"


def _notices(data: ReportInput, numbers: Mapping[str, Any]) -> str:
    out = ""
    if data.synthetic:
        out += (
            '<p class="notice"><strong>Synthetic traces.</strong> The grid signals of this run come from a seeded '
            "model, not from a grid. Its emissions show how the pipeline works; they are not a measurement.</p>"
        )
    if numbers["unaccounted_kwh"]:
        out += (
            f'<p class="notice warn"><strong>{numbers["unaccounted_kwh"]:.3g} kWh are not in the emissions</strong>, '
            "because the trace has no value, or no recent one, for their time. Ratios to baselines are left out.</p>"
        )
    return out


def _tiles(data: ReportInput, numbers: Mapping[str, Any]) -> str:
    ratios = [row["ours_of_baseline"] for row in numbers["baselines"] if row["ours_of_baseline"] is not None]
    spread = "–"
    if ratios:
        low, high = percent(min(ratios)), percent(max(ratios))
        spread = low if low == high else f"{low.removesuffix(' %')} to {high}"
    inside = numbers["curtailed_share"]
    below = numbers["below_threshold_share"]
    threshold = "" if below is None else f"{percent(below)} at a signal below {data.threshold:g} gCO2/kWh"
    loss = _last_loss(data)
    trained = f"{data.manifests[-1].tokens.total:,} tokens, {numbers['steps']:,} steps"
    tiles = [
        ("emissions", f"{mass(numbers['co2_g'])} CO<sub>2</sub>", _rate(numbers)),
        ("energy", f"{numbers['kwh']:.3g} kWh", f"over {numbers['hours']:.3g} site-hours provisioned"),
        ("of always-on training", spread, "range over the single-site baselines"),
        ("energy inside windows", percent(inside), threshold),
        ("trained", short(numbers["tokens"]) + " tokens", trained),
        ("held-out loss", f"{loss:.3f}" if loss is not None else "–", "of the last evaluated checkpoint"),
    ]
    cells = "".join(
        f'<div class="tile"><div class="label">{label}</div><div class="value">{value}</div>'
        f'<div class="sub">{sub}</div></div>'
        for label, value, sub in tiles
    )
    return f'<div class="tiles">{cells}</div>'


def _rate(numbers: Mapping[str, Any]) -> str:
    parts = []
    if numbers["g_per_kwh"] is not None:
        parts.append(f"{numbers['g_per_kwh']:.3g} g/kWh")
    if numbers["g_per_million_tokens"] is not None:
        parts.append(f"{mass(numbers['g_per_million_tokens'])} per million tokens")
    return ", ".join(parts)


def _last_loss(data: ReportInput) -> float | None:
    return None if data.heldout.is_empty() else float(data.heldout.sort("tokens")["loss"][-1])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = (0,), total: bool = False) -> str:
    """`text`: columns aligned left; `total`: the last row is a sum."""

    def cells(row: Sequence[str], tag: str) -> str:
        left = f'<{tag} class="t">'
        return "".join(f"{left if index in text else f'<{tag}>'}{cell}</{tag}>" for index, cell in enumerate(row))

    lines = [f"<tr>{cells(row, 'td')}</tr>" for row in rows]
    if total and lines:
        lines[-1] = lines[-1].replace("<tr>", '<tr class="sum">')
    body = "".join(lines)
    return f'<div class="scroll"><table><thead><tr>{cells(head, "th")}</tr></thead><tbody>{body}</tbody></table></div>'


def _baselines(numbers: Mapping[str, Any]) -> str:
    rows = [
        [
            escape(row["region"]),
            f"{row['hours']:.2f}",
            f"{row['kwh']:.2f}",
            mass(row["co2_g"]),
            percent(row["ours_of_baseline"]),
            escape(row["reason"] or ""),
        ]
        for row in numbers["baselines"]
    ]
    return _table(["always on in", "hours", "kWh", "CO2", "this run is", ""], rows, text=(0, 5))


def _by_site(data: ReportInput) -> str:
    by_site = {row["site"]: row for row in sum_ledger(data.ledger, ["site"]).rows(named=True)}
    training = data.ledger.filter(pl.col("state") == "training")
    trained = {row["site"]: row["hours"] for row in sum_ledger(training, ["site"]).rows(named=True)}

    def row(name: str, used: Mapping[str, Any], hours: float) -> list[str]:
        accounted = used["kwh"] - used["unaccounted_kwh"]
        rate = f"{used['co2_g'] / accounted:.1f}" if used["co2_g"] is not None and accounted > 0 else "–"
        inside = used["curtailed_kwh"]
        share = percent(inside / used["kwh"]) if inside is not None and used["kwh"] else "–"
        lost = f"{used['unaccounted_kwh']:.3g}"
        return [
            name,
            f"{used['hours']:.2f}",
            f"{hours:.2f}",
            f"{used['kwh']:.2f}",
            mass(used["co2_g"]),
            rate,
            share,
            lost,
        ]

    rows = [
        row(
            escape(site.name) if site.name == site.region else f"{escape(site.name)} ({escape(site.region)})",
            by_site[site.name],
            trained.get(site.name, 0),
        )
        for site in data.sites
        if site.name in by_site
    ]
    rows.append(row("all sites", totals(data.ledger), sum(trained.values())))
    head = ["site", "provisioned h", "training h", "kWh", "CO2", "g/kWh", "in windows", "unaccounted kWh"]
    return _table(head, rows, total=True)


def _checkpoints(data: ReportInput) -> str:
    used = {row["checkpoint"]: row for row in sum_ledger(data.ledger, ["checkpoint"]).rows(named=True)}
    losses = dict(zip(data.heldout["checkpoint"], data.heldout["loss"], strict=True))
    rows = []
    for m in sorted(data.manifests, key=lambda manifest: manifest.key):
        energy, loss = used.get(m.key), losses.get(m.key)
        rows.append(
            [
                f"<code>{m.key}</code>",
                m.mode,
                escape(", ".join(m.members)),
                f"<time>{m.start:%m-%d %H:%M}</time>",
                f"{(m.end - m.start).total_seconds() / 3600:.2f}",
                str(m.rounds),
                short(m.tokens.total),
                f"{loss:.3f}" if loss is not None else "–",
                f"{energy['kwh']:.2f}" if energy else "–",
                mass(energy["co2_g"]) if energy else "–",
                escape(m.stop_reason),
            ]
        )
    head = [
        "checkpoint",
        "mode",
        "members",
        "start",
        "hours",
        "rounds",
        "tokens",
        "held-out",
        "kWh",
        "CO2",
        "stopped because",
    ]
    return _table(head, rows, text=(0, 1, 2, 3, 10))


def _method(data: ReportInput) -> str:
    sources = ", ".join(sorted(data.traces["source"].unique())) if "source" in data.traces.columns else "unknown"
    kinds = ", ".join(sorted(data.traces["kind"].unique())).replace("_", " ")
    items = [
        f"Signal: {escape(kinds)}; source: {escape(sources)}. A value holds from its stamp until the next one or until "
        "it is two cadences old; it is never interpolated. Energy at a time without a value is shown as unaccounted.",
        f"Power: {escape(data.power_source)}, times the site's PUE; start-up and idle time are charged, the pause "
        "before a segment to that segment's checkpoint. Hardware manufacture, network and store are not included.",
        "Windows include the policy's exit delay, so that energy inside a window can be drawn at a high signal; the "
        "share below the threshold is free of that.",
        "An always-on baseline takes the same number of optimiser steps at the site's declared speed and training "
        "power from the job's start. Where the trace ends before the baseline does, no number is given.",
    ]
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


_STYLE = """
:root{color-scheme:light}*{box-sizing:border-box}
body{margin:0;background:#f3f5f7;color:#1f2933;font:15px/1.5 system-ui,"Segoe UI",Helvetica,Arial,sans-serif}
main{max-width:1040px;margin:0 auto;padding:28px 20px 60px}
h1{margin:0;font-size:28px;letter-spacing:-.01em}h2{margin:0 0 4px;font-size:18px}
.sub{color:#6b7785;font-size:13px}header .sub{margin:2px 0 18px}.note{margin:0 0 12px;color:#6b7785;font-size:13px}
section,.tile{background:#fff;border:1px solid #e3e8ee;border-radius:10px}
section{padding:20px 24px;margin:16px 0}section>svg{display:block;margin:4px 0 14px}
.tiles{display:grid;grid-template-columns:repeat(3,1fr);gap:12px}.tile{padding:14px 18px}
.tile .label{color:#6b7785;font-size:12px;text-transform:uppercase;letter-spacing:.05em}
.tile .value{font-size:25px;font-weight:650;line-height:1.3}.tile sub{font-size:.6em}
.notice{background:#fff7e0;border:1px solid #efd58b;border-radius:10px;padding:10px 16px;margin:0 0 14px;font-size:14px}
.notice.warn{background:#fdecea;border-color:#eeb4ad}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:6px 8px;border-bottom:1px solid #edf0f4;text-align:right;white-space:nowrap}
th{color:#6b7785;font-weight:500}th.t,td.t{text-align:left}td.t{white-space:normal}td.t:last-child{min-width:150px}
tr.sum td{font-weight:600;border-top:1px solid #c5cdd6}
code,time{white-space:nowrap}
code{font:12px ui-monospace,SFMono-Regular,Menlo,monospace;background:#f1f4f7;border-radius:4px;padding:1px 4px}
ul{margin:8px 0 0;padding-left:20px;font-size:13px}li{margin:4px 0}
@media(max-width:720px){.tiles{grid-template-columns:1fr 1fr}section{padding:16px}}
@media print{body{background:#fff}section,.tile{break-inside:avoid}}
""".replace("\n", "")
