"""Rounds that do not wait for everybody."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_delayed import drawn_faults, quorum_of, require_counted_and_repeated
from test_rounds import SITES, Bench, replay

from curtail_pipeline.federation.liveness import SILENT
from curtail_pipeline.federation.simulated import Fault


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_late_site_is_not_waited_for_and_takes_part_again(bench: Bench) -> None:
    quorum = {"members": 2, "grace": 0.5}
    plan = bench.plan([{"CA": 2, "TX": 3, "SA": 1}] * 4, quorum=quorum)
    segment = bench.run(plan, (Fault("TX", 1, "late"), Fault("SA", 3, "late")))
    late, after, last = segment["rounds"][1:]
    assert late["steps"].keys() == {"CA", "SA"} and after["steps"].keys() == {"CA", "TX", "SA"}
    assert late["refused"]["TX"].startswith("no answer after 0.0 s: 2 others had answered, and grace is 0.5")
    assert after["overdue"] == {"TX": "its answer to round 1 came after that was merged, and is not used"}
    assert last["steps"].keys() == {"CA", "TX"} and bench.now < 2
    assert segment["lost"] == {} and segment["stop_reason"] == "plan finished"
    first, _, again, *_ = bench.orders("TX")
    assert again["inner_state"] == bench.orders("TX")[1]["inner_state"] != first["inner_state"]
    assert again["lease"] == [[1, 12, 36]], "what it was given for the late round, and for this one"
    assert bench.store.read_json("scratch/ckpt-000001/1/late-0001.json")["round"] == 1
    replayed = bench.run(replay(plan, segment), folder="scratch/replay")
    assert replayed["weights"]["sha256"] == segment["weights"]["sha256"] and replayed["sites"] == segment["sites"]


def test_without_grace_all_are_waited_for(bench: Bench) -> None:
    """A site without word is waited for until it counts as lost."""
    segment = bench.run(bench.plan([{"CA": 1, "TX": 1}] * 2, ("CA", "TX")), (Fault("TX", 0, "kill"),))
    assert segment["lost"].keys() == {"TX"} and bench.now >= SILENT * 10
    assert all(order["late"] == "" for order in bench.orders("CA"))


@pytest.mark.parametrize("download", ["fp32", "int8"])
def test_less_than_a_quorum_is_not_merged(bench: Bench, download: str) -> None:
    plan = bench.plan(
        [{"CA": 2, "TX": 3, "SA": 1}] * 2, quorum={"members": 2}, shared={"name": "fresh"},
        exchange={"download": download},
    )  # fmt: skip
    segment = bench.run(plan, (Fault("TX", 0, "nan"), Fault("SA", 0, "corrupt")))
    none, both = segment["rounds"]
    assert none["steps"] == {} and none["refused"]["CA"] == "a merge takes 2 updates, and 1 could be used"
    assert none["weights"]["sha256"] == plan["parent"]["sha256"] and none["delta"] is None
    assert both["steps"] == {"CA": 2, "TX": 3, "SA": 1} and segment["sites"]["CA"]["consumed"] == [[1, 0, 8]]
    replayed = bench.run(replay(plan, segment), folder="scratch/replay")
    assert replayed["weights"]["sha256"] == segment["weights"]["sha256"] and replayed["sites"] == segment["sites"]


def test_a_quorum_of_more_than_take_part_is_all_of_them(bench: Bench) -> None:
    segment = bench.run(bench.plan([{"CA": 2}], ("CA",), quorum={"members": 3, "grace": 1.0}))
    assert segment["sites"]["CA"]["steps"] == 2


@settings(max_examples=20, deadline=None)
@given(
    drawn_faults(SITES, 5, "kill", "restart", "error", "late"),
    st.integers(1, 3),
)
def test_tokens_count_exactly_once_whatever_fails(tmp_path_factory: Any, faults: list[Fault], quorum: int) -> None:
    bench = Bench(tmp_path_factory.mktemp("store"))
    plan = bench.plan([{"CA": 2, "TX": 3, "SA": 1}] * 5, quorum=quorum_of(quorum, faults))
    require_counted_and_repeated(bench, plan, faults)
