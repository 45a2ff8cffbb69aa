"""Time stamps of files: ISO 8601 and its near relatives, epochs, ranges, or a given format; to UTC by `local_time`."""

import re
from dataclasses import dataclass
from datetime import timedelta

import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.signals.time_zones import abbreviated_offset
from curtail_pipeline.times import TIME

_FORMATS = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
    "%Y%m%d %H%M%S",
    "%Y%m%d %H%M",
    "%Y%m%d %H:%M:%S%.f",
    "%Y%m%d %H:%M",
    "%Y%m%d",
    "%Y%m%d%H%M%S",
    "%Y%m%d%H%M",
)
_NATIONAL = tuple(
    f"{date} {time}".strip()
    for date in (
        *("%m/%d/%Y", "%d/%m/%Y", "%m/%d/%y", "%d/%m/%y", "%d.%m.%Y", "%d.%m.%y", "%m-%d-%Y", "%d-%m-%Y", "%Y.%m.%d"),
        *("%y-%m-%d", "%y/%m/%d", "%d-%b-%Y", "%d %b %Y", "%b %d %Y", "%b %d, %Y", "%d-%b-%y"),
    )
    for time in ("%H:%M", "%H:%M:%S", "%I:%M %p", "%I:%M:%S %p", "%H", "")
)
"""Formats that are not read unasked, since day and month cannot be told apart, but proposed where they fit."""
_OFFSET = r"\s*([+-]\d{2}(?::?\d{2})?)$"
_ABBREVIATION = r"\s*\(?\b([A-Z]{2,5})\)?$"
_ZONE_BEHIND = r"((?:[Zz]|[+-]\d{2}(?::?\d{2})?))\[[A-Za-z0-9_/+-]+\]$"
"""An offset with its zone's name behind it, as Java writes them."""
_UTC_OFFSET = r"\s*\(?(?:UTC|GMT)\s*([+-])(\d{1,2})(?::?(\d{2}))?\)?$"
RANGE = r"^(.*?\d.*?)\s+[-–—]\s+(\d.*)$"
"""`a - b`."""
_ISO_RANGE = r"^(\d{4}-\d{2}-\d{2}T[^/]*)/(.+)$"
_DATE = r"^\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}"
_24 = r"([ T])24(:00(?::00(?:\.0+)?)?)?$"
_FIRST_YEAR = 1900
"""An earlier one has two digits in the file."""
_SPREADSHEET_DAYS = (25_569, 73_050)
"""1970 and 2099 as days since the end of 1899."""
_EPOCHS = {10: 1_000_000, 13: 1_000, 16: 1, 19: 0.001}
"""Microseconds in the unit of an epoch, by its number of digits."""


@dataclass(frozen=True)
class Stamps:
    """Stamps of a column, as they are written."""

    naive: pl.Series
    """Datetime[us] without a zone; with the offset taken off where there is one. Not null."""
    utc: pl.Series
    """Boolean: `naive` is UTC, because the stamp says its offset."""
    begins: bool = False
    """They are begins, because each stamp is a range."""
    at_24: bool = False
    """Some are 24:00."""


def parse_stamps(
    text: pl.Series,
    source: str,
    time_format: str | None = None,
    zone: str | timedelta = "UTC",
    rows: pl.Series | None = None,
) -> Stamps:
    """Parse a column of stamps.

    Args:
        zone: tells what an abbreviation such as CDT in a stamp stands for.
        rows: number of each row in the file, for errors; counted from 1 when not given.

    Raises:
        TraceError: one cannot be parsed (names its value and row), or the format is none.
    """
    numbers = pl.Series(range(1, len(text) + 1)) if rows is None else rows
    if text.null_count():
        raise TraceError(
            f"{source}: data row {numbers[int(text.is_null().arg_true()[0])]} has no time in column {text.name!r}; "
            "give every row one"
        )
    if isinstance(text.dtype, pl.Datetime):
        aware = text.dtype.time_zone is not None
        naive = (text.dt.convert_time_zone("UTC") if aware else text).dt.replace_time_zone(None)
        return Stamps(naive.cast(pl.Datetime("us")), pl.Series([aware] * len(text), dtype=pl.Boolean))
    if text.dtype == pl.Date:
        return Stamps(text.cast(pl.Datetime("us")), pl.Series([False] * len(text), dtype=pl.Boolean))
    if text.dtype.is_numeric():
        if time_format is None and (epoch := _epoch(text.cast(pl.Float64))) is not None:
            return epoch
        # 20240401, or days of a spreadsheet.
        whole = (text == text.cast(pl.Int64, strict=False)).fill_null(False).all()
        text = (text.cast(pl.Int64) if whole else text).cast(pl.String)
    if text.dtype != pl.String:
        raise TraceError(
            f"{source}: the time column {text.name!r} holds {text.dtype}, not times; choose another with "
            "traces.time_column, or store times as ISO 8601 or timestamps"
        )
    return _Parser(text, source, time_format, zone, numbers).parsed()


def _epoch(values: pl.Series) -> Stamps | None:
    """Numbers since 1970 as stamps, where all have the size that one unit gives in our days."""
    for digits, factor in _EPOCHS.items():
        low, high = 10.0 ** (digits - 1), 1.9 * 10.0 ** (digits - 1)
        if len(values) and values.is_between(low, high).all():
            micros = (values * factor).round().cast(pl.Int64)
            return Stamps(micros.cast(pl.Datetime("us")), pl.Series([True] * len(values), dtype=pl.Boolean))
    return None


def _with_minutes(text: pl.Series, form: str) -> tuple[pl.Series, str]:
    """Stamps and their format, which needs minutes where it has hours."""
    if re.search("%[HI]", form) and not re.search("%[MTRrX]", form):
        return text + ":00", f"{form}:%M"
    return text, form


def _plain_offsets(text: pl.Series) -> pl.Series:
    """`UTC+2` as `+02:00`."""
    if not text.str.contains(_UTC_OFFSET).any():
        return text
    sign, hours, minutes = (text.str.extract(_UTC_OFFSET, part) for part in (1, 2, 3))
    offset = sign + hours.str.zfill(2) + ":" + minutes.fill_null("00")
    bare = text.str.replace(_UTC_OFFSET, "")
    return pl.select(pl.when(offset.is_null()).then(text).otherwise(bare + offset)).to_series().alias(text.name)


class _Parser:
    """Texts of one column, brought step by step to what a format can parse."""

    def __init__(
        self, text: pl.Series, source: str, time_format: str | None, zone: str | timedelta, rows: pl.Series
    ) -> None:
        self.given, self.source, self.format, self.zone, self.rows = text, source, time_format, zone, rows
        self.text = text.str.strip_chars()
        self.begins = False

    def parsed(self) -> Stamps:
        if self.format is None and self.text.str.contains(r"^(?:\d{10}|\d{13}|\d{16}|\d{19})(?:\.\d+)?$").all():
            epoch = _epoch(self.text.cast(pl.Float64, strict=False))
            if epoch is not None:
                return epoch
        if self.format is None:
            self.text = _plain_offsets(self.text.str.replace(_ZONE_BEHIND, "$1"))
        self._take_begins()
        abbreviated = self._take_abbreviations()
        end_of_day = self.text.str.contains(_24)
        if end_of_day.any():
            self.text = self.text.str.replace(_24, "${1}00$2")
        naive, offset = self._formatted() if self.format is not None else self._iso()
        offset = pl.select(pl.coalesce(abbreviated, offset)).to_series()
        stamp = pl.select(
            pl.when(end_of_day.fill_null(False)).then(naive + timedelta(days=1)).otherwise(naive)
            - offset.fill_null(timedelta(0))
        ).to_series()
        return Stamps(stamp.cast(pl.Datetime("us")), offset.is_not_null(), self.begins, bool(end_of_day.any()))

    def _take_begins(self) -> None:
        """Of ranges (`a - b`) the first end."""
        if self.format is not None and (both := re.match(r"^(.*%[HIsT].*?)\s+[-–—]\s+(%.+)$", self.format)):
            self.format = both[1]
        first, last = (
            pl.select(pl.coalesce(self.text.str.extract(RANGE, n), self.text.str.extract(_ISO_RANGE, n))).to_series()
            for n in (1, 2)
        )
        # A date and a time of day that are joined by a dash are no range.
        timed = first.str.contains("[:T]") | last.str.contains(_DATE)
        begin = pl.select(pl.when(timed).then(first)).to_series()
        if begin.null_count() == len(begin) or (self.format is not None and " - " in self.format):
            return
        if begin.null_count():
            self._refuse(begin.is_null(), "is not a range as other rows are", "give all rows in one form")
        self.text, self.begins = begin, True

    def _take_abbreviations(self) -> pl.Series:
        """The offsets that trailing abbreviations (CDT) stand for, as Duration; they are cut off."""
        none = pl.Series([None] * len(self.text), dtype=pl.Duration("us"))
        if self.format is not None and "%Z" in self.format:
            stripped = re.sub(r"\s*\(?%Z\)?$", "", self.format)
            if "%Z" in stripped:
                raise TraceError(
                    f"{self.source}: traces.time_format {self.format!r} has %Z inside; a zone is read at the end of a "
                    "stamp only. Give stamps with an offset"
                )
            self.format = stripped
        names = self.text.str.extract(_ABBREVIATION, 1)
        timed = ~names.is_in(["AM", "PM"]) & self.text.str.contains(r"\d")
        names = pl.select(pl.when(timed).then(names)).to_series()
        known = {name: self._offset_of(name, names) for name in names.drop_nulls().unique(maintain_order=True)}
        if not known:
            return none
        self.text = pl.select(
            pl.when(names.is_not_null()).then(self.text.str.replace(_ABBREVIATION, "")).otherwise(self.text)
        ).to_series()
        return names.replace_strict(known, default=None, return_dtype=pl.Duration("us"))

    def _offset_of(self, name: str, names: pl.Series) -> timedelta:
        value = self.given[int((names == name).arg_true()[0])]
        return abbreviated_offset(name, self.zone, self.source, value)

    def _formatted(self) -> tuple[pl.Series, pl.Series]:
        """Stamps in the declared format and their offsets (null: none)."""
        assert self.format is not None
        text, form = _with_minutes(self.text, self.format)
        try:
            stamp = text.str.to_datetime(form, time_unit="us", strict=False)
        except pl.exceptions.PolarsError as error:
            raise TraceError(
                f"{self.source}: traces.time_format {self.format!r} is not a format: {str(error).splitlines()[0]}; "
                "write one like %m/%d/%Y %H:%M"
            ) from error
        self._refuse(
            stamp.is_null(), f"is not a time as traces.time_format {self.format!r} says", "correct it or the format"
        )
        if isinstance(stamp.dtype, pl.Datetime) and stamp.dtype.time_zone is not None:
            utc = stamp.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
            return utc, pl.Series([timedelta(0)] * len(utc), dtype=pl.Duration("us"))
        return stamp, pl.Series([None] * len(stamp), dtype=pl.Duration("us"))

    def _iso(self) -> tuple[pl.Series, pl.Series]:
        cleaned = self.text.str.replace(r"\s*[Zz]$", "+00:00").str.replace(r"(\d)[Tt]", "$1 ")
        cleaned = cleaned.str.replace(r"(:\d{2}),(\d+)", "$1.$2")
        cleaned = cleaned.str.replace(r"^(\d{4})/(\d{1,2})/(\d{1,2})", "$1-$2-$3")
        cleaned = cleaned.str.replace(r"^(\d{4}-\d{2}-\d{2}|\d{8}) (\d{2})((?:[+-]\d{2}(?::?\d{2})?)?)$", "$1 $2:00$3")
        cleaned = cleaned.str.replace(r"^((?:19|20)\d{6})(\d{2})$", "$1 $2:00")
        # A date's own dashes are no offset.
        sign = cleaned.str.extract(r"\s\d{2}:?\d{2}\S*?" + _OFFSET, 1)
        bare = pl.select(pl.when(sign.is_not_null()).then(cleaned.str.replace(_OFFSET, "")).otherwise(cleaned))
        text = bare.to_series()
        stamp = text.str.to_datetime(_FORMATS[0], time_unit="us", strict=False)
        for form in _FORMATS[1:]:
            if not stamp.null_count():
                break
            stamp = stamp.fill_null(text.str.to_datetime(form, time_unit="us", strict=False))
        wrong = stamp.is_null() | (stamp.dt.year() < _FIRST_YEAR)
        if wrong.any():
            self._refuse(wrong, "is not a time in ISO 8601", self._proposal())
        digits = pl.col("sign").str.replace(":", "")
        size = pl.duration(
            hours=digits.str.slice(1, 2).cast(pl.Int64),
            minutes=digits.str.slice(3, 2).str.pad_end(2, "0").cast(pl.Int64),
            time_unit="us",
        )
        signed = pl.when(digits.str.starts_with("-")).then(-size).otherwise(size)
        return stamp, pl.DataFrame({"sign": sign}).select(signed).to_series()

    def _proposal(self) -> str:
        """The formats of traces.time_format that all rows fit."""
        fitting: dict[str, pl.Series] = {}
        for form in _NATIONAL:
            text, whole = _with_minutes(self.text, form)
            parsed = text.str.to_datetime(whole, time_unit="us", strict=False)
            if not parsed.null_count() and (parsed.dt.year() >= _FIRST_YEAR).all():
                fitting[form] = parsed
        days = self.text.cast(pl.Float64, strict=False)
        if days.is_between(*_SPREADSHEET_DAYS).fill_null(False).all():
            return "it looks like a spreadsheet's number of a day; format its cells as times and save the file anew"
        if not fitting:
            return (
                "write e.g. 2026-01-11T17:00:00Z, give the file's format as traces.time_format, or name the column of "
                "times in traces.time_column"
            )
        if len(fitting) == 1:
            return f"set traces.time_format to {next(iter(fitting))!r}"
        return "set traces.time_format to " + ", or to ".join(
            f"{form!r} (row 1 is {parsed[0]:%d %B %Y})" for form, parsed in fitting.items()
        )

    def _refuse(self, bad: pl.Series, what: str, fix: str) -> None:
        rows = bad.arg_true()
        if len(rows):
            row = int(rows[0])
            if len(rows) < len(bad) and not re.search(r"\d", self.text[row]):
                fix = "remove the row if it is a note"
            if self.text[row].casefold() == self.given.name.casefold():
                fix = "it is the column's own name: the header stands there again; remove that line"
            raise TraceError(
                f"{self.source}: {self.given[row]!r} in column {self.given.name!r}, data row {self.rows[row]}, {what}; "
                f"{fix}"
            )


def to_utc(stamps: Stamps, local: pl.Series) -> pl.Series:
    """Stamps that say their offset, and what `localise` made of the others."""
    own = stamps.naive.dt.replace_time_zone("UTC")
    return pl.select(pl.when(stamps.utc).then(own).otherwise(local)).to_series().cast(TIME).alias("time")
