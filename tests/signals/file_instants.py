"""What a trace file says: true hours and their values."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from curtail_pipeline.settings.trace_settings import FileTraces
from curtail_pipeline.signals.files import FileProvider
from curtail_pipeline.signals.provider import make_provider

HOUR = timedelta(hours=1)
Instants = dict[datetime, float]


def read(path: Path, region: str = "A", **given: Any) -> Instants:
    """What a file says, as begin in UTC -> value; grid stamps without a value are left out."""
    provider = make_provider(FileTraces.model_validate({"path": str(path), "kind": "marginal_intensity", **given}))
    assert isinstance(provider, FileProvider)
    span = provider.span()
    assert span is not None
    table = provider.fetch(region, *span).drop_nulls("value")
    return dict(table.select("time", "value").iter_rows())


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def hours(start: str, *values: float) -> Instants:
    return {utc(start) + i * HOUR: value for i, value in enumerate(values)}
