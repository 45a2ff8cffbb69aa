"""Signals that are coarser than the rows they stand in, and too coarse to say anything about hours."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from curtail_pipeline.cli.windows_of_file import windows_of_file
from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.experiment import Experiment, parse_experiment
from curtail_pipeline.settings.trace_settings import FileTraces
from curtail_pipeline.signals.files import FileProvider

START = datetime(2024, 4, 1, tzinfo=UTC)


Value = Callable[[datetime], float | str]


def written(path: Path, *columns: Value, step_s: int = 300, days: int = 2) -> Path:
    """Columns A and B, by the time."""
    stamps = [START + timedelta(seconds=step_s * i) for i in range(days * 86_400 // step_s)]
    rows = [",".join([f"{t:%Y-%m-%dT%H:%M:%SZ}", *(str(column(t)) for column in columns)]) for t in stamps]
    path.write_text("\n".join(["time,A,B"[: 4 + 2 * len(columns)], *rows]))
    return path


def fine(t: datetime) -> float:
    return 40.5 if 10 <= t.hour < 14 else 400.0 + t.minute


def hourly(t: datetime) -> float | str:
    return "" if t.minute else fine(t) + t.hour / 100


def test_hourly_values_in_rows_of_five_minutes_hold_for_an_hour(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = windows_of_file(written(tmp_path / "t.csv", fine, hourly), policy="threshold")
    assert found.hours == {"A": 8.0, "B": 8.0} and found.nulls == 0
    assert "B marginal_intensity: values stand every 3600 s in rows of a finer signal" in caplog.text


def test_a_hole_of_a_coarse_signal_stays_one(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", fine, lambda t: "" if t.day == 1 and 11 <= t.hour < 13 else hourly(t))
    found = windows_of_file(path, policy="threshold")
    assert found.hours == {"A": 8.0, "B": 7.0}, "a value counts for two cadences"


def test_a_feed_that_drops_points_is_not_coarser_for_it(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", fine, lambda t: "" if 9 <= t.hour < 15 and t.minute else fine(t))
    found = windows_of_file(path, policy="threshold")
    assert found.hours["B"] == pytest.approx(8 / 6, abs=1e-5), "10 minutes for each value"


def test_empty_rows_of_a_signal_alone_are_its_holes(tmp_path: Path) -> None:
    found = windows_of_file(written(tmp_path / "t.csv", hourly), policy="threshold")
    assert found.hours["A"] == pytest.approx(8 / 6, abs=1e-5), "10 minutes for each value"
    wide = [line.split(",") for line in written(tmp_path / "t.csv", fine, hourly).read_text().splitlines()[1:]]
    rows = [f"{time},{region},{value}" for time, *values in wide for region, value in zip("AB", values, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["time,region,value", *rows]))
    long = windows_of_file(tmp_path / "t.csv", policy="threshold")
    assert long.hours == {"A": 8.0, "B": pytest.approx(8 / 6, abs=1e-5)}, "a row of a long file is of its region only"


def opened(path: Path, **given: Any) -> FileProvider:
    return FileProvider(FileTraces(path=str(path), kind="marginal_intensity", **given))


@pytest.mark.parametrize("days", [7, 365])
def test_values_that_are_days_apart_define_no_window(tmp_path: Path, days: int) -> None:
    path = tmp_path / "t.csv"
    stamps = [START + timedelta(days=days * i) for i in range(6)]
    path.write_text("\n".join(["time,A", *(f"{t:%Y-%m-%d},{40 if i % 2 else 400}" for i, t in enumerate(stamps))]))
    with pytest.raises(TraceError, match=f"'A' are {days} days apart.*declare traces.cadence_s: {days * 86_400} if"):
        opened(path).span()
    assert opened(path, cadence_s=days * 86_400).span() is not None
    mean = FileProvider(FileTraces(path=str(path), kind="average_intensity"))
    assert mean.span() is not None, "for accounting it may do"
    daily = written(tmp_path / "t.csv", lambda t: 400.0 + t.day, step_s=86_400, days=6)
    assert opened(daily).span() is not None


def aged(max_signal_age_s: float) -> Experiment:
    site = {"name": "A", "region": "A", "training_kw": 1, "idle_kw": 0, "steps_per_s": 1}
    policy = {"name": "threshold", "parameters": {"max_signal_age_s": max_signal_age_s}}
    traces = {"provider": "file", "path": "unused"}
    return parse_experiment(
        {"name": "t", "traces": traces, "sites": [site], "policy": policy, "job": {"steps": 1}}, "t"
    )


def mixed(path: Path, fine_days: int, step_s: int = 3600, value: Value = fine) -> Path:
    """Rows of five minutes, and a day of coarser ones behind them."""
    stamps = [START + timedelta(minutes=5 * i) for i in range(288 * fine_days)]
    stamps += [START + timedelta(days=fine_days, seconds=step_s * i) for i in range(86_400 // step_s)]
    path.write_text("\n".join(["time,A", *(f"{t:%Y-%m-%dT%H:%M:%SZ},{value(t)}" for t in stamps)]))
    return path


@pytest.mark.parametrize("fine_days", [1, 20])
def test_a_record_that_becomes_coarser_is_told_of_with_what_lets_its_values_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fine_days: int
) -> None:
    """Also where so few stamps lack a value that no check fails."""
    path = mixed(tmp_path / "t.csv", fine_days)
    assert windows_of_file(path, policy="threshold").hours["A"] == pytest.approx(4 * fine_days + 4 / 6, abs=1e-5)
    last = START + timedelta(days=fine_days, hours=23)
    said = f"to {last:%Y-%m-%dT%H:%M:%SZ} values stand 3600 s apart, and each is valid for 300 s"
    assert said in caplog.text and "max_signal_age_s: 3600" in caplog.text and "--cadence 3600" in caplog.text
    caplog.clear()
    assert windows_of_file(path, aged(3600)).hours["A"] == 4 * fine_days + 4.0
    assert windows_of_file(path, policy="threshold", cadence_s=3600).hours["A"] == 4 * fine_days + 4.0
    caplog.clear()
    assert windows_of_file(path, policy="threshold", cadence_s=300).hours["A"] < 4 * fine_days + 1
    assert "apart" not in caplog.text, "somebody said that the rest are holes"


def test_what_is_told_of_a_record_stands_in_every_day_of_the_pipeline(tmp_path: Path) -> None:
    path = mixed(tmp_path / "t.csv", 1)
    day = FileProvider(FileTraces(path=str(path))).ingest("A", START, START + timedelta(days=1))
    assert "set max_signal_age_s: 3600 in policy.parameters" in " ".join(day.report.warnings)


@pytest.mark.parametrize(
    "value",
    [
        lambda t: "" if t.day == 1 and 11 <= t.hour < 16 and t.minute else fine(t),
        lambda t: "" if t.hour == 11 else fine(t),
        lambda t: "" if t.minute % 7 else fine(t),
    ],
    ids=["five hours", "an hour each day", "no distance is usual"],
)
def test_holes_of_a_feed_are_no_coarser_record(tmp_path: Path, caplog: pytest.LogCaptureFixture, value: Value) -> None:
    windows_of_file(written(tmp_path / "t.csv", value), policy="threshold")
    assert "apart" not in caplog.text
