"""Listings of events: rows that say how long each lasts, which is no cadence.

A value holds for its source's cadence. Of a measure from 10:00 to 14:00 in a listing of measures that begin at any
quarter of an hour, that would be a quarter of an hour, and the rest of it would be lost without a word.
"""

import re
from datetime import timedelta
from typing import Final

import numpy as np
import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.signals.cadence import local_cadence
from curtail_pipeline.signals.file_content import ROW, FileContent
from curtail_pipeline.signals.header_names import says_end
from curtail_pipeline.signals.period_columns import is_clock
from curtail_pipeline.signals.stamps import RANGE, Stamps, parse_stamps

_FIRST: Final = 5_000
"""Rows that are looked at."""
_MOSTLY: Final = 0.5
_LONGER: Final = 1.5
_FEW: Final = 2
_FEW_SHARE: Final = 0.05
"""So many rows may last longer than a cadence: on days on which clocks change a local end is an hour off."""


def require_no_events(
    content: FileContent, time: str, begins: Stamps, rows: pl.DataFrame, time_format: str | None, cadence_s: int | None
) -> None:
    """For rows with their begins.

    Args:
        rows: with the time column and ROW.
        begins: of each of them.
        cadence_s: where it is declared.

    Raises:
        TraceError: the rows' own ends say that many last longer than the cadence that their stamps show.
    """
    table = pl.DataFrame({ROW: rows[ROW], "begin": begins.naive, "written": rows[time]}).drop_nulls().head(_FIRST)
    if table.is_empty():
        return
    found = _ends_of_ranges(table, time_format) if begins.begins else _ends_beside(content, time, table, time_format)
    if found is None:
        return
    name, ends, aware = found
    if aware != bool(begins.utc.any()) or begins.utc.any() != begins.utc.all():
        return
    lasting = table.join(ends, on=ROW).with_columns(length=pl.col("end") - pl.col("begin"))
    known = (
        lasting.filter(pl.col("length") > timedelta(0))
        .sort("begin", "length")
        .unique("begin", keep="first", maintain_order=True)
    )
    seconds = known["begin"].dt.epoch("us").to_numpy() / 1e6
    if len(seconds) < 2:
        return
    overlap = (known["end"] > known["begin"].shift(-1)).fill_null(False).mean()
    if known["length"].n_unique() == 1 and overlap > _MOSTLY:  # type: ignore[operator]
        return  # ends in another zone than begins
    held, finest = local_cadence(seconds)
    if cadence_s is not None:
        held, finest = np.full(len(seconds), float(cadence_s)), cadence_s
    longer = known.filter(pl.Series(known["length"].dt.total_seconds().to_numpy() > _LONGER * held))
    if len(longer) <= max(_FEW, _FEW_SHARE * len(known)) and len(longer) < len(known):
        return
    worst = longer.row(longer["length"].arg_max() or 0, named=True)
    raise TraceError(
        f"{content.path}: {len(longer)} of {len(known)} rows last longer than the {finest} s that a value would hold, "
        f"e.g. {worst['length'] / timedelta(hours=1):g} h from {worst['begin']}, as {name} says: these are events, not "
        "values of one cadence; write one row per interval, or set traces.cadence_s if all last equally long"
    )


def _ends_beside(
    content: FileContent, time: str, table: pl.DataFrame, time_format: str | None
) -> tuple[str, pl.DataFrame, bool] | None:
    """What a column of ends, or one of their dates and one of their times of day, says."""
    names = [name for name in content.plain_names if name != time and says_end(name)]
    if not names or says_end(time):
        return None
    beside = content.read(names, first=table.select(pl.col(ROW).max()).item()).join(table.select(ROW), on=ROW)
    clock = next((name for name in names if is_clock(beside[name])), None)
    for name in names:
        column = beside[name]
        if name == clock or column.null_count() or (not column.dtype.is_temporal() and column.dtype != pl.String):
            continue
        for form in dict.fromkeys((None, time_format)):
            try:
                stamps = parse_stamps(column, str(content.path), form, "UTC", beside[ROW])
            except TraceError:
                continue  # what is called an end may be anything
            ends = stamps.naive
            if (ends == ends.dt.truncate("1d")).all():
                if clock is None:
                    return None  # the dates of ends alone
                texts = ends.dt.strftime("%Y-%m-%d ") + beside[clock].cast(pl.String).str.strip_chars().str.slice(0, 5)
                ends = texts.str.to_datetime("%Y-%m-%d %H:%M", strict=False)
            return f"column {name!r}", pl.DataFrame({ROW: beside[ROW], "end": ends}).drop_nulls(), stamps.utc.all()
    return None


def _ends_of_ranges(table: pl.DataFrame, time_format: str | None) -> tuple[str, pl.DataFrame, bool] | None:
    """The second ends of `a - b`."""
    texts = table["written"].cast(pl.String).str.strip_chars()
    last = texts.str.extract(RANGE, 2)
    if last.null_count():
        return None
    form = time_format and re.sub(r"^.*%[HIsT].*?\s+[-–—]\s+(%.+)$", r"\1", time_format)
    clock = last.str.extract(r"^(\d{1,2}:\d{2})(?::\d{2})?$", 1)
    if not clock.null_count():
        midnight = table["begin"].dt.truncate("1d")
        same = (midnight.dt.strftime("%Y-%m-%d ") + clock).str.to_datetime("%Y-%m-%d %H:%M", strict=False)
        later = pl.select(pl.when(same <= table["begin"]).then(same + timedelta(days=1)).otherwise(same)).to_series()
        return "its range", pl.DataFrame({ROW: table[ROW], "end": later}).drop_nulls(), False
    try:
        stamps = parse_stamps(last, "", form, "UTC", table[ROW])
    except TraceError:
        return None
    return "its range", pl.DataFrame({ROW: table[ROW], "end": stamps.naive}), bool(stamps.utc.all())
