"""A gram is counted once: ledger, simulator, baseline and a plain sum over seconds say the same of every hole."""

from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation_cases import START, experiment, minutes, windows
from test_grams import rows_of

from curtail_pipeline.emissions.baselines import always_on
from curtail_pipeline.emissions.grams import (
    PowerInterval,
    Totals,
    accounting_signals,
    count_grams,
    intervals_table,
    ledger,
    pieces,
    totals,
)
from curtail_pipeline.emissions.holes import hole_bounds
from curtail_pipeline.scheduling.view import View
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.settings.sites import PowerState, power_kw
from curtail_pipeline.signals.held import Signal, max_age_us
from curtail_pipeline.simulation.accounts import account, baselines
from curtail_pipeline.simulation.compare import simulate
from curtail_pipeline.simulation.oracle import least_co2, least_co2_with_overheads
from curtail_pipeline.simulation.walk import SiteUse, Walk
from curtail_pipeline.times import DAY, HOUR, SECOND, from_us, to_us

STATES: tuple[PowerState, ...] = ("training", "idle", "start_up")
BEGIN = to_us(START)


def trace(values: list[float | None], cadence_s: int, first_s: int = 0) -> pl.DataFrame:
    return rows_of(values, "A", cadence_s).with_columns(pl.col("time") + pl.duration(seconds=first_s))


@dataclass(frozen=True)
class Case:
    """What one site drew, and what is known of its grid; all times whole seconds after START."""

    values: list[float | None]
    cadence_s: int
    first_s: int
    age_s: int | None
    spans: list[tuple[PowerState, int, int]]
    """State, start and end: ascending and disjoint."""

    @property
    def run(self) -> Experiment:
        parameters = {} if self.age_s is None else {"max_signal_age_s": self.age_s}
        overheads = {"provisioning_s": 0}
        return experiment("A", policy={"name": "threshold", "parameters": parameters}, overheads=overheads)

    @property
    def rows(self) -> pl.DataFrame:
        return trace(self.values, self.cadence_s, self.first_s)

    def known(self, second: int) -> float | None:
        """The value at a second, as plainly as possible."""
        # The feed's cadence; of one stamp alone five minutes are assumed.
        age = self.age_s or 2 * (self.cadence_s if len(self.values) > 1 else 300)
        newest = None
        for i, value in enumerate(self.values):
            stamp = self.first_s + i * self.cadence_s
            if value is not None and stamp <= second:
                newest = value if second < stamp + age else None
        return newest


@st.composite
def cases(draw: st.DrawFn) -> Case:
    value = st.one_of(st.none(), st.integers(-50, 900).map(float))
    values = draw(st.lists(value, min_size=1, max_size=12).filter(lambda column: any(v is not None for v in column)))
    edges = sorted(draw(st.sets(st.integers(-300, 3_000), min_size=2, max_size=12)))
    spans = [(draw(st.sampled_from(STATES)), a, b) for a, b in pairwise(edges) if draw(st.booleans())]
    return Case(
        values,
        draw(st.sampled_from([60, 100, 300])),
        draw(st.sampled_from([0, 7, 400])),
        draw(st.sampled_from([None, 30, 450, 1_000])),
        spans,
    )


def by_seconds(case: Case) -> tuple[float, float, float]:
    """kWh, g and unaccounted kWh as a sum over seconds: every boundary is on a whole one."""
    kwh = grams = lost = 0.0
    for state, start, end in case.spans:
        kw = power_kw(case.run.sites[0], state)
        for second in range(start, end):
            value = case.known(second)
            kwh += kw / 3_600
            grams += 0.0 if value is None else value * kw / 3_600
            lost += kw / 3_600 if value is None else 0.0
    return kwh, grams, lost


def by_ledger(case: Case, view: View, table: pl.DataFrame | None = None) -> Totals:
    site = case.run.sites[0]
    intervals = [
        PowerInterval("A", state, from_us(BEGIN + a * SECOND), from_us(BEGIN + b * SECOND), power_kw(site, state))
        for state, a, b in case.spans
    ]
    return totals(ledger(intervals_table(intervals), view.signals, [site], table))


def at(second: int) -> datetime:
    return from_us(BEGIN + second * SECOND)


def walked(spans: list[tuple[PowerState, int, int]]) -> Walk:
    """A walk that was in these states."""

    def of(state: PowerState) -> tuple[np.ndarray, np.ndarray]:
        own = [(BEGIN + a * SECOND, BEGIN + b * SECOND) for name, a, b in spans if name == state]
        table = np.array(own, dtype=np.int64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    use = SiteUse(of("training"), of("idle"), of("start_up"))
    return Walk(BEGIN, BEGIN + 3_000 * SECOND, BEGIN, 0, 0, False, {"A": use}, 0)


def view_on(run: Experiment, rows: pl.DataFrame) -> View:
    return View.build(run, rows, windows(rows.clear(), run))


@settings(deadline=None, max_examples=150)
@given(cases())
def test_ledger_simulator_and_a_sum_over_seconds_agree(case: Case) -> None:
    view = view_on(case.run, case.rows)
    kwh, grams, lost = by_seconds(case)
    booked = by_ledger(case, view)
    simulated = account(view, walked(case.spans), {})
    assert booked.kwh == pytest.approx(kwh, abs=1e-9)
    assert (booked.co2_g or 0.0) == pytest.approx(grams, abs=1e-9)
    assert booked.unaccounted_kwh == pytest.approx(lost, abs=1e-9)
    assert simulated.energy_kwh == pytest.approx(booked.kwh, abs=1e-9)
    assert simulated.co2_kg * 1_000 == pytest.approx(booked.co2_g or 0.0, abs=1e-9)
    assert simulated.unaccounted_kwh == pytest.approx(booked.unaccounted_kwh, abs=1e-9)
    assert (booked.co2_g is None) == (kwh > 0 and booked.unaccounted_kwh == pytest.approx(kwh, abs=1e-12))


@settings(deadline=None, max_examples=100)
@given(cases(), st.lists(st.integers(-400, 3_100), max_size=8, unique=True).map(sorted))
def test_run_and_simulation_find_the_same_energy_inside_windows(case: Case, edges: list[int]) -> None:
    opened = list(zip(edges[::2], edges[1::2], strict=False))
    table = windows(case.rows.clear(), case.run)
    if opened:
        table = pl.DataFrame([("A", "A", at(a), at(b), "", "") for a, b in opened], table.schema, orient="row")
    view = View.build(case.run, case.rows, table)
    booked, simulated = by_ledger(case, view, table), account(view, walked(case.spans), {})
    kw = {state: power_kw(case.run.sites[0], state) for state in STATES}
    inside = [kw[state] * max(0, min(b, d) - max(a, c)) for state, a, b in case.spans for c, d in opened]
    assert booked.curtailed_kwh == pytest.approx(sum(inside) / 3_600, abs=1e-9)
    assert simulated.window_kwh == pytest.approx(booked.curtailed_kwh, abs=1e-9)


@settings(deadline=None, max_examples=100)
@given(cases(), st.integers(1, 3_000))
def test_a_baseline_is_the_ledger_of_its_interval(case: Case, length_s: int) -> None:
    """Where the trace covers it; elsewhere it has no CO2."""
    view, site = view_on(case.run, case.rows), case.run.sites[0]
    signal = view.signals["A"]
    steps = max(1, int(length_s * site.steps_per_s))
    end_s = round(steps / site.steps_per_s)
    found = always_on(steps, START, site, "A", signal)
    booked = by_ledger(Case(case.values, case.cadence_s, case.first_s, case.age_s, [("training", 0, end_s)]), view)
    assert found.kwh == pytest.approx(booked.kwh, abs=1e-9)
    covered = signal.times[0] <= BEGIN and BEGIN + end_s * SECOND <= signal.end
    simulated = baselines(view, steps, BEGIN)["A"].co2_g
    if not covered:
        assert (found.co2_g, simulated, found.unaccounted_kwh) == (None, None, found.kwh)
        return
    assert found.co2_g == (None if booked.co2_g is None else pytest.approx(booked.co2_g, abs=1e-9))
    assert found.unaccounted_kwh == pytest.approx(booked.unaccounted_kwh, abs=1e-9)
    assert simulated == found.co2_g


@settings(deadline=None, max_examples=100)
@given(cases(), st.booleans())
def test_pieces_add_up_to_the_intervals_they_were_cut_from(case: Case, interpolate: bool) -> None:
    """The sum over whole intervals, which costs no time per value, against that over the pieces of the ledger."""
    view, site = view_on(case.run, case.rows), case.run.sites[0]
    signal = view.signals["A"]
    table = intervals_table(
        [
            PowerInterval("A", state, from_us(BEGIN + a * SECOND), from_us(BEGIN + b * SECOND), power_kw(site, state))
            for state, a, b in case.spans
        ]
    )
    cut = pieces(table, view.signals, [site])
    sums = [
        count_grams(
            frame["start"].dt.epoch("us").to_numpy(),
            frame["end"].dt.epoch("us").to_numpy(),
            frame["kw"].to_numpy(),
            signal,
            interpolate=interpolate,
        )
        for frame in (table, cut)
    ]
    for name in ("kwh", "co2_g", "unaccounted_kwh"):
        whole, parts = (float(np.nansum(getattr(part, name))) for part in sums)
        assert parts == pytest.approx(whole, rel=1e-12, abs=1e-9)


@settings(deadline=None, max_examples=100)
@given(cases(), st.integers(1, 2_000), st.booleans())
def test_the_oracle_buys_no_time_that_nobody_can_price(case: Case, steps: int, overheads: bool) -> None:
    view, site = view_on(case.run, case.rows), case.run.sites[0]
    end = BEGIN + 3_000 * SECOND
    bound = least_co2_with_overheads if overheads else least_co2
    # The step in progress when a signal ends is finished, and nobody can tell what it costs.
    after = round(1 / site.steps_per_s)
    known = [case.known(second) for second in range(-after, 3_000)]
    usable = [
        value or 0.0
        for k, value in enumerate(known[after:], after)
        if value is not None or any(before is not None for before in known[k - after : k])
    ]
    found = bound(view, steps, BEGIN, end)
    if steps > len(usable) * site.steps_per_s + 1e-6:
        assert found is None
    elif not overheads:
        cheapest = sorted(usable)
        need = steps / site.steps_per_s
        whole = int(need + 1e-9)
        expected = sum(cheapest[:whole]) + (need - whole) * (cheapest[whole] if whole < len(cheapest) else 0.0)
        assert found is not None
        assert found.co2_kg == pytest.approx(expected * 2.0 / 3_600 / 1_000, abs=1e-9)


@st.composite
def nights(draw: st.DrawFn) -> tuple[Signal, list[tuple[int, int, float]]]:
    """A signal of few values around a midnight, and intervals of power (seconds from that midnight, kW)."""
    stamps = sorted(draw(st.sets(st.integers(-40, 40), min_size=1, max_size=6)))
    values = draw(st.lists(st.integers(-50, 900).map(float), min_size=len(stamps), max_size=len(stamps)))
    midnight = -(-BEGIN // DAY) * DAY
    times = midnight + np.array(stamps, dtype=np.int64) * 30 * SECOND
    age = draw(st.integers(1, 300)) * SECOND
    edges = sorted(draw(st.sets(st.integers(-1_500, 1_500), min_size=2, max_size=8)))
    spans = [(a, b, draw(st.sampled_from([0.5, 2.0]))) for a, b in pairwise(edges) if draw(st.booleans())]
    return Signal(times, np.array(values), 30 * SECOND, age), spans


@given(nights())
def test_a_hole_is_bounded_by_what_its_own_day_knew(case: tuple[Signal, list[tuple[int, int, float]]]) -> None:
    signal, spans = case
    midnight = -(-BEGIN // DAY) * DAY
    days = {day: signal.values[signal.times // DAY == day] for day in (midnight // DAY - 1, midnight // DAY)}
    low = high = 0.0
    bounded = True
    for start, end, kw in spans:
        for second in range(start, end):
            at = midnight + second * SECOND
            if np.isnan(signal.at(at)):
                known = days[at // DAY]
                bounded = bounded and len(known) > 0
                low += known.min(initial=np.inf) * kw / 3_600
                high += known.max(initial=-np.inf) * kw / 3_600
    start, end = (midnight + np.array([span[k] for span in spans], dtype=np.int64) * SECOND for k in (0, 1))
    found = hole_bounds(start, end, np.array([span[2] for span in spans]), signal)
    assert (found is not None) == bounded
    if found is not None:
        assert (found.low_g, found.high_g) == pytest.approx((low, high), rel=1e-9, abs=1e-6)


def test_a_hole_is_the_same_hole_everywhere() -> None:
    """1 kW for 1 h at 10 g/kWh, of which 25 minutes are known by nobody: 5.83 g, and 0.417 kWh unaccounted."""
    # Five-minute values, missing from 30 minutes on: the last one holds until 35 minutes.
    values = [10.0] * 6 + [None] * 6 + [10.0]
    sites = [{"name": "A", "region": "A", "training_kw": 1.0, "idle_kw": 0.5, "steps_per_s": 0.5}]
    run = experiment(sites=sites, policy={"name": "threshold"}, job={"steps": 1_800})
    rows = trace(values, 300)
    view, site = view_on(run, rows), run.sites[0]
    known, lost = 35 / 60, 25 / 60
    booked = totals(
        ledger(intervals_table([PowerInterval("A", "training", START, minutes(60), 1.0)]), view.signals, [site])
    )
    assert (booked.kwh, booked.co2_g, booked.unaccounted_kwh) == pytest.approx((1.0, 10 * known, lost))
    simulated = account(view, walked([("training", 0, 3_600)]), {})
    assert (simulated.energy_kwh, simulated.co2_kg, simulated.unaccounted_kwh) == pytest.approx((1, known / 100, lost))
    base = always_on(1_800, START, site, "A", view.signals["A"])
    assert (base.kwh, base.co2_g, base.unaccounted_kwh) == pytest.approx((1.0, 10 * known, lost))
    assert baselines(view, 1_800, BEGIN) == {"A": base}
    assert (base.co2_g_low, base.co2_g_high) == pytest.approx((10.0, 10.0)), "the day knows of nothing but 10 g/kWh"
    # 35 of the 60 minutes can be bought, five more in which the trace has its last value, and a step into the hole.
    most = 40 * 60 // 2 + 1
    found = least_co2(view, most, BEGIN, view.end_us)
    assert found is not None and found.co2_kg == pytest.approx(10 * 40 / 60 / 1_000)
    assert least_co2(view, most + 1, BEGIN, view.end_us) is None
    assert least_co2_with_overheads(view, most + 1, BEGIN, view.end_us) is None


def test_the_rules_maximum_age_reaches_every_account() -> None:
    """Where the rule believes a value for 45 minutes, 1 kW for 1 h has 15 minutes less to account for."""
    sites = [{"name": "A", "region": "A", "training_kw": 1.0, "idle_kw": 0.5, "steps_per_s": 0.5}]
    policy = {"name": "threshold", "parameters": {"max_signal_age_s": 45 * 60}}
    case = Case([10.0, *[None] * 11, 10.0], 300, 0, 45 * 60, [("training", 0, 3_600)])
    run = experiment(sites=sites, policy=policy)
    view = view_on(run, case.rows)
    assert view.signals["A"].max_age_us == max_age_us(view.signals["A"].cadence_us, 2_700) == 0.75 * HOUR
    assert account(view, walked(case.spans), {}).unaccounted_kwh == pytest.approx(0.25)


def test_what_is_simulated_says_what_it_could_not_account_for() -> None:
    """A site idles through a hole; without one nothing is unaccounted, to the last bit."""
    sites = [{"name": "A", "region": "A", "training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 0.5}]
    run = experiment(sites=sites, policy={"name": "threshold"}, overheads={"stop_drain_s": 3_600})
    found = simulate(run, trace([50.0, None, None, None, 50.0], 300))
    # Trains until 10 minutes, drains until its window opens again at 20: 10 minutes at 0.5 kW.
    assert found["unaccounted_kwh"] == pytest.approx(0.5 * 10 / 60)
    assert found["energy_kwh"] == pytest.approx(2.0 * 15 / 60 + 0.5 * 10 / 60)
    assert found["co2_kg"] == pytest.approx(2.0 * 15 / 60 * 50 / 1_000)
    assert found["co2_kg_low"] == found["co2_kg_high"] == pytest.approx(found["co2_kg"] + 0.5 * 10 / 60 * 50 / 1_000)
    whole = simulate(run, trace([50.0, 450.0, 450.0, 450.0, 50.0], 300))
    assert whole["unaccounted_kwh"] == 0.0


def test_interpolating_knows_the_same_time_as_holding() -> None:
    signal = accounting_signals(trace([100.0, 200.0, None, None, None, 400.0], 300))["A"]
    span = np.array([BEGIN]), np.array([BEGIN + 1_500 * SECOND])
    held, linear = (count_grams(*span, 12.0, signal, interpolate=flag) for flag in (False, True))
    # Five minutes at 12 kW are 1 kWh. The second value counts for ten minutes of the twenty to the third.
    assert held.co2_g.tolist() == pytest.approx([100 + 2 * 200])
    assert linear.co2_g.tolist() == pytest.approx([150 + 2 * (200 + 300) / 2])
    assert held.unaccounted_kwh.tolist() == linear.unaccounted_kwh.tolist() == pytest.approx([2.0])
