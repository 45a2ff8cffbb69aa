"""Time stamps of files to UTC: ISO 8601 or a given format, with an offset or in a named time zone.

Stamps in local time are never shifted silently: an hour that clocks skip is refused, an hour that they repeat is
resolved by the order of the file, by a setting, or refused.
"""

from functools import cache
from typing import Literal
from zoneinfo import available_timezones

import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.times import TIME

Ambiguous = Literal["infer", "earliest", "latest", "refuse"]

_ISO_FORMATS = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
    "%Y%m%d %H%M%S",
    "%Y%m%d %H%M",
)
_OFFSET = r"\s*([+-]\d{2}(?::?\d{2})?)$"


_known_timezones = cache(available_timezones)


def _check_timezone(timezone: str, source: str) -> None:
    if timezone != "UTC" and timezone not in _known_timezones():
        raise TraceError(
            f"{source}: unknown timezone {timezone!r}; use an IANA name such as America/Los_Angeles, or UTC"
        )


def localise(naive: pl.Series, groups: pl.Series | None, source: str, timezone: str, ambiguous: Ambiguous) -> pl.Series:
    """Stamps without a zone (null where there is none to convert), read as local time of `timezone`, to UTC.

    Args:
        groups: what each stamp belongs to; a stamp may occur once per group and pass of the clock. None: one group.

    Raises:
        TraceError: a stamp that clocks skipped, or a repeated one that cannot be told apart.
    """
    _check_timezone(timezone, source)
    if timezone == "UTC":
        return naive.dt.replace_time_zone("UTC")
    table = pl.DataFrame({"naive": naive}).with_columns(group=pl.lit(0) if groups is None else groups)
    table = table.with_columns(
        earliest=pl.col("naive").dt.replace_time_zone(timezone, ambiguous="earliest", non_existent="null"),
        latest=pl.col("naive").dt.replace_time_zone(timezone, ambiguous="latest", non_existent="null"),
    )
    skipped = table.filter(pl.col("naive").is_not_null() & pl.col("earliest").is_null())
    if len(skipped):
        raise TraceError(
            f"{source}: {skipped['naive'][0]} does not exist in {timezone}, where clocks skip that hour; the stamps "
            "are in another zone, so set traces.timezone to it (e.g. UTC, or Etc/GMT+8: Pacific standard time all year)"
        )
    if ambiguous in ("earliest", "latest"):
        return table[ambiguous].dt.convert_time_zone("UTC")
    repeated = table["earliest"] != table["latest"]
    if not repeated.any():
        return table["earliest"].dt.convert_time_zone("UTC")
    table = table.with_columns(
        repeated=repeated,
        nth=pl.int_range(pl.len()).over("group", "naive"),
        times=pl.len().over("group", "naive"),
    )
    unclear = table.filter("repeated" if ambiguous == "refuse" else pl.col("repeated") & (pl.col("times") != 2))
    if len(unclear):
        row = unclear.row(0, named=True)
        raise TraceError(
            f"{source}: {row['naive']} occurs twice in {timezone}, where clocks go back, and is {row['times']} times "
            "in the file, so that its UTC time is not known; set traces.ambiguous to earliest or latest, or give "
            "stamps with an offset"
        )
    late = pl.col("repeated") & (pl.col("nth") == 1)
    return table.select(pl.when(late).then("latest").otherwise("earliest").alias("time"))["time"].dt.convert_time_zone(
        "UTC"
    )


def parse_stamps(
    text: pl.Series,
    source: str,
    timezone: str = "UTC",
    *,
    time_format: str | None = None,
    groups: pl.Series | None = None,
    ambiguous: Ambiguous = "infer",
) -> pl.Series:
    """Parse stamps to `Datetime("us", "UTC")`; those without an offset are in `timezone`.

    Raises:
        TraceError: a stamp cannot be parsed (names its value and row), the time zone is unknown, or a local stamp
            has no one UTC time.
    """
    _check_timezone(timezone, source)
    if text.dtype == pl.Datetime:
        if text.null_count():
            raise TraceError(f"{source}: data row {text.is_null().arg_true()[0] + 1} has no time; give every row one")
        if text.dtype.time_zone is not None:  # type: ignore[attr-defined]
            return text.dt.convert_time_zone("UTC").cast(TIME)
        return localise(text.cast(pl.Datetime("us")), groups, source, timezone, ambiguous).cast(TIME)
    if text.dtype == pl.Date:
        return localise(text.cast(pl.Datetime("us")), groups, source, timezone, ambiguous).cast(TIME)
    if text.dtype != pl.String:
        raise TraceError(
            f"{source}: the time column {text.name!r} holds {text.dtype}, not times; choose another with "
            "traces.time_column, or store times as ISO 8601 or timestamps"
        )
    stripped = text.str.strip_chars()
    if time_format is not None:
        parts = pl.DataFrame({"stamp": stripped.str.to_datetime(time_format, time_unit="us", strict=False)})
        if parts["stamp"].dtype.time_zone is not None:  # type: ignore[attr-defined]
            return _without_unparsed(parts["stamp"], text, source, time_format).dt.convert_time_zone("UTC").cast(TIME)
        parts = parts.with_columns(offset=pl.lit(None, pl.String))
    else:
        cleaned = stripped.str.replace(r"\s*[Zz]$", "+00:00").str.replace("[Tt]", " ")
        # A date's own dashes are no offset.
        offset = cleaned.str.extract(r"\s\d{2}:?\d{2}\S*?" + _OFFSET, 1)
        naive = pl.select(pl.when(offset.is_not_null()).then(cleaned.str.replace(_OFFSET, "")).otherwise(cleaned))
        bare_text = naive.to_series()
        stamp = bare_text.str.to_datetime(_ISO_FORMATS[0], time_unit="us", strict=False)
        for form in _ISO_FORMATS[1:]:
            if not stamp.null_count():
                break
            stamp = stamp.fill_null(bare_text.str.to_datetime(form, time_unit="us", strict=False))
        parts = pl.DataFrame({"stamp": stamp, "offset": offset})
    _without_unparsed(parts["stamp"], text, source, time_format)
    digits = pl.col("offset").str.replace(":", "")
    minutes = digits.str.slice(1, 2).cast(pl.Int64) * 60 + digits.str.slice(3, 2).str.pad_end(2, "0").cast(pl.Int64)
    signed = pl.when(digits.str.starts_with("-")).then(-minutes).otherwise(minutes)
    with_offset = parts.select((pl.col("stamp") - pl.duration(minutes=signed)).dt.replace_time_zone("UTC"))
    if parts["offset"].null_count() == 0:
        return with_offset.to_series().cast(TIME)
    bare = parts.select(pl.when(pl.col("offset").is_null()).then("stamp")).to_series()
    local = localise(bare, groups, source, timezone, ambiguous)
    return pl.DataFrame([with_offset.to_series().alias("a"), local.alias("b")]).select(
        time=pl.coalesce("a", "b").cast(TIME)
    )["time"]


def _without_unparsed(stamps: pl.Series, text: pl.Series, source: str, time_format: str | None) -> pl.Series:
    bad = stamps.is_null().arg_true()
    if len(bad):
        row = int(bad[0])
        if time_format is not None:
            expected, fix = f"as traces.time_format {time_format!r} says", "correct it or the format"
        else:
            expected = "in ISO 8601"
            fix = (
                "write e.g. 2026-01-11T17:00:00Z, or give the file's format as traces.time_format, e.g. %m/%d/%y %H:%M"
            )
        raise TraceError(f"{source}: {text[row]!r} in data row {row + 1} is not a time {expected}; {fix}")
    return stamps
