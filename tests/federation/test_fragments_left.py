"""What is left of fragments when a segment ends: sent once, in no time, under a name of its own, and repeated so."""

from pathlib import Path
from typing import Any

import pytest
from test_delayed import require_same
from test_fragments import SITES, exchange, lines, two
from test_rounds import Bench, Fault, replay, require_counted_once
from test_rounds_resumed import killed_in_round

from curtail_pipeline.federation.progress import merged_round


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_server_that_finds_another_membership_orders_nothing_that_trainers_have_seen_otherwise(
    bench: Bench, overlap: bool
) -> None:
    """A window closes while no server is there: what is left is sent under a name that the round under way has not."""
    plan = bench.live(SITES, max_rounds=5, **exchange(3, overlap=overlap))
    killed_in_round(bench, plan, 2)
    before = {(site, order.name): order.max_steps for site, order in bench.transport.sent}
    bench.membership(4, {"TX": "its window closes"}, CA="train", TX="warm")
    segment = bench.run(plan, steps_per_round=2)
    assert [order.max_steps for _, order in bench.transport.sent] == [0, 0]
    assert not before.keys() & {(site, order.name) for site, order in bench.transport.sent}
    assert segment["stop_reason"] == "TX leaves: its window closes" and not segment["lost"]
    require_counted_once(segment)
    require_same(bench.run(replay(plan, segment), folder="scratch/replay"), segment)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_membership_that_comes_and_goes_while_no_server_is_there_makes_no_order_anew(
    bench: Bench, overlap: bool
) -> None:
    """The first server was killed while it sent what was left, the second one found the membership as it had been."""
    plan = bench.live(SITES, max_rounds=5, **exchange(3, overlap=overlap))
    seen: dict[Any, Any] = {}

    def note() -> None:
        for site, order in bench.transport.sent:
            assert seen.setdefault((site, order.name), order.model_copy(update={"watch": None})) == order.model_copy(
                update={"watch": None}
            )

    def leave(generation: int, behind: int) -> None:
        note()
        if bench.transport.sent[-1][1].round == behind:
            bench.membership(generation, {"TX": "its window closes"}, CA="train", TX="warm")

    def killed() -> None:
        leave(4, 1)
        if bench.transport.sent[-1][1].max_steps == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run(plan, on_poll=killed, steps_per_round=2)
    bench.membership(5, {}, CA="train", TX="train")
    segment = bench.run(plan, on_poll=lambda: leave(6, 2), steps_per_round=2)
    assert [r["index"] for r in segment["rounds"]] == [0, 1, 2, 5 + 3] and 5 + 2 in {name[3] for _, name in seen}
    require_same(bench.run(replay(plan, segment), folder="scratch/replay"), segment)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_segment_is_over_once_what_was_left_is_sent(bench: Bench, overlap: bool) -> None:
    """Also for a server that takes over and finds the membership as it was; and what was refused then is not again."""
    plan = bench.live(SITES, max_rounds=5, **exchange(3, overlap=overlap))

    def leave() -> None:
        if bench.transport.sent[-1][1].round == 1:
            bench.membership(4, {"TX": "its window closes"}, CA="train", TX="warm")

    whole = bench.run(plan, (Fault("CA", 5 + 2, "gone"),), on_poll=leave, steps_per_round=2)
    assert whole["rounds"][-1]["refused"].keys() == {"CA"}
    bench.store.delete("scratch/ckpt-000001/1/segment.json")
    bench.membership(5, {}, CA="train", TX="train")
    resumed = bench.run(plan, steps_per_round=2)
    assert not bench.transport.sent and resumed["rounds"] == whole["rounds"]
    require_same(resumed, whole)


def test_a_repetition_goes_on_behind_a_round_whose_index_is_their_number(bench: Bench) -> None:
    """Rounds that gave nothing are left out of it, so that indexes and numbers differ: it is the index that says whose
    turn it is. And a round of everything may have another one behind it."""
    plan = bench.plan([{"CA": 2, "TX": 2}] * 6, SITES, **exchange(3))
    nothing = (Fault(site, index, "nan") for site in SITES for index in (1, 2))
    segment = bench.run(plan, (*nothing, Fault("TX", 5, "nan")))
    again = replay(plan, segment) | {"attempt": 2}
    assert [planned["index"] for planned in again["rounds"]] == [0, 3, 4, 5, 6 + 6]
    assert [planned["whole"] for planned in again["rounds"]] == [False] * 3 + [True] * 2
    killed_in_round(bench, again, 12)
    require_same(bench.run(again), segment)


def test_what_is_left_is_sent_in_no_planned_time(bench: Bench) -> None:
    plan = two(bench, 3)
    for number, planned in enumerate(plan["rounds"]):
        planned["start"], planned["end"] = f"2026-03-21T0{number}:00:00Z", f"2026-03-21T0{number}:50:00Z"
    segment = bench.run(plan, (Fault("TX", 1, "kill"),))
    assert [(r["start"], r["end"]) for r in segment["rounds"][1:]] == [
        ("2026-03-21T01:00:00Z", "2026-03-21T01:50:00Z"),
        ("2026-03-21T01:50:00Z", "2026-03-21T01:50:00Z"),
    ]
    assert bench.lines[-1] == "round 5: what was left by CA"
    told = merged_round(lines(bench)[-1])
    assert told.loss is None and told.tokens == 0 and told.bytes > 0


@pytest.mark.parametrize("overlap", [False, True])
def test_what_was_left_and_is_lost_weighs_nothing_and_is_not_there_in_a_repetition(bench: Bench, overlap: bool) -> None:
    plan = two(bench, 3, **exchange(overlap=overlap))
    segment = bench.run(plan, (Fault("TX", 1, "lost rest"),))
    assert [line.done.forgot for line in lines(bench)] == [(), ("TX",), ()]
    assert "what its last update left out" in segment["rounds"][1]["odd"]["TX"]
    assert lines(bench)[1].merge.accepted["TX"].share == pytest.approx(3 / 7), "of two rounds of CA and one of TX"
    require_counted_once(segment)
    require_same(bench.run(replay(plan, segment), folder="scratch/replay"), segment)
