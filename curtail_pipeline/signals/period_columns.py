"""Dates with a column of hours or settlement periods: HE01 to HE25, hour 0 to 23, period 1 to 50, `Date` + `Time`.

Numbers from 1 and ranges (`00 - 01`, `00:15 - 00:30`) name intervals, whose begin is therefore known. On days on which
clocks change, two ways of counting are in use: by the clock (1 to 24, one number skipped in spring, one twice in
autumn) and by elapsed time (1 to 23 or 25). Which one a day follows shows in its numbers; where it does not, the file
is refused.
"""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final, NoReturn
from zoneinfo import ZoneInfo

import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.signals.time_zones import offset_text

HOURS: Final = (
    *("he", "hour", "hr", "hours", "hourending", "hourend", "oprhr", "deliveryhour", "hora", "stunde", "heure"),
)
PERIODS: Final = (
    *("period", "settlementperiod", "sp", "tradingperiod", "periodo", "interval", "deliveryinterval", "oprinterval"),
)
PARTS_OF_HOURS: Final = ("interval", "deliveryinterval", "oprinterval", "intervalnumber")
"""Beside a column of hours these count the intervals of one hour."""
TIMES: Final = (
    *("time", "timeofday", "uhrzeit", "starttime", "anfang", "saat", "heures", "horas", "timeblock", "deliverystart"),
)
_ENDING = ("he", "hourending", "hourend")
_LABEL = r"(?i)^(?:HE|HR|H|SP|P|Hour)?\s*0*(\d{1,3})(?:\.0+)?\s*([X*])?$"
_CLOCK = r"^(\d{1,2}):(\d{2})(?::\d{2}(?:\.\d+)?)?$"
_RANGE = r"^(\d{1,2}(?::\d{2}){0,2})\s*[-–—]\s*\d{1,2}(?::\d{2}){0,2}$"
_HALF_DAYS = r"^(\d{1,2})((?::\d{2}){0,2})\s*([AaPp])\.?\s*[Mm]\.?$"
_PER_HOUR = (2, 3, 4, 6, 12)
_PER_DAY = (24, 48, 96, 144, 288)
_DAY_S = 86_400
_HEAD = 20
"""Values that tell most columns that hold something else."""


def is_number(text: str) -> bool:
    """Whether a text is one."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def plain_name(name: str) -> str:
    """A column's name without case and marks."""
    return re.sub("[^a-z0-9]", "", name.lower())


@dataclass(frozen=True)
class Numbered:
    """What a period column says, with its date."""

    naive: pl.Series
    """Local begin by the clock, Datetime[us]; in `elapsed` rows midnight of the day."""
    elapsed: pl.Series
    """Duration since midnight to add in UTC, for rows counted by elapsed time; null otherwise."""
    second: pl.Series
    """Boolean: marked as of the second pass of a repeated hour (`02X`); null where no row is."""
    begins: bool
    """The begin is known; else the stamps are as `traces.interval` says."""


class PeriodColumn:
    """A column of hours or periods beside a column of dates."""

    def __init__(
        self, column: pl.Series, source: str, rows: pl.Series, period_s: int | None, hours_from: int | None
    ) -> None:
        self.source, self.name, self.rows = source, column.name, rows
        self.names: tuple[str, ...] = (column.name,)
        """The columns it was made of."""
        self.period_s, self.hours_from = period_s, hours_from
        self.given = column
        self.text = _by_24_hours(column.cast(pl.String, strict=False).str.strip_chars())
        begin = self.text.str.extract(_RANGE, 1)
        self.ranges = not begin.null_count()
        """Each value is a range, and so names an interval by its begin."""
        if self.ranges:
            self.text = begin

    def clock_texts(self) -> pl.Series | None:
        """The column as times of day (HH:MM), where it holds such with minutes; None otherwise."""
        minutes = self.text.str.extract(_CLOCK, 2)
        return self.text if not minutes.null_count() and (minutes != "00").any() else None

    def numbers(self) -> tuple[pl.Series, pl.Series]:
        """The numbers, and the marks of a second pass.

        Raises:
            TraceError: a value that is no number.
        """
        clock = self.text.str.extract(_CLOCK, 1)
        number = pl.select(pl.coalesce(self.text.str.extract(_LABEL, 1), clock)).to_series().cast(pl.Int64)
        bad = number.is_null().arg_true()
        if len(bad):
            row = int(bad[0])
            raise TraceError(
                f"{self.source}: {self.given[row]!r} in column {self.name!r}, data row {self.rows[row]}, is no hour or "
                "period; write 1 to 25, HE01 or 01:00, or set traces.hour_column to another column"
            )
        return number, self.text.str.extract(_LABEL, 2).is_not_null()

    @classmethod
    def of_parts(cls, hours: "PeriodColumn", parts: "PeriodColumn") -> "PeriodColumn | None":
        """A column of hours and one of the intervals of each (ERCOT, CAISO) as periods of the day; None where the
        second does not count the equal parts of an hour.

        Raises:
            TraceError: as `numbers`, or it does not show whether hours count from 0 or from 1.
        """
        hour, marked = hours.numbers()
        part, _ = parts.numbers()
        least, most = part.min(), part.max()
        assert isinstance(least, int) and isinstance(most, int)
        count = most - min(least, 1) + 1
        if count not in _PER_HOUR or marked.any():
            return None
        first = hours._first(pl.DataFrame({"number": hour}))
        number = (hour - first) * count + part - min(least, 1) + 1
        found = cls(number.alias(f"{hours.name}, {parts.name}"), hours.source, hours.rows, 3600 // count, 1)
        found.names = (hours.name, parts.name)
        return found

    def numbered(
        self, dates: pl.Series, groups: pl.Series | None, zone: str | timedelta, needed: pl.Series | None = None
    ) -> Numbered:
        """Begins of the intervals that dates and numbers name.

        Args:
            dates: local midnights, Datetime[us].
            groups: what each row belongs to.
            needed: whether a row has a value; a table of 24 rows for every day has one without in spring.

        Raises:
            TraceError: numbers that do not say which interval is meant.
        """
        number, marked = self.numbers()
        table = pl.DataFrame({"day": dates, "number": number, "marked": marked}).with_columns(
            group=pl.lit(0) if groups is None else groups,
            needed=pl.lit(True) if needed is None else needed,
        )
        period = timedelta(seconds=self._period(table))
        first = self._first(table)
        usual = timedelta(days=1) // period
        self._require_numbers(table, first, usual, zone)
        elapsed_days = [] if first == 0 or isinstance(zone, timedelta) else self._elapsed_days(table, zone, period)
        since = (number - first) * period
        elapsed = pl.select(pl.when(table["day"].is_in(elapsed_days)).then(since)).to_series()
        naive = pl.select(pl.when(elapsed.is_null()).then(dates + since).otherwise(dates)).to_series()
        second = marked if marked.any() else pl.Series([None] * len(marked), dtype=pl.Boolean)
        return Numbered(naive, elapsed, second, begins=first == 1 or self.ranges)

    def _period(self, table: pl.DataFrame) -> int:
        if self.period_s is not None:
            return self.period_s
        if plain_name(self.name) not in PERIODS:
            return 3600
        last = table.group_by("day").agg(pl.col("number").max())["number"]
        usual = [count for count in _PER_DAY if (last == count).sum() > 1 and (last <= count + count // 24).all()]
        if usual:
            return _DAY_S // usual[-1]
        raise TraceError(
            f"{self.source}: column {self.name!r} counts up to {max(last)} a day, which does not tell how "
            "long a period "
            "is; set traces.period_s, e.g. 1800 for half-hours"
        )

    def _first(self, table: pl.DataFrame) -> int:
        if self.hours_from is not None:
            return self.hours_from
        if self.ranges or (table["number"] == 0).any():
            return 0
        lettered = self.text.str.contains("(?i)^(HE|SP)").any()
        named = plain_name(self.name) in (*_ENDING, *PERIODS)
        if lettered or named or self.period_s not in (None, 3600) or (table["number"] >= 24).any():
            return 1
        raise TraceError(
            f"{self.source}: column {self.name!r} has neither an hour 0 nor an hour 24, which does not tell "
            "whether hour 5 "
            "begins at 04:00 or at 05:00; set traces.hours_from to 1 where the day's first hour is 1, or to 0"
        )

    def _require_numbers(self, table: pl.DataFrame, first: int, usual: int, zone: str | timedelta) -> None:
        most = usual - 1 if first == 0 else usual + max(1, usual // 24)
        over = table.filter(pl.col("number").is_between(usual + 1, most), pl.col("needed"))
        if isinstance(zone, timedelta) and len(over):
            self._refuse_long_day(over["day"][0], over["number"][0], usual, f"UTC{offset_text(zone) if zone else ''}")
        bad = (~table["number"].is_between(first, most)).arg_true()
        if len(bad):
            row = int(bad[0])
            raise TraceError(
                f"{self.source}: {self.given[row]!r} in column {self.name!r}, data row {self.rows[row]}, is not in "
                f"{first} to {most}; correct it, or set traces.period_s and traces.hours_from"
            )

    def _refuse_long_day(self, day: datetime, number: int, usual: int, zone: str) -> NoReturn:
        raise TraceError(
            f"{self.source}: {day:%Y-%m-%d} has a number {number} in column {self.name!r}, but the day has {usual} "
            f"periods in {zone}; set traces.timezone to the zone whose clock it follows"
        )

    def _elapsed_days(self, table: pl.DataFrame, zone: str, period: timedelta) -> list[datetime]:
        """The days on which clocks change whose numbers count elapsed time.

        Raises:
            TraceError: a day's numbers do not tell, or a day has more of them than periods.
        """
        found: list[datetime] = []
        usual = timedelta(days=1) // period
        for stamp in table["day"].unique().sort():
            rows = table.filter(pl.col("day") == stamp, pl.col("needed"))
            if rows.is_empty():
                continue
            numbers = set(rows["number"])
            length = _length(stamp.date(), zone)
            if length == timedelta(days=1):
                if max(numbers) > usual:
                    self._refuse_long_day(stamp, max(numbers), usual, zone)
                continue
            first, end = _changed(stamp.date(), zone, period)
            if max(numbers) < first:
                continue  # both ways count alike until the change
            changed = set(range(first, end))
            if length < timedelta(days=1):
                by_clock, by_elapsed = (
                    not numbers & changed,
                    max(numbers) <= length // period and bool(numbers & changed),
                )
            else:
                twice = set(rows.group_by("group", "number").len().filter(pl.col("len") > 1)["number"])
                by_clock = max(numbers) <= usual and (changed <= twice or bool(rows["marked"].any()))
                by_elapsed = max(numbers) > usual and not twice and not rows["marked"].any()
            if not by_clock and not by_elapsed:
                raise TraceError(
                    f"{self.source}: on {stamp:%Y-%m-%d} clocks change in {zone}, and the numbers {min(numbers)} to "
                    f"{max(numbers)} of column {self.name!r} do not tell how they count; leave the day out, or "
                    "give its stamps with an offset"
                )
            if by_elapsed:
                found.append(stamp)
        return found


def _by_24_hours(text: pl.Series) -> pl.Series:
    """Times of day as `13:00`, where all are as `1:00 PM`."""
    hour = text.str.extract(_HALF_DAYS, 1).cast(pl.Int64)
    if hour.null_count() or not hour.is_between(1, 12).all():
        return text
    late = text.str.extract(_HALF_DAYS, 3).str.to_lowercase() == "p"
    minutes = text.str.extract(_HALF_DAYS, 2)
    clock = (hour % 12 + 12 * late.cast(pl.Int64)).cast(pl.String) + pl.select(
        pl.when(minutes == "").then(pl.lit(":00")).otherwise(minutes)
    ).to_series()
    return clock.alias(text.name)


def is_clock(values: pl.Series) -> bool:
    """Whether a column holds times of day, or ranges of them, as texts or times."""
    if values.dtype != pl.String:
        return values.dtype == pl.Time
    known = values.drop_nulls()
    return len(known) > 0 and _all_clocks(known.head(_HEAD)) and _all_clocks(known)


def _all_clocks(texts: pl.Series) -> bool:
    clean = texts.str.strip_chars()
    clock, half = clean.str.contains(_CLOCK), clean.str.contains(_HALF_DAYS)
    return bool((clock | half | clean.str.contains(_RANGE)).all())


def _length(day: date, zone: str) -> timedelta:
    midnights = [datetime.combine(d, time(), ZoneInfo(zone)).astimezone(UTC) for d in (day, day + timedelta(days=1))]
    return midnights[1] - midnights[0]


def _changed(day: date, zone: str, period: timedelta) -> tuple[int, int]:
    """Numbers (from 1) of the periods, by the clock, that are skipped or repeated on that day: [first, end)."""
    found = []
    for number in range(timedelta(days=1) // period):
        wall = datetime.combine(day, time(), ZoneInfo(zone)) + number * period
        if wall.replace(fold=0).utcoffset() != wall.replace(fold=1).utcoffset():
            found.append(number + 1)
    return (found[0], found[-1] + 1) if found else (1, 1)
