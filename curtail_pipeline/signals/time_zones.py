"""What `traces.timezone` and the abbreviations in stamps mean: IANA names and UTC offsets.

An abbreviation is no zone: EST may stand for New York's clock, which has summer time, or for UTC-5 all year, and CST
for Chicago or Shanghai. It is refused with what to write instead.
"""

import difflib
import re
from datetime import datetime, timedelta
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

from curtail_pipeline.errors import TraceError

UTC_NAMES = ("UTC", "GMT", "Z", "ZULU", "UCT")

ABBREVIATIONS: dict[str, tuple[str, ...]] = {
    "AEST": ("Australia/Brisbane", "+10:00"),
    "AEDT": ("Australia/Sydney", "+11:00"),
    "ACST": ("Australia/Adelaide", "+09:30"),
    "ACDT": ("Australia/Adelaide", "+10:30"),
    "AWST": ("Australia/Perth", "+08:00"),
    "NEM": ("Australia/Brisbane", "+10:00"),
    "NZST": ("Pacific/Auckland", "+12:00"),
    "NZDT": ("Pacific/Auckland", "+13:00"),
    "PST": ("America/Los_Angeles", "-08:00"),
    "PDT": ("America/Los_Angeles", "-07:00"),
    "PT": ("America/Los_Angeles", "-08:00"),
    "PPT": ("America/Los_Angeles", "-08:00"),
    "MST": ("America/Denver", "-07:00"),
    "MDT": ("America/Denver", "-06:00"),
    "MT": ("America/Denver", "-07:00"),
    "CST": ("America/Chicago", "-06:00"),
    "CDT": ("America/Chicago", "-05:00"),
    "CT": ("America/Chicago", "-06:00"),
    "CPT": ("America/Chicago", "-06:00"),
    "EST": ("America/New_York", "-05:00"),
    "EDT": ("America/New_York", "-04:00"),
    "ET": ("America/New_York", "-05:00"),
    "EPT": ("America/New_York", "-05:00"),
    "AST": ("America/Halifax", "-04:00"),
    "HST": ("Pacific/Honolulu", "-10:00"),
    "WET": ("Europe/Lisbon", "+00:00"),
    "BST": ("Europe/London", "+01:00"),
    "IST": ("Asia/Kolkata", "+05:30"),
    "CET": ("Europe/Berlin", "+01:00"),
    "CEST": ("Europe/Berlin", "+02:00"),
    "MEZ": ("Europe/Berlin", "+01:00"),
    "MESZ": ("Europe/Berlin", "+02:00"),
    "MET": ("Europe/Berlin", "+01:00"),
    "EET": ("Europe/Athens", "+02:00"),
    "EEST": ("Europe/Athens", "+03:00"),
    "JST": ("Asia/Tokyo", "+09:00"),
    "KST": ("Asia/Seoul", "+09:00"),
    "SAST": ("Africa/Johannesburg", "+02:00"),
    "BRT": ("America/Sao_Paulo", "-03:00"),
}
"""What an abbreviation may stand for: a clock of that region, and the offset it means when taken literally."""

_OFFSET = re.compile(r"(?:UTC|GMT)?\s*([+-])(\d{1,2})(?::?([0-5]\d))?", re.IGNORECASE)
_known = cache(available_timezones)


def parse_zone(text: str, source: str) -> str | timedelta:
    """An IANA name, or a fixed offset as what is added to UTC to get local time.

    Raises:
        TraceError: neither; the message says what to write.
    """
    name = text.strip()
    if name.upper() in UTC_NAMES:
        return timedelta(0)
    if (found := _OFFSET.fullmatch(name)) and int(found[2]) <= 14:
        size = timedelta(hours=int(found[2]), minutes=int(found[3] or 0))
        return -size if found[1] == "-" else size
    if (advice := ABBREVIATIONS.get(name.upper())) is not None:
        clock, offset = advice
        raise TraceError(
            f"{source}: timezone {text!r} is an abbreviation, of which there are several; write {clock} for the clock "
            f"of that region, with summer time where it has one, or {offset} where the stamps keep that offset all year"
        )
    if name in _known():
        return name
    exact = {zone.lower(): zone for zone in _known()}.get(name.lower())
    city = name.lower().replace(" ", "_")
    exact = exact or min((zone for zone in _known() if zone.lower().endswith(f"/{city}")), default=None)
    near = [exact] if exact else difflib.get_close_matches(name, sorted(_known()), 1, 0.8)
    meant = f" (did you mean {near[0]}?)" if near else ""
    raise TraceError(
        f"{source}: unknown timezone {text!r}{meant}; use an IANA name such as America/Los_Angeles, an offset from UTC "
        "such as +10:00, or UTC"
    )


def sign_warning(text: str) -> str | None:
    """What the sign of an Etc/GMT zone means, which is the opposite of what it looks like."""
    found = re.fullmatch(r"Etc/GMT([+-])(\d+)", text.strip())
    if found is None or found[2] == "0":
        return None
    behind = found[1] == "+"
    written = f"{'-' if behind else '+'}{int(found[2]):02}:00"
    return (
        f"timezone {text} is {found[2]} h {'behind' if behind else 'ahead of'} UTC, as POSIX has it; write "
        f"{written} to "
        "say so plainly, or the other sign if that is not what you mean"
    )


@cache
def only_offset(zone: str, first_year: int, last_year: int) -> timedelta | None:
    """The offset of a zone that does not change its clocks in these years; None of one that does."""
    found = {
        datetime(year, month, 1, tzinfo=ZoneInfo(zone)).utcoffset()
        for year in range(first_year, last_year + 1)
        for month in (1, 4, 7, 10)
    }
    return found.pop() if len(found) == 1 else None


def offset_text(offset: timedelta) -> str:
    minutes = round(offset.total_seconds() / 60)
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"


@cache
def abbreviations_of(zone: str) -> dict[str, timedelta]:
    """The abbreviations that a zone's clocks use in our days (CST, CDT), and the offsets they stand for."""
    found: dict[str, timedelta] = {}
    for year in (2000, 2012, 2025):
        for month in (1, 7):
            stamp = datetime(year, month, 1, tzinfo=ZoneInfo(zone))
            name, offset = stamp.tzname(), stamp.utcoffset()
            if name and name.isalpha() and offset is not None:
                found[name] = offset
    return found


def abbreviated_offset(name: str, zone: str | timedelta, source: str, value: str) -> timedelta:
    """What an abbreviation in a stamp stands for in the declared zone.

    Raises:
        TraceError: that zone's clocks do not use it.
    """
    if name.upper() in UTC_NAMES:
        return timedelta(0)
    own = abbreviations_of(zone) if isinstance(zone, str) else {}
    if name in own:
        return own[name]
    fix = "set traces.timezone to the IANA name of the zone whose clocks use it"
    if (advice := ABBREVIATIONS.get(name)) is not None:
        fix = f"set traces.timezone to the zone whose clocks use it, e.g. {advice[0]}"
    raise TraceError(f"{source}: the zone {name!r} of {value!r} is not one of the declared timezone; {fix}")


PREVAILING = (
    "America/Los_Angeles",
    "America/Denver",
    "America/Chicago",
    "America/New_York",
    "America/Halifax",
    "America/St_Johns",
    "Europe/London",
    "Europe/Berlin",
    "Europe/Athens",
    "Australia/Adelaide",
    "Australia/Sydney",
    "Pacific/Auckland",
    "America/Santiago",
)
"""One zone of each summer time that markets keep."""


def zone_that_changes(wall: datetime, forward: bool, offset: timedelta, step: timedelta) -> str | None:
    """A zone whose clocks begin to skip (`forward`) or to repeat at this local time; where it can be one whose standard
    time has `offset` from UTC, else its summer time.

    Args:
        step: of the stamps; the one before is neither skipped nor repeated.
    """
    found: list[tuple[int, str]] = []
    for name in PREVAILING:
        early, late = _offsets(wall, name)
        before = _offsets(wall - step, name)
        if early == late or (early < late) != forward or before[0] != before[1]:
            continue
        found.append((0 if offset == min(early, late) else 1 if offset == max(early, late) else 2, name))
    return min(found, key=lambda rated: rated[0])[1] if found else None


def _offsets(wall: datetime, name: str) -> tuple[timedelta, timedelta]:
    """Of a local time read as of the first and of the second pass."""
    zone = ZoneInfo(name)
    early, late = (wall.replace(tzinfo=zone, fold=fold).utcoffset() for fold in (0, 1))
    return early or timedelta(0), late or timedelta(0)
