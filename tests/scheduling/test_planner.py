"""A site's plan at a price of a step is worth as much as the best of all there are."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curtail_pipeline.scheduling.planner import HELD, OFF, TRAINS, Slots, best_actions

COUNT = 5
STEPS = st.lists(st.sampled_from([0.0, 1.0, 4.0]), min_size=COUNT, max_size=COUNT)
COSTS = st.lists(st.floats(-2.0, 4.0), min_size=COUNT, max_size=COUNT)
LOSSES = st.lists(st.floats(0.0, 3.0), min_size=COUNT, max_size=COUNT)


def _worth(slots: Slots, price: float, state: int, actions: Sequence[int]) -> float:
    total = 0.0
    for t, action in enumerate(actions):
        if action == HELD:
            total -= float(slots.hold[t]) if state != OFF else np.inf
        if action == TRAINS:
            total += _training(slots, t, price, state) if slots.steps[t] > 0 else -np.inf
        state = action
    return total


def _training(slots: Slots, t: int, price: float, state: int) -> float:
    """Of a slot, by the state before it; a site that is up may also be stopped and started."""
    gain = max(price - float(slots.cost[t]), 0.0)
    start = float(min(slots.start_steps[t], slots.steps[t])) * gain + float(slots.start_cost[t])
    resume = float(min(slots.resume_steps[t], slots.steps[t])) * gain
    lost = {OFF: start, HELD: min(resume, start), TRAINS: min(0.0, start)}[state]
    return float(slots.steps[t] * (price - slots.cost[t])) - lost


@given(STEPS, COSTS, LOSSES, LOSSES, LOSSES, LOSSES, st.floats(-1.0, 6.0), st.sampled_from([OFF, HELD, TRAINS]))
def test_no_plan_of_a_site_is_worth_more(
    steps: list[float],
    cost: list[float],
    hold: list[float],
    start_cost: list[float],
    start_steps: list[float],
    resume_steps: list[float],
    price: float,
    state: int,
) -> None:
    slots = Slots(*map(np.array, (steps, cost, hold, start_cost, start_steps, resume_steps)))
    ((found,),) = best_actions([slots], np.array([price]), [state]).tolist()
    best = max(_worth(slots, price, state, plan) for plan in itertools.product((OFF, HELD, TRAINS), repeat=COUNT))
    assert _worth(slots, price, state, found) == pytest.approx(best, abs=1e-9)


def test_a_plan_per_price() -> None:
    slots = Slots(np.array([1.0, 1.0, 1.0]), np.array([1.0, 3.0, 2.0]), *(np.zeros(3) for _ in range(4)))
    assert best_actions([slots], np.array([0.5, 1.5, 2.5, 3.5]), [OFF])[:, 0].tolist() == [
        [OFF, OFF, OFF],
        [TRAINS, OFF, OFF],
        [TRAINS, OFF, TRAINS],
        [TRAINS, TRAINS, TRAINS],
    ]
