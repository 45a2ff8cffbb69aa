"""Settings of the trace providers (the `traces` section of an experiment)."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AliasChoices, BeforeValidator, Field, field_validator, model_validator

from curtail_pipeline.errors import SettingsError
from curtail_pipeline.settings.section import Name, Section, UtcTime
from curtail_pipeline.settings.unit_names import as_spelled

Kind = Literal["marginal_intensity", "average_intensity", "price", "curtailed_power"]
"""What a signal measures. `average_intensity` is for accounting only; it never defines a window."""

Unit = Literal["g/kWh", "kg/kWh", "lb/MWh", "currency/MWh", "MW"]

SpelledUnit = Annotated[Unit, BeforeValidator(as_spelled)]
"""A unit in any usual spelling: kg/MWh and tCO2/GWh are g/kWh."""

Reason = Literal["zero", "stuck", "sentinel"]
"""Why a value is no measurement: a zero or a mark that means missing, or a feed that repeats its last answer."""

UNITS: dict[Kind, tuple[Unit, ...]] = {
    "marginal_intensity": ("g/kWh", "kg/kWh", "lb/MWh"),
    "average_intensity": ("g/kWh", "kg/kWh", "lb/MWh"),
    "price": ("currency/MWh",),
    "curtailed_power": ("MW",),
}
"""The units a kind can be given in; the first is the one it is stored in."""


def check_unit_of(kind: Kind, unit: Unit | None) -> Unit:
    """The unit of a kind, its canonical one when none is given.

    Raises:
        ValueError: the unit cannot measure that kind.
    """
    if unit is None:
        return UNITS[kind][0]
    if unit not in UNITS[kind]:
        raise ValueError(f"unit {unit!r} cannot measure {kind}; use {' or '.join(UNITS[kind])}")
    return unit


class ProviderSettings(Section):
    """Base of a provider's settings. `implementation` ("module:Class") is the provider's registration."""

    implementation: ClassVar[str]


class SyntheticTraces(ProviderSettings):
    """The seeded merit-order model; every row it makes says `source = synthetic`."""

    implementation: ClassVar[str] = "curtail_pipeline.signals.synthetic:SyntheticProvider"
    provider: Literal["synthetic"] = "synthetic"
    seed: int = 0
    start: UtcTime
    days: int = Field(default=2, ge=1)
    cadence_s: int = Field(default=300, ge=60)

    @field_validator("start")
    @classmethod
    def _utc(cls, start: datetime) -> datetime:
        return start.astimezone(UTC)


class Column(Section):
    """What a column of a file holds, where the file's `kind` and `unit` do not fit."""

    region: Name
    kind: Kind | None = None
    unit: SpelledUnit | None = None

    @model_validator(mode="after")
    def _measurable(self) -> "Column":
        if self.kind is not None:
            check_unit_of(self.kind, self.unit)
        return self


class ForecastColumns(Section):
    """Columns of a wide file that hold a forecast issued at the row's time."""

    pattern: str = "f{step}"
    """Name of a column; `{step}` stands for 1, 2, ..."""
    step_s: int = Field(default=300, ge=1)
    """Column 1 is for this long after the row's time, column 2 for twice that, ..."""
    region: Name | None = None
    """Whose forecast it is; needed when the file has several regions."""
    kind: Kind | None = None
    unit: SpelledUnit | None = None

    @model_validator(mode="after")
    def _has_step(self) -> "ForecastColumns":
        if self.pattern.count("{step}") != 1:
            raise ValueError(f"forecast pattern {self.pattern!r} needs {{step}} once, e.g. f{{step}}")
        return self


def _tab(separator: object) -> object:
    """A tab may be written as such a text: shells and most quotes of YAML leave it as two characters."""
    return "\t" if separator in ("\\t", "tab", "TAB") else separator


class FileFormat(ProviderSettings):
    """CSV (also .gz and .zip), Parquet or .xlsx files, wide (`time, REGION, ...`) or long (`time, region, value`)."""

    path: str | list[str]
    """A file, a glob pattern, or a list of them; values of later files win where stamps overlap."""
    layout: Literal["auto", "wide", "long"] = "auto"
    """`auto` is long where the file has the region and value columns of a long one."""
    time_column: Name | None = None
    """The first column of a wide file, `time` of a long one when not given."""
    time_format: str | None = None
    """strftime format of stamps that are not ISO 8601, e.g. `%m/%d/%y %H:%M`. Of ranges that of the begin or of both
    ends; `%Z` at its end reads abbreviations such as CDT as the timezone's."""
    hour_column: Name | None = None
    """Beside a column of dates: hours or settlement periods of the day (1 to 25, HE01, 0 to 23, 1 to 50) or times of
    day. Found by its name (Hour, HE, Period, ...) where the time column holds nothing but dates."""
    period_s: int | None = Field(default=None, ge=60, le=86_400)
    """What one number of the hour column stands for; an hour, or found from a day's last number, when not given."""
    hours_from: Literal[0, 1] | None = None
    """The first number of a day in the hour column, where it does not show."""
    fold_column: Name | None = None
    """Column that is true (Y, 1) in the second pass of the hour that is repeated when clocks go back."""
    region_column: Name = "region"
    """Of a long file."""
    value_column: Name = "value"
    """Of a long file."""
    columns: dict[Name, Name | Column] = Field(default_factory=dict)
    """Of a wide file: column in the file -> region, or region, kind and unit. When given, other columns are not read.
    Of a long file: name in the region column -> region."""
    unit: SpelledUnit | None = None
    """The kind's canonical unit when not given; refused where a column's name says another one."""
    kind: Kind = "marginal_intensity"
    timezone: str = "UTC"
    """Of stamps without an offset; an IANA name, or an offset from UTC such as `+10:00`. A column whose name says
    another zone is refused where this is not given."""
    ambiguous: Literal["infer", "earliest", "latest", "drop", "refuse"] = "infer"
    """Local stamps that occur twice when clocks go back. The order of the file tells which is which, oldest or newest
    first; this says what happens to a stamp where it does not: `infer` refuses it, `earliest` and `latest` choose,
    `drop` counts it as missing. `refuse` refuses all that have no offset and no fold_column."""
    interval: Literal["begin", "end"] = "begin"
    """Whether a stamp is the begin or the end of the interval its value is for. Ranges and numbered hours say so; a
    column named for ends (interval_end) is refused where this is not given."""
    cadence_s: int | None = Field(default=None, ge=1, validation_alias=AliasChoices("cadence_s", "cadence"))
    """Seconds between values where the source measures without a pause; found from the stamps when not given."""
    snap_s: float | None = Field(default=None, ge=0)
    """How far stamps that jitter by seconds are moved to their cadence; a tenth of it, at most a minute, when not
    given."""
    separator: Annotated[Literal[",", ";", "\t", "|"], BeforeValidator(_tab)] = ","
    """Of the columns of a CSV."""
    decimal: Literal[".", ","] = "."
    """The mark in 400.5; with a comma, a point separates thousands, as spaces and apostrophes do with either. Where
    commas separate columns too, such numbers stand in quotes."""
    skip_lines: int = Field(default=0, ge=0)
    """Lines before the header."""
    sheet: str | None = None
    """Of a spreadsheet; needed where it has several."""
    where: dict[Name, str | float] = Field(default_factory=dict)
    """Column -> the value that the rows to read have in it, e.g. `INTERVENTION: 0`."""
    combine: Literal["sum", "first", "last"] | None = None
    """What several rows of a stamp and region come to. When not given, more than a few that disagree are refused."""
    missing: Literal["null", "zero"] = "null"
    """`zero`: a listing of curtailed power that leaves out the intervals without any; those are 0 MW."""
    measured: list[Reason] = Field(default_factory=list)
    """What is believed although it looks like no measurement: `zero`, `stuck`, `sentinel`."""
    forecast: ForecastColumns | None = None

    @field_validator("where", mode="before")
    @classmethod
    def _as_the_file_has_it(cls, where: object) -> object:
        for name, value in where.items() if isinstance(where, dict) else ():
            if isinstance(value, bool):
                raise ValueError(f"{name} is {str(value).lower()}; write it in quotes, as the file has it")
        return where

    @model_validator(mode="after")
    def _measurable(self) -> "FileFormat":
        check_unit_of(self.kind, self.unit)
        if self.missing == "zero" and "curtailed_power" not in self.kinds_declared:
            raise ValueError(
                "missing: zero declares a listing of curtailed power; set kind: curtailed_power, or leave it out"
            )
        if self.period_s is not None and 86_400 % self.period_s:
            raise ValueError(f"period_s {self.period_s} does not divide a day; use e.g. 3600, 1800, 900 or 300")
        seen: dict[tuple[str, Kind], str] = {}
        for name, entry in self.columns.items():
            held = (entry, self.kind) if isinstance(entry, str) else (entry.region, entry.kind or self.kind)
            if held in seen:
                raise ValueError(f"columns {seen[held]!r} and {name!r} both map to {held[1]} of {held[0]}; keep one")
            seen[held] = name
        return self

    @property
    def kinds_declared(self) -> set[Kind]:
        """The file's own kind and those of single columns."""
        return {self.kind, *(c.kind for c in self.columns.values() if isinstance(c, Column) and c.kind)}


class FileTraces(FileFormat):
    """A record: files that stay as they are."""

    implementation: ClassVar[str] = "curtail_pipeline.signals.files:FileProvider"
    provider: Literal["file"] = "file"


class LiveFileTraces(FileFormat):
    """Files that somebody goes on writing, read again when they have changed, by the wall clock.

    Lines are appended to them, or a whole file takes the place of another (write it beside and rename it). A last line
    of a plain CSV counts once it has its line end.
    """

    implementation: ClassVar[str] = "curtail_pipeline.signals.live_file:LiveFileProvider"
    provider: Literal["live_file"] = "live_file"


def on_file(
    declared: ProviderSettings | None, path: str | Path, given: Mapping[str, object] | None = None
) -> FileTraces:
    """The settings of another file, read as the declared traces are where those are files, or some of several sources.

    Args:
        given: keys of FileFormat that are set in place of the declared ones. A kind without a unit is in its own unit.

    Raises:
        pydantic.ValidationError: a value that cannot be.
        SettingsError: several declared files are read differently, and what differs is not given.
    """
    sources = declared.sources if isinstance(declared, CombinedTraces) else [declared]
    files = [
        source.model_dump(exclude_unset=True, exclude={"provider", "path"})
        for source in sources
        if isinstance(source, FileFormat)
    ]
    given = given or {}
    replaced = {*given, "unit"} if "kind" in given else set(given)
    names = dict.fromkeys(name for settings in files for name in settings if name not in replaced)
    differing = [name for name in names if any(settings.get(name) != files[0].get(name) for settings in files)]
    if differing:
        raise SettingsError(
            f"{path}: the experiment reads its {len(files)} files with different {', '.join(differing)}; say how this "
            f"one is read, e.g. --set {differing[0]}=..., or leave the experiment's other files out"
        )
    base = {name: files[0][name] for name in names}
    return FileTraces.model_validate({**base, **given, "path": str(path)})


class LiveTraces(ProviderSettings):
    """What every source behind an HTTP API has."""

    base_url: str
    timeout_s: float = Field(default=30.0, gt=0)
    attempts: int = Field(default=5, ge=1)


class WattTimeTraces(LiveTraces):
    """WattTime v3. Credentials come from WATTTIME_USER and WATTTIME_PASSWORD."""

    implementation: ClassVar[str] = "curtail_pipeline.signals.watttime:WattTimeProvider"
    provider: Literal["watttime"] = "watttime"
    base_url: str = "https://api.watttime.org"
    regions: dict[Name, str] = Field(default_factory=dict)
    """Region -> WattTime's name of it; a region that is not here has the same name there."""
    model: str | None = None
    """Pin of the model date, e.g. `2023-03-01`; WattTime's newest when not given."""
    horizon_hours: int = Field(default=24, ge=0, le=72)
    """Of forecasts (WattTime allows 0 to 72)."""


class ElectricityMapsTraces(LiveTraces):
    """Electricity Maps v3, average intensity: for accounting. The token comes from ELECTRICITY_MAPS_TOKEN."""

    implementation: ClassVar[str] = "curtail_pipeline.signals.electricity_maps:ElectricityMapsProvider"
    provider: Literal["electricity_maps"] = "electricity_maps"
    base_url: str = "https://api.electricitymaps.com/v3"
    zones: dict[Name, str] = Field(default_factory=dict)
    """Region -> Electricity Maps' zone, e.g. CAISO_NORTH -> US-CAL-CISO; otherwise the same name."""
    granularity: Literal["5_minutes", "15_minutes", "hourly"] = "hourly"
    emission_factors: Literal["lifecycle", "direct"] = "lifecycle"


class CombinedTraces(ProviderSettings):
    """Several providers; each region and kind comes from the first of them that has it."""

    implementation: ClassVar[str] = "curtail_pipeline.signals.combined:CombinedProvider"
    provider: Literal["combined"] = "combined"
    sources: "list[SingleSource]" = Field(min_length=1)


_Source = SyntheticTraces | FileTraces | LiveFileTraces | WattTimeTraces | ElectricityMapsTraces
SingleSource = Annotated[_Source, Field(discriminator="provider")]
TracesSettings = Annotated[_Source | CombinedTraces, Field(discriminator="provider")]
"""Settings of the provider of an experiment's traces."""

CombinedTraces.model_rebuild()
