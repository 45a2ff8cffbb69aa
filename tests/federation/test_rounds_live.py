"""Rounds with open ends: deadlines, a cap, and a membership that changes."""

from pathlib import Path
from typing import Any

import pytest
from test_rounds import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_live_rounds_have_deadlines_and_a_cap(bench: Bench) -> None:
    bench.membership(3, CA="train", TX="train", SA="train")
    segment = bench.run(bench.live(total_steps=200, max_rounds=2, first_step=0))
    assert segment["stop_reason"] == "job finished" and segment["steps"] == 200  # 67 + 67 + 66, never more
    order = bench.orders("SA")[0]
    assert order["deadline_s"] == 600 and order["watch"] == {"key": "membership.json", "generation": 3}
    segment = bench.run(bench.live(total_steps=10**6, max_rounds=2) | {"attempt": 9})
    assert segment["stop_reason"] == "no member has tokens left in its lease" and len(segment["rounds"]) == 1


@pytest.mark.parametrize(
    ("states", "reason"),
    [
        ({"CA": "train", "TX": "train", "SA": "train"}, "SA joins"),
        ({"CA": "train", "TX": "off", "reasons": {"TX": "window closed"}}, "TX leaves: window closed"),
        ({"CA": "warm", "TX": "off"}, "CA leaves; TX leaves"),
    ],
)
def test_a_membership_change_ends_a_live_segment_at_the_boundary(bench: Bench, states: Any, reason: str) -> None:
    bench.membership(3, CA="train", TX="train")
    segment = bench.run(bench.live(("CA", "TX"), total_steps=10**6), on_poll=lambda: bench.membership(4, **states))
    assert segment["stop_reason"] == reason and len(segment["rounds"]) == 1 and segment["steps"] > 0


def test_a_newer_generation_with_the_same_members_goes_on(bench: Bench) -> None:
    bench.membership(3, CA="train", TX="train")
    generation = iter(range(4, 1000))
    segment = bench.run(
        bench.live(("CA", "TX"), max_rounds=3),
        on_poll=lambda: bench.membership(next(generation), CA="train", TX="train", SA="warm"),
        steps_per_round=2,
    )
    assert segment["stop_reason"] == "length cap" and segment["steps"] == 12
    assert [order["watch"]["generation"] for order in bench.orders("CA")] == [3, 4, 5]
    bench.membership(2000, CA="off", TX="off")
    plan = bench.live(("CA", "TX"), attempt=2)
    segment = bench.run(plan)
    assert segment["rounds"] == [] and segment["weights"]["key"] == plan["parent"]["weights"]
