"""Forecasts as their source issued them, kept beside the traces, so that a decision made again sees the same ones."""

from datetime import datetime, timedelta

import polars as pl

from curtail_pipeline.project import Project
from curtail_pipeline.signals.config import Kind
from curtail_pipeline.signals.trace import FORECAST_SCHEMA
from curtail_pipeline.storage.tables import forecast_key, read_table
from curtail_pipeline.windows.membership import accounting_kind
from curtail_pipeline.windows.policies import PLANNING_POLICIES
from curtail_pipeline.windows.rule_config import rule_of

COMPLETE_WITHIN = timedelta(minutes=10)
"""A day whose last issue is this close to its end is not asked for again: two cadences of the sources there are."""

STORED_SCHEMA: dict[str, pl.DataType] = {**FORECAST_SCHEMA, "kind": pl.String()}


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
    parts = [read_table(project.store, key)] if project.store.exists(key) else []
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
