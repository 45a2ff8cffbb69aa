"""The bound that knows rounds: below everything that can be done, and near the best of it."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation_cases import CADENCE, START, experiment, tariffs, view_of

from curtail_pipeline.scheduling.policies import start_up_us
from curtail_pipeline.scheduling.rollout import Rollout, Standing
from curtail_pipeline.scheduling.stays import Plan, Stay
from curtail_pipeline.scheduling.view import View
from curtail_pipeline.settings.overheads import PAPER
from curtail_pipeline.simulation.oracle import least_co2_with_overheads
from curtail_pipeline.simulation.round_bound import round_bound
from curtail_pipeline.times import to_us

BEGIN, CELL = to_us(START), int(CADENCE.total_seconds()) * 10**6
value = st.sampled_from([0.0, 20.0, 50.0, 80.0, 300.0, 450.0])


def view(columns: list[list[float]], factor: float, round_s: float, *, open_local: bool) -> View:
    names = "ABC"[: len(columns)]
    run = experiment(
        names,
        overheads={name: factor * seconds for name, seconds in PAPER.model_dump().items()},
        rounds={"round_s": round_s, "open_local": open_local},
    )
    return view_of(dict(zip(names, columns, strict=True)), run)


def site_plans(found: View, cells: int) -> list[tuple[Stay, ...]]:
    """Every choice of cells to train in, off or held between them, whichever is possible."""
    start_up = start_up_us(found.experiment.overheads_of(found.sites[0]))
    plans = []
    for chosen in product((False, True), repeat=cells):
        edges = [i for i, (a, b) in enumerate(pairwise((False, *chosen, False))) if a != b]
        stays: list[Stay] = []
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            low, high = BEGIN + first * CELL, BEGIN + last * CELL
            up = max(BEGIN, low - start_up)
            if stays and stays[-1].down >= up:
                before = stays.pop()
                stays.append(before._replace(down=high, train=(*before.train, (low, high))))
            elif up + start_up < high:
                stays.append(Stay(up, up + start_up, high, ((max(low, up + start_up), high),)))
        plans.append(tuple(stays))
    return plans


def least(found: View, plans: list[Plan], steps: int, end: int) -> float | None:
    """kg of the cheapest of all plans that does so many steps."""
    rollout = Rollout(found, tariffs(found, end), Standing(BEGIN, 0), steps, end, end)
    kg = [course.cost / 1_000 for plan in plans if (course := rollout.course(plan)).steps >= steps]
    return min(kg, default=None)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(value, min_size=10, max_size=10),
    st.integers(1, 2),
    st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0]),
    st.sampled_from([120, 400, 600]),
    st.booleans(),
    st.floats(0.1, 0.9),
)
def test_no_plan_of_all_is_below_it(
    values: list[float], count: int, factor: float, round_s: float, open_local: bool, share: float
) -> None:
    cells = 5 if count == 2 else 9
    found = view([values[i * cells : (i + 1) * cells] for i in range(count)], factor, round_s, open_local=open_local)
    plans: list[Plan] = [tuple(parts) for parts in product(site_plans(found, cells), repeat=count)]
    end = BEGIN + cells * CELL
    steps = max(1, round(share * cells * 150))
    best = least(found, plans, steps, end)
    if best is not None:
        for bound in (round_bound(found, steps, BEGIN, end), least_co2_with_overheads(found, steps, BEGIN, end)):
            assert bound is None or bound.co2_kg <= best + 1e-9


@pytest.mark.parametrize("open_local", [False, True])
def test_two_sites_that_need_each_other_pay_for_their_rounds(open_local: bool) -> None:
    """Ten minutes of training cost 132 s of loading and merging; the looser relaxation lets one of them train on."""
    found = view([[100.0] * 48, [100.0] * 48], 1.0, 600, open_local=open_local)
    end = BEGIN + 48 * CELL
    ready = BEGIN + start_up_us(PAPER)
    stay = Stay(BEGIN, ready, end, ((ready, end),))
    rollout = Rollout(found, tariffs(found, end), Standing(BEGIN, 0), 10**9, end, end)
    course = rollout.course(((stay,), (stay,)))
    bound = round_bound(found, course.steps, BEGIN, end)
    assert bound is not None
    assert 0.95 * course.cost / 1_000 < bound.co2_kg <= course.cost / 1_000


def test_a_price_known_nearby_changes_nothing_to_speak_of() -> None:
    """On the way to later ends, as a chart goes; a price that is far off is looked for anew."""
    wave = [250.0 + 200.0 * np.sin(i / 7.0) for i in range(96)]
    found = view([wave, wave[::-1]], 1.0, 600, open_local=True)
    near: float | None = None
    for cells in range(40, 97, 14):
        exact = round_bound(found, 3_000, BEGIN, BEGIN + cells * CELL)
        assert exact is not None
        for price in (near, exact.g_per_step, 100 * exact.g_per_step):
            bound = round_bound(found, 3_000, BEGIN, BEGIN + cells * CELL, price)
            assert bound is not None
            assert bound.co2_kg == pytest.approx(exact.co2_kg, rel=1e-3)
        near = exact.g_per_step


def test_without_overheads_it_knows_nothing() -> None:
    found = view([[100.0] * 6], 0.0, 600, open_local=True)
    assert round_bound(found, 100, BEGIN, BEGIN + 6 * CELL) is None
