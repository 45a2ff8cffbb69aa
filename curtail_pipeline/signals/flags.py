"""Columns of flags in trace files: whether a value is estimated."""

from typing import Final

import polars as pl

from curtail_pipeline.errors import TraceError

YES: Final = ("true", "t", "yes", "y", "1", "1.0")
NO: Final = ("false", "f", "no", "n", "0", "0.0", "")


def parse_flags(column: pl.Series, name: str) -> pl.Series:
    """A column as Boolean; an empty cell is false.

    Args:
        name: of the file, for errors.

    Raises:
        TraceError: a value that says neither yes nor no.
    """
    texts = column.cast(pl.String).fill_null("").str.strip_chars().str.to_lowercase()
    unknown = (~texts.is_in([*YES, *NO])).arg_true()
    if len(unknown):
        row = int(unknown[0])
        raise TraceError(
            f"{name}: {str(column[row])!r} in column {column.name!r}, data row {row + 1}, is neither yes nor no; write "
            "true or false (also y/n, yes/no, t/f, 1/0)"
        )
    return texts.is_in(YES).alias(column.name)
