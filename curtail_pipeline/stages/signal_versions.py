"""Versions of the stored signals: a revised trace has another one, a trace fetched again unchanged has the same."""

import hashlib
from collections.abc import Sequence
from datetime import date

import polars as pl

from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.tables import read_table, trace_key

_TOLD = ("time", "value", "kind", "source")
"""What a ledger depends on; when a value was fetched is not among it."""


class SignalVersions:
    """Hashes of the stored traces, each day of a region read once.

    Make one for every piece of work: a day that is ingested meanwhile is not read again.
    """

    def __init__(self, project: Project) -> None:
        self._project = project
        self._days: dict[tuple[date, str], bytes] = {}

    def of(self, regions: Sequence[str], days: Sequence[date]) -> dict[str, str]:
        """By region: 12 hex digits of a hash of what is stored of these days."""
        return {
            region: hashlib.sha256(b"".join(self._day(day, region) for day in days)).hexdigest()[:12]
            for region in regions
        }

    def _day(self, day: date, region: str) -> bytes:
        if (day, region) not in self._days:
            key = trace_key(day.isoformat(), region)
            stored = read_table(self._project.store, key) if self._project.store.exists(key) else None
            self._days[day, region] = b"none" if stored is None else _digest(stored)
        return self._days[day, region]


def _digest(table: pl.DataFrame) -> bytes:
    ordered = table.select(_TOLD).sort("kind", "time")
    text = ordered.with_columns(pl.col("time").dt.epoch("us")).write_csv(include_header=False, float_precision=9)
    return hashlib.sha256(text.encode()).digest()
