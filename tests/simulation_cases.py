"""Small experiments, traces and windows that the scheduling tests share."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from curtail_pipeline.scheduling.policies import policy_of
from curtail_pipeline.scheduling.tariffs import Tariff
from curtail_pipeline.scheduling.timing import Finished, Pause, SegmentPlan, advance
from curtail_pipeline.scheduling.view import Job, View
from curtail_pipeline.settings.experiment import Experiment, parse_experiment
from curtail_pipeline.settings.sites import power_kw
from curtail_pipeline.simulation.walk import Walk
from curtail_pipeline.times import from_us, to_us

START = datetime(2026, 1, 11, 17, tzinfo=UTC)
CADENCE = timedelta(minutes=5)


def minutes(count: float) -> datetime:
    """That many minutes after the start of the small traces."""
    return START + timedelta(minutes=count)


def experiment(regions: Sequence[str] = ("A", "B"), **changes: Any) -> Experiment:
    content: dict[str, Any] = {
        "name": "case",
        "traces": {"provider": "file", "path": "case.csv"},
        "sites": [
            {"name": name, "region": name, "training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 0.5} for name in regions
        ],
        "rounds": {"round_s": 600, "max_rounds": 1000},
        "job": {"steps": 10**8},
    }
    content.update(changes)
    return parse_experiment(content, "case")


def traces(values: Mapping[str, Sequence[float | None]], start: datetime = START) -> pl.DataFrame:
    """Five-minute marginal intensities per region."""
    parts = [
        pl.DataFrame(
            {
                "time": [start + i * CADENCE for i in range(len(column))],
                "region": [region] * len(column),
                "value": [None if value is None else float(value) for value in column],
                "kind": ["marginal_intensity"] * len(column),
            },
            schema={"time": pl.Datetime("us", "UTC"), "region": pl.String, "value": pl.Float64, "kind": pl.String},
        )
        for region, column in values.items()
    ]
    return pl.concat(parts)


def windows(rows: pl.DataFrame, run: Experiment, exit_delay_s: float = 0.0, threshold: float = 100.0) -> pl.DataFrame:
    """The below-threshold rule with an exit delay, written as plainly as possible (five-minute values, no nulls)."""
    found = []
    delay = timedelta(seconds=exit_delay_s)
    for site in run.sites:
        column = rows.filter(pl.col("region") == site.region).sort("time")
        opened: datetime | None = None
        rose: datetime | None = None
        for stamp, value in zip(column["time"], column["value"], strict=True):
            if opened and rose and stamp >= rose + delay:
                found.append((site.name, site.region, opened, rose + delay, "below 100", "above 100"))
                opened = rose = None
            if value < threshold:
                opened, rose = opened or stamp, None
            elif opened and rose is None:
                rose = stamp
                if not exit_delay_s:
                    found.append((site.name, site.region, opened, rose, "below 100", "above 100"))
                    opened = rose = None
        if opened:
            found.append((site.name, site.region, opened, None, "below 100", None))
    schema = {
        "site": pl.String,
        "region": pl.String,
        "start": pl.Datetime("us", "UTC"),
        "end": pl.Datetime("us", "UTC"),
        "opened_by": pl.String,
        "closed_by": pl.String,
    }
    return pl.DataFrame(found, schema=schema, orient="row")


def view_of(values: Mapping[str, Sequence[float]], run: Experiment | None = None, delay_s: float = 0.0) -> View:
    run = run or experiment(tuple(values))
    rows = traces(values)
    return View.build(run, rows, windows(rows, run, delay_s))


def tariffs(view: View, end: int) -> list[Tariff]:
    """What each site's power costs until then: its signal, held."""
    found = []
    for site in view.sites:
        signal = view.signals[site.region]
        knots = [*signal.edges[signal.edges < end].tolist(), end]
        held = signal.values[: len(knots) - 1]
        kw = power_kw(site, "training"), power_kw(site, "idle"), power_kw(site, "start_up")
        found.append(Tariff.of(np.array(knots, dtype=np.int64), held, kw, 0.0 * held))
    return found


def next_event(view: View, now: datetime) -> datetime | None:
    """The next instant after `now` at which a decision could differ; None when there is none in the record."""
    found = policy_of(view).next_event(view, to_us(now))
    return None if found >= view.end_us else from_us(found)


def use_of(found: Walk) -> dict[str, dict[str, list[tuple[int, int]]]]:
    """Power intervals per site and state, joined where they touch, for comparison."""
    table: dict[str, dict[str, list[tuple[int, int]]]] = {}
    for site, use in found.use.items():
        table[site] = {}
        for state in ("training", "idle", "start_up"):
            joined: list[tuple[int, int]] = []
            for low, high in zip(*(column.tolist() for column in use.of(state)), strict=True):
                if joined and joined[-1][1] == low and state != "training":
                    joined[-1] = (joined[-1][0], high)
                else:
                    joined.append((low, high))
            table[site][state] = joined
    return table


def walk(view: View, job: Job | None = None, now: datetime = START) -> list[SegmentPlan | Pause | Finished]:
    """Everything `advance` returns, to the end."""
    run = view.experiment
    job = job or Job(0, run.job.steps, now)
    found: list[SegmentPlan | Pause | Finished] = []
    while True:
        part = advance(view, run, now, job)
        found.append(part)
        if isinstance(part, Finished):
            return found
        assert part.end > now
        now = part.end
        steps = part.steps if isinstance(part, SegmentPlan) else 0
        job = replace(job, steps_done=job.steps_done + steps, previous=part.sites)
