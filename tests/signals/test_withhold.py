"""What is no measurement opens no window, and what is one keeps its hours."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curtail_pipeline.cli.windows_of_file import FileWindows, windows_of_file
from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.experiment import Experiment, parse_experiment
from curtail_pipeline.settings.trace_settings import Kind
from curtail_pipeline.signals.checks import run_checks
from curtail_pipeline.signals.judged import Values
from curtail_pipeline.signals.screen import screen_ingested
from curtail_pipeline.signals.trace import Ingested, normalise
from curtail_pipeline.signals.withhold import withheld

START = datetime(2026, 4, 1, tzinfo=UTC)
STEP = timedelta(minutes=5)
DAY = 288


def noisy(n: int, level: float = 400.0, seed: int = 0) -> np.ndarray:
    return np.round(level * (1 + 0.1 * np.random.default_rng(seed).uniform(-1, 1, n)), 2)


def written(tmp_path: Path, **columns: np.ndarray) -> Path:
    n = len(next(iter(columns.values())))
    path = tmp_path / "t.csv"
    stamps = [f"{START + i * STEP:%Y-%m-%dT%H:%M:%SZ}" for i in range(n)]
    pl.DataFrame({"time": stamps, **columns}).write_csv(path)
    return path


def failing(found: FileWindows) -> dict[str, str]:
    return {check.name: check.description for check in found.checks if not check.passed}


def signal(values: np.ndarray, region: str = "R", kind: Kind = "marginal_intensity") -> Values:
    times = (int(START.timestamp()) + 300 * np.arange(len(values))) * 1_000_000
    return Values(region, kind, times, values.astype(float), 300)


def count(values: np.ndarray, kind: Kind = "marginal_intensity") -> dict[str, int]:
    found: dict[str, int] = {}
    for part in withheld([signal(values, kind=kind)])[0]:
        found[part.reason] = found.get(part.reason, 0) + part.after - part.first
    return found


def test_an_outage_served_as_zeros_in_every_region_opens_no_window(tmp_path: Path) -> None:
    one, other = noisy(3 * DAY), noisy(3 * DAY, 600.0, 1)
    one[400:532] = other[400:532] = 0.0
    found = windows_of_file(written(tmp_path, CAISO_NORTH=one, DE=other), policy="threshold")
    assert found.hours == {"CAISO_NORTH": 0.0, "DE": 0.0} and found.nulls == 264
    assert set(failing(found)) == {"zeros"} and "132 zeros (11.0 h from" in failing(found)["zeros"]


def test_zeros_that_alternate_with_values_are_missing() -> None:
    values = noisy(3 * DAY)
    values[300:400:2] = 0.0
    assert count(values) == {"zero": 50}
    values[300:400:3] = 0.0
    assert count(values)["zero"] == len(np.flatnonzero(values == 0))


def test_an_outage_that_goes_on_at_the_end_is_one() -> None:
    values = noisy(3 * DAY)
    values[-30:] = 0.0
    assert count(values) == {"zero": 30}


def test_a_region_that_is_known_for_zeros_keeps_them_but_for_an_outage_in_two_regions() -> None:
    values = noisy(6 * DAY)
    for day in range(6):
        values[day * DAY + 100 : day * DAY + 160] = 0.0
        values[day * DAY + 95 : day * DAY + 100] = values[day * DAY + 160 : day * DAY + 165] = 60.0
    assert count(values) == {}
    values[4 * DAY + 220 : 4 * DAY + 250] = 0.0
    assert count(values) == {}
    other = noisy(6 * DAY, 600.0, 3)
    other[4 * DAY + 220 : 4 * DAY + 250] = 0.0
    for parts in withheld([signal(values), signal(other, "S")]):
        assert [part.after - part.first for part in parts] == [30]


def sunny(days: int, edge: float | None = None, varies: bool = True) -> np.ndarray:
    """Zeros for about five hours in the middle of each day, which begin and end with `edge`, or with a jump."""
    values = noisy(days * DAY)
    for number in range(days):
        first, after = (number * DAY + DAY // 2 + shift for shift in (-30, 30 - number % 4 * varies))
        values[first:after] = 0.0
        if edge is not None:
            values[[first - 1, after]] = edge
    return values


def hydro() -> np.ndarray:
    """A few values of a river, each for hours."""
    return np.round(24 + 1.2 * np.sin(np.arange(5 * DAY) / DAY * 2 * np.pi))


def merit_order() -> np.ndarray:
    """Either a wind farm or a fossil unit is the marginal one, for a while each."""
    lasts = np.random.default_rng(4).geometric(1 / 20, 200)
    return np.where(np.repeat(np.arange(200) % 2, lasts)[: 3 * DAY], noisy(3 * DAY, 700.0), 0.0)


RARE = np.where(np.isin(np.arange(5 * DAY), range(700, 720)), 25.0, 24.0)
BLOCKS = np.where((np.arange(DAY) >= 120) & (np.arange(DAY) < 168), 40.0, 400.0)


@pytest.mark.parametrize(
    "values",
    [
        sunny(5, 60.0), sunny(5), merit_order(), sunny(1, 60.0), hydro(), RARE, np.where(RARE == 25, 45.0, 0.0), BLOCKS,
        np.round(22 + np.arange(5 * DAY) // 200 % 3), np.zeros(10),
    ],
    ids=[
        "curtailed each day", "with jumps", "merit order", "one day", "river", "flat", "mostly zero", "blocks",
        "stairs", "few",
    ],
)  # fmt: skip
def test_regions_that_are_so_are_left_alone(tmp_path: Path, values: np.ndarray) -> None:
    found = windows_of_file(written(tmp_path, R=values), kind="marginal_intensity", policy="threshold")
    assert failing(found) == {}
    assert found.hours["R"] == pytest.approx((values < 100).sum() / 12)


def outage(values: np.ndarray, first: int, after: int, step: int = 1, value: float = 0.0) -> np.ndarray:
    changed = values.copy()
    changed[first:after:step] = value
    return changed


@pytest.mark.parametrize(
    ("values", "lost"),
    [
        (outage(noisy(DAY), 100, 160), 60),
        (outage(noisy(5 * DAY), 0, 100), 100),
        (outage(outage(noisy(5 * DAY), 0, 70), 288, 358), 140),
        (outage(noisy(5 * DAY), 400, 700, 2), 150),
        (outage(sunny(6, 60.0), 760, 970), 210),
        (outage(sunny(8), 760, 970), 210),
        (sunny(8, varies=False), 8 * 60),
    ],
    ids=[
        "short file",
        "begin",
        "nights",
        "alternating",
        "long in a known region",
        "long beside jumps",
        "as long each day",
    ],
)
def test_zeros_that_mean_missing(values: np.ndarray, lost: int) -> None:
    assert count(values) == {"zero": lost}


def test_an_outage_takes_a_known_region_with_it_though_the_stamps_differ() -> None:
    known, other = outage(sunny(6, 60.0), 1070, 1130), outage(noisy(6 * DAY, 600.0, 3), 1071, 1132)
    assert count(known) == {}
    lost = [sum(part.after - part.first for part in parts) for parts in withheld([signal(known), signal(other, "S")])]
    assert lost == [59, 61]


def test_what_is_one_value_all_the_time_is_told_and_kept(tmp_path: Path) -> None:
    for value, check in ((0.0, "zeros"), (24.0, "frozen_feed")):
        found = windows_of_file(written(tmp_path, R=np.full(DAY, value)), kind="marginal_intensity", policy="threshold")
        assert found.hours["R"] == 24.0 and set(failing(found)) == {check}
        assert f"288 of 288 values are {value:g}" in failing(found)[check]


@pytest.mark.parametrize(
    ("values", "reason", "kind"),
    [
        (outage(noisy(3 * DAY), 100, 200), "zero", "marginal_intensity"),
        (outage(noisy(3 * DAY), 100, 200, value=40.0), "stuck", "marginal_intensity"),
        (outage(noisy(3 * DAY, 60.0), 100, 110, value=-999.0), "sentinel", "price"),
    ],
)
def test_the_advice_to_declare_them_measured_keeps_them(
    tmp_path: Path, values: np.ndarray, reason: str, kind: str
) -> None:
    path = written(tmp_path, R=values)
    text = "; ".join(failing(windows_of_file(path, kind=kind)).values())
    assert f"declare traces.measured: [{reason}]" in text
    found = windows_of_file(path, kind=kind, measured=[reason], policy="threshold")
    assert failing(found) == {} and found.nulls == 0
    assert found.hours["R"] == pytest.approx((values < (0.1 if kind == "price" else 100)).sum() / 12)


def test_zero_is_the_ordinary_curtailed_power_and_a_price_may_clear_at_it() -> None:
    values = noisy(3 * DAY, 60.0)
    values[200] = 0.0
    assert count(values, "price") == {}
    values[300:400] = 0.0
    assert count(values, "price") == {"zero": 101}
    assert count(outage(noisy(3 * DAY, 60.0), 100, 240, value=-0.01), "price") == {}
    assert count(outage(noisy(3 * DAY, 60.0), 100, 250, value=-0.01), "price") == {"stuck": 149}
    assert count(values, "curtailed_power") == {}


def test_a_price_that_comes_to_zero_from_below_is_one() -> None:
    values = noisy(3 * DAY, 60.0)
    for first in (100, 300, 500):
        values[first : first + 30] = -45.0 - np.arange(30) / 10
        values[first + 10 : first + 20] = 0.0
    assert count(values, "price") == {}


def test_a_cap_is_no_stuck_feed() -> None:
    values = noisy(8 * DAY, 300.0)
    for first, length in ((100, 20), (500, 15), (900, 140), (1500, 100)):
        values[first : first + length] = 300.0
    assert count(values) == {}
    values[[110, 510]] = 301.0, 302.0
    values[500:509] = 299.0
    assert count(values) == {"stuck": 238}


def test_a_stuck_feed_keeps_its_first_value_only(tmp_path: Path) -> None:
    values = noisy(3 * DAY)
    values[120:] = 40.0
    found = windows_of_file(written(tmp_path, R=values), policy="threshold")
    assert found.hours["R"] < 0.2 and set(failing(found)) == {"frozen_feed"}
    assert "at 40 for 61.9 h from 2026-04-01T10:05:00Z" in failing(found)["frozen_feed"]


@pytest.mark.parametrize(
    ("kind", "mark"),
    [("marginal_intensity", -999.0), ("marginal_intensity", 9999.0), ("curtailed_power", -9999.0), ("price", -999.0)],
)
def test_marks_of_missing_values_are_missing(tmp_path: Path, kind: str, mark: float) -> None:
    values = noisy(2 * DAY, 60.0 if kind == "price" else 400.0)
    if kind == "curtailed_power":
        values[::3] = 0.0
    values[[50, 51, 300]] = mark
    found = windows_of_file(written(tmp_path, R=values), kind=kind, policy="threshold")
    assert set(failing(found)) == {"sentinels"} and found.nulls == 3
    assert f"3 values such as {mark:g}" in failing(found)["sentinels"]


@pytest.mark.parametrize("value", [1e308, -1e308, 1.7976931348623157e308])
@pytest.mark.parametrize("kind", ["marginal_intensity", "price", "curtailed_power"])
@pytest.mark.parametrize("unit", ["g/kWh", "kg/kWh"])
def test_a_number_at_the_end_of_all_numbers_is_refused_by_its_range_and_nothing_else_is_said(
    tmp_path: Path, value: float, kind: Kind, unit: str
) -> None:
    values = noisy(2 * DAY) / (1000 if unit == "kg/kWh" else 1)
    values[[7, 50, 300]] = value, value, -value
    if kind != "marginal_intensity":
        unit = {"price": "currency/MWh", "curtailed_power": "MW"}[kind]
    with pytest.raises(TraceError, match=r"R \w+: 3 values outside"):
        windows_of_file(written(tmp_path, R=values), kind=kind, unit=unit, policy="threshold")


def test_a_price_of_minus_999_in_a_market_with_such_prices_is_a_price() -> None:
    values = noisy(2 * DAY, 60.0)
    values[50:53] = [-999.0, -980.0, -1000.0]
    assert count(values, "price") == {}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1, 900, allow_nan=False), min_size=1, max_size=200, unique=True))
def test_a_signal_without_zeros_runs_or_marks_is_left_alone(values: list[float]) -> None:
    assert withheld([signal(np.array(values))]) == [[]]


def live(values: np.ndarray, start: datetime) -> Ingested:
    table = pl.DataFrame({"time": [start + i * STEP for i in range(len(values))], "value": values})
    return normalise(
        table, region="R", kind="marginal_intensity", unit="g/kWh", source="test", start=start,
        end=start + len(values) * STEP, retrieved_at=start, cadence_s=300,
    )  # fmt: skip


def test_a_live_day_is_judged_by_the_days_before() -> None:
    today = noisy(100)
    today[40:] = 0.0
    begin = START + 5 * DAY * STEP
    never = live(noisy(5 * DAY, seed=2), START).trace
    found = screen_ingested(live(today, begin), never)
    assert found.trace["value"].null_count() == 60 and found.report.withheld[0].reason == "zero"
    assert found.trace["warnings"].drop_nulls().unique().to_list() == [
        "zero withheld: it means a missing value by the region's own history"
    ]
    known = noisy(5 * DAY, seed=2)
    for day in range(5):
        known[day * DAY : day * DAY + 70] = 0.0
        known[day * DAY + 70 : day * DAY + 75] = 30.0
    assert screen_ingested(live(today, begin), live(known, START).trace).report.withheld == ()


def test_a_flat_river_stays_believed_live() -> None:
    begin = START + 5 * DAY * STEP
    past = live(np.full(5 * DAY, 24.0) + np.arange(5 * DAY) // 400 % 2, START).trace
    today = live(np.full(DAY, 24.0), begin)
    for history, believed in ((past, True), (past.clear(), False)):
        found = screen_ingested(today, history)
        checks = {
            check.name: check for check in run_checks(found.trace, now=begin + DAY * STEP, reports=[found.report])
        }
        assert found.report.withheld == () and checks["frozen_feed"].passed is believed


def experiment(**traces: object) -> Experiment:
    region = str(traces.pop("region", "R"))
    return parse_experiment(
        {
            "name": "t",
            "traces": {"provider": "file", "path": "unused", **traces},
            "sites": [{"name": "s", "region": region, "training_kw": 1, "idle_kw": 0, "steps_per_s": 1}],
            "policy": {"name": "threshold"},
            "job": {"steps": 1},
        },
        "test",
    )


@pytest.mark.parametrize(
    ("name", "settings_", "region", "hours"),
    [
        ("paper/mci.csv", {}, "CAISO_NORTH", 6.083333),
        ("paper/mci.csv", {}, "NEM_SA", 10.5),
        ("watttime_caiso_north_2023/watttime_example.csv", {}, "CAISO_NORTH", 123.916667),
        ("sgip_moer_pge/*.csv.gz", {"columns": {"moer": "PGE"}, "unit": "kg/kWh"}, "PGE", None),
        (
            "caiso_np15_weeks/vector_high_curtailment_week_v2.csv",
            {"columns": {"marginal_co2_lbs_per_mwh": "NP15"}, "unit": "lb/MWh", "time_format": "%m/%d/%y %H:%M"},
            "NP15",
            46.0,
        ),
    ],
)
def test_real_traces_keep_their_exact_hours_and_raise_no_warning(
    test_data: Path, name: str, settings_: dict[str, object], region: str, hours: float | None
) -> None:
    path = test_data / name
    if name.startswith("watttime"):
        settings_ = {"columns": {pl.read_csv(path, n_rows=1).columns[1]: region}}
    found = windows_of_file(path, experiment(region=region, **settings_))
    assert failing(found) == {}
    if hours is None:
        files = sorted(test_data.glob(name))
        table = pl.concat(pl.read_csv(file, columns=["time", "moer"]) for file in files).unique("time")
        hours = (table["moer"] < 0.1).sum() * 300 / 3600
    assert found.hours["s"] == pytest.approx(hours, abs=1e-5)


def test_every_month_and_every_day_of_california_alone_keeps_all_its_values(test_data: Path) -> None:
    for file in sorted((test_data / "sgip_moer_pge").glob("*.csv.gz")):
        table = pl.read_csv(file, columns=["time", "moer"]).unique("time").sort("time")
        values = table["moer"].to_numpy() * 1000
        assert count(values) == {}, file.name
        for first in range(0, len(values), DAY):
            assert count(values[first : first + DAY]) == {}, table["time"][first]


@pytest.mark.parametrize(("unit", "factor"), [("g/kWh", 1.0), ("kg/kWh", 1000.0), ("lb/MWh", 0.45359237)])
@pytest.mark.parametrize("mark", [-1.0, -999.0, 9999.0, 1e6])
def test_a_mark_for_a_missing_value_is_one_in_every_unit(tmp_path: Path, unit: str, factor: float, mark: float) -> None:
    values = noisy(DAY) / factor
    values[100:112] = mark
    found = windows_of_file(written(tmp_path, R=values), policy="threshold", unit=unit)
    assert found.hours == {"R": 0.0} and found.nulls == 12
    assert f"12 values such as {mark:g} (1.0 h from" in failing(found)["sentinels"]


def test_a_stuck_feed_with_the_noise_of_its_last_digit_is_stuck(tmp_path: Path) -> None:
    values = noisy(2 * DAY)
    values[100:300] = 40 + 1e-9 * (np.arange(200) % 2)
    found = windows_of_file(written(tmp_path, R=values), policy="threshold")
    assert found.hours["R"] < 0.5 and "stands at 40 for 16.6 h" in failing(found)["frozen_feed"]
