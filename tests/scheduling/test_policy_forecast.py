from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import product

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from simulation_cases import START, experiment, minutes, next_event, traces, windows

from curtail_pipeline.errors import PolicyError
from curtail_pipeline.scheduling.decide import Decision, decide
from curtail_pipeline.scheduling.planner import Slots, _compressed, _values, advise
from curtail_pipeline.scheduling.predictors import (
    make_forecast,
)
from curtail_pipeline.scheduling.view import Job, SiteDecision, View
from curtail_pipeline.signals.held import Signal
from curtail_pipeline.simulation.compare import simulate, simulate_run
from curtail_pipeline.times import to_us

pytestmark = pytest.mark.usefixtures("few_walks")  # how good plans are shows in tests/simulation/test_paper_run.py

MINUTE = 60 * 10**6


@st.composite
def slots(draw: st.DrawFn, size: int = 6) -> Slots:
    def column(*values: float) -> np.ndarray:
        return np.array(draw(st.lists(st.sampled_from(values), min_size=size, max_size=size)))

    steps = column(0.0, 5.0, 10.0)
    return Slots(
        steps,
        column(0.0, 1.0, 2.0, 5.0, 40.0),
        column(0.0, 0.5, 3.0, 6.0),
        np.full(size, draw(st.sampled_from([0.0, 2.0]))),
        np.full(size, draw(st.sampled_from([0.0, 4.0]))),
        np.full(size, draw(st.sampled_from([0.0, 3.0, 5.0]))),
    )


def best_by_enumeration(part: Slots, price: float, state: str) -> float:
    """Every sequence of off, hold and train; a held site may go on or start anew, an off one has to start."""
    best = -np.inf
    for actions in product("oht", repeat=len(part.steps)):
        before, worth = state, 0.0
        for t, action in enumerate(actions):
            if action == "h":
                if before == "o":
                    worth = -np.inf
                    break
                worth -= part.hold[t]
            if action == "t":
                if part.steps[t] == 0:
                    worth = -np.inf
                    break
                margin = price - part.cost[t]
                worth += part.steps[t] * margin
                gain = max(margin, 0.0)
                start = min(part.start_steps[t], part.steps[t]) * gain + part.start_cost[t]
                resume = min(part.resume_steps[t], part.steps[t]) * gain
                worth -= {"o": start, "h": min(start, resume), "t": 0.0}[before]
            before = action
        best = max(best, worth)
    return best


def plain(part: Slots, price: float) -> tuple[float, float, float]:
    chain = _compressed(part, -1e9, 1e9)
    off, held, training = _values(chain, np.array([price]))
    return float(off[0]), float(held[0]), float(training[0])


@settings(max_examples=25, deadline=None)
@given(slots(), st.sampled_from([0.5, 1.5, 4.0, 100.0]))
def test_plans_are_the_best_of_all(part: Slots, price: float) -> None:
    off, held, training = plain(part, price)
    assert off == pytest.approx(best_by_enumeration(part, price, "o"))
    assert held == pytest.approx(best_by_enumeration(part, price, "h"))
    assert training == pytest.approx(best_by_enumeration(part, price, "t"))


@settings(max_examples=40, deadline=None)
@given(slots(size=20), st.sampled_from([0.5, 1.5, 4.0]))
def test_joining_slots_changes_no_advice_where_starts_are_alike(part: Slots, price: float) -> None:
    chain = _compressed(part, price, price)
    assert len(chain.slots.steps) <= 20
    joined = [float(worth[0]) for worth in _values(chain, np.array([price]))]
    apart = plain(part, price)
    for worth, exact in zip(joined, apart, strict=True):
        assert worth <= exact + 1e-9, "a joined run is one of the possible plans"
    if not part.start_steps.any() and not part.start_cost.any() and not part.resume_steps.any():
        assert joined == pytest.approx(list(apart))


EIGHT = np.ones(8)

STARTS_BEFORE_THE_CHEAP_ONE = Slots(10 * EIGHT, EIGHT, 6 * EIGHT, 2 * EIGHT, 4 * EIGHT, 5 * EIGHT)


@settings(max_examples=400, deadline=None)
@given(slots(size=8), st.lists(st.sampled_from([1.0, 4.05, 4.2, 5.0]), min_size=8, max_size=8))
@example(STARTS_BEFORE_THE_CHEAP_ONE, [5.0] * 6 + [4.05, 1.0])
def test_joining_slots_keeps_the_worth_of_training_through_a_dear_one(part: Slots, cost: list[float]) -> None:
    """Also with starts and resumes that cost, as long as the cheap slots are equally cheap."""
    part = replace(part, cost=np.array(cost))
    price = 4.0
    joined = [float(worth[0]) for worth in _values(_compressed(part, price, price), np.array([price]))]
    assert joined == pytest.approx(list(plain(part, price)))


def test_advice_to_hold_through_a_spike_and_to_leave_a_long_one() -> None:
    def part(spike: int) -> Slots:
        cost = np.array([9.0] * spike + [1.0] * 10)
        ones = np.ones(len(cost))
        return Slots(10 * ones, cost, 2 * ones, 0 * ones, 3 * ones, 0 * ones)

    short, long = advise(part(1), 5.0), advise(part(9), 5.0)
    assert (short.train, short.hold, short.start) == (False, True, False)
    assert (long.train, long.hold) == (False, False)


HOURLY = {"A": [450] * 6 + [80] * 12 + [450] * 6 + [20] * 12 + [450] * 12}


def planned(name: str = "forecast", steps: int = 1700, **parameters: float) -> View:
    run = experiment(
        "A",
        policy={"name": name, "parameters": parameters},
        overheads={"connect_s": 20, "round_load_s": 4, "outer_step_s": 2},
        job={"steps": steps, "deadline": minutes(240).isoformat()},
    )
    rows = traces(HOURLY)
    return View.build(run, rows, windows(rows, run), partial(make_forecast, "perfect"))


def job_of(view: View, done: int = 0) -> Job:
    return Job(done, view.experiment.job.steps, START, view.experiment.job.deadline)


def test_a_good_window_passes_for_a_better_one_and_the_decision_says_so() -> None:
    view = planned()
    early = decide(view, minutes(30), job_of(view))
    assert early.mode == "pause"
    assert early.sites["A"].reason.startswith("at 80 g/kWh it waits: enough hours at or below 2")
    assert early.sites["A"].reason.endswith("are expected before 2026-01-11T21:00:00Z")
    later = decide(view, minutes(120), job_of(view))
    assert later.sites["A"].state == "warm"
    assert later.sites["A"].reason.startswith("at 20 g/kWh among the best hours before")


def test_without_slack_every_hour_counts() -> None:
    view = planned(steps=7200)
    first = decide(view, START, job_of(view))
    assert first.sites["A"].reason == "at 450 g/kWh every hour until 2026-01-11T21:00:00Z is needed"
    needed = planned(steps=2520)
    assert decide(needed, minutes(65), job_of(needed)).sites["A"].state == "warm", "both windows are needed"


def test_deciding_again_decides_the_same() -> None:
    view = planned(steps=2500)
    now, job = START, job_of(view)
    for _ in range(60):
        first = decide(view, now, job)
        following = Job(job.steps_done, job.steps_total, START, job.deadline, first.sites)
        again = decide(view, now, following)
        assert {n: (s.state, s.since, s.ready) for n, s in again.sites.items()} == {
            n: (s.state, s.since, s.ready) for n, s in first.sites.items()
        }
        found = next_event(view, now)
        if found is None:
            break
        now, job = found, following


@settings(max_examples=3, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 40.0, 80.0, 450.0]), min_size=48, max_size=48),
    st.lists(st.sampled_from([0.0, 40.0, 80.0, 450.0]), min_size=48, max_size=48),
    st.floats(0.05, 0.93),
    st.sampled_from(["perfect", "persistence", "seasonal"]),
)
def test_the_deadline_is_met_whatever_the_forecast(a: list[float], b: list[float], share: float, kind: str) -> None:
    run = experiment(
        "AB",
        policy={"name": "forecast"},
        overheads={"connect_s": 20, "round_load_s": 4, "outer_step_s": 2},
        job={"steps": int(share * 2 * 4 * 1800 * 594 / 602)},
    )
    found = simulate(run, traces({"A": a, "B": b}), forecast=kind, deadline_h=4.0)
    assert found["finished"], found["steps"]
    assert found["co2_kg"] >= found["oracle_co2_kg"] - 1e-9


def test_a_perfect_forecast_beats_following_windows() -> None:
    rows = traces(HOURLY)
    run = planned().experiment
    threshold = simulate(run, rows, policy="threshold", deadline_h=4.0)
    forecast = simulate(run, rows, policy="forecast", deadline_h=4.0)
    assert forecast["finished"]
    assert forecast["co2_kg"] < 0.4 * threshold["co2_kg"]


@pytest.mark.parametrize("kind", ["perfect", "persistence", "seasonal"])
def test_no_site_trains_or_waits_where_there_is_no_signal(kind: str) -> None:
    """A hole of 90 minutes beside hours that suffice; all that is up in it are the seconds in which a site stops."""
    values: list[float | None] = [300.0] * 12 + [50.0] * 6 + [None] * 18 + [80.0] * 12 + [400.0] * 24
    run = experiment("A", policy={"name": "forecast"}, overheads={"connect_s": 20}, job={"steps": 3600})
    found = simulate(run, traces({"A": values}), forecast=kind, deadline_h=6.0)
    assert found["finished"]
    assert found["unaccounted_kwh"] < 2.0 * 60 / 3600


def test_a_perfect_forecast_by_default_is_said(caplog: pytest.LogCaptureFixture) -> None:
    run, rows = planned().experiment, traces(HOURLY)
    simulate(run, rows, forecast="seasonal", deadline_h=4.0)
    assert not caplog.records
    simulate(run, rows, deadline_h=4.0)
    assert "policy forecast plans with a perfect one" in caplog.text


def test_forecast_error_is_part_of_the_regret() -> None:
    found = simulate(planned().experiment, traces(HOURLY), forecast="persistence", deadline_h=4.0)
    regret = found["regret"]
    assert regret["forecast_error_kg"] > 0
    assert sum(v for k, v in regret.items() if k != "total_kg") == pytest.approx(regret["total_kg"])


def test_a_joining_site_ends_the_others_round_at_once() -> None:
    run = experiment(
        "AB",
        policy={"name": "forecast"},
        overheads={"connect_s": 20, "round_load_s": 4, "outer_step_s": 2},
        job={"steps": 6020},
    )
    values = {"A": [10] * 24, "B": [450] * 7 + [10] * 17}
    done = simulate_run(run, traces(values), forecast="perfect", deadline_h=2.0)
    first = [int(use.training[0][0]) for use in (done.walk.use["A"], done.walk.use["B"])]
    assert first[1] - to_us(minutes(35)) <= 60 * 10**6, "not half a round later"
    assert done.walk.finished


def test_live_decisions_plan_with_what_is_known() -> None:
    run = planned().experiment
    rows = traces(HOURLY)
    view = View.build(run, rows, windows(rows, run), as_of=minutes(125))
    decision = decide(view, minutes(125), job_of(view))
    assert decision.sites["A"].state == "warm"
    stale = View.build(run, rows.filter(pl.col("time") < minutes(100)), windows(rows, run), as_of=minutes(125))
    assert decide(stale, minutes(125), job_of(stale)).sites["A"].reason.startswith("signal older than 600 s")


# Budget


def test_a_budget_that_suffices_runs_the_cheapest_schedule() -> None:
    run, rows = planned().experiment, traces(HOURLY)
    cheapest = simulate(run, rows, policy="forecast", deadline_h=4.0)
    budget = run.model_copy(
        update={"policy": run.policy.model_copy(update={"name": "budget", "parameters": {"budget": 0.1}})}
    )
    found = simulate(budget, rows, deadline_h=4.0)
    assert found["finished"]
    assert found["co2_kg"] == cheapest["co2_kg"] < 0.1


@pytest.mark.parametrize(
    ("parameters", "steps", "message"),
    [
        (
            {"budget": 0.03},
            1700,
            r"the budget of 0\.03 kg CO2 is infeasible: .* is expected to take 0\.038, 0\.008 more",
        ),
        ({}, 8000, r"all sites together can do 7\d\d\d of 8000 steps by then, \d+ short; give a later deadline"),
        ({"spend": "cost"}, 1700, "needs a price for region 'A'"),
    ],
)
def test_an_infeasible_budget_says_by_how_much(parameters: dict[str, float], steps: int, message: str) -> None:
    view = planned("budget", steps, **parameters)
    with pytest.raises(PolicyError, match=message):
        decide(view, START, job_of(view))


def test_a_budget_of_money_takes_the_cheap_hours_not_the_clean_ones() -> None:
    run = planned("budget", spend="cost", budget=100.0).experiment
    price = [90.0] * 6 + [-5.0] * 12 + [90.0] * 30
    rows = pl.concat([traces(HOURLY), traces({"A": price}).with_columns(kind=pl.lit("price"))])
    found = simulate(run, rows, deadline_h=4.0)
    assert found["finished"]
    done = simulate_run(run, rows, deadline_h=4.0)
    first, last = done.walk.use["A"].training[0][0], done.walk.use["A"].training[1][-1]
    assert to_us(minutes(30)) <= first < last <= to_us(minutes(90))
    clean = simulate_run(run, rows, policy="forecast", deadline_h=4.0)
    assert int(clean.walk.use["A"].training[0][0]) > to_us(minutes(119))


def test_a_started_job_is_not_given_up() -> None:
    view = planned("budget", budget=0.03)
    job = Job(1, 1700, START, view.experiment.job.deadline)
    assert not decide(view, START + timedelta(minutes=1), job).finished


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([10.0, 80.0, 450.0]), min_size=48, max_size=48), st.integers(1, 47), st.booleans())
def test_causal_forecasts_decide_from_the_past_alone(values: list[float], at: int, up: bool) -> None:
    run = planned(steps=2500).experiment
    rows = traces({"A": values})
    now = minutes(5 * at)
    known = rows.filter(pl.col("time") <= now)
    state = SiteDecision("train", "", minutes(0), minutes(0))
    job = Job(100, 2500, START, run.job.deadline, {"A": state} if up else {})
    whole = decide(View.build(run, rows, windows(rows, run)), now, job)
    assert whole == decide(View.build(run, known, windows(known, run)), now, job)
    assert whole == decide(View.build(run, rows, windows(rows, run), as_of=now), now, job)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 1.0, 3.0]), min_size=48, max_size=48),
    st.lists(st.sampled_from([0.0, 1.0, 3.0]), min_size=48, max_size=48),
    st.integers(1, 47),
    st.booleans(),
    st.sampled_from(["seasonal", "persistence"]),
)
def test_generation_yet_to_come_changes_no_decision(
    made: list[float], otherwise: list[float], at: int, up: bool, forecast: str
) -> None:
    run = planned(steps=2500).experiment
    rows = traces(HOURLY)
    state = SiteDecision("train", "", minutes(0), minutes(0))
    job = Job(100, 2500, START, run.job.deadline, {"A": state} if up else {})
    times = to_us(START) + np.arange(48) * 300 * 10**6

    def decided(kw: list[float]) -> Decision:
        view = View.build(run, rows, windows(rows, run), partial(make_forecast, forecast))
        view.on_site = {"A": Signal(times, np.array(kw), 300 * 10**6, 600 * 10**6)}
        return decide(view, minutes(5 * at), job)

    assert decided(made) == decided([*made[: at + 1], *otherwise[at + 1 :]])
