"""`curtail simulate`: the what-if simulator on a trace file."""

from pathlib import Path
from typing import Any

import polars as pl

from curtail_pipeline.errors import SettingsError
from curtail_pipeline.settings.experiment import load_experiment
from curtail_pipeline.signals.whole_file import read_all
from curtail_pipeline.simulation.compare import Summary, compare, simulate
from curtail_pipeline.times import parse_utc


def _options(
    overheads: str | None, forecast: str | None, start: str | None, deadline_h: float | None
) -> dict[str, Any]:
    if overheads not in (None, "paper", "product"):
        raise SettingsError(f"unknown overheads {overheads!r}; use paper or product, or leave it out")
    try:
        begin = parse_utc(start) if start else None
    except ValueError as error:
        raise SettingsError(f"--start: {error}") from error
    return {"overheads": overheads, "forecast": forecast, "start": begin, "deadline_h": deadline_h}


def simulate_file(
    traces: Path,
    experiment: str,
    *,
    policy: str | None,
    interpolate: bool,
    overheads: str | None,
    forecast: str | None,
    start: str | None,
    deadline_h: float | None,
) -> Summary:
    """One policy."""
    loaded = load_experiment(experiment)
    options = _options(overheads, forecast, start, deadline_h)
    return simulate(loaded, read_all(traces, loaded), policy=policy, interpolate=interpolate, **options)


def compare_file(traces: Path, experiment: str, plot: Path | None, **options: Any) -> pl.DataFrame:
    """Every policy; the plot is written where a path is given, in the format of its suffix."""
    loaded = load_experiment(experiment)
    table, chart = compare(loaded, read_all(traces, loaded), **_options(**options))
    if plot is not None:
        if plot.suffix not in (".svg", ".png", ".html"):
            raise SettingsError(f"--plot {plot}: a plot is written as .svg, .png or .html")
        plot.parent.mkdir(parents=True, exist_ok=True)
        chart.save(str(plot))
    return table
