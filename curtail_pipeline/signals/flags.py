"""Yes and no, and what is an estimate, as files write it."""

from collections.abc import Sequence
from typing import Final

import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.signals.period_columns import plain_name

YES = ("true", "t", "yes", "y", "1", "1.0")
NO = ("false", "f", "no", "n", "0", "0.0", "")

_ESTIMATED: Final = (
    *("estimated", "isestimated", "dataestimated", "estimate", "isestimate", "estimatedflag", "estimateflag"),
    *("imputed", "isimputed", "imputeddataused", "interpolated", "isinterpolated", "isforecast", "ispredicted"),
    *("ismodelled", "ismodeled", "gapfilled", "isgapfilled", "issubstituted", "issynthetic"),
)
"""Names of a column that says whether a value is an estimate, without case and marks."""
_REAL: Final = ("isactual", "ismeasured", "isobserved")
"""... that says whether it is none."""
_METHOD: Final = ("estimation", "estimationmethod", "dataestimationmethod", "imputationmethod")
"""... that says how it was estimated, and is empty where it was not."""
_QUALITY: Final = (
    *("quality", "dataquality", "qualityflag", "flag", "status", "datastatus", "type", "valuetype", "datatype"),
    "validation",
)
"""... that may say so in words."""
_WORDS: Final = (
    *("estimated", "estimate", "est", "est.", "imputed", "interpolated", "extrapolated", "substituted"),
    *("modelled", "modeled", "model", "filled", "gap filled", "gap-filled", "forecast", "forecasted", "predicted"),
)
_LETTER: Final = "e"
"""What stands for `estimated` in a column of flags; in one of types it may be anything."""
_MEASURED: Final = (*NO, "measured", "actual", "a", "m", "observed", "none", "null", "nan", "na", "n/a", "-")


def estimate_columns(names: Sequence[str]) -> list[str]:
    """The columns that may say which values are estimates."""
    return [name for name in names if plain_name(name) in (*_ESTIMATED, *_REAL, *_METHOD, *_QUALITY)]


def parse_estimates(columns: pl.DataFrame, source: str, rows: pl.Series) -> pl.Series:
    """Whether each row's value is an estimate, as one of `estimate_columns` says.

    Args:
        rows: number of each row in the file, for errors.

    Raises:
        TraceError: a flag that is neither yes nor no.
    """
    found = pl.Series([False] * len(rows), dtype=pl.Boolean)
    for column in columns:
        text = column.cast(pl.String, strict=False).fill_null("").str.strip_chars().str.to_lowercase()
        plain = plain_name(column.name)
        if plain in _ESTIMATED:
            found |= parse_flags(column, source, rows, (*_WORDS, _LETTER), _MEASURED)
        elif plain in _REAL:
            found |= (text != "") & ~parse_flags(column, source, rows, _MEASURED[len(NO) :], (*_WORDS, _LETTER))
        elif plain in _METHOD:
            found |= ~text.is_in(_MEASURED)
        else:
            found |= text.is_in(_WORDS if plain.endswith("type") else (*_WORDS, _LETTER))
    return found


def parse_flags(
    column: pl.Series, source: str, rows: pl.Series, yes: Sequence[str] = (), no: Sequence[str] = ()
) -> pl.Series:
    """A column of flags as Boolean; an empty one is no.

    Args:
        rows: number of each row in the file, for errors.
        yes: words that say so in this column, beside those of every one.
        no: words that say otherwise.

    Raises:
        TraceError: a value that is neither.
    """
    if column.dtype == pl.Boolean:
        return column.fill_null(False)
    text = column.cast(pl.String, strict=False).fill_null("").str.strip_chars().str.to_lowercase()
    bad = (~text.is_in([*YES, *NO, *yes, *no])).arg_true()
    if len(bad):
        row = int(bad[0])
        raise TraceError(
            f"{source}: {column[row]!r} in column {column.name!r}, data row {rows[row]}, is neither yes nor no; write "
            "Y or N, true or false, 1 or 0"
        )
    return text.is_in([*YES, *yes])
