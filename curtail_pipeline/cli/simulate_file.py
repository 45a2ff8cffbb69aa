"""`curtail simulate`: the what-if simulator on a trace file."""

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import get_args

import polars as pl
import typer

from curtail_pipeline.cli.file_options import Reading
from curtail_pipeline.cli.warned import warn_rounds
from curtail_pipeline.cli.written_files import make_room, writing
from curtail_pipeline.errors import SettingsError
from curtail_pipeline.settings.experiment import Experiment, load_experiment, with_overheads
from curtail_pipeline.settings.overheads import OverheadsName
from curtail_pipeline.signals.checks import CheckOutcome
from curtail_pipeline.signals.whole_file import read_all
from curtail_pipeline.simulation.compare import compare, simulate, simulate_run
from curtail_pipeline.simulation.summary import Summary
from curtail_pipeline.simulation.sweep import SWEPT, RoundLength, sweep_round_length
from curtail_pipeline.times import parse_utc

PLOTS = (".svg", ".png", ".html")


@dataclass(frozen=True)
class WhatIf:
    """What one simulation and a comparison take alike; None is the experiment's own."""

    overheads: OverheadsName | None
    forecast: str | None
    start: datetime | None
    deadline_h: float | None
    file: Reading
    """How the file is read, in place of the experiment's own."""


def what_if(
    overheads: str | None, forecast: str | None, start: str | None, deadline_h: float | None, file: Reading
) -> WhatIf:
    """The options as they were typed.

    Raises:
        SettingsError: no such overheads, or a start that is no time.
    """
    known: dict[str | None, OverheadsName | None] = {None: None, **{name: name for name in get_args(OverheadsName)}}
    if overheads not in known:
        raise SettingsError(f"unknown overheads {overheads!r}; use paper or product, or leave it out")
    try:
        return WhatIf(known[overheads], forecast, parse_utc(start) if start else None, deadline_h, file)
    except ValueError as error:
        raise SettingsError(f"--start: {error}") from error


def check_usage(
    compare: bool, plot: Path | None, policy: str | None, interpolate: bool, sweep: str | None = None
) -> None:
    """Refuse options that would do nothing.

    Raises:
        typer.BadParameter: --plot without --compare, or what only one simulation takes with it.
        SettingsError: a plot in a format that cannot be written, or a sweep of what cannot be varied.
    """
    if sweep is not None and compare:
        raise typer.BadParameter("--sweep varies one policy's rounds: it does not go with --compare")
    if sweep is not None and sweep not in SWEPT:
        raise SettingsError(f"--sweep {sweep}: only {', '.join(SWEPT)} can be varied")
    if plot is not None and not compare:
        raise typer.BadParameter("--plot needs --compare, whose plot it writes")
    if compare and (policy is not None or interpolate):
        raise typer.BadParameter("--compare runs every policy, step-held: it takes neither --policy nor --interpolate")
    if plot is not None and plot.suffix not in PLOTS:
        raise SettingsError(f"--plot {plot}: a plot is written as .svg, .png or .html")


def _loaded(experiment: str, options: WhatIf) -> Experiment:
    loaded = load_experiment(experiment)
    warn_rounds(with_overheads(loaded, options.overheads))
    return loaded


def simulate_file(
    traces: Path, experiment: str, policy: str | None, interpolate: bool, options: WhatIf
) -> tuple[Summary, list[CheckOutcome]]:
    """One policy, and what the checks say of the file."""
    loaded = _loaded(experiment, options)
    whole = read_all(traces, loaded, options.file)
    summary = simulate(
        loaded,
        whole.traces,
        policy=policy,
        interpolate=interpolate,
        overheads=options.overheads,
        forecast=options.forecast,
        start=options.start,
        deadline_h=options.deadline_h,
    )
    return summary, whole.checks


def sweep_file(
    traces: Path, experiment: str, policy: str | None, interpolate: bool, options: WhatIf
) -> tuple[list[RoundLength], list[CheckOutcome]]:
    """One policy with rounds of several lengths, and what the checks say of the file."""
    loaded = load_experiment(experiment)
    whole = read_all(traces, loaded, options.file)
    simulated = partial(
        simulate_run,
        traces=whole.traces,
        policy=policy,
        interpolate=interpolate,
        overheads=options.overheads,
        forecast=options.forecast,
        start=options.start,
        deadline_h=options.deadline_h,
    )
    return sweep_round_length(loaded, simulated), whole.checks


def compare_file(
    traces: Path, experiment: str, plot: Path | None, options: WhatIf
) -> tuple[pl.DataFrame, list[CheckOutcome]]:
    """Every policy, and what the checks say of the file; a plot is written where a path is given."""
    if plot is not None:
        make_room("--plot", plot)
    loaded = _loaded(experiment, options)
    whole = read_all(traces, loaded, options.file)
    table, draw = compare(
        loaded,
        whole.traces,
        overheads=options.overheads,
        forecast=options.forecast,
        start=options.start,
        deadline_h=options.deadline_h,
    )
    if plot is not None:
        with writing("--plot", plot):
            draw().save(str(plot))
    return table, whole.checks
