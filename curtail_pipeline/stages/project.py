"""An experiment opened on its home: what every asset, sensor and command works with."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import get_args

import polars as pl

from curtail_pipeline.emissions.battery import require_generation
from curtail_pipeline.errors import SettingsError, StoreError, TraceError
from curtail_pipeline.scheduling.policies import PLANNING_POLICIES, check_parameters
from curtail_pipeline.scheduling.predictors import (
    HISTORY_DAYS,
    Forecast,
    IssuedForecasts,
    SeasonalForecast,
    TableForecast,
    issued_forecasts,
)
from curtail_pipeline.scheduling.view import Job, SiteDecision, View
from curtail_pipeline.settings.experiment import ClockMode, Experiment, load_experiment
from curtail_pipeline.settings.rule_settings import rule_of
from curtail_pipeline.settings.trace_settings import CombinedTraces, FileTraces
from curtail_pipeline.signals.held import Signal, accounting_kind
from curtail_pipeline.signals.provider import Provider, make_provider
from curtail_pipeline.signals.trace_index import TraceIndex, index_traces, stored_index, write_index
from curtail_pipeline.storage.checkpoints import FIRST_KEY, Checkpoints
from curtail_pipeline.storage.clock import Clock, HeadlessClock, LiveClock, ReplayClock, is_anchored
from curtail_pipeline.storage.home import Home, resolved_traces
from curtail_pipeline.storage.manifest import Manifest
from curtail_pipeline.storage.store import Store
from curtail_pipeline.storage.stores import Connect
from curtail_pipeline.storage.tables import forecast_key, read_table, read_tables, trace_key, windows_key
from curtail_pipeline.times import day_of, days_between, iso, midnight
from curtail_pipeline.windows.rules import merge_days

EXPERIMENT_ENV = "CURTAIL_EXPERIMENT"
CLOCK_ENV = "CURTAIL_CLOCK"
LOOKBACK = timedelta(days=2)
"""How much past a live or replayed decision reads; windows open for longer are found in the day's table."""


def _located(
    experiment: str | Path | Experiment, out: Path | str | None, connect: Connect | None = None
) -> tuple[Experiment, Home]:
    """The experiment and its home; a home's own copy of its experiment is of that home."""
    if isinstance(experiment, Experiment):
        return experiment, Home.of(experiment, out, connect)
    home = Home.of_copy(Path(experiment), connect) if out is None else None
    loaded = load_experiment(experiment)
    return loaded, home or Home.of(loaded, out, connect)


def store_of(experiment: str | Path | Experiment) -> str:
    """Where the store of an experiment is, whether or not it was ever opened: a folder, or `s3://bucket/prefix`."""
    return _located(experiment, None)[1].store


def recorded_days(experiment: str | Path | Experiment) -> tuple[date, date | None]:
    """First and last day of the experiment's trace; no last day for a live source. Opens no trace file.

    Raises:
        SettingsError: only the trace files would tell; says what to do.
    """
    loaded, home = _located(experiment, None)
    clock = loaded.clock
    index = stored_index(home.open_store(), resolved_traces(loaded.traces))
    if index is not None:
        span = index.span
    elif not _names_files(loaded):
        span = make_provider(loaded.traces).span()
    elif clock.start is not None:
        if clock.end is None:
            return day_of(clock.start), None
        span = clock.start, clock.end
    else:
        raise SettingsError(
            f"the days of experiment {loaded.name!r} are not known before its trace files are read: run `curtail run` "
            "or `curtail ui` on it once, which keeps them in its home, or give clock.start in the experiment"
        )
    if span is None:
        return (day_of(clock.start) if clock.start else datetime.now(UTC).date()), None
    days = days_between(*span)
    return days[0], days[-1]


def _names_files(experiment: Experiment) -> bool:
    traces = experiment.traces
    sources = traces.sources if isinstance(traces, CombinedTraces) else [traces]
    return any(isinstance(source, FileTraces) for source in sources)


@dataclass
class Project:
    """One experiment, its home and its clock."""

    experiment: Experiment
    home: Home
    provider: Provider
    index: TraceIndex
    """What is known of the traces without reading them again."""
    clock_mode: ClockMode = "live"

    @classmethod
    def open(
        cls,
        experiment: str | Path | Experiment,
        clock: ClockMode = "live",
        out: Path | str | None = None,
        connect: Connect | None = None,
    ) -> "Project":
        """Open or create the home of an experiment.

        Args:
            experiment: a name in `experiments/`, a file, or the experiment itself.
            out: the home folder, `$CURTAIL_HOME/<name>` or `.curtail/<name>` when not given; or `s3://bucket/prefix`
                for the store alone.
            connect: makes the client of a bucket; with the usual AWS settings when not given.

        Raises:
            SettingsError: an invalid experiment, or one that differs from what the home was made with.
            TraceError: the trace cannot be read, has not all regions, or does not cover the clock's start.
            PolicyError: there is no such policy, or it has no such parameter.
        """
        experiment, home = _located(experiment, out, connect)
        provider = make_provider(experiment.traces)
        settings, store = resolved_traces(experiment.traces), home.open_store()
        known = stored_index(store, settings)
        index = index_traces(provider, settings, known)
        _require_regions(experiment, index)
        _require_time(experiment, index)
        check_parameters(experiment.policy)
        for region in experiment.regions:
            rule_of(experiment.policy, region, experiment.rules)
        home.open(experiment, index.fingerprint)
        write_index(store, index, known)
        return cls(experiment, home, provider, index, clock)

    @cached_property
    def store(self) -> Store:
        return self.home.open_store()

    @cached_property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.store, self.experiment.training.sequence_length)

    @property
    def span(self) -> tuple[datetime, datetime] | None:
        """What a recorded trace covers; None for a live one."""
        return self.index.span

    @property
    def start(self) -> datetime:
        """Where the experiment's time starts."""
        if self.experiment.clock.start is not None:
            return self.experiment.clock.start
        if self.span is None:
            raise SettingsError("a live signal has no first value; give clock.start in the experiment")
        return self.span[0]

    @property
    def end(self) -> datetime | None:
        """Where a headless run ends: the clock's end, but never past the trace."""
        ends = [stamp for stamp in (self.experiment.clock.end, self.span and self.span[1]) if stamp]
        return min(ends) if ends else None

    @cached_property
    def clock(self) -> Clock:
        if self.clock_mode == "live":
            return LiveClock()
        if self.clock_mode == "headless":
            return HeadlessClock(self.store, self.start)
        last = None if is_anchored(self.store) else self.checkpoints.last()
        begin = self.checkpoints.manifest(last).end if last else self.start
        return ReplayClock(self.store, begin, self.experiment.replay.speed)

    @property
    def days(self) -> list[date]:
        """The days that are ingested: all of a recorded trace; of a live one, from the start until today."""
        if self.span is None:
            return days_between(self.start, datetime.now(UTC))
        return days_between(*self.span)

    def traces(self, days: Sequence[date]) -> pl.DataFrame:
        """The ingested traces of these days, all regions.

        Raises:
            TraceError: none of them has been ingested.
        """
        keys = [trace_key(day.isoformat(), region) for day in days for region in self.experiment.regions]
        table = read_tables(self.store, keys)
        if table is None:
            raise TraceError(
                f"no traces of {_span(days)} in {self.store.uri}; materialise carbon_traces for these days"
            )
        return table.sort("region", "time")

    def forecasts(self, region: str, days: Sequence[date]) -> pl.DataFrame | None:
        """The forecasts of a region issued on these days (issued_at, target, region, value, kind); None without any."""
        return read_tables(self.store, [forecast_key(day.isoformat(), region) for day in days])

    def windows(self, days: Sequence[date]) -> pl.DataFrame:
        """The windows of these days as one table.

        Raises:
            TraceError: none of them has been derived.
        """
        tables = [read_table(self.store, key) for day in days if self.store.exists(key := windows_key(day.isoformat()))]
        if not tables:
            raise TraceError(
                f"no windows of {_span(days)} in {self.store.uri}; materialise curtailment_windows for them"
            )
        return merge_days(tables)

    def view(self, now: datetime, since: datetime | None = None) -> View:
        """What decisions are made from: the recorded trace in a headless run, otherwise what is known at `now`.

        Args:
            since: how far back decisions will be asked for; `LOOKBACK` when that is less.
        """
        if self.clock_mode == "headless":
            days = self.days
            return View.build(self.experiment, self.traces(days), self.windows(days), self._forecast_maker(days))
        # A policy that plans gets the same past here as from the whole record: all that its seasonal forecast reads.
        lookback = timedelta(days=HISTORY_DAYS + 1) if self._plans else LOOKBACK
        first = max(midnight(self.days[0]), min(now - lookback, since or now))
        days = days_between(first, now + timedelta(microseconds=1))
        issued = days_between(max(first, min(now - LOOKBACK, since or now)), now + timedelta(microseconds=1))
        experiment = self.experiment.started_really()
        return View.build(experiment, self.traces(days), self.windows(days), self._forecast_maker(issued), as_of=now)

    @property
    def _plans(self) -> bool:
        return self.experiment.policy.name in PLANNING_POLICIES

    def _forecast_maker(self, days: Sequence[date]) -> Callable[[Mapping[str, Signal]], Forecast] | None:
        """For a policy that plans: the forecasts issued on these days, and the seasonal one beyond them."""
        if not self._plans:
            return None
        tables: dict[str, IssuedForecasts] = {}
        for region in self.experiment.regions:
            rows = self.forecasts(region, days)
            if rows is not None:
                kind = accounting_kind(self.provider.kinds(region))
                tables |= issued_forecasts(rows.filter(pl.col("kind") == kind))
        return partial(_recorded_forecast, tables) if tables else None

    @property
    def parent(self) -> Manifest:
        """The last committed checkpoint.

        Raises:
            StoreError: there is none yet.
        """
        last = self.checkpoints.last()
        if last is None:
            raise StoreError(f"no checkpoint in {self.store.uri}; materialise aggregated_checkpoint {FIRST_KEY} first")
        return self.checkpoints.manifest(last)

    def job(self, parent: Manifest, previous: Mapping[str, SiteDecision]) -> Job:
        """The job's progress at a checkpoint, with the decision in force."""
        settings = self.experiment.job
        return Job(parent.steps.end, settings.steps, self.start, settings.deadline, previous)


def _recorded_forecast(tables: Mapping[str, IssuedForecasts], signals: Mapping[str, Signal]) -> Forecast:
    return TableForecast(tables, SeasonalForecast(signals))


def check_clock(name: str) -> ClockMode:
    """The clock of that name.

    Raises:
        SettingsError: there is no such clock.
    """
    if name in get_args(ClockMode):
        return name  # type: ignore[return-value]
    raise SettingsError(f"unknown clock {name!r}; use {', '.join(get_args(ClockMode))}")


def _require_time(experiment: Experiment, index: TraceIndex) -> None:
    start, end, span = experiment.clock.start, experiment.clock.end, index.span
    if span is None:
        return
    if start is not None and not span[0] <= start < span[1]:
        raise TraceError(
            f"clock.start {iso(start)} is outside the trace, which goes from {iso(span[0])} to {iso(span[1])}; "
            "set it inside, or give a longer trace"
        )
    for name, until in (("clock.end", end), ("job.deadline", experiment.job.deadline)):
        if until is not None and until <= (start or span[0]):
            raise TraceError(f"{name} {iso(until)} is not after the start, {iso(start or span[0])}; give a later one")
    require_generation(experiment.sites, span, experiment.checks.gap_share)


def _require_regions(experiment: Experiment, index: TraceIndex) -> None:
    known = index.regions
    missing = [region for region in experiment.regions if known is not None and region not in known]
    if missing:
        raise TraceError(
            f"the traces of experiment {experiment.name!r} have no region {missing[0]!r}; they have "
            + ", ".join(known or [])
        )


def _span(days: Sequence[date]) -> str:
    return f"{days[0]} to {days[-1]}" if days else "a time that no ingested day covers"
