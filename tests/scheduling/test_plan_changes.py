"""Edges of different sites moved together, and what that finds where no single edge can move."""

from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation_cases import START, experiment, minutes, traces
from test_rollout import planned, times_paper

from curtail_pipeline.scheduling import policy_forecast
from curtail_pipeline.scheduling.outlook import Outlook
from curtail_pipeline.scheduling.plan_changes import NEAR_US, Changes
from curtail_pipeline.scheduling.plan_search import Search
from curtail_pipeline.scheduling.rollout import Rollout
from curtail_pipeline.scheduling.stays import Plan, Stay
from curtail_pipeline.times import SECOND, to_us

MINUTE = 60 * SECOND
END = 600 * MINUTE
START_UP = (5 * MINUTE, 20 * MINUTE)


def stay(up: float, ready: float, down: float, begin: int = 0) -> Stay:
    """Minutes after `begin`; it trains all the time."""
    up_us, ready_us, down_us = (begin + round(at * MINUTE) for at in (up, ready, down))
    return Stay(up_us, ready_us, down_us, ((ready_us, down_us),))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    lines = []
    for start_up in START_UP:
        edges = sorted(draw(st.lists(st.integers(0, 600), min_size=2, max_size=6, unique=True)))
        spans = [(low, high) for low, high in zip(edges[::2], edges[1::2], strict=False)]
        lines.append(
            tuple(stay(low, low + start_up // MINUTE, high) for low, high in spans if high - low > start_up // MINUTE)
        )
    return tuple(lines)


def edges(plan: Plan) -> list[int]:
    return sorted(at for at in chain.from_iterable((each.up, each.down) for stays in plan for each in stays))


@given(plans(), st.sampled_from([1, 10, 60]))
def test_two_edges_move_and_stays_stay_apart(plan: Plan, by: int) -> None:
    changes = Changes((), np.array([0, END]), START_UP, (None, None), 0, END)
    for other in changes.together(plan, by * MINUTE):
        moved = [b - a for a, b in zip(edges(plan), edges(other), strict=True) if a != b]
        assert sum(moved) in (2 * by * MINUTE, -2 * by * MINUTE), "both by the same"
        assert all(mine != theirs for mine, theirs in zip(plan, other, strict=True)), "of different sites"
        for stays, start_up in zip(other, START_UP, strict=True):
            assert all(one.down < two.up for one, two in pairwise(stays))
            assert all(each.ready == each.up + start_up < each.down <= END and each.up >= 0 for each in stays)


def test_edges_far_from_each_other_do_not_move_together() -> None:
    changes = Changes((), np.array([0, END]), START_UP, (None, None), 0, END)
    near, far = (((stay(0, 5, 100),), (stay(100 + apart, 120 + apart, 400),)) for apart in (1, 1 + NEAR_US // MINUTE))
    assert len(list(changes.together(near, MINUTE))) == 2  # A's end and B's start, there and back
    assert not list(changes.together(far, MINUTE))


def test_a_handover_moves_by_a_round_where_neither_site_can_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept up longer A trains in dear hours for nothing, begun later B leaves a hole: the plan's rounds are whole."""
    asked: list[tuple[Rollout, Outlook]] = []

    def seen(rollout: Rollout, outlook: Outlook, *_: object) -> None:
        asked.append((rollout, outlook))
        raise InterruptedError

    def stretches(*parts: tuple[float, int]) -> list[float]:
        return [value for value, slots in parts for _ in range(slots)]

    a = stretches((20, 18), (150, 9), (450, 3), (80, 14), (450, 16))
    b = stretches((20, 17), (150, 18), (0, 6), (150, 4), (450, 4), (0, 11))
    run = experiment(
        "AB", overheads=times_paper(2.0), rounds={"round_s": 600, "open_local": True, "max_rounds": 12},
        job={"steps": 2602},
    )  # fmt: skip
    monkeypatch.setattr(policy_forecast, "searched", seen)
    with pytest.raises(InterruptedError):
        planned(run, traces({"A": a, "B": b}), 5.0)
    search = Search(*asked[0], most=10_000)
    begin = to_us(START)
    plan: Plan = (
        (stay(0, 8 + 1 / 3, 94, begin),),
        (stay(86 + 5 / 6, 95 + 1 / 6, 298 + 4 / 15, begin),),
    )
    before = search._try(plan)
    assert before.finish < to_us(minutes(300))
    assert search._descend(plan, lambda other: search._try(other).rank, 10_000, search._moves()) == plan
    search._together(plan)
    (best, after), *_ = search._leaders(1)
    assert after.cost < 0.9 * before.cost
    assert best[0][0].down - plan[0][0].down == best[1][0].up - plan[1][0].up > 10 * MINUTE
