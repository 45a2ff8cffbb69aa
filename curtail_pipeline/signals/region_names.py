"""The regions that a trace file names: one spelling each, and none without a name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.section import tidy

_NO_NAME: Final = ("", "nan", "null", "none", "#n/a")
"""What programs write where a region has none."""


def tidied(regions: pl.Series) -> pl.Series:
    """A column of regions as people read their names."""
    texts = regions.cast(pl.String)
    changed = {text: clean for text in texts.unique().drop_nulls() if (clean := tidy(text)) != text}
    return texts.replace(changed) if changed else texts


def require_named(regions: pl.Series, path: Path, rows: pl.Series) -> None:
    """Args:
        rows: number of each row in the file.

    Raises:
        TraceError: a row has no region.
    """
    nameless = (regions.is_null() | regions.str.to_lowercase().is_in(_NO_NAME)).arg_true()
    if len(nameless):
        raise TraceError(f"{path}: data row {rows[int(nameless[0])]} has no {regions.name!r}; name each row's region")


def require_one_spelling(file: str, regions: Sequence[str]) -> None:
    """Refuse regions whose names differ only in case: each would have a part of the values.

    Raises:
        TraceError: two do.
    """
    seen: dict[str, str] = {}
    for region in regions:
        other = seen.setdefault(region.casefold(), region)
        if other != region:
            raise TraceError(
                f"{file}: the regions {other!r} and {region!r} differ only in case; write one name, or map one to the "
                f"other with traces.columns, e.g. {{{region}: {other}}}"
            )
