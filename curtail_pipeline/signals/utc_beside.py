"""Columns that say UTC beside the times that are read: a file that has both tells when the others are local.

Markets publish local times and UTC side by side (`HourDK,HourUTC`, `Interval,GMTIntervalEnd`). Local times whose zone
nobody declared would be read as UTC, hours off, although the file itself says better.
"""

import logging
import re
from datetime import timedelta
from typing import Final

import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.signals.file_content import ROW, FileContent
from curtail_pipeline.signals.header_names import says_end, says_utc
from curtail_pipeline.signals.local_time import common_step
from curtail_pipeline.signals.stamps import parse_stamps

log = logging.getLogger(__name__)

_FIRST: Final = 400
"""Rows that are compared: an offset shows in the first ones."""
_FARTHEST: Final = timedelta(hours=14)
"""That a zone is from UTC."""
_QUARTER: Final = timedelta(minutes=15)
_SAME: Final = 0.9
"""Of the rows differ by one offset; a publication time differs by anything."""
_ISSUED: Final = re.compile(
    "publi|updat|creat|issue|retriev|modif|ingest|load|revis|run|receiv|seen|captur|fetch|scrap|stored|insert|record"
)
"""Names of times at which something was done with a value, and not of the value."""
_MAY_BE_A_TIME: Final = r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|^\s*\d{8}[T ]?\d|^\s*1\d{9}(?:\d{3})?\s*$"


def require_no_other_utc(
    content: FileContent,
    time: str,
    times: pl.Series,
    rows: pl.Series,
    *,
    ends: bool,
    time_format: str | None,
    zone: str,
) -> None:
    """For times without an offset that were read as of `zone`.

    Args:
        times: in UTC; null where a row is left out.
        rows: their numbers in the file.
        ends: they are interval ends.
        zone: as declared; empty where nobody did, and UTC was taken.

    Raises:
        TraceError: nobody declared a zone, and another column says that these times are not UTC.
    """
    mine = pl.DataFrame({ROW: rows, "mine": times}).drop_nulls().head(_FIRST)
    if mine.is_empty():
        return
    table = content.read(content.plain_names, first=mine.select(pl.col(ROW).max()).item())
    for name in content.plain_names:
        if name == time or _ISSUED.search(name.lower()):
            continue
        theirs = _utc_of(table.select(ROW, name).drop_nulls(), str(content.path), time_format)
        if theirs is None:
            continue
        both = mine.join(theirs, on=ROW).with_columns(off=pl.col("mine") - pl.col("theirs"))
        off = _common(both["off"])
        if off is None or off in (timedelta(0), _between_ends(both, says_end(name), ends or says_end(time))):
            continue
        hours = f"{abs(off) / timedelta(hours=1):g} h {'after' if off > timedelta(0) else 'before'}"
        if zone:
            log.warning(
                "%s: column %r, read as %s as declared, is %s what column %r says in UTC; check traces.timezone",
                *(content.path, time, zone, hours, name),
            )
            return
        raise TraceError(
            f"{content.path}: column {time!r} would be read as UTC, and is {hours} what column {name!r} says in UTC; "
            f"set traces.time_column to {name!r}, or traces.timezone to the zone of {time!r} (UTC if it is in that)"
        )


def _utc_of(column: pl.DataFrame, source: str, time_format: str | None) -> pl.DataFrame | None:
    """ROW and the times that a column says to be UTC, by its name or by offsets; None of any other column."""
    name = column.columns[1]
    values = column[name]
    is_text = values.dtype == pl.String or values.dtype.is_numeric()
    if values.is_empty() or not (is_text or isinstance(values.dtype, pl.Datetime)):
        return None
    if is_text and not values.cast(pl.String).str.contains(_MAY_BE_A_TIME).all():
        return None
    for form in dict.fromkeys((None, time_format)):
        try:
            stamps = parse_stamps(values, source, form, "UTC", column[ROW])
        except TraceError:
            continue  # a column that holds no times says nothing about others
        if stamps.utc.all() or (says_utc(name) and not stamps.utc.any() and _has_hours(stamps.naive)):
            return pl.DataFrame({ROW: column[ROW], "theirs": stamps.naive.dt.replace_time_zone("UTC")})
    return None


def _has_hours(naive: pl.Series) -> bool:
    return bool((naive != naive.dt.truncate("1d")).any())


def _common(off: pl.Series) -> timedelta | None:
    """The offset from UTC that nearly all rows differ by; None where there is none."""
    if off.is_empty():
        return None
    common = off.mode().min()
    assert isinstance(common, timedelta)
    if abs(common) > _FARTHEST or common % _QUARTER or (off == common).mean() < _SAME:  # type: ignore[operator]
        return None
    return common


def _between_ends(both: pl.DataFrame, theirs: bool, mine: bool) -> timedelta:
    """How far apart begins and ends of the same intervals are."""
    step = common_step(both.select(pl.col("mine").alias("naive"), pl.lit(0).alias("group")))
    if step is None or theirs == mine:
        return timedelta(0)
    return step if mine else -step
