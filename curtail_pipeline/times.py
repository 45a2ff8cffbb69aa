"""Time, in the three forms it has inside: aware UTC datetimes, integer microseconds, and polars columns.

Microseconds since 1970 as int64 (`us`) are what decisions and sums are made in: sums of step durations are exact, and a
result does not depend on the order of additions. Text is ISO 8601, at the edges only.
"""

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

Micros = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

Cell = datetime | str | float | bool | None
"""Of a table's row."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
SECOND: Final = 1_000_000
HOUR: Final = 3_600 * SECOND
DAY: Final = 24 * HOUR
FOREVER: Final = 2**61
"""An end that is not known yet; sums of two of them still fit."""
TIME: Final = pl.Datetime("us", "UTC")
"""The type of every column of times."""
_TICK = timedelta(microseconds=1)


def parse_utc(text: str) -> datetime:
    """Parse an ISO 8601 stamp to aware UTC; a stamp without an offset is taken as UTC.

    Raises:
        ValueError: the text is not ISO 8601; the message names it.
    """
    try:
        stamp = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise ValueError(f"{text!r} is not a time; write ISO 8601 in UTC, e.g. 2026-01-11T17:00:00Z") from error
    return stamp.replace(tzinfo=UTC) if stamp.tzinfo is None else stamp.astimezone(UTC)


def iso(stamp: datetime) -> str:
    """ISO 8601 with a `Z`, microseconds only where there are any."""
    if stamp.tzinfo is None:
        raise ValueError(f"{stamp!r} has no time zone; every time inside is aware UTC")
    return stamp.astimezone(UTC).isoformat().replace("+00:00", "Z")


def seconds(value: float) -> timedelta:
    return timedelta(seconds=value)


def utc_now() -> datetime:
    return datetime.now(UTC)


def day_of(stamp: datetime) -> date:
    """The UTC day that a time lies in."""
    return stamp.astimezone(UTC).date()


def midnight(day: date) -> datetime:
    """Where a UTC day begins."""
    return datetime.combine(day, time(), UTC)


def days_between(start: datetime, end: datetime) -> list[date]:
    """The UTC days that `[start, end)` touches."""
    last = day_of(end - timedelta(microseconds=1))
    return [day_of(start) + timedelta(days=n) for n in range((last - day_of(start)).days + 1)]


def stretches(days: Iterable[date]) -> list[list[date]]:
    """Ascending days in runs of consecutive ones."""
    found: list[list[date]] = []
    for day in days:
        if found and day - found[-1][-1] == timedelta(days=1):
            found[-1].append(day)
        else:
            found.append([day])
    return found


def to_us(stamp: datetime) -> int:
    """Microseconds since 1970 of an aware datetime."""
    return (stamp - EPOCH) // _TICK


def from_us(us: int) -> datetime:
    return EPOCH + timedelta(microseconds=int(us))


def duration_us(seconds: float) -> int:
    return round(seconds * SECOND)


def micros_of(column: pl.Series) -> Micros:
    """A column of times as microseconds since 1970."""
    if column.dtype != TIME:
        column = column.dt.cast_time_unit("us")
    return column.to_physical().to_numpy()


def times_column(us: Micros) -> pl.Series:
    """Microseconds since 1970 as a column of times."""
    return pl.Series(us.astype(np.int64)).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def iso_cells(rows: Iterable[Mapping[str, Cell]]) -> list[dict[str, str | float | bool | None]]:
    """Rows as JSON and charts take them: times as ISO text, and None for a float that is no number."""
    return [{name: _plain(cell) for name, cell in row.items()} for row in rows]


def _plain(cell: Cell) -> str | float | bool | None:
    if isinstance(cell, datetime):
        return iso(cell)
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


def outside(spans: tuple[Micros, Micros], holes: tuple[Micros, Micros]) -> tuple[Micros, Micros]:
    """The parts of `spans` that are outside `holes`; both disjoint and ascending (starts, ends)."""
    stamps = np.concatenate((*spans, *holes))
    covers = np.repeat([1, -1, 0, 0], [len(spans[0]), len(spans[1]), len(holes[0]), len(holes[1])])
    cuts = np.repeat([0, 0, 1, -1], [len(spans[0]), len(spans[1]), len(holes[0]), len(holes[1])])
    order = np.argsort(stamps, kind="stable")
    stamps = stamps[order]
    keep = (np.cumsum(covers[order]) > 0) & (np.cumsum(cuts[order]) == 0)
    low, high = stamps[:-1][keep[:-1]], stamps[1:][keep[:-1]]
    some = low < high
    low, high = low[some], high[some]
    joined = np.concatenate(([True], low[1:] != high[:-1])) if len(low) else np.empty(0, dtype=bool)
    return low[joined], high[np.append(joined[1:], True)] if len(high) else high
