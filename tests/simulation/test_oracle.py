from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation_cases import CADENCE, START, experiment, minutes, view_of

from curtail_pipeline.scheduling.view import Job, View
from curtail_pipeline.simulation.accounts import account
from curtail_pipeline.simulation.oracle import least_co2, least_co2_with_overheads
from curtail_pipeline.simulation.walk import walk
from curtail_pipeline.times import to_us

BEGIN = to_us(START)
value = st.sampled_from([0.0, 20.0, 50.0, 80.0, 300.0, 450.0])


def sites(*speeds: float) -> list[dict[str, object]]:
    power = {"training_kw": 2.0, "idle_kw": 0.5}
    return [{"name": "ABC"[i], "region": "ABC"[i], "steps_per_s": speed, **power} for i, speed in enumerate(speeds)]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(value, min_size=5, max_size=5), st.lists(value, min_size=5, max_size=5), st.integers(1, 10), st.booleans()
)
def test_no_choice_of_whole_cells_is_cheaper(a: list[float], b: list[float], cells: int, unequal: bool) -> None:
    """Brute force over every set of five-minute cells; a cell of the slow site counts as half of one of the fast."""
    speeds = (0.5, 0.25) if unequal else (0.5, 0.5)
    view = view_of({"A": a, "B": b}, experiment(sites=sites(*speeds)))
    per_cell = [300 * speed for speed in speeds]
    wanted = cells * 75
    every = [(per_cell[i], 2.0 * g * 5 / 60 / 1000) for i, column in enumerate((a, b)) for g in column]
    fits = [
        sum(kg for _, kg in chosen)
        for count in range(len(every) + 1)
        for chosen in combinations(every, count)
        if sum(steps for steps, _ in chosen) >= wanted
    ]
    found = least_co2(view, wanted, BEGIN, view.end_us)
    assert found is not None
    assert found.co2_kg <= min(fits) + 1e-9
    if not unequal and cells % 2 == 0:
        assert found.co2_kg == pytest.approx(min(fits), abs=1e-9), "with whole cells to take, it is the best set"


def test_parts_of_cells_and_a_horizon_inside_one() -> None:
    view = view_of({"A": [100, 10, 50]})
    found = least_co2(view, 300, to_us(minutes(2)), to_us(minutes(12)))
    assert found is not None
    # 150 steps at 10 g, 60 at 50 g (two minutes of that cell are before the horizon), 90 at 100 g (three of five).
    assert found.co2_kg == pytest.approx(2.0 / 0.5 / 3600 * (150 * 10 + 60 * 50 + 90 * 100) / 1000)
    assert found.site_hours == {"A": pytest.approx(600 / 3600)}
    assert found.marginal_g_per_step == pytest.approx(100 * 2.0 / 0.5 / 3600)


def test_more_steps_than_fit_have_no_schedule() -> None:
    view = view_of({"A": [100, 10]})
    assert least_co2(view, 301, BEGIN, view.end_us) is None
    assert least_co2_with_overheads(view, 301, BEGIN, view.end_us) is None


def overhead_views() -> st.SearchStrategy[View]:
    columns = st.lists(st.lists(value, min_size=36, max_size=36), min_size=1, max_size=3)
    overheads = st.fixed_dictionaries(
        {
            "provisioning_s": st.sampled_from([0, 240]),
            "connect_s": st.sampled_from([0, 20]),
            "first_load_s": st.sampled_from([0, 95]),
            "round_load_s": st.sampled_from([0, 6, 80]),
            "round_tail_s": st.sampled_from([0, 50]),
            "round_tail_single_s": st.sampled_from([0, 35]),
            "outer_step_s": st.sampled_from([0, 2]),
        }
    )

    def build(parts: tuple[list[list[float]], dict[str, float], bool, str, bool]) -> View:
        values, costs, open_local, policy, unequal = parts
        run = experiment(
            sites=sites(*(0.5, 0.25 if unequal else 0.5, 0.5)[: len(values)]),
            overheads=costs,
            rounds={"round_s": 600, "open_local": open_local, "max_rounds": 99},
            policy={"name": policy},
        )
        return view_of(dict(zip("ABC", values, strict=False)), run, 600 if policy == "paper" else 0)

    policies = st.sampled_from(["paper", "threshold", "boundary"])
    return st.tuples(columns, overheads, st.booleans(), policies, st.booleans()).map(build)


@settings(max_examples=50, deadline=None)
@given(overhead_views())
def test_no_schedule_is_below_the_bounds(view: View) -> None:
    found = walk(view, Job(0, 10**9, START), BEGIN)
    if not found.steps:
        return
    kg = account(view, found, {}).co2_kg
    free = least_co2(view, found.steps, BEGIN, view.end_us)
    bound = least_co2_with_overheads(view, found.steps, BEGIN, view.end_us)
    assert free is not None
    assert bound is not None, "what was done can be done"
    assert free.co2_kg <= bound.co2_kg + 1e-9
    assert bound.co2_kg <= kg + 1e-9


def test_the_bound_with_overheads_is_met_where_nothing_is_lost() -> None:
    view = view_of({"A": [10, 20, 30, 40]})
    free, bound = (bound_of(view, 400, BEGIN, view.end_us) for bound_of in (least_co2, least_co2_with_overheads))
    assert free is not None
    assert bound is not None
    assert free.co2_kg == pytest.approx(bound.co2_kg)


def test_cells_are_what_the_trace_says() -> None:
    """An hour of training at a constant 100 g/kWh and 2 kW is 0.2 kg, however the trace is cut."""
    for count, start in product((12, 13), (0, 2.5)):
        view = view_of({"A": [100] * count})
        found = least_co2(view, 1000, to_us(minutes(start)), BEGIN + count * int(CADENCE.total_seconds()) * 10**6)
        assert found is not None
        assert found.co2_kg == pytest.approx(0.2 * 1000 / 1800)
