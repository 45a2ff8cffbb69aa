"""Which values a file calls estimates, and how it says so."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.trace_settings import FileTraces
from curtail_pipeline.signals.files import FileProvider

START = datetime(2026, 3, 1, tzinfo=UTC)


def estimated(path: Path, column: str, marks: list[str], *, wide: bool = False, **given: Any) -> list[bool]:
    """What is read of a column of marks, one per hour."""
    region, header = ("", "time,R") if wide else ("R,", "time,region,value")
    lines = [f"{START + timedelta(hours=k):%Y-%m-%dT%H:%MZ},{region}{-k},{mark}" for k, mark in enumerate(marks)]
    path.write_text("\n".join([f"{header},{column}", *lines]))
    provider = FileProvider(FileTraces(path=str(path), kind="price", **given))
    assert provider.regions() == ["R"]
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
        ("value_type", "Model", "E"),
        ("quality", "E", "A"),
        ("flag", "e", "m"),
        ("estimated", "Estimated", "Actual"),
        ("isEstimated", "E", "A"),
        ("is_forecast", "1", "0"),
        ("isActual", "false", "true"),
        ("is_measured", "0", "1"),
        ("Is Observed", "N", ""),
    ],
)
def test_estimates_in_every_spelling(tmp_path: Path, column: str, yes: str, no: str) -> None:
    marks, expected = [yes, no, yes, no], [True, False, True, False]
    assert estimated(tmp_path / "t.csv", column, marks) == expected
    assert estimated(tmp_path / "t.csv", column, marks, wide=True) == expected
    assert estimated(tmp_path / "t.csv", column, marks, wide=True, columns={"R": "R"}) == expected


def test_several_columns_say_so_together(tmp_path: Path) -> None:
    marks = ["true,", "false,TIME_SLICER_AVERAGE", "false,"]
    found = estimated(tmp_path / "t.csv", "Data estimated,Data estimation method", marks)
    assert found == [True, True, False]


def test_a_column_of_other_words_says_nothing(tmp_path: Path) -> None:
    assert estimated(tmp_path / "t.csv", "status", ["operating", "test", "operating"]) == [False] * 3


def test_a_flag_that_is_neither_yes_nor_no_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="'perhaps' in column 'estimated', data row 2, is neither yes nor no"):
        estimated(tmp_path / "t.csv", "estimated", ["yes", "perhaps"])


def test_flags_beside_signals_of_two_kinds_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t.csv"
    rows = [f"{START + timedelta(hours=k):%Y-%m-%dT%H:%MZ},{-k},{300 + k},true" for k in range(6)]
    path.write_text("\n".join(["time,P,C,isEstimated", *rows]))
    kinds = {"P": {"region": "R", "kind": "price"}, "C": {"region": "R", "kind": "average_intensity"}}
    provider = FileProvider(FileTraces.model_validate({"path": str(path), "columns": kinds}))
    assert provider.kinds("R") == ["price", "average_intensity"]
    assert "'isEstimated' says which values are estimates, which counts for all columns" in caplog.text
