"""Rounds that overlap: what each begins with, what is refused and comes back, and that all of it repeats."""

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, load_file
from test_rounds import PER_STEP, REFUSED, Bench, Fault, replay, require_counted_once
from test_rounds_resumed import killed_in_round

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation.answered import Delivered
from curtail_pipeline.federation.orders import JournalLine
from curtail_pipeline.federation.progress import merged_round
from curtail_pipeline.federation.update_file import write_weights
from curtail_pipeline.settings.federation_settings import LivenessLimits
from curtail_pipeline.storage.store import StoreUnavailable, file_sha256

SITES = ("CA", "TX")
OVERLAP = {"exchange": {"upload": "int8", "overlap": True}}
MERGED = OVERLAP | {"shared": {"name": "fresh"}}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def two(bench: Bench, rounds: int, **changes: Any) -> dict[str, Any]:
    return bench.plan([{"CA": 2, "TX": 3}] * rounds, SITES, **OVERLAP | changes)


def journal(bench: Bench, folder: str = "scratch/ckpt-000001/1") -> list[dict[str, Any]]:
    return [json.loads(line) for line in bench.store.read_bytes(f"{folder}/rounds.jsonl").splitlines()]


def require_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The same weights, outer buffer, norms and work."""
    for part in ("weights", "outer"):
        assert one[part]["sha256"] == other[part]["sha256"]
    for part in ("sites", "steps", "tokens", "norm_history"):
        assert one[part] == other[part]
    assert (one["shared"] and one["shared"]["name"]) == (other["shared"] and other["shared"]["name"])


def drawn_faults(sites: Sequence[str], rounds: int, *kinds: str) -> st.SearchStrategy[list[Fault]]:
    """Up to six of them, and of what is refused, each at a site in one of so many rounds."""
    one = st.builds(Fault, st.sampled_from(sites), st.integers(0, rounds - 1), st.sampled_from([*kinds, *REFUSED]))
    return st.lists(one, max_size=6)


def quorum_of(members: int, faults: Sequence[Fault]) -> dict[str, Any]:
    """With grace where a site is late: without, it would never answer."""
    return {"members": members, "grace": 1.0 if "late" in {fault.kind for fault in faults} else None}


def require_counted_and_repeated(bench: Bench, plan: dict[str, Any], faults: Sequence[Fault]) -> None:
    """Whatever fails: unless nobody delivers, text counts once and a replay is the same."""
    try:
        segment = bench.run(plan, tuple(faults))
    except FederationError as error:
        assert "no site delivered" in str(error)
        return
    require_counted_once(segment)
    require_same(bench.run(replay(plan, segment), folder="scratch/replay"), segment)


def test_a_round_begins_with_the_merge_of_the_last_but_one_and_its_own_work(bench: Bench) -> None:
    """By hand: averages by tokens of what was moved, from wherever a site was."""
    first = bench.store.path("checkpoints/ckpt-000000/model.safetensors")
    files: dict[str, bytes] = {}
    begun: dict[tuple[int, str], dict[str, Any]] = {}

    def made(parent: Path, update: Path) -> dict[str, Any]:
        write_weights(parent, update, "int8", bench.store.path("made"))
        return load_file(bench.store.path("made"))

    def keep() -> None:
        for path in bench.store.path("scratch/ckpt-000001/1").glob("round-*/*.safetensors"):
            files.setdefault(f"{path.parent.name}/{path.stem}", path.read_bytes())
        for site, order in bench.transport._pending:
            parent = bench.store.path(order.parent.key)
            own = order.own and bench.store.path(order.own.key)
            begun[order.round, site] = made(parent, own) if own else load_file(parent)

    segment = bench.run(two(bench, 3, outer={"lr": 1.0, "momentum": 0.0}), on_poll=keep)
    keep()
    before = load_file(first)

    def moved(number: int, site: str) -> dict[str, Any]:
        update = bench.store.path("update")
        update.write_bytes(files[f"round-{number:04d}/{site}"])
        return {name: before[name] - values for name, values in made(first, update).items()}

    merged = [before, *(load(files[f"round-{number:04d}/model"]) for number in (0, 1))]
    for name in before:
        for number in (0, 1):
            updates = {site: moved(number, site)[name] for site in SITES}
            mean = 0.4 * updates["CA"] + 0.6 * updates["TX"]
            np.testing.assert_allclose(merged[number + 1][name], merged[number][name] - mean, atol=1e-6)
            for site in SITES:
                np.testing.assert_array_equal(begun[0, site][name], before[name])
                own = merged[number][name] - updates[site]
                np.testing.assert_allclose(begun[number + 1, site][name], own, atol=1e-6)
    assert segment["steps"] == 15 and [order["first_step"] for order in bench.orders("CA")] == [100, 105, 110]
    assert segment["sites"]["TX"]["consumed"] == [[1, 0, 9 * PER_STEP]]
    assert [line["done"]["index"] for line in journal(bench)] == [0, 1, 2]
    line = JournalLine.read(journal(bench)[1], "the journal")
    told = merged_round(line)
    assert told.merging_s == 0 and told.moving_s == max(0.0, line.wall_s - 0.01), "nobody waited for the merge"
    assert re.search(r"round 2: 5 steps by CA, TX; 0.01 of \S+ s training", bench.lines[-1])


def test_a_site_alone_has_nothing_to_wait_for(bench: Bench) -> None:
    rounds = [{"CA": 2}] * 3
    waited = bench.run(bench.plan(rounds, ("CA",), exchange={"upload": "int8"}), folder="scratch/waited")
    require_same(bench.run(bench.plan(rounds, ("CA",), **OVERLAP)), waited)


def test_merged_states_are_what_a_segment_hands_on_and_own_ones_what_a_round_begins_with(bench: Bench) -> None:
    plan = two(bench, 3, **MERGED)
    segment = bench.run(plan)
    lines = journal(bench)
    for before, after in pairwise(lines):
        for site in SITES:
            assert after["orders"][site]["inner_state"] == before["results"][site]["inner_state"]["end"]
            assert after["orders"][site]["shared"]["key"] == before["orders"][site]["inner_out"]
    assert segment["shared"]["key"] == "scratch/ckpt-000001/1/round-0002/inner.safetensors"
    assert segment["shared"]["name"] == f"sha256:{file_sha256(bench.store.path(segment['shared']['key']))}"
    require_same(bench.run(replay(plan, segment), folder="scratch/replay"), segment)


NEVER = ("not stored", "disk full", "gone", "corrupt", "nan", "shape")
"""What is known of an update only once its round is merged."""


@pytest.mark.parametrize("shared", [None, {"name": "fresh"}], ids=["own", "merged"])
@pytest.mark.parametrize("kind", NEVER)
def test_an_update_that_never_arrives_gives_its_text_back_with_all_on_top_of_it(
    bench: Bench, kind: Any, shared: Any
) -> None:
    plan = two(bench, 5, shared=shared)
    segment = bench.run(plan, (Fault("TX", 1, kind),), limits=LivenessLimits(liveness_s=1000, transfer_s=30))
    assert [set(done["steps"]) for done in segment["rounds"]] == [{*SITES}, {"CA"}, {"CA"}, {*SITES}, {*SITES}]
    why = [done["refused"].get("TX") for done in segment["rounds"]]
    if kind == "not stored":
        assert why[1].startswith("its update was not stored within 30 s") and bench.now < 32
    if kind == "disk full":
        assert why[1] == "its update was not stored: No space left on device" and bench.now < 2
    assert why[1] and why[2] == "it goes on from its update of round 1, which was not merged"
    _, refused, on_top, after, last = bench.orders("TX")
    assert refused["own"] and on_top["own"] and after["own"] is None and last["own"]
    assert on_top["lease"] == [[1, 24, 36]] and after["lease"] == [[1, 12, 48]]  # the ranges came back, in order
    assert after["inner_state"] == (first_end := journal(bench)[0]["results"]["TX"]["inner_state"]["end"]) or shared
    assert shared or first_end == refused["inner_state"]
    assert segment["sites"]["TX"]["consumed"] == [[1, 0, 36]] and segment["sites"]["TX"]["steps"] == 9
    assert (on_top["first_step"], after["first_step"]) == (110, 109)  # what is refused later was in the former
    require_same(bench.run(replay(plan, segment), folder="scratch/replay"), segment)


def test_a_round_that_gave_nothing_stays_in_its_replay(bench: Bench) -> None:
    """Without it the next one would begin with updates of the round before it."""
    plan = two(bench, 5)
    segment = bench.run(plan, (Fault("CA", 1, "gone"), Fault("TX", 1, "gone")))
    assert [len(done["steps"]) for done in segment["rounds"]] == [2, 0, 0, 2, 2]
    require_same(bench.run(replay(plan, segment), folder="scratch/replay"), segment)


def test_what_is_refused_at_the_answer_is_not_gone_on_from(bench: Bench) -> None:
    plan = two(bench, 3)
    segment = bench.run(plan, (Fault("TX", 1, "stale"),))
    assert "trained from 000000000000, not from this round's" in segment["rounds"][1]["refused"]["TX"]
    assert segment["rounds"][2]["steps"].keys() == {*SITES} and bench.orders("TX")[2]["own"] is None
    require_same(bench.run(replay(plan, segment), folder="scratch/replay"), segment)


def test_a_pending_update_is_waited_for_at_the_end(bench: Bench) -> None:
    """It arrives when a minute has passed, while the store is away for a while."""
    plan, read, wait = two(bench, 2), bench.store.read_record, bench.wait
    key = "scratch/ckpt-000001/1/round-0001/delivered/TX.json"

    def late(seconds: float) -> None:
        wait(seconds)
        if bench.now > 60 and not bench.store.exists(key):
            (order,) = [order for order in bench.orders("TX") if order["round"] == 1]
            digest = file_sha256(bench.store.path(order["out"]))
            bench.store.write_record(key, Delivered(site="TX", round=1, weights_sha256=digest, seconds=bench.now))

    def away(key: str, kind: Any) -> Any:
        if "delivered" in key and 20 < bench.now < 50:
            raise StoreUnavailable("away")
        return read(key, kind)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "wait", late)
        patch.setattr(bench.store, "read_record", away)
        segment = bench.run(plan, (Fault("TX", 1, "not stored"),), limits=LivenessLimits(liveness_s=1000))
    assert segment["steps"] == 10 and not segment["refused"] and 60 < bench.now < 62


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (b"{}", "what it says of its update is damaged: .*delivered/TX.json in the store .* has schema None"),
        (
            Delivered(site="TX", round=1, weights_sha256="f" * 64, seconds=1).model_dump_json().encode(),
            "it stored an update ffffffffffff, not the one it answered with",
        ),
    ],
)
def test_what_is_said_of_an_update_has_to_be_of_that_update(bench: Bench, told: bytes, why: str) -> None:
    key = "scratch/ckpt-000001/1/round-0001/delivered/TX.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "wait", lambda _: bench.store.write_bytes(key, told))
        segment = bench.run(two(bench, 2), (Fault("TX", 1, "not stored"),))
    assert re.match(why, segment["refused"]["TX"])


def test_who_falls_silent_with_an_update_pending_is_not_waited_for(bench: Bench) -> None:
    """In the simulation nobody shows life between rounds, so that both are silent once it is waited for."""
    plan = two(bench, 2)
    segment = bench.run(plan, (Fault("TX", 1, "not stored"),))
    assert segment["refused"]["TX"].startswith("its update was not stored: no heartbeat for ") and bench.now < 12
    assert segment["rounds"][1]["steps"] == {"CA": 2} and segment["sites"]["TX"]["consumed"] == [[1, 0, 12]]


def test_a_lost_site_ends_the_segment_and_what_it_had_stored_counts(bench: Bench) -> None:
    plan = two(bench, 4)
    segment = bench.run(plan, (Fault("TX", 1, "kill"),))
    assert segment["stop_reason"].startswith("TX lost: no heartbeat") and len(segment["rounds"]) == 2
    assert segment["sites"]["TX"]["steps"] == 3 and segment["rounds"][1]["steps"] == {"CA": 2}
    require_same(bench.run(replay(plan, segment), folder="scratch/replay"), segment)


@pytest.mark.parametrize("shared", [None, {"name": "fresh"}], ids=["own", "merged"])
@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("index", [1, 2, 3])
def test_a_server_that_takes_over_gives_the_same_weights(bench: Bench, index: int, live: bool, shared: Any) -> None:
    faults = (Fault("TX", 1, "gone"),)
    plan = bench.live(SITES, max_rounds=4, **OVERLAP, shared=shared) if live else two(bench, 4, shared=shared)
    whole = bench.run(plan, faults, folder="scratch/whole", steps_per_round=2)
    killed_in_round(bench, plan, index, faults)
    resumed = bench.run(plan, faults, steps_per_round=2)
    assert [order["round"] for order in bench.orders("CA")] == [*range(index, 4)]
    require_same(resumed, whole)
    assert resumed["rounds"][1]["refused"].keys() == resumed["rounds"][2]["refused"].keys() == {"TX"}
    assert [line["done"]["index"] for line in journal(bench)] == [0, 1, 2, 3]


@pytest.mark.parametrize("written", ["rounds.jsonl", "answered.json"])
def test_a_server_may_die_between_any_two_files(bench: Bench, written: str) -> None:
    """A line is written before the next round's answers are, and these before its orders."""
    plan, write = two(bench, 3), bench.store.write_bytes
    whole, seen = bench.run(plan, folder="scratch/whole"), []

    def dies(key: str, data: bytes) -> None:
        write(key, data)
        seen.append(key)
        if sum(key.endswith(written) for key in seen) == 2:
            raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.store, "write_bytes", dies)
        with pytest.raises(InterruptedError):
            bench.run(plan)
    require_same(bench.run(plan), whole)


def test_jobs_end_where_steps_that_were_given_out_are_refused(bench: Bench) -> None:
    plan = bench.live(SITES, max_rounds=9, **OVERLAP, first_step=0, total_steps=12)
    segment = bench.run(plan, (Fault("TX", 2, "corrupt"),), steps_per_round=2)
    assert segment["steps"] == 10 and segment["stop_reason"] == "2 of the job's last steps were refused"
    assert bench.run(plan | {"attempt": 2}, steps_per_round=2)["stop_reason"] == "job finished"


@settings(max_examples=15, deadline=None)
@given(
    drawn_faults(SITES, 5, "kill", "error", "late", "not stored", "disk full", "no state", "lost state"),
    st.integers(1, 2),
    st.sampled_from([None, {"name": "fresh"}]),
)
def test_tokens_count_exactly_once_whatever_fails(
    tmp_path_factory: Any, faults: list[Fault], quorum: int, shared: Any
) -> None:
    bench = Bench(tmp_path_factory.mktemp("store"))
    plan = two(bench, 5, quorum=quorum_of(quorum, faults), shared=shared)
    require_counted_and_repeated(bench, plan, faults)
