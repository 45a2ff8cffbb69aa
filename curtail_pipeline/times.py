"""Time: aware UTC everywhere inside, ISO 8601 at the edges."""

from datetime import UTC, datetime, timedelta


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
