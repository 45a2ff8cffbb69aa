"""The times of a file's rows, from its time column and what stands beside it: hours, periods, repeated-hour flags."""

from dataclasses import replace
from datetime import timedelta

import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.trace_settings import FileFormat
from curtail_pipeline.signals.event_rows import require_no_events
from curtail_pipeline.signals.file_content import ROW, FileContent
from curtail_pipeline.signals.flags import parse_flags
from curtail_pipeline.signals.header_names import require_declared_end, require_declared_zone
from curtail_pipeline.signals.local_time import Ambiguous, Clock, localise
from curtail_pipeline.signals.midnights import last_seconds, require_midnights_in_order
from curtail_pipeline.signals.period_columns import (
    HOURS,
    PARTS_OF_HOURS,
    PERIODS,
    TIMES,
    PeriodColumn,
    is_clock,
    plain_name,
)
from curtail_pipeline.signals.stamps import Stamps, parse_stamps, to_utc
from curtail_pipeline.signals.time_zones import parse_zone
from curtail_pipeline.signals.utc_beside import require_no_other_utc
from curtail_pipeline.times import TIME

_MIDNIGHT = pl.time(0, 0)


_REGIONS_TOO = ("sp", "hr")
"""Names of hour and period columns that may be regions' as well."""


def is_time_part(name: str) -> bool:
    """Whether a column of that name says when, and is no signal."""
    plain = plain_name(name)
    return plain in (*HOURS, *PERIODS, *TIMES) and plain not in _REGIONS_TOO


class FileTimes:
    """How the rows of one file get their times."""

    def __init__(self, settings: FileFormat, content: FileContent, time: str) -> None:
        """Choose the columns.

        Raises:
            TraceError: a column of the settings is not there, or the time zone is none.
        """
        self.settings, self.time, self.path, self._content = settings, time, content.path, content
        for setting, name in (("hour_column", settings.hour_column), ("fold_column", settings.fold_column)):
            if name is not None and name not in content.names:
                raise TraceError(
                    f"{self.path}: has no column {name!r}, which traces.{setting} names; it has "
                    f"{', '.join(content.names)}"
                )
        self.zone = parse_zone(settings.timezone, str(self.path))
        self.begins = False
        """Whether `utc` gave begins whatever traces.interval says."""
        self.hour_columns: tuple[str, ...] = ()
        """The columns of hours that `utc` used."""
        own = [name for name in content.names if name != time and name not in settings.columns]
        self._hours = [name for name in own if plain_name(name) in (*HOURS, *PERIODS)]
        self._clocks = [name for name in own if plain_name(name) in TIMES]
        if settings.hour_column is not None:
            self._hours, self._clocks = [settings.hour_column], []

    @property
    def columns(self) -> list[str]:
        """What is needed beside the time column."""
        fold = [self.settings.fold_column] if self.settings.fold_column is not None else []
        return [*self._hours, *self._clocks, *fold]

    def stamps(self, rows: pl.DataFrame) -> Stamps:
        """The time column alone, as it is written.

        Raises:
            TraceError: as `parse_stamps`.
        """
        return parse_stamps(rows[self.time], str(self.path), self.settings.time_format, self.zone, rows[ROW])

    def utc(self, rows: pl.DataFrame, groups: pl.Series | None = None, needed: pl.Series | None = None) -> pl.Series:
        """The time of each row in UTC, null where the row is to be left out.

        Args:
            rows: with the time column, `columns` and ROW.
            groups: what each row belongs to, in a long file.
            needed: whether a row has a value.

        Raises:
            TraceError: a row has no one time.
        """
        if rows.is_empty():
            return pl.Series("time", [], dtype=TIME)
        settings, source, declared = self.settings, str(self.path), "timezone" in self.settings.model_fields_set
        stamps = self.stamps(rows)
        if stamps.utc.all():
            return self._in_utc(stamps, rows, groups, needed)
        require_declared_zone(source, self.time, settings.timezone, declared)
        times = self._in_utc(stamps, rows, groups, needed)
        require_no_other_utc(
            self._content,
            self.time,
            times,
            rows[ROW],
            ends=settings.interval == "end" and not self.begins,
            time_format=settings.time_format,
            zone=settings.timezone if declared else "",
        )
        return times

    def _in_utc(
        self, stamps: Stamps, rows: pl.DataFrame, groups: pl.Series | None, needed: pl.Series | None
    ) -> pl.Series:
        settings, source, numbers = self.settings, str(self.path), rows[ROW]
        second = None
        if settings.fold_column is not None:
            second = parse_flags(rows[settings.fold_column], source, numbers)
        period = self._period_column(stamps, rows)
        self.hour_columns = () if period is None else period.names
        if period is not None:
            clock_texts = period.clock_texts()
            if clock_texts is None:
                return self._numbered(period, stamps, groups, needed, second)
            days = stamps.naive.dt.strftime("%Y-%m-%d ")
            stamps = parse_stamps((days + clock_texts).alias(period.name), source, None, self.zone, numbers)
            stamps = replace(stamps, begins=period.ranges)
        self.begins = stamps.begins
        require_midnights_in_order(stamps.naive, groups, source)
        if period is None or not period.ranges:
            require_no_events(self._content, self.time, stamps, rows, settings.time_format, settings.cadence_s)
        if stamps.at_24 and settings.interval == "begin" and not stamps.begins:
            raise TraceError(
                f"{source}: has stamps at 24:00, the end of a day's last interval; set traces.interval to end"
            )
        ends = self._are_ends(stamps.begins)
        if not stamps.begins and (later := last_seconds(stamps.naive)) is not None:
            if "interval" not in settings.model_fields_set:
                raise TraceError(
                    f"{source}: stamps such as {stamps.naive[0]} are the last seconds of intervals, and would be read "
                    "as begins; set traces.interval to end, or to begin if they are begins"
                )
            stamps = replace(stamps, naive=later) if ends else stamps
        length = timedelta(seconds=settings.cadence_s) if settings.cadence_s else None
        return self._local(stamps, Clock(self.zone, source, settings.ambiguous, ends, length), groups, needed, second)

    def _are_ends(self, begins: bool) -> bool:
        """Whether stamps that do not say so themselves (`begins`) are interval ends.

        Raises:
            TraceError: their column's name says so, and no setting does.
        """
        if not begins:
            declared = self.settings.interval if "interval" in self.settings.model_fields_set else None
            require_declared_end(str(self.path), next(iter(self.hour_columns), self.time), declared)
        return self.settings.interval == "end" and not begins

    def revised(self, column: pl.Series, rows: pl.Series) -> pl.Series:
        """Times of revisions, of which only the order matters; null where there is none."""
        known = column.is_not_null()
        stamps = parse_stamps(column.filter(known), str(self.path), None, self.zone, rows.filter(known))
        times = self._local(stamps, Clock(self.zone, str(self.path), "earliest"), None, None, None)
        every = pl.DataFrame({"row": pl.int_range(len(column), dtype=pl.UInt32, eager=True)})
        dated = pl.DataFrame({"row": known.arg_true().cast(pl.UInt32), "time": times})
        return every.join(dated, on="row", how="left", maintain_order="left")["time"]

    def _local(
        self,
        stamps: Stamps,
        clock: Clock,
        groups: pl.Series | None,
        needed: pl.Series | None,
        second: pl.Series | None,
    ) -> pl.Series:
        if stamps.utc.all():
            return stamps.naive.dt.replace_time_zone("UTC").cast(TIME).alias("time")
        naive = pl.select(pl.when(~stamps.utc).then(stamps.naive)).to_series()
        return to_utc(stamps, localise(naive, clock, groups, needed, second))

    def _period_column(self, stamps: Stamps, rows: pl.DataFrame) -> PeriodColumn | None:
        """The hours that belong to a column of dates; None where the stamps have their own.

        Raises:
            TraceError: there are several, or the column of the settings stands beside full times.
        """
        settings = self.settings

        def column(name: str) -> PeriodColumn:
            return PeriodColumn(rows[name], str(self.path), rows[ROW], settings.period_s, settings.hours_from)

        days = not stamps.utc.any() and bool((stamps.naive.dt.time() == pl.select(_MIDNIGHT).item()).all())
        if settings.hour_column is not None:
            if not days:
                raise TraceError(
                    f"{self.path}: column {self.time!r} has times of day already; leave out traces.hour_column, or set "
                    "traces.time_column to a column of dates"
                )
            return column(settings.hour_column)
        # A column named for a start may as well have full times: it is none of times of day.
        found = [*self._hours, *(name for name in self._clocks if is_clock(rows[name]))]
        if not days or not found or (len(rows) > 1 and rows[self.time].is_unique().all() and not self._hours):
            return None
        if len(found) > 1:
            parts = [name for name in found if plain_name(name) in PARTS_OF_HOURS]
            together = bool(parts)
            if len(found) == 2 and len(parts) == 1:
                hours, part = (column(name) for name in sorted(found, key=parts.count))
                if (both := PeriodColumn.of_parts(hours, part)) is not None:
                    return both
            fix = "" if together else "set traces.hour_column to one of them, or "
            raise TraceError(
                f"{self.path}: {', '.join(map(repr, found))} {'' if together else 'may all '}say the time of day "
                f"{'together, ' if together else ''}beside {self.time!r}; {fix}give one column of full times"
            )
        return column(found[0])

    def _numbered(
        self,
        period: PeriodColumn,
        dates: Stamps,
        groups: pl.Series | None,
        needed: pl.Series | None,
        second: pl.Series | None,
    ) -> pl.Series:
        settings, source = self.settings, str(self.path)
        numbered = period.numbered(dates.naive, groups, self.zone, needed)
        self.begins = numbered.begins
        require_midnights_in_order(numbered.naive, groups, source)
        if second is None and numbered.second.is_not_null().any():
            second = numbered.second
        ambiguous: Ambiguous = settings.ambiguous
        ends = self._are_ends(numbered.begins)
        local = localise(numbered.naive, Clock(self.zone, source, ambiguous, ends), groups, needed, second)
        return pl.select(local + numbered.elapsed.fill_null(timedelta(0))).to_series().cast(TIME).alias("time")
