"""One region's signals of one UTC day: fetched, checked, compared with what is stored."""

from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

import polars as pl

from curtail_pipeline.errors import StoreError, TraceError
from curtail_pipeline.scheduling.policies import PLANNING_POLICIES
from curtail_pipeline.settings.rule_settings import rule_of
from curtail_pipeline.settings.trace_settings import Kind
from curtail_pipeline.signals.checks import CheckOutcome, Metadata, run_checks
from curtail_pipeline.signals.held import ACCOUNTING_KINDS, accounting_kind
from curtail_pipeline.signals.recorded_checks import check_recording
from curtail_pipeline.signals.revisions import compare
from curtail_pipeline.signals.screen import screen_ingested
from curtail_pipeline.signals.trace import FORECAST_SCHEMA, Ingested
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.tables import forecast_key, read_table, read_tables, trace_key, write_table
from curtail_pipeline.times import midnight, utc_now

COMPLETE_WITHIN = timedelta(minutes=10)
"""A day whose last issue is this close to its end is not asked for again: two cadences of the sources there are."""
HISTORY_DAYS = 30
"""Stored days that a live source's values are judged by."""

STORED_SCHEMA: dict[str, pl.DataType] = {**FORECAST_SCHEMA, "kind": pl.String()}


@dataclass(frozen=True)
class IngestedDay:
    """A day's trace of a region, not yet stored, and what is known of it."""

    region: str
    day: date
    table: pl.DataFrame
    forecasts: pl.DataFrame | None
    """Forecasts issued on the day; None when nothing reads them or there are none."""
    metadata: Metadata
    checks: list[CheckOutcome]

    @property
    def blocked(self) -> list[CheckOutcome]:
        """The failed checks for which this table must not replace the stored one."""
        return [check for check in self.checks if check.blocking and not check.passed]


def kinds_of(project: Project, region: str) -> list[Kind]:
    """The kinds to ingest: the provider's own for the region, and those that the region's window rule reads."""
    experiment = project.experiment
    rule = rule_of(experiment.policy, region, experiment.rules)
    return list(dict.fromkeys([project.provider.kinds(region)[0], *(signal.kind for signal in rule.signals)]))


def kinds_beside(project: Project, region: str) -> list[Kind]:
    """The kinds that the provider has as well and that grams, or the report, are counted by; windows do without them.

    Of files all of them; of an API, which is asked once more for each, what CO2 cannot be counted without.
    """
    known, read = project.provider.kinds(region), kinds_of(project, region)
    others = [kind for kind in (*ACCOUNTING_KINDS, "price") if kind in known and kind not in read]
    if project.provider.files():
        return others
    return [] if set(read) & set(ACCOUNTING_KINDS) else [kind for kind in others if kind in ACCOUNTING_KINDS][:1]


def check_project(project: Project) -> list[CheckOutcome]:
    """The checks of a recorded source over all of its time; none of a live one, which is checked day by day.

    Raises:
        TraceError: a check failed that would keep days out of the store.
    """
    if project.span is None:
        return []
    provider = project.provider
    return check_recording(
        [
            provider.ingest(region, *project.span, kind)
            for region in project.experiment.regions
            for kind in [*kinds_of(project, region), *kinds_beside(project, region)]
        ],
        project.experiment.checks,
    )


def keep_nowcasts(found: Ingested, stored: pl.DataFrame | None) -> Ingested:
    """A live answer with the estimates that were stored before, where it has no value: its history lags behind them.

    Args:
        stored: the same day and region as it is in the store.
    """
    if found.report.screened or stored is None or found.trace.is_empty():
        return found
    kept = ["value", "model", "estimated", "warnings"]
    earlier = stored.filter(pl.col("estimated") & pl.col("value").is_not_null(), kind=found.trace["kind"][0])
    joined = found.trace.join(earlier.select("time", *kept), on="time", how="left", suffix="_kept")
    lacks = pl.col("value").is_null() & pl.col("value_kept").is_not_null()
    taken = [pl.when(lacks).then(f"{name}_kept").otherwise(name).alias(name) for name in kept]
    trace = joined.with_columns(taken).select(found.trace.columns)
    return Ingested(trace, replace(found.report, nulls=trace["value"].null_count()))


def keep_dropped(found: Ingested, stored: pl.DataFrame | None, kind: Kind, begin: datetime | None) -> Ingested:
    """A live answer behind the stored values of the time before its source begins: a file may keep its newest alone."""
    if stored is None or begin is None:
        return found
    trace = pl.concat([stored.filter(pl.col("time") < begin, kind=kind), found.trace])
    return Ingested(trace, replace(found.report, nulls=trace["value"].null_count()))


def _screened(project: Project, found: Ingested, day: date) -> Ingested:
    """A live answer without the values that are no measurement by the stored days before it."""
    if found.report.screened or found.trace.is_empty():
        return found
    region, kind = str(found.trace["region"][0]), str(found.trace["kind"][0])
    keys = [trace_key((day - timedelta(days=back)).isoformat(), region) for back in range(1, HISTORY_DAYS + 1)]
    past = read_tables(project.store, keys)
    history = found.trace.clear() if past is None else past.filter(kind=kind)
    return screen_ingested(found, history)


def ingest_day(project: Project, region: str, day: str | date) -> IngestedDay:
    """Fetch and check a day. A recorded trace is asked only for what it covers.

    Raises:
        TraceError: the source refused or cannot be read.
    """
    day = date.fromisoformat(day) if isinstance(day, str) else day
    start = midnight(day)
    end = start + timedelta(days=1)
    now = utc_now()
    if project.span is not None:
        start, end = max(start, project.span[0]), min(end, project.span[1])
    key = trace_key(day.isoformat(), region)
    stored, unreadable = _stored(project, key)
    begin = project.provider.begins(region)
    found = []
    for kind in kinds_of(project, region):
        answer = keep_nowcasts(project.provider.ingest(region, start, end, kind), stored)
        found.append(_screened(project, keep_dropped(answer, stored, kind, begin), day))
    table = pl.concat([part.trace for part in found])
    # What a source that began later never gave is no gap.
    since = start if begin is None else min(end, max(start, min([begin, *table["time"].head(1)])))
    reports = [part.report for part in found]
    checks = run_checks(table, now=now, expected=(since, end), reports=reports, limits=project.experiment.checks)
    beside, warnings = _beside(project, region, (start, end), stored, now)
    own, table = table, pl.concat([table, *(part.trace for part in beside)])
    reports += [part.report for part in beside]
    warnings = [*(text for report in reports for text in report.warnings), *warnings]
    revisions = compare(stored, table)
    known = own.drop_nulls("value")
    metadata: Metadata = {
        "source": ", ".join(table["source"].unique().sort()),
        "kinds": ", ".join(table["kind"].unique().sort()),
        "nulls": own["value"].null_count(),
        "duplicates": sum(report.duplicates for report in reports),
        "conflicts": sum(report.conflicts for report in reports),
        "withheld": sum(part.count for report in reports for part in report.withheld),
        "estimated_share": float(own["estimated"].mean() or 0.0),  # type: ignore[arg-type]
        "mean": float(known["value"].mean() or 0.0),  # type: ignore[arg-type]
        **revisions.metadata(),
    }
    warnings += [f"{unreadable}; it is replaced"] if unreadable else []
    forecasts = None
    try:
        forecasts = fetch_forecasts(project, region, start, end)
    except (TraceError, StoreError) as error:
        # Windows and plans do without; a signal that is there must not be lost for it.
        warnings.append(f"no new forecasts: {error}")
    if forecasts is not None:
        metadata["forecasts_issued"] = forecasts["issued_at"].n_unique()
    if warnings:
        metadata["warnings"] = "; ".join(warnings)
    return IngestedDay(region, day, table, forecasts, metadata, checks)


def _beside(
    project: Project, region: str, span: tuple[datetime, datetime], stored: pl.DataFrame | None, now: datetime
) -> tuple[list[Ingested], list[str]]:
    """What grams are counted by beside the signals of windows, and why a part of it is left out: a signal that windows
    need must not be lost for it."""
    found, lost = [], []
    for kind in kinds_beside(project, region):
        try:
            part = keep_nowcasts(project.provider.ingest(region, *span, kind), stored)
        except (TraceError, StoreError) as error:
            lost.append(f"no {kind}: {error}")
            continue
        # A hole in it is energy that is not accounted, and no reason to leave out the rest.
        checks = run_checks(part.trace, now=now, reports=[part.report], limits=project.experiment.checks)
        wrong = [check for check in checks if check.name in ("unit", "range") and check.blocking and not check.passed]
        lost += [f"{kind} is left out: {check.description}" for check in wrong]
        found += [] if wrong else [part]
    return found, lost


def _stored(project: Project, key: str) -> tuple[pl.DataFrame | None, str | None]:
    """The table that is about to be replaced, or why it cannot be read."""
    try:
        return (read_table(project.store, key) if project.store.exists(key) else None), None
    except StoreError as error:
        return None, str(error)


def save_ingested(project: Project, found: IngestedDay) -> None:
    """Replace the stored day as a whole."""
    write_table(project.store, trace_key(found.day.isoformat(), found.region), found.table)
    save_forecasts(project, found)


def save_forecasts(project: Project, found: IngestedDay) -> None:
    if found.forecasts is not None:
        write_table(project.store, forecast_key(found.day.isoformat(), found.region), found.forecasts)


def kinds_forecast(project: Project, region: str) -> list[Kind]:
    """The kinds whose forecast something reads: a policy that plans, or a rule that opens no window too short."""
    experiment = project.experiment
    rule = rule_of(experiment.policy, region, experiment.rules)
    kinds: list[Kind] = []
    if experiment.policy.name in PLANNING_POLICIES:
        kinds.append(accounting_kind(project.provider.kinds(region)))
    if rule.required_s > 0:
        kinds += [signal.kind for signal in rule.signals]
    return list(dict.fromkeys(kinds))


def fetch_forecasts(project: Project, region: str, start: datetime, end: datetime) -> pl.DataFrame | None:
    """A day's forecasts: those stored, and what was issued since. None when nothing reads them or there are none.

    Args:
        start, end: the day, or the part of it that the source covers.

    Raises:
        TraceError: the source refused.
    """
    kinds = kinds_forecast(project, region)
    if not kinds:
        return None
    key = forecast_key(start.date().isoformat(), region)
    stored, _ = _stored(project, key)
    parts = [] if stored is None else [stored]
    for kind in kinds:
        since = start
        if parts:
            last = parts[0].filter(pl.col("kind") == kind)["issued_at"].max()
            if isinstance(last, datetime):
                since = last + timedelta(microseconds=1)
        if end - since > COMPLETE_WITHIN:
            issued = project.provider.forecasts(region, since, end, kind)
            parts.append(issued.with_columns(kind=pl.lit(kind)).cast(pl.Schema(STORED_SCHEMA)))
    found = pl.concat(parts).sort("kind", "issued_at", "target")
    return None if found.is_empty() else found
