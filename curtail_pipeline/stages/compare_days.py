"""What every policy would have made of each of many days, by several processes."""

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import polars as pl

from curtail_pipeline.cores import usable_cores
from curtail_pipeline.errors import CurtailError
from curtail_pipeline.settings.experiment import ClockMode
from curtail_pipeline.stages.account import compare_day
from curtail_pipeline.stages.project import Project

PLOT_SCALE = 0.8
INLINE_DAYS = 3
"""So few days are done before other processes would have started."""
MOST_PROCESSES = 8
"""Each takes some hundred MiB, whatever a day is."""


@dataclass(frozen=True)
class ComparedDay:
    day: str
    policies: pl.DataFrame
    """One row per policy; empty where the day cannot be compared."""
    plot: bytes | None
    """PNG of kg against hours."""
    reason: str | None
    """Why the day cannot be compared; None where it was."""


def compare_days(project: Project, days: Sequence[str], *, plot: bool) -> Iterator[ComparedDay]:
    """Every policy on each day's traces, in the order of the days. A day that cannot be compared costs no other."""
    if len(days) <= INLINE_DAYS:
        yield from (_compared(project, day, plot) for day in days)
        return
    work = partial(_opened_and_compared, project.home.root, project.clock_mode, plot=plot)
    workers = min(len(days), usable_cores(), MOST_PROCESSES)
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(work, days)


_PROJECTS: dict[Path, Project] = {}
"""Of a worker process, by home."""


def _opened_and_compared(home: Path, clock: ClockMode, day: str, plot: bool) -> ComparedDay:
    if home not in _PROJECTS:
        _PROJECTS[home] = Project.open(home / "experiment.yaml", clock)
    return _compared(_PROJECTS[home], day, plot)


def _compared(project: Project, day: str, plot: bool) -> ComparedDay:
    try:
        policies, chart = compare_day(project, day)
    except CurtailError as error:
        return ComparedDay(day, pl.DataFrame(), None, str(error))
    if not plot:
        return ComparedDay(day, policies, None, None)
    from curtail_pipeline.emissions.chart_style import to_png

    return ComparedDay(day, policies, to_png(chart, scale=PLOT_SCALE), None)
