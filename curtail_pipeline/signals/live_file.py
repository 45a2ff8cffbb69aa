"""Files that somebody goes on writing, as a live source: what one has of an operator by a job of one's own."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import polars as pl

from curtail_pipeline.settings.trace_settings import Kind, LiveFileTraces
from curtail_pipeline.signals.file_tables import find_files
from curtail_pipeline.signals.files import FileProvider
from curtail_pipeline.signals.provider import Provider
from curtail_pipeline.signals.screen import ENOUGH_HISTORY_S
from curtail_pipeline.signals.trace import Ingested

Stamp = tuple[tuple[Path, int, int, int], ...]
"""Of each file its size, modification time and inode."""


class LiveFileProvider(Provider):
    """Reads the files again when one has changed, or another one fits the pattern.

    Values are judged by what the files hold, and by the stored days too where that is little.
    """

    def __init__(self, settings: LiveFileTraces) -> None:
        """Nothing is read or looked for before the first question."""
        self._settings = settings
        self._read: FileProvider | None = None
        self._seen: Stamp = ()

    @property
    def _now(self) -> FileProvider:
        """The files as they are.

        Raises:
            TraceError: there are none.
        """
        stamp = _stamp(self._settings)  # before they are read: what is written meanwhile is read the next time
        if self._read is None or stamp != self._seen:
            self._read, self._seen = FileProvider(self._settings), stamp
        return self._read

    def ingest(self, region: str, start: datetime, end: datetime, kind: Kind | None = None) -> Ingested:
        provider = self._now
        found = provider.ingest(region, start, end, kind)
        first, last = provider.span()
        enough = (last - first).total_seconds() >= ENOUGH_HISTORY_S
        return replace(found, report=replace(found.report, screened=enough))

    def begins(self, region: str) -> datetime | None:
        return self._now.first_of(region)

    def regions(self) -> list[str]:
        return self._now.regions()

    def kinds(self, region: str) -> list[Kind]:
        return self._now.kinds(region)

    def forecasts(self, region: str, start: datetime, end: datetime, kind: Kind | None = None) -> pl.DataFrame:
        return self._now.forecasts(region, start, end, kind)


def _stamp(settings: LiveFileTraces) -> Stamp:
    files = find_files(settings.path)
    return tuple((path, found.st_size, found.st_mtime_ns, found.st_ino) for path in files if (found := path.stat()))
