"""Trace files as tables: CSV (also compressed) and Parquet, wide or long, to one row per value."""

import csv
import gzip
import re
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.trace_settings import UNITS, Column, FileTraces, Kind, Unit
from curtail_pipeline.signals.combine import Telling, chosen_rows, summed, telling_columns
from curtail_pipeline.signals.flags import parse_flags
from curtail_pipeline.signals.kinds import is_period_column, require_believable_names
from curtail_pipeline.signals.stamps import parse_stamps
from curtail_pipeline.signals.trace import POINT_SCHEMA

MISSING = ("", "-", "na", "n/a", "nan", "null", "none")
"""Texts that stand for a missing value, in any case."""

VALUES_SCHEMA: dict[str, pl.DataType] = {
    "region": pl.String(),
    "kind": pl.String(),
    "unit": pl.String(),
    **POINT_SCHEMA,
}
"""A file's values: POINT_SCHEMA and whose they are. Values are as in the file, in `unit`."""

_GZIP = b"\x1f\x8b"


def find_files(path: str | list[str]) -> list[Path]:
    """The files that a path, a glob pattern or a list of them names; those of one pattern sorted.

    Raises:
        TraceError: one of them names no file.
    """
    found: list[Path] = []
    for entry in [path] if isinstance(path, str) else path:
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


def column_names(path: Path) -> list[str]:
    """The names of a file's columns.

    Raises:
        TraceError: the file cannot be read.
    """
    try:
        if path.suffix == ".parquet":
            return list(pl.read_parquet_schema(path))
        with path.open("rb") as stream:
            compressed = stream.read(2) == _GZIP
        with gzip.open(path, "rt", encoding="utf-8-sig") if compressed else path.open(encoding="utf-8-sig") as text:
            header = next(csv.reader(text), [])
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from error
    return _unique(path, header)


def _unique(path: Path, header: list[str]) -> list[str]:
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise TraceError(f"{path} has two columns {twice!r}; give each column a name of its own")
    return header


def _unreadable(path: Path, error: Exception) -> TraceError:
    reason = " ".join(str(error).split())[:200]
    return TraceError(f"{path} cannot be read as {path.suffix.lstrip('.') or 'CSV'}: {reason}; replace the file")


def _read(path: Path, columns: Iterable[str]) -> pl.DataFrame:
    wanted = list(columns)
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path, columns=wanted)
        rows = pl.read_csv(path, columns=wanted, infer_schema=False).select(wanted)
        return rows.filter(~pl.all_horizontal(pl.all().is_null()))  # blank lines
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable(path, error) from error


def _numbers(column: pl.Series, path: Path) -> pl.Series:
    if column.dtype.is_numeric():
        return column.cast(pl.Float64)
    if column.dtype == pl.Null:
        return pl.Series(column.name, [None] * len(column), dtype=pl.Float64)
    if column.dtype.is_nested():
        raise TraceError(
            f"{path}: column {column.name!r} holds {column.dtype}, not numbers; name the columns to read in "
            "traces.columns"
        )
    text = column.cast(pl.String).str.strip_chars()
    numbers = text.cast(pl.Float64, strict=False)
    bad = (numbers.is_null() & text.is_not_null() & ~text.str.to_lowercase().is_in(MISSING)).arg_true()
    if len(bad):
        row = int(bad[0])
        raise TraceError(
            f"{path}: {column[row]!r} in column {column.name!r}, data row {row + 1}, is not a number; leave a missing "
            "value empty, or name the columns to read in traces.columns"
        )
    return numbers


class TraceFiles:
    """The files of a FileTraces, with the meaning of their columns."""

    def __init__(self, settings: FileTraces) -> None:
        self.settings = settings
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
            names = column_names(path)
            is_long = self._is_long(path, names)
            unmapped = set() if is_long else unmapped - set(names)
            part = self._long(path, names) if is_long else self._wide(path, names)
            parts.append(summed(part) if self.settings.combine == "sum" else part)
        if unmapped:
            raise TraceError(
                f"{self.name}: has no column {min(unmapped)!r}, which traces.columns names; it has "
                f"{', '.join(column_names(self.files[0]))}"
            )
        return pl.concat(parts)

    def _is_long(self, path: Path, names: list[str]) -> bool:
        settings = self.settings
        needed = {settings.region_column, settings.value_column}
        if settings.layout == "auto":
            return needed <= set(names)
        if settings.layout == "long" and not needed <= set(names):
            raise TraceError(
                f"{path}: a long file needs the columns {' and '.join(sorted(needed))}; it has {', '.join(names)}. Set "
                "traces.region_column and traces.value_column, or traces.layout to wide"
            )
        return settings.layout == "long"

    def _time_column(self, path: Path, names: list[str], default: str) -> str:
        name = self.settings.time_column or default
        if name not in names:
            raise TraceError(f"{path}: has no time column {name!r}; it has {', '.join(names)}. Set traces.time_column")
        return name

    def _stamps(self, raw: pl.Series, path: Path, groups: pl.Series | None = None) -> pl.Series:
        settings = self.settings
        return parse_stamps(
            raw,
            str(path),
            settings.timezone,
            time_format=settings.time_format,
            groups=groups,
            ambiguous=settings.ambiguous,
        ).alias("time")

    def _meaning(self, name: str) -> tuple[str, Kind, Unit]:
        """Region, kind and unit of a wide file's column."""
        settings = self.settings
        entry = settings.columns.get(name, name)
        if isinstance(entry, str):
            return entry, settings.kind, settings.unit or UNITS[settings.kind][0]
        kind = entry.kind or settings.kind
        inherited = settings.unit if kind == settings.kind else None
        return entry.region, kind, entry.unit or inherited or UNITS[kind][0]

    def _wide(self, path: Path, names: list[str]) -> pl.DataFrame:
        if not names:
            raise TraceError(f"{path}: is empty; a trace needs a header line, a time column and a value column")
        time = self._time_column(path, names, names[0])
        columns = [
            name
            for name in names
            if name != time
            and (name in self.settings.columns if self.settings.columns else not is_period_column(name))
            and name not in self.settings.where
            and not (self._forecast and self._forecast.fullmatch(name))
        ]
        if not columns and not self.settings.columns:
            parted = next((f"{mark!r}" for mark in ";\t|" if mark in time), None)
            fix = f"separate columns by commas, not by {parted}" if parted else "add a value column per region"
            raise TraceError(f"{path}: has only the column {time!r}; {fix}")
        if self._undeclared(names):
            require_believable_names(str(path), [name for name in columns if self._kind_undeclared(name)])
        raw = self._rows(path, names, [time, *columns])
        stamps = self._stamps(raw[time], path)
        parts = [
            pl.DataFrame({"time": stamps, "value": _numbers(raw[name], path)}).with_columns(
                region=pl.lit(region), kind=pl.lit(kind), unit=pl.lit(unit)
            )
            for name in columns
            for region, kind, unit in [self._meaning(name)]
        ]
        return pl.concat([_with_schema(part) for part in parts] or [pl.DataFrame(schema=VALUES_SCHEMA)])

    def _long(self, path: Path, names: list[str]) -> pl.DataFrame:
        settings = self.settings
        others = [name for name in names if name not in (settings.region_column, settings.value_column)]
        time = self._time_column(path, names, "time" if "time" in names else (others or names)[0])
        extra = [name for name in ("kind", "unit", "model", "estimated", "warnings", "updated") if name in others]
        if self._undeclared(names):
            require_believable_names(str(path), [settings.value_column])
        raw = self._rows(path, names, [time, settings.region_column, settings.value_column, *extra])
        mapping = {old: new if isinstance(new, str) else new.region for old, new in settings.columns.items()}
        regions = raw[settings.region_column].cast(pl.String).str.strip_chars()
        nameless = (regions.is_null() | (regions == "")).arg_true()
        if len(nameless):
            raise TraceError(
                f"{path}: data row {int(nameless[0]) + 1} has no {settings.region_column!r}; name each row's region"
            )
        kinds = (
            raw["kind"].cast(pl.String) if "kind" in extra else pl.Series([settings.kind] * len(raw), dtype=pl.String)
        )
        unknown = set(kinds.unique()) - set(get_args(Kind))
        if unknown:
            raise TraceError(
                f"{path}: unknown kind {min(map(str, unknown))!r} in column 'kind'; kinds are "
                f"{', '.join(get_args(Kind))}"
            )
        if "unit" in extra:
            units = raw["unit"].cast(pl.String)
        else:
            own = {kind: units_of[0] for kind, units_of in UNITS.items()} | {
                settings.kind: settings.unit or UNITS[settings.kind][0]
            }
            units = kinds.replace_strict(own, return_dtype=pl.String)
        table = pl.DataFrame(
            {
                "time": self._stamps(
                    raw[time], path, pl.select(pl.concat_str(regions, kinds, separator="/")).to_series()
                ),
                "region": regions.replace(mapping),
                "kind": kinds,
                "unit": units,
                "value": _numbers(raw[settings.value_column], path),
            }
        )
        for name in set(extra) - {"kind", "unit"}:
            column = raw[name]
            if name == "estimated":
                column = parse_flags(column, str(path))
            elif name == "updated":
                column = self._stamps(column, path)
            table = table.with_columns(column.alias(name))
        return _with_schema(table)

    def _rows(self, path: Path, names: list[str], columns: list[str]) -> pl.DataFrame:
        """The rows that `traces.where` chooses."""
        where = self.settings.where
        lacking = next((column for column in where if column not in names), None)
        if lacking is not None:
            raise TraceError(f"{path}: has no column {lacking!r}, which traces.where names; it has {', '.join(names)}")
        rows = _read(path, dict.fromkeys([*columns, *where]))
        return chosen_rows(rows, where, path) if where else rows

    def _undeclared(self, names: list[str]) -> bool:
        """Whether nobody said what the file's values measure."""
        return "kind" not in self.settings.model_fields_set and "kind" not in names

    def _kind_undeclared(self, name: str) -> bool:
        entry = self.settings.columns.get(name)
        return not isinstance(entry, Column) or entry.kind is None

    def telling(self, region: str) -> list[Telling]:
        """The columns that tell the rows of one stamp and region apart, best first."""
        for path in self.files:
            names = column_names(path)
            is_long = self._is_long(path, names)
            used = [self.settings.region_column, self.settings.value_column] if is_long else []
            default = names[0] if not is_long else "time" if "time" in names else names[0]
            time = self.settings.time_column or next((n for n in [default, *names] if n not in used), names[0])
            rows = self._rows(path, names, names)
            if is_long:
                own = [name for name, entry in self.settings.columns.items() if _region_of(entry) == region]
                rows = rows.filter(rows[used[0]].cast(pl.String).str.strip_chars().is_in([region, *own]))
            found = telling_columns(rows, [time], [*used, *self.settings.columns, region])
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
            names = column_names(path)
            steps = {name: match[1] for name in names if (match := self._forecast.fullmatch(name))}
            if not steps:
                raise TraceError(
                    f"{path}: no column fits the forecast pattern {self.settings.forecast.pattern!r}; it has "
                    f"{', '.join(names)}"
                )
            time = self._time_column(path, names, names[0])
            raw = _read(path, [time, *steps])
            numbers = [_numbers(raw[name], path).alias(step) for name, step in steps.items()]
            parts.append(pl.DataFrame([self._stamps(raw[time], path), *numbers]))
        return pl.concat(parts, how="diagonal").unique("time", keep="last", maintain_order=True).sort("time")


def _region_of(entry: str | Column) -> str:
    return entry if isinstance(entry, str) else entry.region


def _with_schema(table: pl.DataFrame) -> pl.DataFrame:
    return table.select(
        (pl.col(name) if name in table.columns else pl.lit(None)).cast(dtype).alias(name)
        for name, dtype in VALUES_SCHEMA.items()
    )
