"""Offsets as programs write them beside a stamp, and what an error says of a line that holds none."""

import polars as pl
import pytest

from curtail_pipeline.errors import TraceError
from curtail_pipeline.signals.stamps import Stamps, parse_stamps


def parsed(*texts: str) -> Stamps:
    return parse_stamps(pl.Series("time", texts), "t.csv")


@pytest.mark.parametrize(
    "text",
    [
        "2024-04-01T02:00:00.000+02:00[Europe/Berlin]",
        "2024-04-01T00:00Z[UTC]",
        "2024-03-31T20:00-0400[America/New_York]",
        "2024-04-01 02:00 UTC+2",
        "2024-04-01 02:00 (UTC+02:00)",
        "2024-03-31 20:00:00 GMT-4",
        "2024-04-01 05:30 UTC+0530",
        "2024-04-01 00:00 UTC",
    ],
)
def test_offsets_in_every_form(text: str) -> None:
    found = parsed(text, text)
    assert f"{found.naive[0]}" == "2024-04-01 00:00:00" and found.utc.all()


def test_a_header_that_stands_there_again_is_named() -> None:
    with pytest.raises(TraceError, match=r"'Time' .* data row 2, .*the header stands there again; remove that line"):
        parsed("2024-04-01 00:00", "Time")


@pytest.mark.parametrize(
    ("values", "form"),
    [([20240401, 20240402], None), ([20240401.0, 20240402.0], None), ([2024040100, 2024040200], "%Y%m%d%H")],
)
def test_numbers_may_be_dates(values: list[float], form: str | None) -> None:
    found = parse_stamps(pl.Series("time", values), "t.parquet", form)
    assert found.naive.dt.day().to_list() == [1, 2] and not found.utc.any()


def test_numbers_of_a_spreadsheets_days_are_named_in_its_own_cells_too() -> None:
    with pytest.raises(TraceError, match="looks like a spreadsheet's number of a day"):
        parse_stamps(pl.Series("time", [45446.0, 45446.25]), "t.xlsx")


def test_a_note_below_the_values_is_named() -> None:
    with pytest.raises(TraceError, match=r"'Source: operator' .* remove the row if it is a note"):
        parsed("2024-04-01 00:00", "Source: operator")
