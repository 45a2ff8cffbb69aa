"""Simulations of very many sites over long traces, read from Parquet files one region at a time."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.scheduling.view import Job, View, max_signal_ages, site_windows
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.signals.held import Signal, max_age_us
from curtail_pipeline.simulation.accounts import Account, account
from curtail_pipeline.simulation.walk import Walk, walk
from curtail_pipeline.times import duration_us, micros_of, to_us
from curtail_pipeline.windows.bulk import windows_of_files
from curtail_pipeline.windows.columns import values_of


class SignalFiles(Mapping[str, Signal]):
    """Signals of regions, each read from its Parquet file (columns time, value) when it is asked for.

    Only the last one is kept, so that memory does not grow with the number of regions.
    """

    def __init__(self, files: Mapping[str, Path], cadence_s: float, max_age_s: Mapping[str, float | None]) -> None:
        self._files = files
        self._cadence_us = duration_us(cadence_s)
        self._max_age_s = max_age_s
        self._last: tuple[str, Signal] | None = None

    def __getitem__(self, region: str) -> Signal:
        if self._last is None or self._last[0] != region:
            rows = pl.read_parquet(self._files[region], columns=["time", "value"]).drop_nulls()
            age = max_age_us(self._cadence_us, self._max_age_s.get(region))
            signal = Signal(micros_of(rows["time"]), values_of(rows["value"]), self._cadence_us, age)
            self._last = region, signal
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def simulate_files(
    experiment: Experiment,
    files: Mapping[str, Path],
    *,
    start: datetime,
    end: datetime,
    cadence_s: float = 300.0,
    threads: int = 2,
) -> tuple[Walk, Account]:
    """`simulate` without baselines and oracle, over one Parquet file per region.

    For policies that follow windows; energy counts as curtailed inside the windows that the policy follows.

    Args:
        files: region -> its file, columns time (UTC, ascending) and value (gCO2/kWh).
        cadence_s: of all files.

    Raises:
        TraceError: a region has no file.
        PolicyError: as `derive_windows`.
    """
    missing = [site.region for site in experiment.sites if site.region not in files]
    if missing:
        raise TraceError(f"no trace file for region {missing[0]!r}; add it, or remove its site")
    table = windows_of_files(
        files,
        experiment.sites,
        experiment.policy,
        start=start,
        end=end,
        rules=experiment.rules,
        cadence_s=cadence_s,
        threads=threads,
    )
    windows = site_windows(experiment, table)
    signals = SignalFiles(files, cadence_s, max_signal_ages(experiment))
    view = View(experiment, signals, windows, end=end, cadence_us=duration_us(cadence_s))
    found = walk(view, Job(0, experiment.job.steps, start), to_us(start))
    return found, account(view, found, windows, interpolated=False)
