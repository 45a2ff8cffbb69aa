"""What `curtail windows` prints: the windows of a trace file, without any training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import polars as pl
from pydantic import ValidationError

from curtail_pipeline.errors import PolicyError, SettingsError
from curtail_pipeline.scheduling.policies import check_parameters
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.settings.explained import explain
from curtail_pipeline.settings.job import PolicySettings
from curtail_pipeline.settings.rule_settings import AVERAGE_REFUSED, RuleSettings, policy_named, rule_of
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.settings.trace_settings import FileTraces, Kind, on_file
from curtail_pipeline.signals.checks import CheckOutcome
from curtail_pipeline.signals.provider import Provider, make_provider
from curtail_pipeline.signals.recorded_checks import check_recording
from curtail_pipeline.signals.trace import Ingested
from curtail_pipeline.times import iso
from curtail_pipeline.windows.day_tables import window_hours
from curtail_pipeline.windows.rules import derive_windows

_NOMINAL_KW: Final = 1.0
Span = tuple[datetime, datetime]


@dataclass(frozen=True)
class FoundWindow:
    """A window of a site, times in ISO 8601."""

    site: str
    region: str
    start: str
    end: str | None
    """None while it is open at the end of the file."""
    hours: float
    """Of an open one, to the instant at which the last value's own interval is over."""
    opened_by: str
    closed_by: str | None


@dataclass(frozen=True)
class CheckSaid:
    """What a check said of a trace, as `--json` prints it."""

    name: str
    passed: bool
    description: str


def said(checks: Sequence[CheckOutcome]) -> list[CheckSaid]:
    return [CheckSaid(check.name, check.passed, check.description) for check in checks]


@dataclass(frozen=True)
class FileWindows:
    """The windows of a trace file; `--json` prints these keys."""

    policy: str
    windows: list[FoundWindow]
    hours: dict[str, float]
    """Per site."""
    nulls: int
    """Missing values, over the signals of all sites."""
    duplicates: int
    """Values dropped because another one of the same stamp was kept."""
    agreeing: int
    """Of them, those that were equal to the kept one."""
    disagreeing: int
    rounded: int
    """Small negative MW that were read as 0."""
    checks: list[CheckSaid]


def windows_of_file(
    traces: str | Path,
    experiment: Experiment | None = None,
    policy: str | None = None,
    **reading: object,
) -> FileWindows:
    """The windows of a trace file over all the time it covers.

    Args:
        traces: CSV (also .gz) or Parquet, wide or long.
        experiment: gives sites, rules and, where its own traces are a file, how to read one. Without it every region
            of the file is a site.
        policy: in place of the experiment's (`paper` without one). A region's own rule in the experiment stands.
        reading: how the file is read: keys of the `traces` section, e.g. unit, kind, timezone, interval.

    Raises:
        TraceError, SettingsError, PolicyError: what cannot be read, understood or used.
    """
    if reading.get("kind") == "average_intensity":
        raise PolicyError(f"{traces}: {AVERAGE_REFUSED}")
    settings = _file_settings(traces, experiment, reading)
    provider = make_provider(settings)
    sites = _sites(provider, experiment)
    # The pipeline reads what the policy says; only a file of which nothing else is known decides by its own kind.
    chosen = _policy(experiment, policy, settings.kind if experiment is None or "kind" in reading else None)
    rules = experiment.rules if experiment else {}
    by_region = {site.region: rule_of(chosen, site.region, rules) for site in sites}
    span = provider.span()
    assert span is not None  # a file without values is refused
    read = _read(provider, by_region, span)
    checks = said(check_recording([part for _, part in read], experiment.checks if experiment else None))
    table, _ = derive_windows(
        pl.concat(part.trace for _, part in read),
        sites,
        chosen,
        start=span[0],
        end=span[1],
        rules=rules,
        forecasts=_forecasts(provider, by_region, span),
        cadence_s=_cadences(by_region, read),
    )
    agreeing = sum(part.report.duplicates for _, part in read)
    disagreeing = sum(part.report.disagreeing for _, part in read)
    timed = window_hours(table, *span)
    hours = dict(timed.group_by("site").agg(pl.col("hours").sum()).iter_rows())
    return FileWindows(
        policy=chosen.name,
        windows=[_found(row) for row in timed.sort("start", "site").iter_rows(named=True)],
        hours={site.name: round(hours.get(site.name, 0.0), 6) for site in sites},
        nulls=sum(part.report.nulls for _, part in read),
        duplicates=agreeing + disagreeing,
        agreeing=agreeing,
        disagreeing=disagreeing,
        rounded=sum(part.report.rounded for _, part in read),
        checks=checks,
    )


def _read(provider: Provider, rules: dict[str, RuleSettings], span: Span) -> list[tuple[str, Ingested]]:
    """Every signal that a rule reads, with its region."""
    return [
        (region, provider.ingest(region, *span, signal.kind))
        for region, rule in rules.items()
        for signal in rule.signals
    ]


def _cadences(rules: dict[str, RuleSettings], read: list[tuple[str, Ingested]]) -> dict[tuple[str, Kind], float]:
    """Seconds between the values of each signal; `read` is what `_read` gives for the rules."""
    signals = [(region, signal.kind) for region, rule in rules.items() for signal in rule.signals]
    return {signal: float(part.report.cadence_s) for signal, (_, part) in zip(signals, read, strict=True)}


def _found(row: dict[str, Any]) -> FoundWindow:
    return FoundWindow(
        site=row["site"],
        region=row["region"],
        start=iso(row["start"]),
        end=None if row["end"] is None else iso(row["end"]),
        hours=round(row["hours"], 6),
        opened_by=row["opened_by"],
        closed_by=row["closed_by"],
    )


def _file_settings(traces: str | Path, experiment: Experiment | None, reading: Mapping[str, object]) -> FileTraces:
    declared = experiment.traces if experiment is not None else None
    try:
        return on_file(declared, traces, reading)
    except ValidationError as error:
        raise SettingsError(explain(error, str(traces), FileTraces)) from error


def _sites(provider: Provider, experiment: Experiment | None) -> list[Site]:
    if experiment is not None:
        return list(experiment.sites)
    regions = provider.regions() or []
    # Region names come from a file's header, and may hold what a site's name may not.
    return [
        Site.model_construct(name=region, region=region, training_kw=_NOMINAL_KW, idle_kw=0.0, steps_per_s=1.0)
        for region in regions
    ]


def _policy(experiment: Experiment | None, name: str | None, kind: Kind | None) -> PolicySettings:
    own = experiment.policy if experiment is not None else PolicySettings()
    policy = own if name is None else policy_named(name, own)
    check_parameters(policy)
    if kind is None or {"kind", "any_of", "all_of"} & policy.parameters.keys():
        return policy
    return policy.model_copy(update={"parameters": {**policy.parameters, "kind": kind}})


def _forecasts(provider: Provider, rules: dict[str, RuleSettings], span: Span) -> pl.DataFrame | None:
    """Recorded forecasts of the signals whose rule has a minimum duration."""
    tables = [
        provider.forecasts(region, *span, signal.kind).with_columns(kind=pl.lit(signal.kind))
        for region, rule in rules.items()
        if rule.required_s
        for signal in rule.signals
    ]
    return pl.concat(tables) if tables else None
