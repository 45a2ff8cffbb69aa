"""Yes and no, as files write it."""

import polars as pl

from curtail_pipeline.errors import TraceError

YES = ("true", "t", "yes", "y", "1", "1.0")
NO = ("false", "f", "no", "n", "0", "0.0", "")


def parse_flags(column: pl.Series, source: str, rows: pl.Series) -> pl.Series:
    """A column of flags as Boolean; an empty one is no.

    Args:
        rows: number of each row in the file, for errors.

    Raises:
        TraceError: a value that is neither.
    """
    if column.dtype == pl.Boolean:
        return column.fill_null(False)
    text = column.cast(pl.String, strict=False).fill_null("").str.strip_chars().str.to_lowercase()
    bad = (~text.is_in([*YES, *NO])).arg_true()
    if len(bad):
        row = int(bad[0])
        raise TraceError(
            f"{source}: {column[row]!r} in column {column.name!r}, data row {rows[row]}, is neither yes nor no; write "
            "Y or N, true or false, 1 or 0"
        )
    return text.is_in(YES)
