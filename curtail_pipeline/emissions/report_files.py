"""The report as files: the page, each chart as SVG and PNG, their data as Parquet and CSV, a JSON of totals."""

import io
import json
from dataclasses import asdict

import polars as pl

from curtail_pipeline.emissions.chart_style import NARROW, as_file, as_png, to_svg
from curtail_pipeline.emissions.grams import totals_by
from curtail_pipeline.emissions.report import ReportInput, build_charts, build_report, summary
from curtail_pipeline.storage.records import Json
from curtail_pipeline.times import iso


def report_files(data: ReportInput) -> dict[str, bytes]:
    """Content by file name: `index.html`, `<chart>.svg` and `.png`, `<table>.parquet` and `.csv`, `totals.json`."""
    wide = {name: to_svg(chart, name) for name, chart in build_charts(data).items()}
    narrow = {name: to_svg(chart, f"{name}-narrow") for name, chart in build_charts(data, NARROW).items()}
    files = {"index.html": build_report(data, wide, narrow).encode()}
    for name, svg in wide.items():
        files[f"{name}.svg"] = as_file(svg).encode()
        files[f"{name}.png"] = as_png(svg)
    for name, table in _tables(data).items():
        buffer = io.BytesIO()
        table.write_parquet(buffer, compression="zstd")
        files[f"{name}.parquet"] = buffer.getvalue()
        files[f"{name}.csv"] = table.write_csv().encode()
    files["totals.json"] = (json.dumps(report_totals(data), indent=2, allow_nan=False) + "\n").encode()
    return files


def _tables(data: ReportInput) -> dict[str, pl.DataFrame]:
    """What the charts are drawn from."""
    start, end = data.span
    signals = data.traces.filter(pl.col("time").is_between(start, end))
    return {
        "ledger": data.ledger,
        "power": data.intervals,
        "signals": signals,
        "loss": data.losses,
        "heldout": data.heldout,
        "against_always_on": pl.DataFrame([asdict(row) for row in data.baselines], infer_schema_length=None),
    }


def report_totals(data: ReportInput) -> dict[str, Json]:
    """Every figure of the page. A figure that does not exist is null, never 0.

    `sci_operational` is the operational part of the Software Carbon Intensity (ISO/IEC 21031), gCO2 per million tokens;
    `sci` has embodied carbon in it. The other names are those of `footprint.Footprint`.
    """
    numbers = summary(data)
    ours, (start, end) = numbers.ours, data.span
    return {
        "experiment": data.name,
        "experiment_sha256": data.experiment_sha256,
        "policy": data.policy,
        "tool_version": data.tool_version,
        "written": iso(data.written),
        "start": iso(start),
        "end": iso(end),
        "basis": data.basis,
        "synthetic": data.synthetic,
        "signal_versions": list(data.signal_versions),
        "stale": list(data.stale),
        "steps": numbers.steps,
        "tokens": numbers.tokens,
        **asdict(ours),
        "g_per_kwh": ours.g_per_kwh,
        "curtailed_share": ours.curtailed_share,
        "threshold_g_per_kwh": data.threshold,
        "below_threshold_share": numbers.below_threshold_share,
        "oracle_co2_g": data.oracle_g,
        "sci_operational": numbers.g_per_million_tokens,
        **asdict(numbers.beside),
        "sites": [
            {
                "site": site.name,
                "region": site.region,
                "devices": site.devices,
                "device": site.device,
                "training_kw": site.training_kw,
                "idle_kw": site.idle_kw,
                "pue": site.pue,
                **({} if used is None else asdict(used)),
            }
            for site in data.sites
            for used in (totals_by(data.ledger, "site").get(site.name),)
        ],
        "baselines": [dict(asdict(row)) for row in data.baselines],
    }
