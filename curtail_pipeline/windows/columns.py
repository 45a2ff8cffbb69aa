"""Traces as flat arrays over many regions: what the window rules compute on.

Times are microseconds since the epoch, UTC, as int64. `FOREVER` stands for "not ended before the end of the range".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import polars as pl

from curtail_pipeline.errors import PolicyError
from curtail_pipeline.times import FOREVER, Bools, Floats, Micros, micros_of, to_us


@dataclass(frozen=True)
class Columns:
    """One signal of several regions: region `r` has rows `offsets[r]:offsets[r + 1]`, in order of time, no stamp twice.

    `value` is NaN where a stamp has none; `estimated` is None where no value is. `step` is the distance of neighbouring
    stamps where it is the same throughout, so that what follows from it need not be looked up row by row.
    """

    time: Micros
    value: Floats
    offsets: Micros
    estimated: Bools | None = None
    step: int | None = None

    @property
    def regions(self) -> int:
        return len(self.offsets) - 1


def to_micros(stamp: datetime, name: str) -> int:
    """Microseconds since the epoch; `name` says in an error which time has no zone."""
    if stamp.tzinfo is None:
        raise PolicyError(f"{name} {stamp!r} has no time zone; give an aware time, e.g. 2026-01-11T17:00:00Z")
    return to_us(stamp)


def values_of(column: pl.Series) -> Floats:
    """A value column with NaN for null."""
    if column.dtype != pl.Float64:
        column = column.cast(pl.Float64)
    return (column.fill_null(float("nan")) if column.null_count() else column).to_numpy()


def columns_of(time: Micros, value: Floats, offsets: Micros, estimated: Bools | None, start: int, end: int) -> Columns:
    """Rows in `[start, end)` put in order; of equal stamps of a region the last row is kept."""
    n = len(time)
    counts = np.diff(offsets)
    filled = counts > 0
    heads, tails = offsets[:-1][filled], offsets[1:][filled] - 1
    steps = time[1:] - time[:-1]
    steps[tails[:-1]] = FOREVER
    shortest = int(steps.min(initial=FOREVER))
    tidy = shortest > 0
    if tidy and (time[heads] >= start).all() and (time[tails] < end).all():
        steps[tails[:-1]] = shortest
        even = shortest < FOREVER and int(steps.max()) == shortest
        return Columns(time, value, offsets, estimated, shortest if even else None)
    region = np.repeat(np.arange(len(counts)), counts)
    rows = np.arange(n) if tidy else np.lexsort((time, region))
    if not tidy:
        ahead = rows[1:]
        rows = rows[np.append((time[ahead] != time[rows[:-1]]) | (region[ahead] != region[rows[:-1]]), True)]
    rows = rows[(time[rows] >= start) & (time[rows] < end)]
    return Columns(
        time[rows],
        value[rows],
        np.searchsorted(region[rows], np.arange(len(counts) + 1)),
        None if estimated is None else estimated[rows],
    )


def columns_of_frame(traces: pl.DataFrame, regions: Sequence[str], kind: str, start: int, end: int) -> Columns:
    """The rows of one kind of these regions in `[start, end)`, from a trace table."""
    order = list(range(len(regions)))
    rows = (
        traces.lazy()
        .filter(pl.col("kind") == kind, pl.col("region").is_in(list(regions)))
        .with_columns(pl.col("region").replace_strict(list(regions), order, return_dtype=pl.Int64))
        .sort("region", maintain_order=True)
        .collect()
    )
    estimated = None
    if "estimated" in rows.columns and rows["estimated"].any():
        estimated = rows["estimated"].fill_null(False).to_numpy()
    return columns_of(
        micros_of(rows["time"]),
        values_of(rows["value"]),
        np.searchsorted(rows["region"].to_numpy(), np.arange(len(regions) + 1)),
        estimated,
        start,
        end,
    )
