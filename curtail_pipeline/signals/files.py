"""Traces from files: CSV, Parquet and spreadsheets, wide (`time, REGION, ...`) or long (`time, region, value`)."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path

import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.trace_settings import UNITS, FileFormat, Kind, Unit
from curtail_pipeline.signals.cadence import coarser_step, cut_stretch
from curtail_pipeline.signals.combine import disagrees_much, require_no_listing, require_one_row_per_stamp
from curtail_pipeline.signals.file_tables import TraceFiles
from curtail_pipeline.signals.kinds import OFTEN, is_intensity, require_believable_values
from curtail_pipeline.signals.provider import Provider
from curtail_pipeline.signals.screen import screen_series
from curtail_pipeline.signals.snapping import require_small_grid, snapped
from curtail_pipeline.signals.trace import (
    FORECAST_SCHEMA,
    Ingested,
    Series,
    build_series,
    conversion_factor,
    empty_forecast,
    to_trace,
)
from curtail_pipeline.storage.store import file_sha256
from curtail_pipeline.times import iso, utc_now

log = logging.getLogger(__name__)

ROUNDING_MW = 0.5
"""A curtailed power above its negative is 0: possible less dispatched power, each rounded to a MW or less."""


_LONGEST_CADENCE_S = 86_400
_OTHERS = 0.9
"""Of the rows without a value that another signal has one in: they are there because of it."""


class FileProvider(Provider):
    """A recorded trace. Files are read once, when the first value is asked for."""

    def __init__(self, settings: FileFormat) -> None:
        """Find the files.

        Raises:
            TraceError: there are none.
        """
        self.settings = settings
        self.source = TraceFiles(settings)
        self._series: dict[tuple[str, Kind], Series] = {}
        self._notes: dict[tuple[str, Kind], list[str]] = {}
        self._rounded: dict[tuple[str, Kind], int] = {}

    @cached_property
    def _values(self) -> pl.DataFrame:
        return self.source.values()

    @cached_property
    def _signals(self) -> dict[str, list[Kind]]:
        """Kinds of each region, in order of first mention; the settings' kind first."""
        found: dict[str, list[Kind]] = {}
        for region, kind in self._values.select("region", "kind").unique(maintain_order=True).iter_rows():
            found.setdefault(region, []).append(kind)
        return {region: sorted(kinds, key=lambda kind: kind != self.settings.kind) for region, kinds in found.items()}

    def _kind(self, region: str, kind: Kind | None) -> Kind:
        known = self._signals.get(region)
        if known is None:
            raise TraceError(
                f"{self.source.name}: has no region {region!r}; it has {', '.join(self._signals)}. Name the site's "
                "region as the file does, or map the file's name to it with traces.columns"
            )
        if kind is not None and kind not in known:
            own = next((name for name in known if name != "average_intensity"), None)
            other = f", or decide windows by another kind (policy: {{parameters: {{kind: {own}}}}})" if own else ""
            raise TraceError(
                f"{self.source.name}: has no {kind} of region {region!r}; it has {', '.join(known)}. Declare what a "
                f"column holds with traces.kind or traces.columns{other}"
            )
        return kind or known[0]

    def _series_of(self, region: str, kind: Kind) -> Series:
        if (region, kind) not in self._series:
            rows = self._values.filter(region=region, kind=kind)
            units = rows["unit"].unique().to_list()
            if len(units) != 1 or units[0] not in UNITS[kind]:
                raise TraceError(
                    f"{self.source.name}: {kind} of region {region!r} is given in {', '.join(map(str, units))}; "
                    f"give all its values in one of {', '.join(UNITS[kind])}"
                )
            self._series[region, kind] = self._built(region, kind, rows, units[0])
        return self._series[region, kind]

    def _built(self, region: str, kind: Kind, rows: pl.DataFrame, unit: Unit) -> Series:
        settings = self.settings
        series = build_series(
            self._cleaned(rows, kind),
            kind=kind,
            unit=unit,
            cadence_s=settings.cadence_s,
            end_stamped=self.source.end_stamped,
            keep="first" if settings.combine == "first" else "last",
        )
        require_small_grid(series.points["time"], series.cadence_s, f"{self.source.name}, {region}")
        if kind != "average_intensity" and series.cadence_s > _LONGEST_CADENCE_S and settings.cadence_s is None:
            raise TraceError(
                f"{self.source.name}: the values of {region!r} are {series.cadence_s / 86_400:g} days apart, which "
                "says nothing about hours; give hourly or finer values, or declare traces.cadence_s: "
                f"{series.cadence_s} if each really holds for so long"
            )
        if settings.cadence_s is None and settings.missing != "zero" and (note := _cut_note(series)) is not None:
            self._note(region, kind, note)
        if settings.combine is None and disagrees_much(series):
            require_one_row_per_stamp(self.source.name, region, series, self.source.telling(region))
        if "kind" not in settings.model_fields_set and kind == settings.kind and not self._has_intensities(kind):
            require_believable_values(self.source.name, region, series.points["value"], series.cadence_s)
        if "missing" not in settings.model_fields_set:
            require_no_listing(self.source.name, region, kind, series)
        return replace(series, absent_is_zero=settings.missing == "zero" and kind == "curtailed_power")

    def _has_intensities(self, kind: Kind) -> bool:
        """Whether a region of the file has values like an intensity's: then a low one is a clean grid's."""
        known = self._values.filter((pl.col("kind") == kind) & (pl.col("value") > 0))
        high = known.group_by("region", "unit").agg(pl.col("value").quantile(OFTEN, "lower")).rows(named=True)
        return any(is_intensity(row["value"] * conversion_factor(kind, row["unit"])) for row in high)

    @cached_property
    def _screened(self) -> dict[tuple[str, Kind], Series]:
        """Every signal, without the values that are no measurement; an outage shows in several regions at once."""
        return screen_series(
            {
                (region, kind): self._series_of(region, kind)
                for region, kinds in self._signals.items()
                for kind in kinds
            },
            self.settings.measured,
        )

    def _cleaned(self, rows: pl.DataFrame, kind: Kind) -> pl.DataFrame:
        """Rows on their cadence, without the negative powers that rounding leaves; what was changed is noted."""
        region = str(rows["region"][0])
        coarser = self._coarser(rows)
        rows = rows if coarser is None else rows.drop_nulls("value")
        name = f"{self.source.name}, {region}"
        times, moved = snapped(rows["time"], name, self.settings.cadence_s, self.settings.snap_s)
        rows = rows.with_columns(times.alias("time"))
        if moved is not None:
            self._note(region, kind, moved)
        if coarser is not None:
            held = f"values stand every {coarser:g} s in rows of a finer signal, and hold for so long each"
            self._note(region, kind, held)
        rounded = pl.col("value").is_between(-ROUNDING_MW, 0, closed="left")
        if kind == "curtailed_power" and (count := rows.filter(rounded).height):
            rows = rows.with_columns(value=pl.when(rounded).then(0.0).otherwise("value"))
            self._rounded[region, kind] = count
            read_as = f"{count} values between -{ROUNDING_MW:g} and 0 MW are taken for rounding and read as 0"
            self._note(region, kind, read_as)
        return rows

    def _note(self, region: str, kind: Kind, text: str) -> None:
        """Said now, and again with every day of the signal."""
        log.warning("%s, %s %s: %s", self.source.name, region, kind, text)
        self._notes.setdefault((region, kind), []).append(text)

    def _coarser(self, rows: pl.DataFrame) -> float | None:
        """The cadence of a signal whose values stand in the rows of a finer one; None where rows without a value are
        its own holes."""
        if self.settings.cadence_s is not None or not self.source.shares_rows or not rows["value"].null_count():
            return None
        known = rows.drop_nulls("value")
        stamps, own = (part["time"].unique().sort().dt.epoch("us").to_numpy() / 1e6 for part in (rows, known))
        step = coarser_step(stamps, own)
        if step is None:
            return None
        empty = rows["time"].filter(~rows["time"].is_in(known["time"].implode()))
        others = empty.is_in(self._valued.implode()).sum()
        return step if others >= _OTHERS * len(empty) else None

    @cached_property
    def _valued(self) -> pl.Series:
        """The stamps at which any signal has a value."""
        return self._values.drop_nulls("value")["time"].unique()

    def ingest(self, region: str, start: datetime, end: datetime, kind: Kind | None = None) -> Ingested:
        chosen = self._kind(region, kind)
        series = self._screened[region, chosen]
        first, last = series.span or (start, start)
        found = to_trace(
            series,
            region=region,
            kind=chosen,
            source=f"file:{self.source.name}",
            start=max(start, first),
            end=min(end, last),
            retrieved_at=utc_now().replace(microsecond=0),
        )
        return replace(
            found,
            report=replace(
                found.report,
                warnings=(*found.report.warnings, *self._notes.get((region, chosen), [])),
                screened=True,
                chosen=self.settings.combine is not None,
                rounded=self._rounded.get((region, chosen), 0),
            ),
        )

    def forecasts(self, region: str, start: datetime, end: datetime, kind: Kind | None = None) -> pl.DataFrame:
        chosen = self._kind(region, kind)
        declared = self.settings.forecast
        if declared is None or chosen != (declared.kind or self.settings.kind) or region != self._forecast_region:
            return empty_forecast()
        unit = declared.unit or self.settings.unit or UNITS[chosen][0]
        rows = self._forecast_rows.filter(pl.col("time").is_between(start, end, closed="left"))
        steps = rows.unpivot(index="time", variable_name="step", value_name="value").drop_nulls("value")
        return (
            steps.select(
                issued_at="time",
                target=pl.col("time") + pl.duration(seconds=pl.col("step").cast(pl.Int64) * declared.step_s),
                region=pl.lit(region),
                value=pl.col("value") * conversion_factor(chosen, unit),
            )
            .cast(pl.Schema(FORECAST_SCHEMA))
            .sort("issued_at", "target")
        )

    @cached_property
    def _forecast_rows(self) -> pl.DataFrame:
        return self.source.forecasts()

    @cached_property
    def _forecast_region(self) -> str:
        declared = self.settings.forecast
        if declared is not None and declared.region is not None:
            return declared.region
        regions = list(self._signals)
        if len(regions) != 1:
            raise TraceError(
                f"{self.source.name}: has the regions {', '.join(regions)}; say whose the forecast columns are with "
                "traces.forecast.region"
            )
        return regions[0]

    def regions(self) -> list[str]:
        return list(self._signals)

    def kinds(self, region: str) -> list[Kind]:
        self._kind(region, None)
        return list(self._signals[region])

    def first_of(self, region: str) -> datetime | None:
        """From when on every kind of the region's is there; None where it has no value."""
        spans = [self._series_of(region, kind).span for kind in self.kinds(region)]
        return max((span[0] for span in spans if span is not None), default=None)

    def span(self) -> tuple[datetime, datetime]:
        spans = [
            span
            for region, kinds in self._signals.items()
            for kind in kinds
            if (span := self._series_of(region, kind).span) is not None
        ]
        if not spans or self._values["value"].null_count() == len(self._values):
            raise TraceError(f"{self.source.name}: has no value in any row; give a file with values")
        return min(first for first, _ in spans), max(last for _, last in spans)

    def files(self) -> list[Path]:
        return self.source.files

    def fingerprint(self, hash_file: Callable[[Path], str] = file_sha256) -> str:
        return combine_hashes([hash_file(path) for path in self.source.files])


def _cut_note(series: Series) -> str | None:
    """What to set where values stand regularly farther apart than they hold: a source became coarser, or drops points,
    and nothing in the file says which."""
    known = series.points.drop_nulls("value")
    times, ends = (known[name].dt.epoch("us").to_numpy() / 1e6 for name in ("time", "valid_until"))
    found = cut_stretch(times, ends - times)
    if found is None:
        return None
    first, last = found
    step = times[first + 1] - times[first]
    holds = ends[first] - times[first]
    return (
        f"from {iso(known['time'][first])} to {iso(known['time'][last])} values stand {step:g} s apart, and each is "
        f"valid for {holds:g} s, the cadence before, as where a feed drops points; if the source is coarser there, set "
        f"max_signal_age_s: {step:g} in policy.parameters (or in the region's rules) to let a value count until the "
        f"next one, or traces.cadence_s: {step:g} (--cadence {step:g}) to read all of the file every {step:g} s only"
    )


def combine_hashes(hashes: Sequence[str]) -> str:
    """One sha256 for several; a single one stays as it is."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()
