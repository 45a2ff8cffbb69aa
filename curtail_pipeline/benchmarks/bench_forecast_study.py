"""Twelve months of marginal intensity with the forecasts really issued for it: which policy emits how much?

    curtail bench forecast-study

The folder holds SGIP's signal and forecasts for Pacific Gas & Electric's region (5 minutes, three hours ahead; CC BY
4.0, see github.com/chrisyeh96/sustaingym). Two sites: that region, and a copy of it eight hours later. A job of 200
site-hours starts at dates spread over the year, with 1, 2 and 4 weeks for it, at this product's overheads.

`asap` is no policy: both sites train from the start until the job is done. `forecast` runs with the real forecasts, the
seasonal-naive one and persistence; `perfect` is what its planning would give if it knew the future.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypedDict

import numpy as np
import polars as pl

from curtail_pipeline.emissions.grams import count_grams
from curtail_pipeline.scheduling.predictors import Forecast, IssuedForecasts, SeasonalForecast, TableForecast
from curtail_pipeline.scheduling.predictors import issued_forecasts as tables_of
from curtail_pipeline.settings.experiment import Experiment, parse_experiment
from curtail_pipeline.settings.overheads import product
from curtail_pipeline.settings.trace_settings import FileTraces, ForecastColumns
from curtail_pipeline.signals.held import Signal
from curtail_pipeline.signals.provider import make_provider
from curtail_pipeline.simulation.compare import simulate_run
from curtail_pipeline.simulation.oracle import least_co2
from curtail_pipeline.simulation.summary import summary
from curtail_pipeline.storage.records import Json, Message, Record
from curtail_pipeline.times import HOUR

REGIONS = ("PGE", "PGE_8H")
SHIFT = timedelta(hours=8)
HISTORY = timedelta(days=15)
SITE_HOURS = 200
FIRST, LAST = datetime(2020, 6, 16, tzinfo=UTC), datetime(2021, 5, 3, tzinfo=UTC)
CASES = (
    ("threshold", None),
    ("paper", None),
    ("boundary", None),
    ("forecast", "persistence"),
    ("forecast", "seasonal"),
    ("forecast", "real"),
    ("forecast", "perfect"),
)
ORDER = ["asap", *(policy if name is None else f"{policy} ({name})" for policy, name in CASES)]


def read(folder: Path) -> tuple[pl.DataFrame, dict[str, IssuedForecasts]]:
    """Traces of both regions, and the forecasts issued for them."""
    settings = FileTraces(
        path=str(folder / "SGIP_CAISO_PGE_*.csv.gz"),
        columns={"moer": REGIONS[0]},
        unit="kg/kWh",
        forecast=ForecastColumns(pattern="f{step}"),
    )
    provider = make_provider(settings)
    span = provider.span()
    assert span is not None
    trace = provider.fetch(REGIONS[0], *span)
    forecasts = provider.forecasts(REGIONS[0], *span)
    table = tables_of(forecasts)[REGIONS[0]]
    shift_us = int(SHIFT.total_seconds() * 1e6)
    later = IssuedForecasts(table.issued + shift_us, table.values, table.step_us)
    copy = trace.with_columns(pl.col("time") + SHIFT, region=pl.lit(REGIONS[1]))
    return pl.concat([trace, copy]), {REGIONS[0]: table, REGIONS[1]: later}


def _experiment() -> Experiment:
    power = {"training_kw": 2.024, "idle_kw": 0.468, "steps_per_s": 0.3665}
    return parse_experiment(
        {
            "name": "forecast-study",
            "traces": {"provider": "file", "path": "unused.csv"},
            "sites": [{"name": region, "region": region, **power} for region in REGIONS],
            "overheads": product(600.0).model_dump(),
            "job": {"steps": round(SITE_HOURS * 3_600 * 0.3665)},
        },
        "benchmark",
    )


class Run(Record):
    """One policy at one start date."""

    weeks: int
    policy: str
    start: str
    finished: bool
    steps: float
    hours: float
    kg: float
    kwh: float
    in_windows: float | None
    """Share of energy."""
    oracle_kg: float | None
    """For the same steps."""


class Runs(Message):
    """What a child process prints."""

    runs: tuple[Run, ...]


class Share(Message):
    """What a child process does: all policies at some of the start dates."""

    numbers: tuple[int, ...]
    starts: int
    weeks: tuple[int, ...]
    folder: str


class Study(TypedDict):
    starts: int
    site_hours: float
    rows: list[dict[str, Json]]
    """Per deadline and policy, means over the start dates: finished (share of the jobs), done (share of the steps),
    hours (to the last step), kg, g_per_kwh, in_windows, regret_kg (over the oracle's kg), cleanest (share of the start
    dates at which no other policy that finished, and that knows no future, emitted less)."""


def _one(
    run: Experiment,
    traces: pl.DataFrame,
    tables: dict[str, IssuedForecasts],
    start: datetime,
    weeks: int,
    case: tuple[str, str | None],
) -> Run:
    policy, name = case
    deadline_h = weeks * 168.0
    cut = traces.filter(
        pl.col("time").is_between(start - HISTORY, start + timedelta(hours=deadline_h + 1), closed="left")
    )

    def real(signals: Mapping[str, Signal]) -> Forecast:
        return TableForecast(tables, SeasonalForecast(signals), "real")

    done = simulate_run(
        run,
        cut,
        policy=policy,
        forecast=real if name == "real" else name,
        start=start,
        deadline_h=deadline_h,
    )
    result = summary(done)
    return Run(
        weeks=weeks,
        policy=policy if name is None else f"{policy} ({name})",
        start=start.isoformat(),
        finished=result["finished"],
        steps=result["steps"],
        hours=result["runtime_h"],
        kg=done.account.co2_kg,
        kwh=result["energy_kwh"],
        in_windows=result["curtailed_energy_share"],
        oracle_kg=result["oracle_co2_kg"],
    )


def _asap(run: Experiment, traces: pl.DataFrame, start: datetime, weeks: int) -> Run:
    """Both sites at once until the job is done, without overheads."""
    cut = traces.filter(pl.col("time").is_between(start - HISTORY, start + timedelta(days=7 * weeks), closed="left"))
    done = simulate_run(run, cut, policy="threshold", start=start, deadline_h=weeks * 168.0)
    hours = SITE_HOURS / 2
    span = np.array([done.walk.start]), np.array([done.walk.start + round(hours * HOUR)])
    grams = sum(float(count_grams(*span, 2.024, done.view.signals[region]).co2_g[0]) for region in REGIONS)
    oracle = least_co2(done.view, run.job.steps, done.walk.start, done.view.end_us)
    assert oracle is not None
    inside = 0.0
    for region in REGIONS:
        signal = done.view.signals[region]
        at = np.arange(span[0][0], span[1][0], 300_000_000)
        inside += float((signal.values[np.searchsorted(signal.times, at, side="right") - 1] < 100).mean()) / 2
    return Run(
        weeks=weeks,
        policy="asap",
        start=start.isoformat(),
        finished=True,
        steps=run.job.steps,
        hours=hours,
        kg=grams / 1_000,
        kwh=2.024 * SITE_HOURS,
        in_windows=inside,
        oracle_kg=oracle.co2_kg,
    )


def _runs(share: Share) -> Runs:
    traces, tables = read(Path(share.folder))
    experiment = _experiment()
    gap = (LAST - FIRST) / max(1, share.starts - 1)
    found: list[Run] = []
    for number in share.numbers:
        start = (FIRST + number * gap).replace(minute=0, second=0, microsecond=0)
        for count in share.weeks:
            begun = time.perf_counter()
            found.append(_asap(experiment, traces, start, count))
            found += [_one(experiment, traces, tables, start, count, case) for case in CASES]
            print(f"{start:%Y-%m-%d} {count} weeks: {time.perf_counter() - begun:.1f} s", file=sys.stderr, flush=True)
    return Runs(runs=tuple(found))


def averages(found: pl.DataFrame) -> pl.DataFrame:
    """Means over the start dates, per deadline and policy."""
    possible = pl.col("finished") & (pl.col("policy") != "forecast (perfect)")
    least = pl.col("kg").filter(possible).min().over("weeks", "start")
    return (
        found.with_columns(cleanest=possible & (pl.col("kg") == least))
        .group_by("weeks", "policy")
        .agg(
            pl.col("finished").mean(),
            (pl.col("steps") / _experiment().job.steps).mean().alias("done"),
            pl.col("hours").mean(),
            pl.col("kg").mean(),
            (pl.col("kg").sum() / pl.col("kwh").sum() * 1_000).alias("g_per_kwh"),
            ((pl.col("in_windows") * pl.col("kwh")).sum() / pl.col("kwh").sum()).alias("in_windows"),
            (pl.col("kg") - pl.col("oracle_kg")).mean().alias("regret_kg"),
            pl.col("cleanest").mean(),
        )
        .sort("weeks", pl.col("policy").cast(pl.Enum(ORDER)))
    )


def run(
    starts: int = 24,
    weeks: Sequence[int] = (1, 2, 4),
    folder: str | None = None,
    out: str | None = None,
    workers: int = 2,
) -> Study:
    """Measure; some 230 s of processor time per start date, most of it planning with a perfect forecast.

    Args:
        starts: number of start dates, evenly spread over the year.
        weeks: deadlines; on a command line as [1,2,4].
        folder: with SGIP_CAISO_PGE_*.csv.gz; the test data's when not given.
        out: where the table of single runs goes (CSV).
        workers: processes.
    """
    source = Path(folder or Path(os.environ.get("CURTAIL_TEST_DATA", "../shared/data")) / "sgip_moer_pge")
    parts = [list(range(first, starts, workers)) for first in range(min(workers, starts))]

    def child(numbers: list[int]) -> tuple[Run, ...]:
        share = Share(numbers=tuple(numbers), starts=starts, weeks=tuple(weeks), folder=str(source))
        command = [sys.executable, "-m", "curtail_pipeline.benchmarks.bench_forecast_study", share.model_dump_json()]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return Runs.read(done.stdout, "the child's answer").runs

    with ThreadPoolExecutor(workers) as pool:
        rows = [row.model_dump() for part in pool.map(child, parts) for row in part]
    found = pl.DataFrame(rows).sort("start", "weeks", maintain_order=True)
    if out is not None:
        found.write_csv(out)
    table = averages(found)
    with pl.Config(tbl_rows=-1, tbl_hide_dataframe_shape=True, tbl_formatting="MARKDOWN", float_precision=3):
        print(table, file=sys.stderr)
    return {
        "starts": starts,
        "site_hours": SITE_HOURS,
        "rows": [
            {key: round(v, 4) if isinstance(v, float) else v for key, v in row.items()} for row in table.to_dicts()
        ],
    }


if __name__ == "__main__":
    print(_runs(Share.read(sys.argv[1], "the share of a child")).model_dump_json())
