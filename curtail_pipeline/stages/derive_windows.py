"""One UTC day of windows in the store, derived from the state that the day before left."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.rule_settings import rule_of
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.tables import read_table, windows_key, windows_state_key, write_table
from curtail_pipeline.times import TIME, days_between, midnight, utc_now
from curtail_pipeline.windows.rules import derive_windows
from curtail_pipeline.windows.state import RuleState

FORECAST_LOOKBACK = timedelta(hours=1)
"""A window that opens at midnight is judged by a forecast issued before."""


@dataclass(frozen=True)
class DerivedDay:
    """The windows of a day, and what they replace."""

    day: date
    sites: Sequence[Site]
    traces: pl.DataFrame
    table: pl.DataFrame
    state: RuleState
    previous: pl.DataFrame | None
    """The table this one replaces; None the first time."""
    state_changed: bool
    """Whether a later day that was derived already has to be derived again."""


def derive_day(project: Project, day: str | date, traces: pl.DataFrame | None = None) -> DerivedDay:
    """Derive a day's windows. Nothing is written but the state beside the table.

    Args:
        traces: the day's traces; read from the store when not given.

    Raises:
        TraceError: the day before lies in the experiment's time and has not been derived.
    """
    day = date.fromisoformat(day) if isinstance(day, str) else day
    experiment, store = project.experiment, project.store
    if traces is None:
        traces = project.traces([day])
    before = day - timedelta(days=1)
    state = None
    if store.exists(windows_state_key(before.isoformat())):
        state = store.read_record(windows_state_key(before.isoformat()), RuleState)
    elif before >= project.days[0]:
        raise TraceError(
            f"windows of {day} follow from those of {before}, which are not there; materialise curtailment_windows for "
            f"{before} first"
        )
    start = midnight(day)
    end = start + timedelta(days=1)
    if project.span is None:
        end = min(end, utc_now())
    table, after = derive_windows(
        traces,
        experiment.sites,
        experiment.policy,
        start=start,
        end=end,
        state=state,
        rules=experiment.rules,
        forecasts=_forecasts(project, start, end),
    )
    key = windows_key(day.isoformat())
    previous = read_table(store, key) if store.exists(key) else None
    state_key = windows_state_key(day.isoformat())
    changed = store.exists(state_key) and store.read_record(state_key, RuleState) != after
    store.write_record(state_key, after)
    return DerivedDay(day, experiment.sites, traces, table, after, previous, changed)


def _forecasts(project: Project, start: datetime, end: datetime) -> pl.DataFrame | None:
    """Forecasts of the regions whose rule has a minimum duration; None where there are none."""
    experiment = project.experiment
    days = days_between(start - FORECAST_LOOKBACK, end)
    frames = [
        project.forecasts(region, days)
        for region in experiment.regions
        if rule_of(experiment.policy, region, experiment.rules).required_s > 0
    ]
    found = [frame for frame in frames if frame is not None]
    since = pl.lit(start - FORECAST_LOOKBACK, dtype=TIME)
    return pl.concat(found).filter(pl.col("issued_at") >= since) if found else None


def derive_following(project: Project, day: str | date) -> Iterator[DerivedDay]:
    """A day, and after it every day that was derived already, until the state that is handed on is the stored one.

    Save each before the next is asked for.
    """
    derived = derive_day(project, day)
    yield derived
    following = derived.day + timedelta(days=1)
    while derived.state_changed and project.store.exists(windows_key(following.isoformat())):
        derived = derive_day(project, following)
        yield derived
        following += timedelta(days=1)


def save_derived(project: Project, derived: DerivedDay) -> None:
    write_table(project.store, windows_key(derived.day.isoformat()), derived.table)
