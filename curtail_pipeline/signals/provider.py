"""What a provider of traces is, and how one is made from settings.

A new provider is one module with one class, and its settings class in `settings/trace_settings.py`, which
names that class. Of an HTTP API it is a `LiveProvider` (`signals/live.py`).
"""

from collections.abc import Callable
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Protocol

import polars as pl

from curtail_pipeline.settings.trace_settings import Kind, TracesSettings
from curtail_pipeline.signals.trace import Ingested, empty_forecast
from curtail_pipeline.storage.store import file_sha256


class Provider(Protocol):
    """A source of signals. Subclasses implement `ingest` and `regions`; the rest has defaults."""

    def ingest(self, region: str, start: datetime, end: datetime, kind: Kind | None = None) -> Ingested:
        """The normalised trace of `[start, end)` and what was found in the source's answer.

        Args:
            kind: the provider's first kind for the region when not given.

        Raises:
            TraceError: unknown region or kind, unreadable or refused source.
        """
        ...

    def regions(self) -> list[str] | None:
        """The regions there are; None when any name may be asked for. Never asks the network."""
        ...

    def fetch(self, region: str, start: datetime, end: datetime, kind: Kind | None = None) -> pl.DataFrame:
        """The normalised trace of `[start, end)` (TRACE_SCHEMA), clipped to what a recorded source covers."""
        return self.ingest(region, start, end, kind).trace

    def kinds(self, region: str) -> list[Kind]:
        """The kinds this provider has of a region; the first is its default."""
        return ["marginal_intensity"]

    def forecasts(self, region: str, start: datetime, end: datetime, kind: Kind | None = None) -> pl.DataFrame:
        """Forecasts issued in `[start, end)` (FORECAST_SCHEMA); empty when the source has none."""
        return empty_forecast()

    def span(self) -> tuple[datetime, datetime] | None:
        """What a recorded source covers, over all its regions; None for an endless or live one."""
        return None

    def begins(self, region: str) -> datetime | None:
        """Before when a live source has nothing of a region, which is no gap; None where any time may be asked for."""
        return None

    def files(self) -> list[Path]:
        """The files that values are read from."""
        return []

    def fingerprint(self, hash_file: Callable[[Path], str] = file_sha256) -> str:
        """sha256 of all that the values depend on; empty for a live source, whose values may be revised.

        Args:
            hash_file: sha256 of one of `files`, for a caller that knows it already.
        """
        return ""


def make_provider(settings: TracesSettings) -> Provider:
    """The provider that these settings declare; its module is imported here and not before.

    Raises:
        TraceError: the source cannot be opened.
    """
    module, name = settings.implementation.split(":")
    factory: Callable[[TracesSettings], Provider] = getattr(import_module(module), name)
    return factory(settings)
