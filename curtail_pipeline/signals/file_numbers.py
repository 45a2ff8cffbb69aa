"""The numbers of a file's columns, with decimal points or commas, and what stands for a missing one."""

import re
from pathlib import Path

import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.signals.flags import NO, YES
from curtail_pipeline.signals.period_columns import is_number

MISSING = (
    *("", "-", "--", "–", "—", ".", "..", ":", "na", "n/a", "#n/a", "n.a.", "n/e", "nan", "null", "none"),
    *("nd", "n.d.", "n/d", "s/d", "no data", "nodata", "missing"),
)
"""Texts that stand for a missing value, in any case."""

_THOUSANDS = r"^[+-]?[1-9]\d{0,2}(?:\.\d{3})+(?:,\d*)?$|^[+-]?\d*(?:,\d*)?(?:[eE][+-]?\d+)?$"
"""Numbers with a decimal comma, with or without points between thousands."""
_PARTED = r"^[+-]?[1-9]\d{0,2}(?:[ '’\u00a0\u2009\u202f]\d{3})+(?:[.,]\d*)?$"
"""Numbers with spaces or apostrophes between thousands, where no number has them otherwise."""
_GROUPED = r"^[+-]?[1-9]\d{0,2}\.\d{3}$"
"""Numbers whose point may stand between thousands or before three decimals."""
_COMMAS = r"^[+-]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?$"
"""Numbers with commas between thousands."""
_CLEAR_COMMAS = r"^[+-]?[1-9]\d{0,2}(?:(?:,\d{3})+\.\d*|(?:,\d{3}){2,})$"
"""... of which no comma can be a decimal one."""
_CLEAR_POINT = r"^[+-]?\d*\.(?:\d{1,2}|\d{4,})$|^[+-]?0?\.\d+$"
_COMMA_GROUPED = r"^[+-]?[1-9]\d{0,2},\d{3}$"
_WHOLE = r"^[+-]?[1-9]\d{1,2}$"
_DECIMALS = r"\.(?:\d{1,2}|\d{4,})$|^[+-]?0\.|[,eE]"
"""What a number has only where its point is a decimal one."""
_SIGNS = "$€£¥%() "
"""Around a number in a cell of a report."""
_FEW = 3
_HEAD = 1_000


def parse_numbers(column: pl.Series, path: Path, rows: pl.Series, decimal: str = ".") -> pl.Series:
    """A column's numbers as Float64, null for a text that stands for a missing one.

    Args:
        rows: number of each row in the file, for errors.

    Raises:
        TraceError: a text that is no number.
    """
    if column.dtype.is_numeric():
        return column.cast(pl.Float64)
    if column.dtype == pl.Null:
        return pl.Series(column.name, [None] * len(column), dtype=pl.Float64)
    if column.dtype.is_nested() or column.dtype.is_temporal() or column.dtype in (pl.Binary, pl.Object):
        raise TraceError(
            f"{path}: column {column.name!r} holds {column.dtype}, not numbers; name the columns to read in "
            "traces.columns"
        )
    text = _without_marks(column.cast(pl.String).str.strip_chars())
    if decimal == ".":
        text = _without_commas(text)
    _require_clear_points(text, path, decimal)
    plain = text
    if decimal == ",":
        fitting = text.str.contains(_THOUSANDS)
        plain = text.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
        plain = pl.select(pl.when(fitting).then(plain)).to_series()
    numbers = plain.cast(pl.Float64, strict=False)
    bad = (numbers.is_null() & text.is_not_null() & ~text.str.to_lowercase().is_in(MISSING)).arg_true()
    if len(bad):
        row = int(bad[0])
        raise TraceError(
            f"{path}: {column[row]!r} in column {column.name!r}, data row {rows[row]}, is not a number; "
            f"{_fix(text, str(text[row]), decimal, none_is=numbers.null_count() == len(numbers))}"
        )
    return numbers


def _fix(text: pl.Series, wrong: str, decimal: str, *, none_is: bool) -> str:
    """What to do about a text that is no number.

    Args:
        none_is: no text of the column is a number.
    """
    if wrong.casefold() == text.name.casefold():
        return "it is the column's own name: the header stands there again; remove that line"
    if wrong.startswith('"'):
        return "remove the space before its quotes"
    if wrong.strip(_SIGNS) != wrong and is_number(wrong.strip(_SIGNS)):
        return "write the number alone"
    if decimal == "." and re.fullmatch(r"[+-]?\d+,\d+", wrong):
        return (
            "write a decimal point, or set traces.decimal to ',' if the comma is one; where it parts thousands, remove "
            "it"
        )
    if decimal == "," and re.search(r"\d", wrong):
        return "write 1.234,5 as traces.decimal ',' says, or set traces.decimal to '.'"
    fix = "leave a missing value empty, or name the columns to read in traces.columns"
    if text.drop_nulls().str.to_lowercase().is_in([*YES, *NO]).all():
        return f"{fix}; if it flags the second pass of a repeated hour, set traces.fold_column to it"
    if none_is:
        return (
            f"{fix}; if it names regions, set traces.region_column to it and traces.value_column to that of the values"
        )
    return fix


def _without_commas(text: pl.Series) -> pl.Series:
    """Numbers without the commas that part their thousands, where the column shows that no comma is a decimal one."""
    has_comma = text.str.contains(",", literal=True)
    if not has_comma.any():
        return text
    commas = text.filter(has_comma.fill_null(False))
    if not commas.str.contains(_COMMAS).all():
        return text
    if not text.str.contains(f"{_CLEAR_COMMAS}|{_CLEAR_POINT}").any():
        return text
    return text.str.replace_all(",", "", literal=True)


def _without_marks(text: pl.Series) -> pl.Series:
    """Numbers with a plain minus, and without the spaces or apostrophes that part their thousands."""
    odd = text.str.contains(r"[−' ’\u00a0\u2009\u202f]")
    if not odd.any():
        return text
    minus = text.str.replace("−", "-", literal=True)
    joined = minus.str.replace_all(r"[ '’\u00a0\u2009\u202f]", "")
    return pl.select(pl.when(minus.str.contains(_PARTED)).then(joined).otherwise(minus)).to_series()


def _require_clear_points(text: pl.Series, path: Path, decimal: str) -> None:
    """Refuse a column in which all points may stand where the setting does not say.

    Where they part thousands, numbers of two and three digits have none (850, 1.420); where three decimals follow,
    all have one (85.000, 1.420). The same holds for commas that are declared as decimal ones.

    Raises:
        TraceError: points would be read as decimal that part thousands, or the other way round.
    """
    if decimal == ",":
        _require_clear_commas(text, path)
    if text.head(_HEAD).str.contains(_DECIMALS).any() or text.str.contains(_DECIMALS).any():
        return
    grouped = text.filter(text.str.contains(_GROUPED).fill_null(False))
    if len(grouped) < _FEW:
        return
    whole, example = text.str.contains(_WHOLE).sum(), str(grouped[0])
    if decimal == "." and whole >= _FEW:
        raise TraceError(
            f"{path}: {example!r} in column {text.name!r} would be read as {float(example):g}, and all points of the "
            f"column may part thousands; set traces.decimal to ',' if they do, or write {example}0 if they do not"
        )
    if decimal == "," and not whole:
        raise TraceError(
            f"{path}: {example!r} in column {text.name!r} would be read as {example.replace('.', '')}, and the column "
            "has no decimal comma; set traces.decimal to '.', or write numbers without points"
        )


def _require_clear_commas(text: pl.Series, path: Path) -> None:
    commas = text.filter(text.str.contains(",", literal=True).fill_null(False))
    if len(commas) < _FEW or not commas.str.contains(_COMMA_GROUPED).all():
        return
    if text.str.contains(_WHOLE).sum() >= _FEW:
        example = str(commas[0])
        raise TraceError(
            f"{path}: {example!r} in column {text.name!r} would be read as {float(example.replace(',', '.')):g}, and "
            "all commas of the column may part thousands; remove them and set traces.decimal to '.' if they do, or "
            f"write {example}0 if they do not"
        )
