"""Batteries and on-site generation in the ledger: every kWh once, and the same sums as the simulator's."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation_cases import START, experiment, minutes
from test_grams_properties import BEGIN, STATES, trace, walked

from curtail_pipeline.emissions.battery import supplied
from curtail_pipeline.emissions.grams import (
    CHARGING,
    PowerInterval,
    accounting_signals,
    intervals_table,
    ledger,
    totals,
)
from curtail_pipeline.emissions.supply import OwnPower, supplied_intervals
from curtail_pipeline.scheduling.view import SiteWindows, View
from curtail_pipeline.settings.sites import Battery, PowerState, Site, power_kw
from curtail_pipeline.signals.held import Signal
from curtail_pipeline.simulation.accounts import account
from curtail_pipeline.times import SECOND, from_us, to_us

END_S = 3_000
"""Of every case, as of `walked`."""


@dataclass(frozen=True)
class Case:
    """A site's states, its grid, its sun and its battery; seconds after START."""

    spans: list[tuple[PowerState, int, int]]
    values: list[float | None]
    sun: list[float]
    battery: dict[str, float] | None
    curtailed: list[tuple[int, int]]
    ends: list[int]
    """Of checkpoints; the last one is the end."""


@st.composite
def cases(draw: st.DrawFn) -> Case:
    def stretches(most: int) -> list[tuple[int, int]]:
        edges = sorted(draw(st.sets(st.integers(0, END_S), min_size=2, max_size=most)))
        return [pair for pair in pairwise(edges) if draw(st.booleans())]

    value = st.one_of(st.none(), st.integers(-50, 900).map(float))
    values = draw(st.lists(value, min_size=10, max_size=10).filter(lambda column: any(v is not None for v in column)))
    battery = {
        "capacity_kwh": draw(st.sampled_from([0.1, 0.5, 10.0])),
        "charge_kw": draw(st.sampled_from([0.5, 3.0])),
        "discharge_kw": draw(st.sampled_from([0.5, 3.0])),
        "charge_efficiency": draw(st.sampled_from([1.0, 0.9])),
        "discharge_efficiency": draw(st.sampled_from([1.0, 0.8])),
        "initial_share": draw(st.sampled_from([0.0, 0.5])),
    }
    return Case(
        [(draw(st.sampled_from(STATES)), a, b) for a, b in stretches(8)],
        values,
        draw(st.lists(st.sampled_from([0.0, 0.3, 1.0, 7.0]), min_size=10, max_size=10)),
        draw(st.sampled_from([None, battery])),
        stretches(6),
        [*sorted(draw(st.sets(st.integers(1, END_S - 1), max_size=3))), END_S],
    )


def us(second: float) -> int:
    return BEGIN + int(second * SECOND)


@settings(deadline=None, max_examples=120)
@given(cases())
def test_the_ledger_is_the_simulation(case: Case) -> None:
    battery = None if case.battery is None else case.battery
    power = {"training_kw": 2.0, "idle_kw": 0.5, "start_up_kw": 0.0, "steps_per_s": 0.5}
    run = experiment(sites=[{"name": "A", "region": "A", **power, "battery": battery, "on_site": {"path": "sun.csv"}}])
    site, signals = run.sites[0], accounting_signals(trace(case.values, 300))
    stamps = BEGIN + np.arange(10) * 300 * SECOND
    sun = Signal(stamps, np.array(case.sun), 300 * SECOND, 600 * SECOND)
    low, high = (np.array([us(pair[k]) for pair in case.curtailed], dtype=np.int64) for k in (0, 1))
    clear = SiteWindows(low, high, [""] * len(low), [""] * len(low))
    simulated = account(View(run, signals, {}, on_site={"A": sun}), walked(case.spans), {"A": clear})

    load = intervals_table(
        [PowerInterval("A", state, from_us(us(a)), from_us(us(b)), power_kw(site, state)) for state, a, b in case.spans]
    )
    own = OwnPower((low, high), sun)
    drawn = supplied_intervals(site, load, own, BEGIN, [(f"ckpt-{i:06d}", us(s)) for i, s in enumerate(case.ends)])
    windows = pl.DataFrame(
        [("A", from_us(a), from_us(b)) for a, b in zip(low.tolist(), high.tolist(), strict=True)],
        schema={"site": pl.String, "start": pl.Datetime("us", "UTC"), "end": pl.Datetime("us", "UTC")},
        orient="row",
    )
    table = ledger(drawn, signals, [site], windows)
    booked = totals(table)
    assert booked.kwh == pytest.approx(simulated.energy_kwh, abs=1e-9)
    assert booked.unaccounted_kwh == pytest.approx(simulated.unaccounted_kwh, abs=1e-9)
    assert (booked.co2_g or 0.0) == pytest.approx(simulated.co2_kg * 1_000, abs=1e-6)
    bounds = simulated.bounds_kg and tuple(1_000 * kg for kg in simulated.bounds_kg)
    found = None if booked.co2_g_low is None else (booked.co2_g_low, booked.co2_g_high)
    assert found == (None if bounds is None else pytest.approx(bounds, abs=1e-6))
    assert booked.curtailed_kwh == pytest.approx(simulated.curtailed_kwh, abs=1e-9)
    hours = sum(simulated.training_h.values()) + simulated.idle_h + simulated.start_up_h
    assert booked.hours == pytest.approx(hours, abs=1e-9), "charging is no time of the site's own"

    # Energy is conserved: what the load got, and what the battery holds in the end.
    own_states = table.filter(pl.col("state") != CHARGING)
    needed = sum((b - a) * power_kw(site, state) for state, a, b in case.spans) / 3_600
    assert float((own_states["kwh"] + own_states["battery_kwh"]).sum()) == pytest.approx(needed, abs=1e-6)
    charged = table.filter(pl.col("state") == CHARGING)
    gained = float(charged["kwh"].sum() - table["battery_kwh"].sum() - table["lost_kwh"].sum())
    whole = (load["start"].dt.epoch("us").to_numpy(), load["end"].dt.epoch("us").to_numpy(), load["kw"].to_numpy())
    flows = supplied(site, whole, (low, high), sun, BEGIN, us(END_S))
    held = site.battery.capacity_kwh * site.battery.initial_share if site.battery else 0.0
    assert held + gained == pytest.approx(flows[-1].charge_kwh if site.battery else 0.0, abs=1e-6)
    for key, rows in table.partition_by("checkpoint", as_dict=True).items():
        i = int(str(key[0])[-6:])
        assert rows["start"].min() >= from_us(us(case.ends[i - 1] if i else 0))  # type: ignore[operator]
        assert rows["end"].max() <= from_us(us(case.ends[i]))  # type: ignore[operator]


def test_charging_and_discharging_have_rows_of_their_own() -> None:
    battery = Battery(
        capacity_kwh=1.0, charge_kw=1.0, discharge_kw=2.0, charge_efficiency=0.8, discharge_efficiency=0.5
    )
    site = Site(name="A", region="A", training_kw=2.0, idle_kw=0.5, steps_per_s=0.5, battery=battery)
    load = intervals_table([PowerInterval("A", "training", START, minutes(90), 2.0)])
    own = OwnPower((np.array([BEGIN]), np.array([to_us(minutes(30))])), None)
    found = supplied_intervals(site, load, own, BEGIN, [("ckpt-000000", BEGIN), ("ckpt-000001", to_us(minutes(90)))])
    table = ledger(found, accounting_signals(trace([50.0] * 6 + [450.0] * 12, 300)), [site])
    # Half an hour at 2 kW + 1 kW into the battery; of its 0.4 kWh half come out, in 6 minutes; then the grid again.
    columns = ("state", "start", "end", "kwh", "co2_g", "battery_kwh", "lost_kwh")
    assert table.select(columns).rows() == [
        (CHARGING, START, minutes(30), *(pytest.approx(x) for x in (0.5, 25.0, 0.0, 0.1))),
        ("training", START, minutes(30), *(pytest.approx(x) for x in (1.0, 50.0, 0.0, 0.0))),
        ("training", minutes(30), minutes(36), *(pytest.approx(x) for x in (0.0, 0.0, 0.2, 0.2))),
        ("training", minutes(36), minutes(90), *(pytest.approx(x) for x in (1.8, 810.0, 0.0, 0.0))),
    ]
    assert set(table["checkpoint"]) == {"ckpt-000001"}
    assert float(table["kwh"].sum()) == pytest.approx(3.3)
