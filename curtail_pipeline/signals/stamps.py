"""Time stamps of files to UTC: ISO 8601 or a given format, with an offset or in a named time zone."""

from zoneinfo import available_timezones

import polars as pl

from curtail_pipeline.errors import TraceError

_FORMATS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")


def parse_stamps(text: pl.Series, source: str, timezone: str = "UTC") -> pl.Series:
    """Parse stamps to `Datetime("us", "UTC")`; those without an offset are in `timezone`.

    Raises:
        TraceError: a stamp cannot be parsed (names its value and row), or the time zone is unknown.
    """
    if timezone != "UTC" and timezone not in available_timezones():
        raise TraceError(
            f"{source}: unknown timezone {timezone!r}; use an IANA name such as America/Los_Angeles, or UTC"
        )
    cleaned = text.cast(pl.String).str.strip_chars().str.replace(r"[Zz]$", "+00:00").str.replace("[Tt]", " ")
    parts = pl.DataFrame({"text": cleaned}).with_columns(
        naive=pl.col("text").str.replace(r"\s*[+-]\d{2}:?\d{2}$", ""),
        offset=pl.col("text").str.extract(r":\d{2}(?:\.\d+)?\s*([+-]\d{2}:?\d{2})$", 1).str.replace(":", ""),
    )
    parsed = parts.with_columns(
        stamp=pl.coalesce(pl.col("naive").str.to_datetime(form, time_unit="us", strict=False) for form in _FORMATS),
        minutes=pl.col("offset").str.slice(0, 1).replace_strict({"+": 1, "-": -1}, default=None, return_dtype=pl.Int64)
        * (pl.col("offset").str.slice(1, 2).cast(pl.Int64) * 60 + pl.col("offset").str.slice(3, 2).cast(pl.Int64)),
    )
    bad = parsed["stamp"].is_null().arg_true()
    if len(bad):
        row = int(bad[0])
        raise TraceError(
            f"{source}: {text[row]!r} in row {row + 1} (line {row + 2}) is not a time; write ISO 8601, "
            "e.g. 2026-01-11T17:00:00Z"
        )
    return parsed.select(
        pl.when(pl.col("minutes").is_not_null())
        .then((pl.col("stamp") - pl.duration(minutes="minutes")).dt.replace_time_zone("UTC"))
        .otherwise(pl.col("stamp").dt.replace_time_zone(timezone).dt.convert_time_zone("UTC"))
        .alias("time")
    )["time"]
