"""The next attempt at a segment goes on where the last one was, if that is part of what it wants."""

from pathlib import Path
from typing import Any

import pytest
from test_rounds import Bench, Fault
from test_rounds_resumed import killed_in_round

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation.orders import Plan
from curtail_pipeline.stages.attempts import place_of

FIRST, SECOND = "scratch/ckpt-000001/1", "scratch/ckpt-000001/2"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def place(bench: Bench, plan: dict[str, Any], attempt: int, **changes: Any) -> str:
    return place_of(bench.store, Plan.read(plan | {"attempt": attempt} | changes, "the plan"))


def test_a_killed_attempts_rounds_and_run_are_taken_over(bench: Bench) -> None:
    plan = bench.plan([{"CA": 1, "TX": 1}] * 3, ("CA", "TX"))
    assert place(bench, plan, 1) == FIRST
    assert place(bench, plan, 2) == FIRST  # nothing merged yet: its Flower run may be going on
    killed_in_round(bench, plan, 2)
    assert place(bench, plan, 3) == FIRST
    assert bench.run(plan)["steps"] == 6 and place(bench, plan, 4) == FIRST  # over, and not committed


def test_an_attempt_that_began_elsewhere_is_not(bench: Bench) -> None:
    plan = bench.plan([{"CA": 1, "TX": 1}] * 3, ("CA", "TX"))
    place(bench, plan, 1)
    killed_in_round(bench, plan, 1)
    assert place(bench, plan, 2, parent=plan["parent"] | {"sha256": "f" * 64}) == SECOND
    # and once another plan was written, the first one's server gives up: its work is nobody's
    assert place(bench, plan, 3) == "scratch/ckpt-000001/3"


def test_what_nobody_delivered_to_is_tried_anew(bench: Bench) -> None:
    plan = bench.plan([{"CA": 1, "TX": 1}], ("CA", "TX"))
    place(bench, plan, 1)
    with pytest.raises(FederationError, match="no site delivered"):
        bench.run(plan, (Fault("CA", 0, "nan"), Fault("TX", 0, "error")))
    assert place(bench, plan, 2) == SECOND


def test_rounds_whose_weights_are_damaged_are_merged_anew_by_another_attempt(bench: Bench) -> None:
    plan = bench.plan([{"CA": 1, "TX": 1}] * 3, ("CA", "TX"))
    place(bench, plan, 1)
    killed_in_round(bench, plan, 2)
    bench.store.write_bytes(f"{FIRST}/round-0001/model.safetensors", b"damaged")
    assert place(bench, plan, 2) == SECOND
    assert bench.run(plan | {"attempt": 2})["steps"] == 6
    assert {(order.attempt, order.round) for _, order in bench.transport.sent} == {(2, 0), (2, 1), (2, 2)}


def test_with_open_rounds_what_was_merged_counts_whoever_trains_next(bench: Bench) -> None:
    plan = bench.live(("CA", "TX"))
    place(bench, plan, 1)
    assert place(bench, bench.live(("CA",)), 2) == SECOND  # nothing of it is done
    bench.store.delete("scratch/ckpt-000001/2")
    killed_in_round(bench, plan, 1)
    assert place(bench, bench.live(("CA",)), 2) == FIRST


def test_what_is_over_counts_for_any_later_attempt_until_one_has_a_plan_of_its_own(bench: Bench) -> None:
    plan = bench.plan([{"CA": 1, "TX": 1}], ("CA", "TX"))
    place(bench, plan, 1)
    bench.run(plan)
    assert place(bench, plan, 2) == place(bench, plan, 3) == place(bench, plan, 1) == FIRST
    assert place(bench, plan, 2, parent=plan["parent"] | {"key": "ckpt-000009"}) == SECOND
    assert place(bench, plan, 2) == SECOND and place(bench, plan, 1) == FIRST


def test_an_outcome_whose_weights_are_gone_is_none(bench: Bench) -> None:
    plan = bench.plan([{"CA": 1, "TX": 1}], ("CA", "TX"))
    place(bench, plan, 1)
    bench.store.delete(bench.run(plan)["weights"]["key"])
    assert place(bench, plan, 2) == SECOND


def test_rounds_in_which_no_step_was_trained_are_no_work(bench: Bench) -> None:
    plan = bench.live(("CA",), max_rounds=2)
    place(bench, plan, 1)
    assert bench.run(plan, steps_per_round=0)["steps"] == 0
    bench.store.delete(f"{FIRST}/segment.json")  # as a caller does that has seen it
    assert place(bench, plan, 2) == SECOND
    assert bench.run(plan | {"attempt": 2})["steps"] == 260


def test_another_generation_that_wants_the_same_members_goes_on(bench: Bench) -> None:
    place(bench, bench.live(("CA", "TX")), 1)
    plan = bench.live(("CA", "TX"))
    assert place(bench, plan, 2, generation=5, open=plan["open"] | {"generation": 5}) == FIRST


@pytest.mark.parametrize("ends", [False, True])
def test_a_server_that_merges_and_tidies_meanwhile_is_followed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """What the last round in the journal merged is gone by the time that it is looked at."""
    plan = bench.plan([{"CA": 1, "TX": 1}] * 4, ("CA", "TX"))
    place(bench, plan, 1)
    killed_in_round(bench, plan, 2)
    stat = bench.store.stat

    def goes_on(key: str) -> object:
        monkeypatch.setattr(bench.store, "stat", stat)
        if ends:
            bench.run(plan)
        else:
            killed_in_round(bench, plan, 3)
        return stat(key)

    monkeypatch.setattr(bench.store, "stat", goes_on)
    assert place(bench, plan, 2) == FIRST
