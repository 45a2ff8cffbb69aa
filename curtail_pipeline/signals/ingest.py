"""One region's signals of one UTC day: fetched, checked, compared with what is stored."""

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.project import Project, midnight
from curtail_pipeline.signals.checks import CheckOutcome, run_checks
from curtail_pipeline.signals.config import Kind
from curtail_pipeline.signals.forecasts import fetch_forecasts
from curtail_pipeline.signals.revisions import compare
from curtail_pipeline.storage.tables import forecast_key, read_table, trace_key, write_table
from curtail_pipeline.times import utc_now
from curtail_pipeline.windows.rule_config import rule_of


@dataclass(frozen=True)
class IngestedDay:
    """A day's trace of a region, not yet stored, and what is known of it."""

    region: str
    day: date
    table: pl.DataFrame
    forecasts: pl.DataFrame | None
    """Forecasts issued on the day; None when nothing reads them or there are none."""
    metadata: dict[str, Any]
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
    found = [project.provider.ingest(region, start, end, kind) for kind in kinds_of(project, region)]
    table = pl.concat([part.trace for part in found])
    reports = [part.report for part in found]
    key = trace_key(day.isoformat(), region)
    revisions = compare(read_table(project.store, key) if project.store.exists(key) else None, table)
    known = table.drop_nulls("value")
    metadata: dict[str, Any] = {
        "source": ", ".join(table["source"].unique().sort()),
        "kinds": ", ".join(table["kind"].unique().sort()),
        "nulls": table["value"].null_count(),
        "duplicates": sum(report.duplicates for report in reports),
        "conflicts": sum(report.conflicts for report in reports),
        "estimated_share": float(table["estimated"].mean() or 0.0),  # type: ignore[arg-type]
        "mean": float(known["value"].mean() or 0.0),  # type: ignore[arg-type]
        **revisions.metadata(),
    }
    warnings = [text for report in reports for text in report.warnings]
    forecasts = None
    try:
        forecasts = fetch_forecasts(project, region, start, end)
    except TraceError as error:
        # Windows and plans do without; a signal that is there must not be lost for it.
        warnings.append(f"no new forecasts: {error}")
    if forecasts is not None:
        metadata["forecasts_issued"] = forecasts["issued_at"].n_unique()
    if warnings:
        metadata["warnings"] = "; ".join(warnings)
    checks = run_checks(table, now=now, expected=(start, end), reports=reports)
    return IngestedDay(region, day, table, forecasts, metadata, checks)


def save_ingested(project: Project, found: IngestedDay) -> None:
    """Replace the stored day as a whole."""
    write_table(project.store, trace_key(found.day.isoformat(), found.region), found.table)
    save_forecasts(project, found)


def save_forecasts(project: Project, found: IngestedDay) -> None:
    if found.forecasts is not None:
        write_table(project.store, forecast_key(found.day.isoformat(), found.region), found.forecasts)
