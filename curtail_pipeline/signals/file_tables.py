"""Trace files as tables, wide or long, to one row per value."""

import logging
import re
from pathlib import Path
from typing import get_args

import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.trace_settings import UNITS, Column, FileFormat, Kind, LiveFileTraces, Unit
from curtail_pipeline.settings.unit_names import said_unit
from curtail_pipeline.signals.combine import Telling, summed, telling_columns
from curtail_pipeline.signals.file_content import ROW, FileContent
from curtail_pipeline.signals.file_numbers import parse_numbers
from curtail_pipeline.signals.file_times import FileTimes, is_time_part
from curtail_pipeline.signals.flags import estimate_columns, parse_estimates
from curtail_pipeline.signals.header_names import require_no_hours_across, require_said_unit
from curtail_pipeline.signals.kinds import require_believable_names, require_intensity_names, signals_among
from curtail_pipeline.signals.period_columns import plain_name
from curtail_pipeline.signals.region_names import require_named, require_one_spelling, tidied
from curtail_pipeline.signals.time_zones import sign_warning
from curtail_pipeline.signals.trace import POINT_SCHEMA

log = logging.getLogger(__name__)

_URL = re.compile(r"[A-Za-z][\w+.-]+:/")
"""One slash: a second one is lost where a path is made of it."""

_REVISED = ("updated", "updatedat", "lastupdated", "lastupdate", "lastupdatedat", "lastmodified", "modifiedat")
"""Names of a long file's column of revision times, without case and marks."""

UNIT_COLUMNS = ("unit", "units", "uom", "unitofmeasure")
"""Names of a long file's column of units, without case and marks."""

VALUES_SCHEMA: dict[str, pl.DataType] = {
    "region": pl.String(),
    "kind": pl.String(),
    "unit": pl.String(),
    **POINT_SCHEMA,
}
"""A file's values: POINT_SCHEMA and whose they are. Values are as in the file, in `unit`."""


def find_files(path: str | list[str]) -> list[Path]:
    """The files that a path, a glob pattern or a list of them names; those of one pattern sorted.

    Raises:
        TraceError: one of them names no file.
    """
    found: list[Path] = []
    for entry in [path] if isinstance(path, str) else path:
        if _URL.match(entry):
            raise TraceError(
                f"trace path {entry!r} is a URL; traces are read from files of this machine: fetch it first (one that "
                "is fetched again and again is provider: live_file)"
            )
        place = Path(entry).expanduser()
        if place.is_dir():
            raise TraceError(f"trace path {entry!r} is a folder; name its files, e.g. {entry.rstrip('/')}/*.csv")
        base = Path(place.anchor or ".")
        matches = [place] if place.is_file() else sorted(base.glob(str(place.relative_to(place.anchor))))
        files = [match for match in matches if match.is_file()]
        if not files:
            raise TraceError(
                f"no trace file {entry!r}; check traces.path (a path that is not absolute starts from {Path.cwd()})"
            )
        found += files
    return list(dict.fromkeys(found))


class TraceFiles:
    """The files of a FileFormat, with the meaning of their columns."""

    def __init__(self, settings: FileFormat) -> None:
        self.settings = settings
        self._begins: set[bool] = set()
        self.shares_rows = False
        """Whether signals stand side by side in the rows of `values`."""
        self._hours: set[str] = set()
        """Columns of hours that belong to the time column."""
        self._regions: set[str] = set()
        """Names in the region columns of long files."""
        self.files = find_files(settings.path)
        self.name = ", ".join(
            Path(p).name for p in ([settings.path] if isinstance(settings.path, str) else settings.path)
        )
        self._forecast = (
            re.compile("(\\d+)".join(re.escape(part) for part in settings.forecast.pattern.split("{step}")))
            if settings.forecast
            else None
        )

    def values(self) -> pl.DataFrame:
        """Every value of every file (VALUES_SCHEMA), in the order of the files.

        Raises:
            TraceError: a file, column, time or number that cannot be used.
        """
        parts: list[pl.DataFrame] = []
        unmapped = set(self.settings.columns)
        for path in self.files:
            content = self._opened(path)
            is_long = self._is_long(path, content.names)
            part = self._long(content) if is_long else self._wide(content)
            unmapped -= self._regions if is_long else set(content.names)
            parts.append(summed(part) if self.settings.combine == "sum" else part)
        if unmapped and not (self._regions and isinstance(self.settings, LiveFileTraces)):
            known = sorted(self._regions) or self._opened(self.files[0]).names
            what = "region" if self._regions else "column"
            raise TraceError(
                f"{self.name}: has no {what} {min(unmapped)!r}, which traces.columns names; it has {', '.join(known)}"
            )
        if (text := sign_warning(self.settings.timezone)) is not None:
            log.warning("%s: %s", self.name, text)
        values = pl.concat(parts)
        require_one_spelling(self.name, values["region"].unique(maintain_order=True).to_list())
        return values

    @property
    def end_stamped(self) -> bool:
        """Whether the times of `values` are interval ends.

        Raises:
            TraceError: those of some files are and those of others are not.
        """
        if len(self._begins) > 1:
            raise TraceError(
                f"{self.name}: some files name intervals by their begin, others by their end; read them apart"
            )
        return self.settings.interval == "end" and self._begins != {True}

    def _opened(self, path: Path) -> FileContent:
        settings = self.settings
        grows = isinstance(settings, LiveFileTraces)
        return FileContent(path, settings.separator, settings.skip_lines, settings.sheet, grows=grows)

    def _read(self, content: FileContent, columns: list[str]) -> pl.DataFrame:
        """Columns of the rows that `traces.where` chooses."""
        chosen = self.settings.where
        unknown = next((name for name in chosen if name not in content.names), None)
        if unknown is not None:
            raise TraceError(
                f"{content.path}: has no column {unknown!r}, which traces.where names; it has "
                f"{', '.join(content.names)}"
            )
        table = content.read([*columns, *chosen])
        for name, value in chosen.items():
            held = table[name].cast(pl.String, strict=False).str.strip_chars()
            same = held == str(value)
            number = pl.Series([str(value)]).cast(pl.Float64, strict=False)[0]
            if number is not None:
                same = same | (held.cast(pl.Float64, strict=False) == number).fill_null(False)
            table = table.filter(same.fill_null(False))
            if table.is_empty():
                known = ", ".join(map(repr, held.unique().sort().head(5)))
                raise TraceError(
                    f"{content.path}: no row has {value!r} in column {name!r}, as traces.where asks; it holds {known}"
                )
        return table

    def _is_long(self, path: Path, names: list[str]) -> bool:
        settings = self.settings
        needed = {settings.region_column, settings.value_column}
        named = {"region_column", "value_column"} & settings.model_fields_set
        if settings.layout == "auto" and not named:
            return needed <= set(names)
        if settings.layout != "wide" and not needed <= set(names):
            raise TraceError(
                f"{path}: a long file needs the columns {' and '.join(sorted(needed))}; it has {', '.join(names)}. Set "
                "traces.region_column and traces.value_column, or traces.layout to wide"
            )
        return settings.layout != "wide"

    def _time_column(self, path: Path, names: list[str], default: str) -> str:
        name = self.settings.time_column or default
        if name not in names:
            raise TraceError(f"{path}: has no time column {name!r}; it has {', '.join(names)}. Set traces.time_column")
        return name

    def _meaning(self, name: str) -> tuple[str, Kind, Unit]:
        """Region, kind and unit of a wide file's column."""
        settings = self.settings
        entry = settings.columns.get(name, name)
        if isinstance(entry, str):
            entry = Column(region=entry)
        kind = entry.kind or settings.kind
        inherited = settings.unit if kind == settings.kind else None
        unit = entry.unit or inherited or UNITS[kind][0]
        chosen = name in settings.columns and (bool(entry.kind) or "kind" in settings.model_fields_set)
        declared = bool(entry.unit or inherited)
        require_said_unit(self.name, name, kind, unit, kind_chosen=chosen, declared=declared)
        return entry.region, kind, unit

    def _wide(self, content: FileContent) -> pl.DataFrame:
        path, names = content.path, content.names
        self.shares_rows = True
        time = self._time_column(path, names, names[0])
        flags = self._flags(names, time)
        columns = [name for name in names if name not in flags and self._may_be_signal(name, time)]
        times = FileTimes(self.settings, content, time)
        raw = self._read(content, [time, *times.columns, *columns, *flags])
        if not self.settings.columns:
            columns = signals_among(str(path), time, raw.select(columns))
        if self._undeclared(names):
            require_believable_names(str(path), [name for name in columns if self._kind_undeclared(name)])
            require_intensity_names(str(path), [name for name in columns if name not in self.settings.columns])
        numbers = {name: parse_numbers(raw[name], path, raw[ROW], self.settings.decimal) for name in columns}
        stamps = times.utc(raw, needed=_any_value(numbers) if columns else None)
        self._noted(times)
        if not self.settings.columns:
            require_no_hours_across(str(path), columns, stamps)
        estimated = parse_estimates(raw.select(flags), str(path), raw[ROW])
        if estimated.any() and len({self._meaning(name)[1] for name in columns}) > 1:
            log.warning(
                "%s: %s says which values are estimates, which counts for all columns; if it speaks of one kind only, "
                "remove it from the file, or raise estimated_limit_s of the rule",
                *(path, ", ".join(map(repr, flags))),
            )
        parts = [
            pl.DataFrame({"time": stamps, "value": numbers[name], "estimated": estimated})
            .drop_nulls("time")
            .with_columns(region=pl.lit(region), kind=pl.lit(kind), unit=pl.lit(unit))
            for name in columns
            if name not in times.hour_columns
            for region, kind, unit in [self._meaning(name)]
        ]
        return pl.concat([_with_schema(part) for part in parts] or [pl.DataFrame(schema=VALUES_SCHEMA)])

    def _noted(self, times: FileTimes) -> None:
        self._begins.add(times.begins)
        self._hours.update(times.hour_columns)

    def _flags(self, names: list[str], *others: str) -> list[str]:
        """The columns that say which values are estimates."""
        return estimate_columns(
            [n for n in names if n not in (*others, self.settings.fold_column, *self.settings.columns)]
        )

    def _may_be_signal(self, name: str, time: str) -> bool:
        """Whether a wide file's column can hold the values of a region."""
        settings = self.settings
        if name in (time, settings.hour_column, settings.fold_column) or name in settings.where:
            return False
        if settings.columns:
            return name in settings.columns
        return not is_time_part(name) and not (self._forecast and self._forecast.fullmatch(name))

    def _long(self, content: FileContent) -> pl.DataFrame:
        settings, path, names = self.settings, content.path, content.names
        others = [name for name in names if name not in (settings.region_column, settings.value_column)]
        time = self._time_column(path, names, "time" if "time" in names else (others or names)[0])
        extra = [name for name in ("kind", "model", "warnings") if name in others]
        revised = next((name for name in others if plain_name(name) in _REVISED), None)
        flags = self._flags(others, time)
        times = FileTimes(settings, content, time)
        if self._undeclared(names):
            require_believable_names(str(path), [settings.value_column])
        units_of = [name for name in others if plain_name(name) in UNIT_COLUMNS]
        used = [time, settings.region_column, settings.value_column, *times.columns, *extra, *units_of]
        raw = self._read(content, [*used, *flags, *([revised] if revised else [])])
        mapping = {old: new if isinstance(new, str) else new.region for old, new in settings.columns.items()}
        regions = tidied(raw[settings.region_column])
        require_named(regions, path, raw[ROW])
        self._regions.update(regions.unique())
        kinds = (
            raw["kind"].cast(pl.String) if "kind" in extra else pl.Series([settings.kind] * len(raw), dtype=pl.String)
        )
        unknown = set(kinds.unique()) - set(get_args(Kind))
        if unknown:
            raise TraceError(
                f"{path}: unknown kind {min(map(str, unknown))!r} in column 'kind'; kinds are "
                f"{', '.join(get_args(Kind))}"
            )
        units = self._units(raw.select(units_of), kinds, "kind" in extra)
        values = parse_numbers(raw[settings.value_column], path, raw[ROW], settings.decimal)
        groups = pl.select(pl.concat_str(regions, kinds, separator="/")).to_series()
        stamps = times.utc(raw, groups, needed=values.is_not_null())
        self._noted(times)
        table = pl.DataFrame(
            {
                "time": stamps,
                "region": regions.replace(mapping),
                "kind": kinds,
                "unit": units,
                "value": values,
            }
        )
        for name in set(extra) - {"kind"}:
            table = table.with_columns(raw[name].alias(name))
        if revised is not None and (revised == "updated" or _has_dates(raw[revised])):
            table = table.with_columns(times.revised(raw[revised], raw[ROW]).alias("updated"))
        estimated = parse_estimates(raw.select(flags), str(path), raw[ROW])
        return _with_schema(table.with_columns(estimated.alias("estimated")).drop_nulls("time"))

    def _units(self, columns: pl.DataFrame, kinds: pl.Series, kinds_given: bool) -> pl.Series:
        """The unit of each row of a long file: of a column of units, of the settings, or of its kind.

        Raises:
            TraceError: the value column's name says another one than what nobody declared.
        """
        settings = self.settings
        for column in columns:
            known = {text: said_unit(text) for text in column.cast(pl.String).unique().drop_nulls()}
            # Only `unit` is the product's own name for it: another column may be one of generating units.
            if column.name == "unit" or (settings.unit is None and any(known.values())):
                read = {text: said.unit for text, said in known.items() if said is not None and said.unit is not None}
                return column.cast(pl.String).replace(read)
        unit = settings.unit or UNITS[settings.kind][0]
        if not kinds_given:
            chosen, declared = "kind" in settings.model_fields_set, settings.unit is not None
            name = settings.value_column
            require_said_unit(self.name, name, settings.kind, unit, kind_chosen=chosen, declared=declared)
        own = {kind: units[0] for kind, units in UNITS.items()} | {settings.kind: unit}
        return kinds.replace_strict(own, return_dtype=pl.String)

    def _undeclared(self, names: list[str]) -> bool:
        """Whether nobody said what the file's values measure."""
        return "kind" not in self.settings.model_fields_set and "kind" not in names

    def _kind_undeclared(self, name: str) -> bool:
        entry = self.settings.columns.get(name)
        return not isinstance(entry, Column) or entry.kind is None

    def telling(self, region: str) -> list[Telling]:
        """The columns that tell the rows of one stamp and region apart, best first."""
        for path in self.files:
            content = self._opened(path)
            names = content.plain_names
            is_long = self._is_long(path, names)
            used = [self.settings.region_column, self.settings.value_column] if is_long else []
            default = next(name for name in (["time"] if is_long else []) + names if name in names and name not in used)
            time = self.settings.time_column or default
            rows = self._read(content, names)
            if is_long:
                own = [name for name, entry in self.settings.columns.items() if _region_of(entry) == region]
                rows = rows.filter(tidied(rows[used[0]]).is_in([region, *own]))
            rows = rows.with_columns(FileTimes(self.settings, content, time).stamps(rows).naive.alias(time))
            # Where nothing else can be a region, what is read as one is.
            only = [region] if len(names) == 2 else []
            keys = [time, *(name for name in names if name in self._hours)]
            used = [ROW, *used, *self.settings.columns, *only]
            found = telling_columns(rows, keys, used, time_named=self.settings.time_column is not None)
            if found:
                return found
        return []

    def forecasts(self) -> pl.DataFrame:
        """Forecast columns as `time` and one Float64 column per step, named by the step; empty without any.

        Raises:
            TraceError: as `values`, or no column fits the pattern.
        """
        if self._forecast is None or self.settings.forecast is None:
            return pl.DataFrame(schema={"time": POINT_SCHEMA["time"]})
        parts = []
        for path in self.files:
            content = self._opened(path)
            names = content.names
            steps = {name: match[1] for name in names if (match := self._forecast.fullmatch(name))}
            if not steps:
                raise TraceError(
                    f"{path}: no column fits the forecast pattern {self.settings.forecast.pattern!r}; it has "
                    f"{', '.join(names)}"
                )
            time = self._time_column(path, names, names[0])
            times = FileTimes(self.settings, content, time)
            raw = self._read(content, [time, *times.columns, *steps])
            numbers = [
                parse_numbers(raw[name], path, raw[ROW], self.settings.decimal).alias(step)
                for name, step in steps.items()
            ]
            parts.append(pl.DataFrame([times.utc(raw), *numbers]).drop_nulls("time"))
        return pl.concat(parts, how="diagonal").unique("time", keep="last", maintain_order=True).sort("time")


def _region_of(entry: str | Column) -> str:
    return entry if isinstance(entry, str) else entry.region


def _has_dates(column: pl.Series) -> bool:
    """Whether a column holds times of ISO 8601, or nothing."""
    known = column.drop_nulls()
    return column.dtype.is_temporal() or (
        column.dtype == pl.String and bool(known.str.contains(r"^\s*\d{4}-\d{2}-\d{2}").all())
    )


def _any_value(numbers: dict[str, pl.Series]) -> pl.Series:
    """Whether a row has a value in one of the columns."""
    return pl.DataFrame(numbers).select(pl.any_horizontal(pl.all().is_not_null())).to_series()


def _with_schema(table: pl.DataFrame) -> pl.DataFrame:
    return table.select(
        (pl.col(name) if name in table.columns else pl.lit(None)).cast(dtype).alias(name)
        for name, dtype in VALUES_SCHEMA.items()
    )
