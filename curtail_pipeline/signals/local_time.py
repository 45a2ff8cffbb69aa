"""Local stamps to UTC across clock changes. Nothing is shifted silently.

A repeated hour is resolved by a flag, by the order of the file (oldest or newest first), by a setting, or refused. An
hour that clocks skip is refused, but for rows without a value. Stamps of interval ends are written in two ways: what
the clock shows at the end (01:00, 03:00 in spring) or the begin's hour plus one ("hour ending": 01:00, 02:00, 04:00);
which of them a file follows shows in the stamps at a clock change. A fixed offset is refused for stamps that skip or
repeat exactly the hour that clocks do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.signals.time_zones import offset_text, only_offset, zone_that_changes

Ambiguous = Literal["infer", "earliest", "latest", "drop", "refuse"]

_HOUR = timedelta(hours=1)
_NAIVE = pl.Datetime("us")


@dataclass(frozen=True)
class Clock:
    """How a file's local stamps are to be read."""

    zone: str | timedelta
    """An IANA name, or the offset from UTC."""
    source: str
    """Names the file in errors."""
    ambiguous: Ambiguous = "infer"
    ends: bool = False
    """Stamps are interval ends."""
    length: timedelta | None = None
    """Of an interval, where it is known."""


def localise(
    naive: pl.Series,
    clock: Clock,
    groups: pl.Series | None = None,
    needed: pl.Series | None = None,
    second: pl.Series | None = None,
) -> pl.Series:
    """Stamps without a zone (null where there is none to convert) to UTC; null where a row is to be left out.

    Args:
        groups: what each stamp belongs to; a stamp may occur once per group and pass of the clock. None: one group.
        needed: whether the row has a value; one without may lie in a skipped hour. None: all have.
        second: whether the row is of the second pass of a repeated hour, where the file says so.

    Raises:
        TraceError: a stamp that clocks skipped, or a repeated one that cannot be told apart.
    """
    table = pl.DataFrame(
        {
            "naive": naive.cast(_NAIVE),
            "group": pl.Series([0] * len(naive)) if groups is None else groups,
            "needed": pl.Series([True] * len(naive)) if needed is None else needed,
            "second": pl.Series([None] * len(naive), dtype=pl.Boolean) if second is None else second,
        }
    )
    if isinstance(clock.zone, timedelta):
        _require_no_clock_change(table, clock, clock.zone)
        shifted = table.select(pl.col("naive") - clock.zone)
        return shifted.to_series().dt.replace_time_zone("UTC")
    known = table["naive"].drop_nulls()
    if len(known) and (offset := only_offset(clock.zone, known.min().year, known.max().year)) is not None:  # type: ignore[union-attr]
        _require_no_clock_change(table, clock, offset)
    plain = _Reading(table, clock, timedelta(0))
    length = clock.length or common_step(table) if clock.ends else None
    if length is None or length > _HOUR:
        return plain.resolved(clock.ambiguous)
    ending = _Reading(table, clock, length)
    return plain.resolved("infer") if plain.is_regular and ending.is_regular else _end_stamps(plain, ending, clock)


def common_step(table: pl.DataFrame) -> timedelta | None:
    """The commonest difference between neighbouring stamps of a group, without sign."""
    steps = table.select(pl.col("naive").diff().over("group").abs().alias("step")).filter(pl.col("step") > timedelta(0))
    return None if steps.is_empty() else steps["step"].mode().min()  # type: ignore[return-value]


class _Reading:
    """A file's stamps under one reading: as the clock shows them, or as a begin's plus a length."""

    def __init__(self, table: pl.DataFrame, clock: Clock, length: timedelta) -> None:
        assert isinstance(clock.zone, str)
        self.clock, self.length, self.zone = clock, length, clock.zone
        self.table = table.with_columns(pl.col("naive") - length).with_columns(
            earliest=pl.col("naive").dt.replace_time_zone(self.zone, ambiguous="earliest", non_existent="null"),
            latest=pl.col("naive").dt.replace_time_zone(self.zone, ambiguous="latest", non_existent="null"),
        )
        self.skipped = self.table.filter("needed", pl.col("naive").is_not_null() & pl.col("earliest").is_null())
        self.repeated = self.table["earliest"] != self.table["latest"]

    @property
    def is_regular(self) -> bool:
        """No stamp is near a clock change."""
        lost = self.table["naive"].is_not_null() & self.table["earliest"].is_null()
        return not self.repeated.any() and not lost.any()

    def resolved(self, ambiguous: Ambiguous, skipped_is_null: bool = False) -> pl.Series:
        """UTC of each stamp.

        Raises:
            TraceError: as `localise`.
        """
        if len(self.skipped) and not skipped_is_null:
            raise TraceError(self._skipped_text())
        if self.is_regular and self.table["second"].null_count():
            return self.table["earliest"].dt.convert_time_zone("UTC") + self.length
        table = self.table.with_columns(repeated=self.repeated)
        if self.table["second"].is_not_null().any():
            table = table.with_columns(late=self._flagged())
        else:
            table = table.with_columns(late=_passes(table))
        unclear = table.filter("repeated" if ambiguous == "refuse" else pl.col("repeated") & pl.col("late").is_null())
        if len(unclear) and ambiguous in ("infer", "refuse"):
            raise TraceError(self._repeated_text(unclear))
        other = {"latest": pl.col("latest"), "drop": pl.lit(None, pl.Datetime("us", self.zone))}
        return table.select(
            time=pl.when(~pl.col("repeated").fill_null(False))
            .then("earliest")
            .when(pl.col("late"))
            .then("latest")
            .when(~pl.col("late"))
            .then("earliest")
            .otherwise(other.get(ambiguous, pl.col("earliest")))
            .dt.convert_time_zone("UTC")
            + self.length
        )["time"]

    def is_shown_by(self, other: "_Reading", times: pl.Series) -> bool:
        """Whether the file shows that it follows this reading, under which its stamps are `times`: both passes of a
        repeated hour are there, or the other reading puts stamps into a skipped hour.
        """
        late = self.table["latest"].dt.convert_time_zone("UTC") == times - self.length
        passes = pl.DataFrame({"day": self.table["naive"].dt.date(), "at": late})
        both = passes.filter(self.repeated.fill_null(False)).group_by("day").agg(pl.col("at").n_unique())
        return len(other.skipped) > 0 or bool((both["at"] == 2).any())

    def repeats(self, times: pl.Series) -> int:
        """How many rows have the stamp of another one of their group."""
        return len(times) - pl.DataFrame([self.table["group"], times.alias("time")]).unique().height

    def _flagged(self) -> pl.Series:
        stray = self.table.filter(pl.col("second") & ~self.repeated.fill_null(False) & pl.col("naive").is_not_null())
        if len(stray):
            raise TraceError(
                f"{self.clock.source}: traces.fold_column marks {stray['naive'][0] + self.length}, which does not "
                f"occur twice in {self.zone}; it has to be true in the second pass of a repeated hour only. Name "
                "another column, or set traces.timezone to the zone of the stamps"
            )
        return self.table["second"]

    def _skipped_text(self) -> str:
        """What is wrong with a stamp in a skipped hour, and how the file's other stamps say it can be read."""
        stamp = self.skipped["naive"][0] + self.length
        text = f"{self.clock.source}: {stamp} does not exist in {self.zone}, where clocks skip that hour"
        step = common_step(self.table)
        later = (self.table["naive"] >= stamp + _HOUR).any()
        if not self.clock.ends and later and step is not None and step <= _HOUR:
            try:
                _Reading(self.table.select("naive", "group", "needed", "second"), self.clock, step).resolved("infer")
            except TraceError:
                pass
            else:
                return f"{text}; the stamps mark interval ends (one ends at {stamp}): set traces.interval to end"
        before = self.table.filter(pl.col("latest").is_not_null())["latest"]
        around = before.filter(before.dt.replace_time_zone(None) < stamp)
        whole = self.table.filter(
            pl.col("naive").is_between(stamp - self.length, stamp - self.length + 2 * _HOUR, closed="left")
        )["naive"].n_unique()
        if len(around) and step is not None and whole >= timedelta(hours=2) // step:
            last = around.max()
            offset = offset_text(last.utcoffset() or timedelta(0))  # type: ignore[union-attr]
            return (
                f"{text}, yet the stamps go on through it: they keep one offset all year. Set traces.timezone to "
                f"{offset} if that is the zone's standard time, or to UTC if they are in UTC"
            )
        return f"{text}; correct the stamp, empty its value, or give stamps with an offset"

    def _repeated_text(self, unclear: pl.DataFrame) -> str:
        stamp = unclear["naive"][0] + self.length
        return (
            f"{self.clock.source}: {stamp} occurs twice in {self.zone}, where clocks go back, and the file does not "
            f"tell which one its {len(unclear)} rows of that hour are; set traces.ambiguous to drop (they count as "
            "missing), name a column that flags the second pass in traces.fold_column, or give stamps with an offset"
        )


def _passes(table: pl.DataFrame) -> pl.Series:
    """Whether each repeated stamp is of the second pass, by the order of the rows; null where that does not tell.

    A block of repeated stamps (of one group and day) is two runs in the direction of the file, with one jump back
    between them, or a single stamp twice. The direction is that of the neighbouring rows of the group.
    """
    block = ["group", pl.col("naive").dt.date().alias("day")]
    rows = (
        table.with_row_index("row")
        .filter(pl.col("naive").is_not_null())
        .with_columns(
            before=(pl.col("naive") - pl.col("naive").shift(1).over("group")).dt.total_microseconds().sign(),
            after=(pl.col("naive").shift(-1).over("group") - pl.col("naive")).dt.total_microseconds().sign(),
        )
        .filter("repeated")
        .with_columns(
            way=(pl.col("before").fill_null(0) + pl.col("after").fill_null(0)).sum().sign().over(block),
            distinct=pl.col("naive").n_unique().over(block),
            count=pl.len().over(block),
            step=(pl.col("naive") - pl.col("naive").shift(1).over(block)).dt.total_microseconds().sign().fill_null(0),
            nth=pl.int_range(pl.len()).over(block),
        )
    )
    rows = rows.with_columns(
        jump=pl.when(pl.col("distinct") == 1).then(pl.col("nth") == 1).otherwise(pl.col("step") * pl.col("way") < 0)
    ).with_columns(run=pl.col("jump").cast(pl.Int64).cum_sum().over(block), jumps=pl.col("jump").sum().over(block))
    single = rows.group_by("group", pl.col("naive").dt.date().alias("day"), "run", "naive").len()
    doubled = single.filter(pl.col("len") > 1).select("group", "day").unique()
    rows = rows.with_columns(day=pl.col("naive").dt.date()).join(
        doubled.with_columns(doubled=pl.lit(True)), on=["group", "day"], how="left", maintain_order="left"
    )
    clear = (pl.col("way") != 0) & (pl.col("jumps") == 1) & pl.col("doubled").is_null()
    late = rows.select(
        "row",
        late=pl.when(clear).then(pl.when(pl.col("way") > 0).then(pl.col("run") == 1).otherwise(pl.col("run") == 0)),
    )
    return table.with_row_index("row").join(late, on="row", how="left", maintain_order="left")["late"]


def _end_stamps(shown: _Reading, ending: _Reading, clock: Clock) -> pl.Series:
    """Stamps of interval ends, by the reading that the stamps at clock changes fit; null where a row is left out.

    Raises:
        TraceError: neither fits, or both do and differ.
    """

    def attempts(read: Callable[[_Reading], pl.Series]) -> tuple[list[tuple[_Reading, pl.Series]], list[TraceError]]:
        fitting: list[tuple[_Reading, pl.Series]] = []
        errors: list[TraceError] = []
        for reading in (shown, ending):
            try:
                times = read(reading)
            except TraceError as error:
                errors.append(error)
            else:
                fitting.append((reading, times))
        return fitting, errors

    fitting, errors = attempts(lambda reading: reading.resolved("refuse" if clock.ambiguous == "refuse" else "infer"))
    if len(fitting) == 1:
        # Rows that are missing make a reading fit by chance: it has to show.
        mine, other = (shown, ending) if fitting[0][0] is shown else (ending, shown)
        if not mine.is_shown_by(other, fitting[0][1]):
            fitting = []
    if not fitting and clock.ambiguous in ("earliest", "latest"):
        fitting, errors = attempts(lambda reading: reading.resolved(clock.ambiguous))
    if fitting:
        repeats = [reading.repeats(times) for reading, times in fitting]
        best = [times for (_, times), count in zip(fitting, repeats, strict=True) if count == min(repeats)]
        if all(times.equals(best[0]) for times in best[1:]):
            return best[0]
        if clock.ambiguous == "drop":
            return _agreed(shown, ending)
        raise TraceError(
            f"{clock.source}: the stamps at a clock change of {clock.zone} fit what the clock shows at an interval's "
            "end as well as the hour that ends then; set traces.ambiguous to drop (these rows count as missing), or "
            "give stamps with an offset"
        )
    if clock.ambiguous != "drop":
        raise errors[0]
    return _agreed(shown, ending)


def _agreed(shown: _Reading, ending: _Reading) -> pl.Series:
    """The stamps on which both readings agree; null elsewhere."""
    both = {name: reading.resolved("drop", skipped_is_null=True) for name, reading in (("a", shown), ("b", ending))}
    return pl.DataFrame(both).select(pl.when(pl.col("a") == pl.col("b")).then("a")).to_series()


def _require_no_clock_change(table: pl.DataFrame, clock: Clock, offset: timedelta) -> None:
    """Refuse stamps that skip or repeat exactly the hour that clocks do somewhere: they are no time of one offset.

    Raises:
        TraceError: they are.
    """
    known = table.filter(pl.col("naive").is_not_null())
    stamps = known["naive"].unique().sort()
    step = stamps.diff().drop_nulls().mode().min() if len(stamps) > 2 else None
    if not isinstance(step, timedelta) or step > _HOUR:
        return
    holes = stamps.to_frame().filter(pl.col("naive").shift(-1) - pl.col("naive") == step + _HOUR)["naive"]
    for last in holes:
        zones = [zone_that_changes(stamp, True, offset, step) for stamp in (last + step, last)]
        if any(zones):
            raise TraceError(_clock_text(clock, f"skip the hour after {last}", offset, zones))
    groups = known.group_by("group", "naive").len()
    twice = groups.filter(pl.col("len") == 2)["naive"].unique().sort()
    if twice.is_empty() or len(groups.filter(pl.col("len") > 1)) != len(groups.filter(pl.col("len") == 2)):
        return
    first, last = twice[0], twice[-1]
    if last - first >= _HOUR or len(twice) * step != _HOUR:
        return
    zones = [zone_that_changes(stamp, False, offset, step) for stamp in (first, first - step)]
    if any(zones):
        raise TraceError(_clock_text(clock, f"repeat the hour from {first}", offset, zones))


def _clock_text(clock: Clock, what: str, offset: timedelta, zones: Sequence[str | None]) -> str:
    """Args:
    zones: one whose clocks do so if the stamps are begins, and one if they are ends.
    """
    declared = "UTC" if not offset else f"UTC{offset_text(offset)}"
    ways = [f"{zone}{ending}" for zone, ending in zip(zones, ("", " with traces.interval end"), strict=True) if zone]
    return (
        f"{clock.source}: the stamps {what}, as clocks do, so they do not keep the declared offset {declared} all "
        f"year; set traces.timezone to the zone whose clock they show (e.g. {', or '.join(ways)}), or, if that hour is "
        "really missing, give its rows with an empty value"
    )
