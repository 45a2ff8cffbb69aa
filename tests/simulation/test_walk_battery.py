"""Batteries and on-site generation, also against the co-simulator vessim."""

import itertools
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation_cases import START, experiment, minutes, traces

from curtail_pipeline.emissions.battery import balance, read_on_site, supplied
from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.check_settings import CheckLimits
from curtail_pipeline.settings.sites import Battery, OnSiteGeneration, Site
from curtail_pipeline.signals.held import Signal
from curtail_pipeline.simulation.compare import simulate, simulate_run
from curtail_pipeline.times import HOUR, to_us

STEP = 300 * 10**6
NONE = (np.empty(0, np.int64), np.empty(0, np.int64))


def site(**battery: float) -> Site:
    power = {"training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 0.5}
    return Site(name="A", region="A", battery=Battery(**battery) if battery else None, **power)  # type: ignore[arg-type]


kw = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.5]), min_size=40, max_size=40)


@st.composite
def batteries(draw: st.DrawFn) -> dict[str, float]:
    return {
        "capacity_kwh": draw(st.sampled_from([0.5, 2.0, 10.0])),
        "charge_kw": draw(st.sampled_from([0.5, 3.0])),
        "discharge_kw": draw(st.sampled_from([0.5, 3.0])),
        "charge_efficiency": draw(st.sampled_from([1.0, 0.9])),
        "discharge_efficiency": draw(st.sampled_from([1.0, 0.8])),
        "initial_share": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "reserve_share": draw(st.sampled_from([0.0, 0.2])),
    }


def series(values: list[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    start = to_us(START) + np.arange(len(values)) * STEP
    return start, start + STEP, np.array(values)


@settings(max_examples=40, deadline=None)
@given(kw, kw, batteries(), st.lists(st.booleans(), min_size=40, max_size=40))
def test_energy_is_conserved_within_the_limits(
    load: list[float], sun: list[float], settings_of: dict[str, float], curtailed: list[bool]
) -> None:
    low, high, values = series(load)
    generation = Signal(low, np.array(sun), STEP, 2 * STEP)
    picked = np.array(curtailed)
    place = site(**settings_of)
    battery = place.battery
    assert battery is not None
    flows = supplied(place, (low, high, values), (low[picked], high[picked]), generation, int(low[0]), int(high[-1]))
    assert flows[0].start == low[0]
    assert all(a.end == b.start for a, b in itertools.pairwise(flows))
    charge = battery.capacity_kwh * battery.initial_share
    reserve = min(battery.reserve_share * battery.capacity_kwh, charge)
    for flow in flows:
        hours = (flow.end - flow.start) / HOUR
        index = (flow.start - int(low[0])) // STEP
        assert flow.load_kw == load[index]
        assert flow.load_kw + flow.battery_kw == pytest.approx(flow.grid_kw + flow.on_site_kw)
        assert 0 <= flow.on_site_kw <= sun[index] + 1e-9
        assert flow.grid_kw >= 0
        assert -battery.discharge_kw - 1e-9 <= flow.battery_kw <= battery.charge_kw + 1e-9
        stored = flow.battery_kw * hours
        stored *= battery.charge_efficiency if stored > 0 else 1 / battery.discharge_efficiency
        assert flow.charge_kwh == pytest.approx(charge + stored, abs=1e-6)
        assert reserve - 1e-6 <= flow.charge_kwh <= battery.capacity_kwh + 1e-6
        reserve = min(
            reserve if flow.charge_kwh < reserve else battery.reserve_share * battery.capacity_kwh, flow.charge_kwh
        )
        if curtailed[index]:
            assert flow.battery_kw >= 0
        charge = flow.charge_kwh


@settings(max_examples=40, deadline=None)
@given(kw, batteries(), st.integers(1, 10))
def test_how_time_is_cut_does_not_matter(load: list[float], settings_of: dict[str, float], parts: int) -> None:
    battery = Battery(**settings_of)  # type: ignore[arg-type]
    charge = fine = battery.capacity_kwh * battery.initial_share
    grid = [0.0, 0.0]
    for i, power in enumerate(load):
        start, generation = i * STEP, load[-1 - i]
        for flow in balance(battery, start, start + STEP, power, generation, charge, from_grid=False):
            charge = flow.charge_kwh
            grid[0] += flow.grid_kw * (flow.end - flow.start) / HOUR
        edges = np.linspace(start, start + STEP, parts + 1).astype(int).tolist()
        for low, high in itertools.pairwise(edges):
            for flow in balance(battery, low, high, power, generation, fine, from_grid=False):
                fine = flow.charge_kwh
                grid[1] += flow.grid_kw * (flow.end - flow.start) / HOUR
    assert charge == pytest.approx(fine, abs=1e-6)
    assert grid[0] == pytest.approx(grid[1], abs=1e-6)


@pytest.mark.parametrize("efficiency", [1.0, 0.9])
def test_the_balance_is_that_of_vessim(efficiency: float) -> None:
    pd = pytest.importorskip("pandas", reason="vessim is not installed")
    vs = pytest.importorskip("vessim", reason="vessim is not installed")
    rng = np.random.default_rng(3)
    load = rng.choice([0.0, 0.468, 2.024], size=288)
    sun = np.maximum(0, 3 * np.sin(np.arange(288) / 288 * 2 * np.pi) + rng.normal(size=288))
    stamps = pd.date_range("2026-01-11 17:00", periods=289, freq="5min")

    def watts(values: np.ndarray) -> Any:
        frame = pd.DataFrame({"w": np.append(values, 0.0) * 1_000}, index=stamps)
        return vs.Trace(frame, column="w", anchor=stamps[0])

    if efficiency == 1.0:
        store = vs.SimpleBattery("battery", capacity=2_000, initial_soc=0.25, min_soc=0.1, c_rate=0.5)
    else:
        store = vs.ClcBattery(
            "battery", number_of_cells=1, initial_soc=0.25, min_soc=0.1, u_1=0, v_1=0, u_2=0, v_2=2_000, alpha_d=-0.5,
            alpha_c=0.5, eta_d=1 / efficiency, eta_c=efficiency, discharging_current_cutoff=0,
            charging_current_cutoff=0,
        )  # fmt: skip
    environment = vs.Environment(sim_start="2026-01-11 17:00:00", step_size=300)
    environment.add_microgrid(
        actors=[vs.Consumer(name="load", signal=watts(load)), vs.Producer(name="sun", signal=watts(sun))],
        dispatchables=[store, vs.GridConnection()],
        name="site",
    )
    theirs: list[tuple[float, float]] = []

    class Watch(vs.Controller):  # type: ignore[misc,name-defined]
        def step(self, now: object, microgrid_states: Any) -> None:
            state = microgrid_states["site"]
            theirs.append((state["dispatch_states"]["battery"]["charge_level"] / 1_000, state["p_grid"] / 1_000))

    environment.add_controller(Watch())
    environment.run(until=288 * 300)
    place = site(
        capacity_kwh=2.0, charge_kw=1.0, discharge_kw=1.0, charge_efficiency=efficiency,
        discharge_efficiency=efficiency, initial_share=0.25, reserve_share=0.1,
    )  # fmt: skip
    low, high, values = series(list(load))
    flows = supplied(place, (low, high, values), NONE, Signal(low, sun, STEP, 2 * STEP), int(low[0]), int(high[-1]))
    for index in range(288):
        ours = [flow for flow in flows if low[index] <= flow.start < high[index]]
        imported = sum(flow.grid_kw * (flow.end - flow.start) for flow in ours) / STEP
        if index + 1 < len(theirs):
            assert theirs[index + 1][0] == pytest.approx(ours[-1].charge_kwh, abs=1e-6)
        assert max(0.0, -theirs[index][1]) == pytest.approx(imported, abs=1e-6)


def run_with(values: list[float], **parts: Any) -> Any:
    power = {"training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 0.5}
    return experiment(sites=[{"name": "A", "region": "A", **power, **parts}], policy={"name": "boundary"}), traces(
        {"A": values}
    )


def test_training_goes_on_after_the_window_on_what_the_battery_took_in_it() -> None:
    values = [50.0] * 12 + [450.0] * 12
    battery = {
        "capacity_kwh": 10.0, "charge_kw": 1.0, "discharge_kw": 2.5, "charge_efficiency": 1, "discharge_efficiency": 0.8
    }  # fmt: skip
    run, rows = run_with(values, battery=battery)
    done = simulate_run(run, rows)
    # One hour at 1 kW is stored; at 0.8 it gives 2 kW for 24 minutes.
    assert done.walk.steps == (60 + 24) * 60 // 2
    assert done.walk.last_step == to_us(minutes(84))
    assert done.account.energy_kwh == pytest.approx(3.0)
    assert done.account.co2_kg == pytest.approx(3.0 * 0.05), "all of it was taken at 50 g/kWh"
    assert done.account.curtailed_kwh == pytest.approx(3.0)
    without, _ = run_with(values)
    assert simulate_run(without, rows).walk.steps == 1800


def test_on_site_power_opens_a_window_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "sun.csv"
    hours = [(0, 0.0), (30, 1.0), (60, 3.0), (90, 0.5)]
    path.write_text("time,kw\n" + "".join(f"{minutes(m):%Y-%m-%dT%H:%M:%SZ},{kw}\n" for m, kw in hours))
    run, rows = run_with([450.0] * 24, on_site={"path": str(path)})
    done = simulate_run(run, rows)
    assert done.walk.steps == 900
    assert done.account.co2_kg == pytest.approx(0.0, abs=1e-9)
    assert done.account.energy_kwh == pytest.approx(1.0)
    assert done.account.curtailed_kwh == pytest.approx(1.0)
    small = run.model_copy(update={"job": run.job.model_copy(update={"steps": 800})})
    best = simulate(small, rows, policy="forecast", deadline_h=2.0)
    assert best["finished"]
    assert best["co2_kg"] == pytest.approx(0.0, abs=1e-9), "it waits for the sun"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time,kw\n2026-01-11T17:00:00Z,-1\n", r"negative power, -1 kW at 2026-01-11T17:00:00Z; .*correct the sign"),
        ("time,kw\n2026-01-11T17:00:00Z,3\n2026-01-11T18:00:00Z,-0.1\n", "negative power, -0.1 kW at"),
        ("time,kw\n2026-01-11T17:00:00Z,1e308\n", r"1e\+308 kW at 2026-01-11T17:00:00Z, times on_site.scale 2, and no"),
        ("time,watts\n", "has no column 'kw'; it has time, watts; it needs the columns time"),
        ("time;kw\n2026-01-11T17:00:00Z;1\n", r"has only the column 'time;kw'; it needs .*separated by commas"),
        ("time,kw\n2026-01-11T17:00:00Z,1\n2026-01-11T17:00:00Z,2\n", "has two values at 2026-01-11T17:00:00Z"),
        ("time,kw\n01/11/2026 17:00,1\n", "'01/11/2026 17:00' in column 'time', data row 1, is not a time in ISO 8601"),
        ("time,kw\n2026-01-11T17:00:00Z,much\n", "'much' in column 'kw', data row 1, is not a number"),
        (
            "time,utc,kw\n2026-01-11 19:00,2026-01-11T17:00:00Z,1\n2026-01-11 20:00,2026-01-11T18:00:00Z,2\n",
            "'time' would be read as UTC, and is 2 h after what column 'utc' says in UTC",
        ),
        (None, "No such file"),
    ],
)
def test_bad_generation_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "sun.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(TraceError, match=message):
        read_on_site(OnSiteGeneration(path=str(path), scale=2))


def test_generation_of_another_time_is_refused_and_watts_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "sun.csv"
    path.write_text("time,kw\n2025-01-11T17:00:00Z,1\n2025-01-11T18:00:00Z,1\n")
    run, rows = run_with([450.0] * 24, on_site={"path": str(path)})
    with pytest.raises(TraceError, match="of site 'A' goes from 2025-01-11T17:00:00Z to 2025-01-11T19:00:00Z, and the"):
        simulate(run, rows)
    path.write_text("time,kw\n2026-01-11T17:00:00Z,5000\n2026-01-11T18:00:00Z,5000\n")
    simulate(run, rows)
    assert "reaches 5000 kW, 2500 times what the site takes; if it is in W" in caplog.text


def test_what_an_inverter_takes_at_night_is_no_generation(tmp_path: Path) -> None:
    path = tmp_path / "sun.csv"
    path.write_text("time,kw\n2026-01-11T17:00:00Z,-0.002\n2026-01-11T18:00:00Z,3\n")
    assert read_on_site(OnSiteGeneration(path=str(path))).values.tolist() == [0.0, 3.0]


def test_generation_of_a_part_of_the_time_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "sun.csv"
    stamps = [minutes(m) for m in range(0, 120, 5)]

    def simulated(part: list[datetime]) -> str:
        caplog.clear()
        path.write_text("time,kw\n" + "".join(f"{stamp:%Y-%m-%dT%H:%M:%SZ},1\n" for stamp in part))
        simulate(*run_with([450.0] * 24, on_site={"path": str(path)}))
        return caplog.text

    assert "of site A goes from" in simulated(stamps[:12]) and "outside of that there counts none" in caplog.text
    assert not simulated(stamps)


def test_holes_in_generation_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "sun.csv"

    def simulated(lost: range, value: str = "", **parts: Any) -> str:
        """What is said where so many of the record's 24 rows have no value."""
        caplog.clear()
        rows = [(minutes(5 * i), value if i in lost else "1") for i in range(24)]
        path.write_text("time,kw\n" + "".join(f"{stamp:%Y-%m-%dT%H:%M:%SZ},{kw}\n" for stamp, kw in rows))
        run, prices = run_with([450.0] * 24, on_site={"path": str(path)})
        simulate(run.model_copy(update=parts), prices)
        return caplog.text

    assert not simulated(range(0)) and not simulated(range(3, 4)) and not simulated(range(8, 18), "0")
    said = simulated(range(8, 18))
    assert "of site A has no value for 0.8 h (39 %) from" in said, "the value before them holds for five minutes more"
    assert f"the longest hole 0.8 h from {minutes(45):%Y-%m-%dT%H:%M:%SZ}; a value counts for 600 s at most" in said
    assert not simulated(range(8, 18), checks=CheckLimits(gap_share=0.5))


def test_a_record_of_generation_that_becomes_coarser_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "sun.csv"
    stamps = [minutes(m) for m in (*range(0, 45, 5), 45, 75, 105)]
    path.write_text("time,kw\n" + "".join(f"{stamp:%Y-%m-%dT%H:%M:%SZ},1\n" for stamp in stamps))
    simulate(*run_with([450.0] * 24, on_site={"path": str(path)}))
    assert "has no value for 0.7 h" in caplog.text and "a value counts for 600 s at most" in caplog.text


def test_generation_outside_its_record_and_in_gaps_is_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sun.parquet"
    stamps = [minutes(m) for m in (0, 5, 10, 60, 65)]
    pl.DataFrame({"time": stamps, "kw": [1.0] * 5}).write_parquet(path)
    signal = read_on_site(OnSiteGeneration(path=str(path), scale=4))
    low, high = np.array([to_us(minutes(-30))]), np.array([to_us(minutes(120))])
    flows = supplied(site(), (low, high, np.array([2.0])), NONE, signal, int(low[0]), int(high[0]))
    used = sum(flow.on_site_kw * (flow.end - flow.start) for flow in flows) / HOUR
    assert used == pytest.approx(2.0 * (20 + 15) / 60)
