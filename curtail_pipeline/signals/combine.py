"""Several rows of a file for one stamp and region, or none: chosen, added up, or refused; none wins silently.

Grids publish several values per interval in one table: OASIS the components of a price, AEMO the dispatch with and
without intervention, exchanges two auctions, operators curtailment by fuel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.trace_settings import Kind
from curtail_pipeline.signals.header_names import says_end
from curtail_pipeline.signals.kinds import holds_stamps, is_part_of_times
from curtail_pipeline.signals.period_columns import is_clock, is_number
from curtail_pipeline.signals.trace import POINT_SCHEMA, Series
from curtail_pipeline.times import iso

FEW_STAMPS: Final = 3
FEW_SHARE: Final = 0.001
"""Up to so many stamps, or this share of them, may have rows that disagree: those are warned of by name."""
MANY_SHARE: Final = 0.1
"""... but more than one stamp may not where it is this share of a short file."""
_LISTED_SHARE: Final = 0.9
_MOST_SHOWN: Final = 6
_MOST_VALUES: Final = 50
"""A column with more values measures something; it does not tell rows apart."""
_MOSTLY: Final = 0.9
"""Of the stamps, so that a row that was repeated besides hides nothing."""


@dataclass(frozen=True)
class Telling:
    """Columns whose values tell the rows of a stamp apart; several where none does alone."""

    columns: tuple[str, ...]
    values: list[str]
    """Of the first one."""
    example: tuple[str, ...]
    """A value of each."""
    is_clock: bool = False
    """It holds the times of day that a column of dates lacks."""
    is_time: bool = False
    """It holds times, and those that are read are of something else."""


def summed(values: pl.DataFrame) -> pl.DataFrame:
    """One row per region, kind, unit and stamp of a file, the sum of its rows; null where none has a value."""
    keys = ["region", "kind", "unit", "time"]
    total = pl.when(pl.col("value").count() > 0).then(pl.col("value").sum()).alias("value")
    others = [
        pl.col(name).any() if name == "estimated" else pl.col(name).last()
        for name in POINT_SCHEMA
        if name not in ("time", "value")
    ]
    return values.group_by(keys, maintain_order=True).agg(total, *others).select(values.columns)


def require_one_row_per_stamp(name: str, region: str, series: Series, apart: Sequence[Telling]) -> None:
    """Refuse a signal of which more than a few stamps have rows that disagree.

    Args:
        apart: the columns that tell such rows apart, best first.

    Raises:
        TraceError: with the column and the setting that chooses.
    """
    conflicts = series.dropped.filter("conflict")
    stamps = conflicts["time"].n_unique()
    first = conflicts.sort("time", maintain_order=True).row(0, named=True)
    combined = "say what they come to with traces.combine (sum, first or last)"
    if not apart:
        fix = f"no column tells them apart: keep one row per stamp, or {combined}"
    elif apart[0].is_time:
        fix = f"the column {apart[0].columns[0]!r} holds the times that differ: set traces.time_column to it"
    elif apart[0].is_clock:
        fix = f"the column {apart[0].columns[0]!r} says the time of day: set traces.hour_column to it"
    elif is_part_of_times(apart[0].columns[0]):
        fix = (
            f"the column {apart[0].columns[0]!r} says when, which the stamps do not say in full: write whole stamps, "
            "date and time, into the time column"
        )
    else:
        fix = f"{_chosen(apart[0])}, or {combined}"
    raise TraceError(
        f"{name}: {stamps} of {len(series.points)} stamps of region {region!r} have rows that disagree, e.g. "
        f"{first['dropped']:g} and {first['kept']:g} at {iso(first['time'])}; {fix}"
    )


def require_no_listing(name: str, region: str, kind: Kind, series: Series) -> None:
    """Refuse a listing of the intervals with curtailment whose reading nobody declared.

    Raises:
        TraceError: with the setting that says what an absent interval is.
    """
    values, span = series.points["value"].drop_nulls(), series.span
    if kind != "curtailed_power" or span is None or len(values) < 2 or (values <= 0).any():
        return
    stamps = (span[1] - span[0]).total_seconds() / series.cadence_s
    if len(values) < _LISTED_SHARE * stamps:
        raise TraceError(
            f"{name}: {region!r} has {len(values)} of {stamps:.0f} intervals of {series.cadence_s} s, none of them 0, "
            "which looks like a listing of the intervals with curtailment; declare traces.missing: zero (absent "
            "intervals are 0 MW, with traces.cadence_s where it is shorter) or traces.missing: null (they are unknown)"
        )


def disagrees_much(series: Series) -> bool:
    """Whether more than a few stamps have rows that disagree and that no revision time orders."""
    lost = series.dropped.filter(pl.col("conflict") & ~pl.col("revised"))["time"]
    stamps, known = lost.n_unique(), len(series.points)
    # A day of rows that all bear its date is one stamp.
    one = known == 1 and len(lost) > FEW_STAMPS
    return one or stamps > max(FEW_STAMPS, FEW_SHARE * known) or 1 < stamps > MANY_SHARE * known


def telling_columns(
    rows: pl.DataFrame, keys: Sequence[str], used: Sequence[str], *, time_named: bool = False
) -> list[Telling]:
    """The columns that differ within nearly every group of rows with equal `keys`, the one with fewest values first.

    Of numbers only as many as a group has rows are a mark; more are measured. Where no column tells rows apart alone,
    all that differ within groups are tried together.

    Args:
        rows: a file's rows as text, the first key as local times.
        used: columns that hold time, region and value.
        time_named: somebody chose the column of times.
    """
    several = rows.filter(pl.len().over(list(keys)) > 1)
    if several.is_empty():
        return []
    when = _clock_beside(several, keys[0], [*used, *keys])
    if when is None and not time_named:
        when = _times_beside(several, keys, used)
    if when is not None:
        return [when]
    marks = {name: values for name in rows.columns if name not in (*used, *keys) and (values := _marks(several, name))}
    most = int(several.group_by(list(keys)).len()["len"].max())  # type: ignore[arg-type]
    marks = {
        name: values
        for name, values in marks.items()
        if len(values) <= most or not all(is_number(value) for value in values)
    }
    texts = several.select(*keys, *(pl.col(name).cast(pl.String).str.strip_chars() for name in marks))

    def tells(names: Sequence[str]) -> bool:
        groups = texts.group_by(list(keys)).agg(pl.struct(names).n_unique().alias("n"), pl.len().alias("rows"))
        return bool((groups["n"] == groups["rows"]).sum() >= _MOSTLY * len(groups))

    alone = [Telling((name,), values, (values[0],)) for name, values in marks.items() if tells([name])]
    # Names before numbers: `LMP_TYPE: LMP` says more than `GROUP: 1`, unless the number tells fewer cases apart.
    alone.sort(key=lambda found: (len(found.values), all(is_number(value) for value in found.values)))
    if alone or len(marks) < 2 or not tells(list(marks)):
        return alone
    first = texts.row(0, named=True)
    return [Telling(tuple(marks), marks[next(iter(marks))], tuple(str(first[name]) for name in marks))]


def _clock_beside(rows: pl.DataFrame, time: str, used: Sequence[str]) -> Telling | None:
    """The column of times of day beside times that are dates alone, that of begins where there are two."""
    if (rows[time] != rows[time].dt.truncate("1d")).any():
        return None
    clocks = [name for name in rows.columns if name not in used and is_clock(rows[name])]
    found = next((name for name in sorted(clocks, key=says_end) if rows[name].n_unique() > 1), None)
    return None if found is None else Telling((found,), [], (), is_clock=True)


def _times_beside(rows: pl.DataFrame, keys: Sequence[str], used: Sequence[str]) -> Telling | None:
    """The column of times that differ where those of `keys` do not, as of a forecast that is issued once."""
    groups = rows.group_by(list(keys))
    for name in rows.columns:
        if name in (*used, *keys) or not holds_stamps(rows[name]) or is_clock(rows[name]):
            continue
        if (
            groups.agg(pl.col(name).n_unique().alias("n"), pl.len().alias("rows"))
            .select((pl.col("n") == pl.col("rows")).mean())
            .item()
            >= _MOSTLY
        ):
            return Telling((name,), [], (), is_time=True)
    return None


def _marks(rows: pl.DataFrame, name: str) -> list[str]:
    """The few values of a column; empty where it has one or many."""
    values = rows[name].cast(pl.String).str.strip_chars().drop_nulls().unique().sort().to_list()
    return values if 1 < len(values) <= _MOST_VALUES else []


def _chosen(apart: Telling) -> str:
    """What tells rows apart, and the setting that chooses."""
    names = " and ".join(map(repr, apart.columns))
    where = ", ".join(f"{name}: {value}" for name, value in zip(apart.columns, apart.example, strict=True))
    which = f"columns {names} together tell" if len(apart.columns) > 1 else f"column {names} tells"
    shown = "" if len(apart.columns) > 1 else f" ({_listed(apart.values)})"
    return f"the {which} them apart{shown}: choose with traces.where, e.g. {{{where}}}"


def _listed(values: Sequence[str]) -> str:
    shown = ", ".join(values[:_MOST_SHOWN])
    return shown + (", ..." if len(values) > _MOST_SHOWN else "")
