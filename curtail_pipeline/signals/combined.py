"""Several providers as one: each region and kind comes from the first that has it."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.trace_settings import CombinedTraces, Kind
from curtail_pipeline.signals.files import combine_hashes
from curtail_pipeline.signals.provider import Provider, make_provider
from curtail_pipeline.signals.trace import Ingested, empty_forecast
from curtail_pipeline.storage.store import file_sha256


class CombinedProvider(Provider):
    """For example marginal intensity from WattTime, curtailed power from the operator's files."""

    def __init__(self, settings: CombinedTraces) -> None:
        self.providers = [make_provider(source) for source in settings.sources]

    def _of(self, region: str) -> list[tuple[Provider, list[Kind]]]:
        names = [provider.regions() for provider in self.providers]
        found = [
            (provider, provider.kinds(region))
            for provider, known in zip(self.providers, names, strict=True)
            if known is None or region in known
        ]
        if not found:
            there = ", ".join(sorted({name for known in names for name in known or []}))
            raise TraceError(f"no source of traces.sources has region {region!r}; they have {there}")
        return found

    def _provider(self, region: str, kind: Kind | None) -> tuple[Provider, Kind]:
        sources = self._of(region)
        chosen = kind or sources[0][1][0]
        for provider, kinds in sources:
            if chosen in kinds:
                return provider, chosen
        known = sorted({name for _, kinds in sources for name in kinds})
        raise TraceError(f"no source of traces.sources has {chosen} of region {region!r}; they have {', '.join(known)}")

    def ingest(self, region: str, start: datetime, end: datetime, kind: Kind | None = None) -> Ingested:
        provider, chosen = self._provider(region, kind)
        return provider.ingest(region, start, end, chosen)

    def forecasts(self, region: str, start: datetime, end: datetime, kind: Kind | None = None) -> pl.DataFrame:
        chosen = kind or self.kinds(region)[0]
        for provider, kinds in self._of(region):
            if chosen in kinds and len(table := provider.forecasts(region, start, end, chosen)):
                return table
        return empty_forecast()

    def regions(self) -> list[str] | None:
        lists = [provider.regions() for provider in self.providers]
        if any(names is None for names in lists):
            return None
        return list(dict.fromkeys(name for names in lists for name in names or []))

    def kinds(self, region: str) -> list[Kind]:
        return list(dict.fromkeys(kind for _, kinds in self._of(region) for kind in kinds))

    def span(self) -> tuple[datetime, datetime] | None:
        """What all recorded sources cover."""
        spans = [span for provider in self.providers if (span := provider.span()) is not None]
        if not spans:
            return None
        first, last = max(start for start, _ in spans), min(end for _, end in spans)
        if first >= last:
            raise TraceError("the sources of traces.sources cover no common time; their files are of different periods")
        return first, last

    def begins(self, region: str) -> datetime | None:
        """Where the last of the region's sources does."""
        return max((begin for part, _ in self._of(region) if (begin := part.begins(region)) is not None), default=None)

    def files(self) -> list[Path]:
        return [path for provider in self.providers for path in provider.files()]

    def fingerprint(self, hash_file: Callable[[Path], str] = file_sha256) -> str:
        parts = [provider.fingerprint(hash_file) for provider in self.providers]
        return combine_hashes(parts) if all(parts) else ""
