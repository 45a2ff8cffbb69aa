"""UTC days of windows in the store, each derived from the newest state before it."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import polars as pl

from curtail_pipeline.errors import StoreError
from curtail_pipeline.settings.rule_settings import rule_of
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.signals.trace import TRACE_SCHEMA
from curtail_pipeline.stages.ingest_days import why_missing
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.records import Message, Sha256
from curtail_pipeline.storage.store import canonical_json
from curtail_pipeline.storage.tables import (
    derivation_key,
    read_table,
    trace_key,
    windows_key,
    windows_state_key,
    write_table,
)
from curtail_pipeline.times import TIME, days_between, midnight, utc_now
from curtail_pipeline.windows.rules import derive_windows, recorded_cadences
from curtail_pipeline.windows.state import RuleState

FORECAST_LOOKBACK = timedelta(hours=1)
"""A window that opens at midnight is judged by a forecast issued before."""
_STATE = ".state.json"


class Derivation(Message):
    """`windows/<day>.derivation.json`: what a day's windows follow from, so that a change of it is noticed."""

    after: date | None
    """The newest day before whose state there was. Where it is not the day before, there is a hole between, and the
    day is derived again when the hole is filled. None where it is the first day there is."""
    state_sha256: Sha256 | None
    """Of that day's state."""


@dataclass(frozen=True)
class DerivedDay:
    """The windows of a day, and what they replace."""

    day: date
    sites: Sequence[Site]
    traces: pl.DataFrame
    table: pl.DataFrame
    state: RuleState
    derivation: Derivation
    missing: Mapping[str, str]
    """Regions without a trace of the day, whose windows stay closed, with the reason."""
    previous: pl.DataFrame | None
    """The table this one replaces; None the first time."""
    state_changed: bool
    """Whether a later day that was derived already has to be derived again."""

    @property
    def hole(self) -> int:
        """Days before this one that have not been derived, back to the newest one that has."""
        return (self.day - self.derivation.after).days - 1 if self.derivation.after else 0


def derive_day(project: Project, day: str | date) -> DerivedDay:
    """Derive a day's windows from the newest state before it. Nothing is written.

    Over a hole before the day, windows stay closed but where there are traces; a region without a trace of the day has
    closed windows, and the reason stands in the row that it closed.
    """
    day = date.fromisoformat(day) if isinstance(day, str) else day
    experiment, store = project.experiment, project.store
    after = _derived_days(project, before=day)[-1:]
    state = store.read_record(windows_state_key(after[0].isoformat()), RuleState) if after else None
    start = midnight(day)
    end = start + timedelta(days=1)
    if project.span is None:
        end = min(end, utc_now())
    since = start if state is None else min(start, state.at)
    days = days_between(since, start + timedelta(days=1))
    traces, missing = _traces(project, days)
    table, following = derive_windows(
        traces,
        experiment.sites,
        experiment.policy,
        start=start,
        end=end,
        state=state,
        rules=experiment.rules,
        forecasts=_forecasts(project, since, end),
        # Of a live source a first value is judged before there is a second one, and is not judged otherwise later.
        cadence_s=None if project.span is None else recorded_cadences(traces),
    )
    key, state_key = windows_key(day.isoformat()), windows_state_key(day.isoformat())
    return DerivedDay(
        day,
        experiment.sites,
        traces.filter(pl.col("time") >= pl.lit(start, dtype=TIME)),
        _explained(table, missing),
        following,
        Derivation(after=after[0] if after else None, state_sha256=_digest(state)),
        {region: why for (region, on), why in missing.items() if on == day},
        read_table(store, key) if store.exists(key) else None,
        store.exists(state_key) and store.read_record(state_key, RuleState) != following,
    )


def _traces(project: Project, days: Iterable[date]) -> tuple[pl.DataFrame, dict[tuple[str, date], str]]:
    """What is stored of these days; and by region and day why something is not."""
    found, missing = [pl.DataFrame(schema=TRACE_SCHEMA)], {}
    for day in days:
        for region in project.experiment.regions:
            why = why_missing(project, region, day)
            if why is None:
                try:
                    found.append(read_table(project.store, trace_key(day.isoformat(), region)))
                except StoreError as error:  # it costs this region, and is replaced when it is ingested again
                    why = str(error)
            if why is not None:
                missing[region, day] = why
    return pl.concat(found).sort("region", "time"), missing


def _explained(table: pl.DataFrame, missing: Mapping[tuple[str, date], str]) -> pl.DataFrame:
    """A window that closed for the age of its signal, on a day without a trace, says why there is none."""
    if not missing:
        return table
    notes = pl.DataFrame(
        [(region, day, why) for (region, day), why in missing.items()],
        schema={"region": pl.String, "on": pl.Date, "why": pl.String},
        orient="row",
    )
    aged = pl.col("closed_by").str.contains("signal older than", literal=True) & pl.col("why").is_not_null()
    return (
        table.with_columns(on=pl.col("end").dt.date())
        .join(notes, on=["region", "on"], how="left", maintain_order="left")
        .with_columns(closed_by=pl.when(aged).then(pl.format("{}; {}", "closed_by", "why")).otherwise("closed_by"))
        .select(table.columns)
    )


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


def derive_days(project: Project, days: Iterable[str | date]) -> Iterator[DerivedDay]:
    """These days in order of time, and every later day that was derived from what has changed since.

    Save each before the next is asked for. A run that was killed between two of them is made good by the next one.
    """
    waiting = sorted({date.fromisoformat(day) if isinstance(day, str) else day for day in days})
    while waiting:
        derived = derive_day(project, waiting.pop(0))
        yield derived
        later = [day for day in _derived_days(project) if day > derived.day][:1]
        if later and later[0] not in waiting and not _is_current(project, later[0]):
            waiting = sorted([*waiting, later[0]])


def save_derived(project: Project, derived: DerivedDay) -> None:
    day = derived.day.isoformat()
    write_table(project.store, windows_key(day), derived.table)
    project.store.write_record(derivation_key(day), derived.derivation)
    project.store.write_record(windows_state_key(day), derived.state)


def _derived_days(project: Project, before: date = date.max) -> list[date]:
    names = [name.removesuffix(_STATE) for name in project.store.list("windows") if name.endswith(_STATE)]
    return [day for day in map(date.fromisoformat, names) if day < before]


def _digest(state: RuleState | None) -> str | None:
    return None if state is None else hashlib.sha256(canonical_json(state.model_dump(mode="json"))).hexdigest()


def _is_current(project: Project, day: date) -> bool:
    """Whether a day's windows follow from the newest state there is before it."""
    key, store = derivation_key(day.isoformat()), project.store
    if not store.exists(key):
        return False
    after = _derived_days(project, before=day)[-1:]
    state = store.read_record(windows_state_key(after[0].isoformat()), RuleState) if after else None
    return store.read_record(key, Derivation).state_sha256 == _digest(state)
