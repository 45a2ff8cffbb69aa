"""Which values a long file calls estimates, and how it says so."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.trace_settings import FileTraces
from curtail_pipeline.signals.files import FileProvider

START = datetime(2026, 3, 1, tzinfo=UTC)


def estimated(path: Path, column: str, marks: list[str]) -> list[bool]:
    """What is read of a column of marks, one per hour."""
    lines = [f"{START + timedelta(hours=k):%Y-%m-%dT%H:%MZ},R,{-k},{mark}" for k, mark in enumerate(marks)]
    path.write_text("\n".join([f"time,region,value,{column}", *lines]))
    provider = FileProvider(FileTraces(path=str(path), kind="price"))
    span = provider.span()
    assert span is not None
    return provider.fetch("R", *span)["estimated"].to_list()


@pytest.mark.parametrize(
    ("column", "yes", "no"),
    [
        ("estimated", "Y", "N"),
        ("isEstimated", "true", "false"),
        ("Data estimated", "true", "false"),
        ("Estimated?", "1", "0"),
        ("imputedDataUsed", "T", ""),
        ("estimationMethod", "TIME_SLICER_AVERAGE", ""),
        ("Data estimation method", "CONSTRUCT_BREAKDOWN", "null"),
        ("estimation", "modelled", "Measured"),
        ("data_quality", "Estimated", "Actual"),
        ("status", "INTERPOLATED", "FINAL"),
        ("type", "forecast", "actual"),
    ],
)
def test_estimates_in_every_spelling(tmp_path: Path, column: str, yes: str, no: str) -> None:
    assert estimated(tmp_path / "t.csv", column, [yes, no, yes, no]) == [True, False, True, False]


def test_several_columns_say_so_together(tmp_path: Path) -> None:
    marks = ["true,", "false,TIME_SLICER_AVERAGE", "false,"]
    found = estimated(tmp_path / "t.csv", "Data estimated,Data estimation method", marks)
    assert found == [True, True, False]


def test_a_column_of_other_words_says_nothing(tmp_path: Path) -> None:
    assert estimated(tmp_path / "t.csv", "status", ["operating", "test", "operating"]) == [False] * 3


def test_a_flag_that_is_neither_yes_nor_no_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="'perhaps' in column 'estimated', data row 2, is neither yes nor no"):
        estimated(tmp_path / "t.csv", "estimated", ["yes", "perhaps"])
