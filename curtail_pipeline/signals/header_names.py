"""What the names of a file's columns say beside the region: units, interval ends, zones, hours of a day, or that there
is no header at all.

Nothing that a name says is believed over a setting; a name that says otherwise than what nobody declared is refused.
"""

import logging
import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Final, Literal

import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.trace_settings import Kind, Unit
from curtail_pipeline.settings.unit_names import SaidUnit, said_unit
from curtail_pipeline.signals.period_columns import is_number
from curtail_pipeline.signals.time_zones import ABBREVIATIONS

log = logging.getLogger(__name__)

_END: Final = re.compile(
    r"(?:^|[^a-z])(?:end|ende|ends|ended|ending|bis|until|till|fin|end(?:time|date|utc|gmt|stamp|timestamp|datetime))"
    r"(?:[^a-z]|$)|(?:hour|interval|period|time)end(?:ing|ed|s|time)?(?:[^a-z]|$)"
    r"|^(?:he|to)$|^(?:valid|date|time|datetime)[^a-z]*to$"
)
_BEGIN: Final = re.compile(r"(?:^|[^a-z])(?:start|starts|begin|begins|beginning|from|von)(?:[^a-z]|$)")

_ZONE: Final = re.compile(
    r"(?:UTC|GMT)\s*[+-]\s*\d{1,2}(?::?\d{2})?"
    r"|(?:Africa|America|Asia|Atlantic|Australia|Canada|Europe|Indian|Pacific|US)/[A-Z][A-Za-z_]+"
)
_CLOCKS: Final = ("local", "prevailing", "eastern", "central", "mountain", "pacific")
_UTC: Final = ("utc", "gmt", "zulu")

_SHARE: Final = re.compile(r"%|(?<![a-z])(?:pct|perc|percent(?:age)?)(?![a-z])")

_COUNT: Final = re.compile(r"(?P<prefix>.*?)(?P<count>\d{1,3})(?:h|:00)?")
_CLOCK: Final = re.compile(
    r"(?:\d{1,2}:\d{2}(?::\d{2})?|\d{1,2}(?= ?[-–—] ?\d)|\d{1,2}(?= ?[ap]m))(?: ?[ap]m)?"
    r"(?: ?[-–—] ?\d{1,2}(?::\d{2}(?::\d{2})?)?(?: ?[ap]m)?)?",
    re.IGNORECASE,
)
"""A time of day, or a range of two."""
_PER_DAY: Final = (range(23, 26), range(46, 51), range(92, 101))
"""How many hours, half-hours and quarters a day has, also where clocks change."""

_STAMP: Final = re.compile(r"\d{4}[-/.]?\d{2}[-/.]?\d{2}(?:[T ].*)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4} .*")
_EPOCH: Final = 1e9
_DIGITS: Final = re.compile(r"\d+")


def require_said_unit(file: str, name: str, kind: Kind, unit: Unit, *, kind_chosen: bool, declared: bool) -> None:
    """For a column that is read as `kind` in `unit`.

    Args:
        kind_chosen: the settings name the column, and say the kind.
        declared: the settings say the unit.

    Raises:
        TraceError: its name says another unit than what nobody declared.
    """
    said = said_unit(name)
    if said is None:
        share = _SHARE.search(name.lower())
        if share is None or declared or kind not in ("price", "curtailed_power"):
            return
        said = SaidUnit(share[0], None, frozenset({kind}))
    if kind not in said.kinds:
        if not kind_chosen:
            raise TraceError(
                f"{file}: column {name!r} is in {said.text} by its name, which does not measure {kind}; name the "
                "columns to read in traces.columns, and what they hold in traces.kind"
            )
    elif said.unit != unit and declared:
        log.warning("%s: column %r is in %s by its name, and is read as %s, as declared", file, name, said.text, unit)
    elif said.unit != unit:
        fix = f"declare --unit {said.unit} (traces.unit: {said.unit})" if said.unit else f"convert its values to {unit}"
        raise TraceError(
            f"{file}: column {name!r} is in {said.text} by its name, and would be read as {unit}; {fix}, or declare "
            f"--unit {unit} if they are in that"
        )


def require_declared_end(file: str, name: str, interval: Literal["begin", "end"] | None = None) -> None:
    """For a column of times.

    Args:
        interval: what they are as declared; when not given, they are read as begins.

    Raises:
        TraceError: its name says that they are the ends of intervals, and nobody declared what they are.
    """
    if interval is None and says_end(name):
        raise TraceError(
            f"{file}: column {name!r} holds interval ends by its name, and would be read as begins; declare "
            "--interval end (traces.interval: end), or --interval begin if they are begins"
        )
    if interval == "end" and _BEGIN.search(_spaced(name)) and not _END.search(_spaced(name)):
        log.warning("%s: column %r holds interval begins by its name, and is read as ends, as declared", file, name)


def _spaced(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()


def says_end(name: str) -> bool:
    """Whether a column's name says that its times are interval ends."""
    plain = _spaced(name)
    return _END.search(plain) is not None and _BEGIN.search(plain) is None


def says_utc(name: str) -> bool:
    """Whether a column's name says that its times are UTC."""
    return any(token.lower() in _UTC for token in _words(name)) and _ZONE.search(name) is None


def _words(name: str) -> list[str]:
    """CamelCase as words, too, and abbreviations before one: `GMTIntervalEnd`, `HourUTC`."""
    return re.findall("[A-Za-z]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name))


def require_declared_zone(file: str, name: str, timezone: str, declared: bool) -> None:
    """For a column of times without an offset.

    Args:
        timezone: as which they are read.
        declared: the settings say so.

    Raises:
        TraceError: its name says another zone than what nobody declared.
    """
    tokens = _words(name)
    short = next((token.upper() for token in tokens if token.upper() in ABBREVIATIONS), None)
    clock = next((token for token in tokens if token.lower() in _CLOCKS), None)
    said, fix = "", "the zone's IANA name, or its offset from UTC"
    if (zone := _ZONE.search(name)) is not None:
        said = fix = zone[0]
    elif short is not None:
        said, fix = short, "{} for the clock there, or {} for one offset all year".format(*ABBREVIATIONS[short])
    elif clock is not None:
        said = clock
    elif any(token.lower() in _UTC for token in tokens):
        if declared and timezone.upper() not in ("UTC", "GMT", "Z"):
            log.warning("%s: column %r holds UTC by its name, and is read as %s, as declared", file, name, timezone)
        return
    if said and not declared:
        raise TraceError(
            f"{file}: column {name!r} holds {said} times by its name, and would be read as {timezone}; declare "
            f"--timezone (traces.timezone): {fix}, or --timezone {timezone} if they are in that"
        )


def require_no_hours_across(file: str, columns: Sequence[str], days: pl.Series) -> None:
    """For value columns that are read as regions because nobody named them.

    Args:
        days: the times of the rows.

    Raises:
        TraceError: they are the hours of a day, each row being one.
    """
    steps = days.unique().sort().diff().drop_nulls()
    if len(steps) and steps.min() < timedelta(hours=23):  # type: ignore[operator]
        return
    counted: dict[str, dict[int, str]] = {}
    for name in columns:
        if (found := _COUNT.fullmatch(name)) is not None:
            counted.setdefault(found["prefix"].rstrip("0"), {})[int(found["count"])] = name
    clocks = [name for name in columns if _CLOCK.fullmatch(name)]
    for numbered in [*counted.values(), dict(enumerate(clocks))]:
        numbers = sorted(numbered)
        if any(len(numbers) in size for size in _PER_DAY) and numbers[-1] - numbers[0] == len(numbers) - 1:
            raise TraceError(
                f"{file}: the columns {numbered[numbers[0]]!r} to {numbered[numbers[-1]]!r} are the hours of a day by "
                "their names, and would be read as regions; write one row per hour, with the columns time and value"
            )


def require_header(file: str, names: Sequence[str]) -> None:
    """For the names in a file's first line.

    Raises:
        TraceError: it is a row of values.
    """
    numbers = [float(name) for name in names if is_number(name)]
    stamps = [name for name in names if _STAMP.fullmatch(name) or (is_number(name) and float(name) >= _EPOCH)]
    if stamps and (set(names) - set(stamps)) and len(numbers) > sum(is_number(name) for name in stamps):
        raise TraceError(
            f"{file}: has no header: its first line is {','.join(names)[:80]!r}; add one, such as time,REGION"
        )


def require_values_below(file: str, skipped: int, lines: Sequence[Sequence[str]]) -> None:
    """For the first lines of a table that begins with its header.

    Args:
        skipped: lines before them.
        lines: their cells.

    Raises:
        TraceError: the line below the header is another header, or gives units.
    """
    below = [any(map(_may_be_value, cells)) for cells in lines]
    at = below.index(True, 1) if True in below[1:] else 0
    if at > 1 and any(cell.strip() for cell in lines[at - 1]):
        shown = ",".join(lines[at - 1])[:80]
        raise TraceError(
            f"{file}: its first line is {','.join(lines[0])[:80]!r}, and {shown!r} below it holds neither a time nor a "
            f"number; set traces.skip_lines to {skipped + at - 1} if that is the header, or delete it if it gives units"
        )


def _may_be_value(cell: str) -> bool:
    """Whether a cell may be a time or a number: both have digits, and a time has more than one group of them."""
    return len(_DIGITS.findall(cell)) > 1 or is_number(cell.strip())
