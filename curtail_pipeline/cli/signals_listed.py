"""`curtail signals`: the sources there are, and what the configured ones answer."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from curtail_pipeline.errors import CurtailError, TraceError
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.settings.trace_settings import CombinedTraces, Kind, SingleSource, TracesSettings
from curtail_pipeline.signals.provider import Provider, make_provider
from curtail_pipeline.times import iso, utc_now

WINDOW_KINDS: Final[tuple[Kind, ...]] = ("marginal_intensity", "price", "curtailed_power")


@dataclass(frozen=True)
class Source:
    """A kind of source, as `curtail signals list` prints it."""

    provider: str
    kinds: tuple[Kind, ...]
    needs: str
    defines_windows: bool


SOURCES: Final = (
    Source("synthetic", WINDOW_KINDS, "nothing; values come from a model", True),
    Source("file", (*WINDOW_KINDS, "average_intensity"), "a CSV, Parquet or spreadsheet file (traces.path)", True),
    Source(
        "live_file",
        (*WINDOW_KINDS, "average_intensity"),
        "a file that somebody goes on writing (traces.path), by the wall clock",
        True,
    ),
    Source(
        "watttime",
        ("marginal_intensity", "average_intensity"),
        "WATTTIME_USER and WATTTIME_PASSWORD; a free account has CAISO_NORTH",
        True,
    ),
    Source("electricity_maps", ("average_intensity",), "ELECTRICITY_MAPS_TOKEN; for accounting only", False),
    Source("combined", (*WINDOW_KINDS, "average_intensity"), "what its sources need (traces.sources)", True),
)


@dataclass(frozen=True)
class Answer:
    """What a source gave for one region and kind of one day."""

    provider: str
    region: str
    kind: str
    values: int
    missing: int
    cadence_s: int
    first: str | None
    last: str | None
    low: float | None
    high: float | None
    error: str | None = None


def ask_sources(experiment: Experiment) -> list[Answer]:
    """Ask each configured source for one day: the first of a recording, the last 24 hours of a live one."""
    settings = experiment.traces
    sources: list[SingleSource] = list(settings.sources) if isinstance(settings, CombinedTraces) else [settings]
    return [answer for source in sources for answer in _ask(source, experiment)]


def _ask(settings: TracesSettings, experiment: Experiment) -> list[Answer]:
    name = settings.provider
    try:
        provider = make_provider(settings)
        known = provider.regions()
    except CurtailError as error:
        return [_refused(name, "-", "-", error)]
    answers = []
    for region in experiment.regions:
        if known is not None and region not in known:
            continue
        answers += [_one(name, provider, region, kind) for kind in provider.kinds(region)]
    if not answers:
        there = ", ".join(known or []) or "none"
        return [_refused(name, "-", "-", TraceError(f"it has none of the experiment's regions; it has {there}"))]
    return answers


def _one(name: str, provider: Provider, region: str, kind: Kind) -> Answer:
    try:
        span = provider.span()
        start = utc_now() - timedelta(days=1) if span is None else span[0]
        end = start + timedelta(days=1)
        found = provider.ingest(region, start, end if span is None else min(end, span[1]), kind)
    except CurtailError as error:
        return _refused(name, region, kind, error)
    known = found.trace.drop_nulls("value")
    values = known["value"].to_list()
    return Answer(
        provider=name,
        region=region,
        kind=kind,
        values=len(values),
        missing=found.report.nulls,
        cadence_s=found.report.cadence_s,
        first=iso(known["time"][0]) if values else None,
        last=iso(known["time"][-1]) if values else None,
        low=min(values, default=None),
        high=max(values, default=None),
        error=None if values else "it answered without any value; check the region's name there",
    )


def _refused(name: str, region: str, kind: str, error: CurtailError) -> Answer:
    return Answer(name, region, kind, 0, 0, 0, None, None, None, None, str(error))
