"""Marks for a missing value, zeros that are nearly 0, and coarse feeds that stand."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from curtail_pipeline.cli.windows_of_file import FileWindows, windows_of_file
from curtail_pipeline.settings.trace_settings import Kind

START = datetime(2024, 4, 1, tzinfo=UTC)


def found(path: Path, value: Callable[[datetime], float], kind: Kind, step_s: int = 300, days: int = 2) -> FileWindows:
    stamps = [START + timedelta(seconds=step_s * i) for i in range(days * 86_400 // step_s)]
    path.write_text("\n".join(["time,R", *(f"{t:%Y-%m-%dT%H:%M:%SZ},{value(t)}" for t in stamps)]))
    return windows_of_file(path, policy="threshold", kind=kind)


def failing(windows: FileWindows) -> set[str]:
    return {check.name for check in windows.checks if not check.passed}


@pytest.mark.parametrize("spike", [60.0, 480.0, 15_000.0])
def test_a_price_of_minus_999_is_a_mark_whatever_spikes_there_are(tmp_path: Path, spike: float) -> None:
    def price(t: datetime) -> float:
        if 18 <= t.hour < 20:
            return -999
        return spike if t.hour == 7 and t.minute == 5 else (-12 if 10 <= t.hour < 14 else 55) + t.minute / 10

    windows = found(tmp_path / "t.csv", price, "price")
    assert windows.hours == {"R": 8.0} and windows.nulls == 48 and failing(windows) == {"sentinels"}


def test_a_market_that_clears_near_its_floor_keeps_its_prices(tmp_path: Path) -> None:
    windows = found(
        tmp_path / "t.csv",
        lambda t: (-999 if t.minute == 30 else -960 - t.minute) if t.hour == 12 else 55.0 + t.minute,
        "price",
    )
    assert windows.hours == {"R": 2.0} and windows.nulls == 0


@pytest.mark.parametrize("mark", [32767, 65535, -32768, 2147483647])
@pytest.mark.parametrize("kind", ["curtailed_power", "marginal_intensity"])
def test_ends_of_integer_types_are_marks(tmp_path: Path, mark: int, kind: Kind) -> None:
    low, high = (0, 350) if kind == "curtailed_power" else (420, 40)

    def value(t: datetime) -> float:
        return mark if t.hour == 18 else high + t.minute / 10 if 10 <= t.hour < 14 else low + low * t.minute / 4200

    windows = found(tmp_path / "t.csv", value, kind)
    assert windows.hours == {"R": 8.0} and windows.nulls == 24 and failing(windows) == {"sentinels"}


@pytest.mark.parametrize("nothing", [1e-30, 1e-9, 0.0001])
def test_an_outage_of_nearly_zero_is_one(tmp_path: Path, nothing: float) -> None:
    windows = found(
        tmp_path / "t.csv",
        lambda t: nothing if 16 <= t.hour < 20 and t.day == 2 else (40 if 10 <= t.hour < 14 else 420) + t.minute / 10,
        "marginal_intensity",
    )
    assert windows.hours == {"R": 8.0} and windows.nulls == 48 and failing(windows) == {"zeros"}


def test_a_coarse_feed_that_stands_for_more_than_a_day_is_stuck(tmp_path: Path) -> None:
    def standing(t: datetime, when: bool) -> float:
        return 33.3 if when else 400.0 + t.hour + t.day

    path: Path = tmp_path / "t.csv"
    kind: Kind = "marginal_intensity"
    windows = found(path, lambda t: standing(t, t.day in (2, 3)), kind, 10_800, 5)
    assert windows.hours == {"R": 6.0} and failing(windows) >= {"frozen_feed"}
    some = found(path, lambda t: standing(t, t.day == 2 and t.hour < 21), kind, 10_800, 5)
    assert some.hours == {"R": 21.0}, "some hours alike are none"
