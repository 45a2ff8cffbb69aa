"""Numbers as programs of all countries write them; what could be two numbers is refused."""

import re
from pathlib import Path

import polars as pl
import pytest

from curtail_pipeline.errors import TraceError
from curtail_pipeline.signals.file_numbers import parse_numbers


def numbers(*texts: str, decimal: str = ".") -> list[float | None]:
    column = pl.Series("R", texts)
    return parse_numbers(column, Path("t.csv"), pl.Series(range(1, len(texts) + 1)), decimal).to_list()


def test_a_typographic_minus_is_one() -> None:
    assert numbers("\u22125.2", "-5.2", "5.2") == [-5.2, -5.2, 5.2]


@pytest.mark.parametrize("mark", [" ", "\u00a0", "\u202f", "'", "\u2019"])
def test_spaces_and_apostrophes_part_thousands(mark: str) -> None:
    assert numbers(f"1{mark}420.5", f"-12{mark}345{mark}678", "850") == [1420.5, -12345678.0, 850.0]
    assert numbers(f"1{mark}420,5", f"12{mark}345", decimal=",") == [1420.5, 12345.0]
    with pytest.raises(TraceError, match="is not a number"):
        numbers(f"14{mark}20")


def test_points_that_may_part_thousands_are_refused() -> None:
    whole = ["850", "1.420", "12.345", "-975", "3.001", "", "400"]
    with pytest.raises(TraceError, match=r"'1.420' in column 'R' would be read as 1.42, .*set traces.decimal to ','"):
        numbers(*whole)
    assert numbers(*whole, decimal=",") == [850, 1420, 12345, -975, 3001, None, 400]


def test_points_that_part_nothing_are_no_thousands() -> None:
    three = ["432.010", "40.125", "0.500", "419.750"]
    assert numbers(*three) == [432.01, 40.125, 0.5, 419.75]
    with pytest.raises(TraceError, match=r"'432.010' .* would be read as 432010, and the column has no decimal comma"):
        numbers("432.010", "40.125", "419.750", decimal=",")


@pytest.mark.parametrize("mixed", [["850", "1.42", "12.345", "400"], ["0", "1.234", "12.345", "3.001", "0"]])
def test_decimals_of_any_length_are_decimals(mixed: list[str]) -> None:
    assert numbers(*mixed) == [float(text) for text in mixed]


def test_commas_between_thousands_are_read_where_they_can_be_nothing_else() -> None:
    assert numbers("9,876.0", "850", "12,345", "-1,000") == [9876, 850, 12345, -1000]
    assert numbers("1,234,567", "24,999", "") == [1234567, 24999, None]
    assert numbers("1,234", "999.5") == [1234, 999.5]


@pytest.mark.parametrize("texts", [("24,999", "850"), ("1,234", "1.234"), ("12,34", "9,876.0"), ("1,23", "4.5")])
def test_commas_that_may_be_decimal_ones_are_refused(texts: tuple[str, ...]) -> None:
    with pytest.raises(TraceError, match=r"is not a number; (write a decimal point|leave a missing value empty)"):
        numbers(*texts)
    with pytest.raises(TraceError, match="where it parts thousands, remove it"):
        numbers(texts[0])


def test_declared_decimal_commas_that_may_part_thousands_are_refused() -> None:
    texts = ["850", "24,999", "1,420", "400", "-975", "3,001"]
    with pytest.raises(TraceError, match=r"'24,999' .* would be read as 24.999, and all commas .* may part thousands"):
        numbers(*texts, decimal=",")
    assert numbers("24,999", "1,420", "3,001", "0,5", "850", "400", "975", decimal=",")[:2] == [24.999, 1.42]
    assert numbers("24,9990", *texts, decimal=",")[:3] == [24.999, 850, 24.999]


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("R", "the header stands there again; remove that line"),
        ("$54.73", "write the number alone"),
        ("45.2 €", "write the number alone"),
        ("(5.72)", "write the number alone"),
        ('"5.72"', "remove the space before its quotes"),
    ],
)
def test_what_is_around_a_number_is_named(text: str, fix: str) -> None:
    with pytest.raises(TraceError, match=re.escape(fix)):
        numbers("1.5", text)
