"""Traces from files: CSV and Parquet, wide (`time, REGION, ...`) or long (`time, region, value`)."""

import hashlib
from datetime import datetime
from functools import cached_property
from pathlib import Path

import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.signals.config import FileTraces, Kind
from curtail_pipeline.signals.provider import Provider
from curtail_pipeline.signals.stamps import parse_stamps
from curtail_pipeline.signals.trace import Ingested, Series, build_series, to_trace
from curtail_pipeline.times import utc_now


class FileProvider(Provider):
    """A recorded trace. The file is read once, when the first value is asked for."""

    def __init__(self, settings: FileTraces) -> None:
        self.settings = settings
        self._series: dict[str, Series] = {}
        if not Path(settings.path).is_file():
            raise TraceError(f"no trace file {settings.path!r}; check traces.path (relative to {Path.cwd()})")

    @cached_property
    def _table(self) -> pl.DataFrame:
        """Columns `time`, `region`, `value`, in the order of the file."""
        path, settings = Path(self.settings.path), self.settings
        try:
            raw = pl.read_csv(path, infer_schema=False)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise TraceError(f"{path}: cannot be read as CSV ({' '.join(str(error).split())[:200]})") from error
        if raw.width < 2:
            raise TraceError(
                f"{path}: has the columns {raw.columns}; a trace needs a time and at least one value column"
            )
        time = settings.time_column or raw.columns[0]
        if time not in raw.columns:
            raise TraceError(f"{path}: has no time column {time!r}; it has {', '.join(raw.columns)}")
        stamps = parse_stamps(raw[time], str(path), settings.timezone)
        wide = raw.drop(time).rename({old: new for old, new in settings.columns.items() if old in raw.columns})
        long = wide.with_columns(time=stamps).unpivot(index="time", variable_name="region", value_name="text")
        table = long.with_columns(value=pl.col("text").str.strip_chars().cast(pl.Float64, strict=False))
        bad = table.filter(pl.col("value").is_null() & (pl.col("text").str.strip_chars().str.len_bytes() > 0))
        if len(bad):
            row = bad.row(0, named=True)
            raise TraceError(
                f"{path}: value {row['text']!r} of {row['region']} at {row['time']} is not a number; "
                "leave a missing value empty"
            )
        return table.drop("text")

    def _of(self, region: str) -> Series:
        if region not in self._series:
            rows = self._table.filter(pl.col("region") == region)
            if rows.is_empty():
                raise TraceError(
                    f"{self.settings.path}: has no region {region!r}; it has {', '.join(self.regions())}. "
                    "Name the site's region as the file does, or map the column with traces.columns"
                )
            self._series[region] = build_series(
                rows, kind=self.settings.kind, unit=self.settings.unit, end_stamped=self.settings.interval == "end"
            )
        return self._series[region]

    def ingest(self, region: str, start: datetime, end: datetime, kind: Kind | None = None) -> Ingested:
        if kind not in (None, self.settings.kind):
            raise TraceError(f"{self.settings.path}: holds {self.settings.kind}, not {kind}, of region {region!r}")
        series = self._of(region)
        span = series.span or (start, start)
        return to_trace(
            series,
            region=region,
            kind=self.settings.kind,
            source=f"file:{Path(self.settings.path).name}",
            start=max(start, span[0]),
            end=min(end, span[1]),
            retrieved_at=utc_now().replace(microsecond=0),
        )

    def regions(self) -> list[str]:
        return self._table["region"].unique(maintain_order=True).to_list()

    def kinds(self, region: str) -> list[Kind]:
        return [self.settings.kind]

    def span(self) -> tuple[datetime, datetime] | None:
        spans = [span for region in self.regions() if (span := self._of(region).span)]
        return (min(s for s, _ in spans), max(e for _, e in spans)) if spans else None

    def fingerprint(self) -> str:
        return hashlib.sha256(Path(self.settings.path).read_bytes()).hexdigest()
