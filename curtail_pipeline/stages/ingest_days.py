"""Days of all regions, region by region: what fails costs its region and its day, and nothing else."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date

from curtail_pipeline.errors import CurtailError, IncompleteError
from curtail_pipeline.stages.ingest import IngestedDay, ingest_day, save_ingested
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.records import Message, Utc
from curtail_pipeline.storage.tables import attempt_key, trace_key
from curtail_pipeline.times import utc_now

_log = logging.getLogger(__name__)
SHOWN = 5
"""Failures spelled out in an error; the rest is counted."""


class Attempt(Message):
    """`ingestion/<day>/<region>.json`: what the last attempt at a region's day came to."""

    day: date
    region: str
    at: Utc
    reason: str | None
    """Why nothing new was stored; None where it was."""


@dataclass(frozen=True)
class Ingested:
    """One attempt, and what it found."""

    attempt: Attempt
    found: IngestedDay | None
    """None where the source gave nothing at all. Stored only where the attempt has no reason against it."""

    @property
    def stored(self) -> bool:
        return self.attempt.reason is None


def ingest_region(project: Project, region: str, day: str | date) -> Ingested:
    """Fetch, check and store one region's day. Whatever goes wrong is the attempt's reason; a stored trace that is not
    replaced stays as it is, and the windows of the region close when its signal is too old."""
    day = date.fromisoformat(day) if isinstance(day, str) else day
    found, reason = None, None
    try:
        found = ingest_day(project, region, day)
        if found.blocked:
            reason = "; ".join(check.description for check in found.blocked)
        else:
            save_ingested(project, found)
    except CurtailError as error:
        reason = str(error)
    except Exception as error:
        # A fault of a provider's own must not cost the other regions either; its traceback is for the log.
        _log.exception("ingesting %s of %s", region, day)
        reason = f"{type(error).__name__}: {error}"
    attempt = Attempt(day=day, region=region, at=utc_now(), reason=reason)
    project.store.write_record(attempt_key(day.isoformat(), region), attempt)
    return Ingested(attempt, found)


def ingest_regions(project: Project, days: Iterable[str | date]) -> Iterator[Ingested]:
    """Every region of the experiment, day by day."""
    for day in days:
        for region in project.experiment.regions:
            yield ingest_region(project, region, day)


def last_attempt(project: Project, region: str, day: date) -> Attempt | None:
    key = attempt_key(day.isoformat(), region)
    return project.store.read_record(key, Attempt) if project.store.exists(key) else None


def why_missing(project: Project, region: str, day: date) -> str | None:
    """Why there is no trace of a region's day; None where there is one."""
    if project.store.exists(trace_key(day.isoformat(), region)):
        return None
    attempt = last_attempt(project, region, day)
    if attempt is None or attempt.reason is None:
        return f"no trace of {day} is stored"
    return f"no trace of {day} is stored: {attempt.reason}"


def require_stored(project: Project, days: Iterable[str | date]) -> None:
    """Raise what the last attempts at these days failed by.

    Raises:
        IncompleteError: at least one region's day was not stored; names each with its reason.
    """
    attempts = [
        attempt
        for day in days
        for region in project.experiment.regions
        if (attempt := last_attempt(project, region, date.fromisoformat(day) if isinstance(day, str) else day))
    ]
    refuse_failed([attempt for attempt in attempts if attempt.reason is not None], len(attempts))


def refuse_failed(failed: Sequence[Attempt], tried: int) -> None:
    """Raise if any attempt failed.

    Raises:
        IncompleteError: names each with its reason.
    """
    if not failed:
        return
    shown = "; ".join(f"{attempt.region} {attempt.day}: {attempt.reason}" for attempt in failed[:SHOWN])
    more = f"; and {len(failed) - SHOWN} more" if len(failed) > SHOWN else ""
    raise IncompleteError(
        f"{len(failed)} of {tried} regions' days were not stored: {shown}{more}. All others are stored and their "
        "windows derived; a region without an earlier trace of the day keeps its windows closed. Mend the cause, then "
        "materialise these days again, in any order"
    )
