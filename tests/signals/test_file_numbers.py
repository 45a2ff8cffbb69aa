"""Numbers as programs of all countries write them; what could be two numbers is refused."""

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
