"""The segment loop: what is sent, counted, rolled back, and why it ends. Sites are simulated, so is time."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from curtail_pipeline.errors import FederationError, MessageError
from curtail_pipeline.federation import next_round, round_merge
from curtail_pipeline.federation.orders import Plan, Segment, StoredWeights
from curtail_pipeline.federation.plan import replay_of
from curtail_pipeline.federation.rounds import run_segment
from curtail_pipeline.federation.simulated import Fault, MemoryTransport, SimulatedSite
from curtail_pipeline.scheduling.reconcile import Desired
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.links import Links
from curtail_pipeline.storage.store import file_sha256
from curtail_pipeline.times import EPOCH
from curtail_pipeline.tokens.ranges import compact

SITES = ("CA", "TX", "SA")

PER_STEP = 4


class Bench:
    """A store with a parent checkpoint, and a clock that only `wait` moves."""

    def __init__(self, folder: Path) -> None:
        self.store = FolderStore(folder)
        self.now = 0.0
        random = np.random.default_rng(0)
        path = self.store.path("checkpoints/ckpt-000000/model.safetensors")
        path.parent.mkdir(parents=True)
        shapes = {"a": (9, 4), "b": (13,)}
        save_file({n: random.standard_normal(s).astype(np.float32) for n, s in shapes.items()}, path, {"format": "pt"})
        self.lines: list[str] = []
        self.transport: MemoryTransport

    def plan(
        self, rounds: list[dict[str, int]] | None, members: tuple[str, ...] = SITES, **changes: Any
    ) -> dict[str, Any]:
        path = self.store.path("checkpoints/ckpt-000000/model.safetensors")
        cursor = dict.fromkeys(members, 0)
        planned = []
        for index, steps in enumerate(rounds or []):
            lease = {}
            for site, count in steps.items():
                lease[site] = [[1, cursor[site], cursor[site] + PER_STEP * count]]
                cursor[site] += PER_STEP * count
            planned.append({"index": index, "start": None, "end": None, "steps": steps, "lease": lease, "stops": {}})
        return {
            "schema": 1, "key": "ckpt-000001", "attempt": 1, "generation": 1, "members": list(members),
            "parent": {"key": "ckpt-000000", "weights": "checkpoints/ckpt-000000/model.safetensors",
                       "sha256": file_sha256(path), "outer": None, "config": "checkpoints/ckpt-000000/config.json"},
            "mode": "federated" if len(members) > 1 else "local", "first_step": 100, "total_steps": 1000, "seed": 1,
            "experiment_uri": "experiment.json", "rounds": planned if rounds is not None else None, "open": None,
            "inner_state": {}, "outer": {"lr": 0.7, "momentum": 0.9}, "norm_bound": 5.0, "norm_history": [],
            "step_size": {"sequences": PER_STEP, "tokens": PER_STEP * 8}, "replay": "",
        } | changes  # fmt: skip

    def live(self, members: tuple[str, ...] = SITES, max_rounds: int = 4, **changes: Any) -> dict[str, Any]:
        lease = {site: [[1, 0, 40], [2, 0, 1000]] for site in members}
        opened = {"round_s": 600.0, "max_rounds": max_rounds, "lease": lease, "generation": 3}
        return self.plan(None, members, open=opened, **changes)

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def run(
        self,
        plan: dict[str, Any],
        faults: tuple[Fault, ...] = (),
        on_poll: Callable[[], None] | None = None,
        steps_per_round: int | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """The segment as it is written."""
        asked = Plan.read(plan, "the plan")
        sites = {n: SimulatedSite(n, self.store, PER_STEP, steps_per_round=steps_per_round) for n in asked.members}
        self.transport = MemoryTransport(sites, self.store, faults, on_poll)
        segment = run_segment(
            self.transport, asked, self.store, clock=lambda: self.now, wait=self.wait, log=self.lines.append, **options
        )
        return json.loads(segment.model_dump_json())

    def orders(self, site: str) -> list[dict[str, Any]]:
        return [json.loads(order.model_dump_json()) for name, order in self.transport.sent if name == site]

    def membership(self, generation: int, reasons: dict[str, str] | None = None, **states: Any) -> None:
        desired = Desired(generation=generation, states=states, reasons=reasons or {}, reason="", at=EPOCH)
        self.store.write_record("membership.json", desired)


def require_counted_once(segment: dict[str, Any]) -> None:
    """Each site's text from the beginning, without a gap, and as much as its steps took."""
    for site, mine in segment["sites"].items():
        per_round = [tuple(part) for r in segment["rounds"] for part in r["consumed"].get(site, [])]
        assert compact(per_round) == [tuple(part) for part in mine["consumed"]]
        assert mine["consumed"] == ([[1, 0, PER_STEP * mine["steps"]]] if mine["steps"] else [])


def replay(plan: dict[str, Any], segment: dict[str, Any]) -> dict[str, Any]:
    """The plan that repeats a segment."""
    states = {site: done["inner_state"]["begin"] for site, done in segment["sites"].items()}
    asked = Plan.read(plan, "the plan")
    left = {site: done["residual"]["begin"] for site, done in segment["sites"].items() if done.get("residual")}
    realised = Segment.read(segment, "the segment")
    again = replay_of(asked, realised, states, "again", shared=asked.shared, residuals=left)
    return json.loads(again.model_dump_json())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_addresses_go_with_an_order_and_stay_out_of_the_journal(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(next_round, "links_of", lambda *_: Links(get={"key": "signed secretly"}, put={}))
    bench.run(bench.plan([{"CA": 1, "TX": 1}], ("CA", "TX"), linked=["TX"]))
    assert {site: order.links is not None for site, order in bench.transport.sent} == {"CA": False, "TX": True}
    journal = bench.store.read_bytes("scratch/ckpt-000001/1/rounds.jsonl")
    assert b"TX" in journal and b"secretly" not in journal


def test_a_planned_segment(bench: Bench) -> None:
    segment = bench.run(bench.plan([{"CA": 3, "TX": 3, "SA": 1}, {"CA": 2, "TX": 2}], stop_reason="SA leaves"))
    assert segment["stop_reason"] == "SA leaves" and segment["steps"] == 11 and segment["tokens"] == 11 * PER_STEP * 8
    assert [r["steps"] for r in segment["rounds"]] == [{"CA": 3, "SA": 1, "TX": 3}, {"CA": 2, "TX": 2}]
    assert segment["sites"]["CA"]["consumed"] == [[1, 0, 20]] and segment["sites"]["SA"]["steps"] == 1
    first, second = bench.orders("CA")
    assert (first["first_step"], first["members"], second["first_step"], second["members"]) == (100, 3, 107, 2)
    assert first["inner_state"] == "fresh" and second["inner_state"].startswith("sha256:")
    assert second["parent"]["key"] == "scratch/ckpt-000001/1/round-0000/model.safetensors"
    assert segment["sites"]["CA"]["inner_state"]["begin"] == "fresh"
    assert segment == bench.store.read_json("scratch/ckpt-000001/1/segment.json")
    # what is left: the last round's two files, the journal and the segment
    assert bench.store.list("scratch/ckpt-000001/1") == ["round-0001", "rounds.jsonl", "segment.json"]
    assert bench.store.list("scratch/ckpt-000001/1/round-0001") == ["model.safetensors", "outer.safetensors"]
    for name in ("weights", "outer"):
        assert file_sha256(bench.store.path(segment[name]["key"])) == segment[name]["sha256"]
    journal = [json.loads(line) for line in bench.store.read_bytes("scratch/ckpt-000001/1/rounds.jsonl").splitlines()]
    assert [entry["done"]["index"] for entry in journal] == [0, 1]
    assert journal[1]["orders"]["TX"]["first_step"] == 107 and journal[0]["merge"]["accepted"]["TX"]["norm"] > 0


def test_inner_states_are_merged_and_handed_to_whoever_trains_next(bench: Bench) -> None:
    kept: dict[str, dict[str, Any]] = {}

    def keep() -> None:  # what the sites delivered is gone once it is merged
        for path in bench.store.path("scratch/ckpt-000001/1").rglob("*.safetensors"):
            kept.setdefault(str(path.relative_to(bench.store.root)), load_file(path))

    rounds = [{"CA": 3, "TX": 1}, {"TX": 1}, {"SA": 1, "CA": 1}, {"CA": 1}]
    plan = bench.plan(rounds, shared={"name": "fresh"})
    faults = (Fault("CA", 2, "nan state"),)
    merge = round_merge.store_merged

    def merged(store: Any, orders: Any, states: Any, report: Any, key: str) -> Any:
        keep()
        return merge(store, orders, states, report, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(round_merge, "store_merged", merged)
        segment = bench.run(plan, faults)
    first, after, joined, last = [
        next(order for site, order in bench.transport.sent if order.round == n) for n in range(4)
    ]
    assert first.shared is not None and first.inner_state == "fresh"
    folder = "scratch/ckpt-000001/1"
    sites = [kept[f"{folder}/round-0000/inner/{site}.safetensors"] for site in ("CA", "TX")]
    assert after.shared is not None and after.shared.key == f"{folder}/round-0000/inner.safetensors"
    for name, values in kept[after.shared.key].items():
        np.testing.assert_allclose(values, 0.75 * sites[0][name] + 0.25 * sites[1][name], rtol=1e-6)
    # who joins begins with what the one member of the round before left, and a refused site leaves nothing behind
    alone = bench.store.read_bytes(f"{folder}/rounds.jsonl").splitlines()
    ends = [json.loads(line)["results"] for line in alone]
    assert joined.site == "CA" and joined.inner_state == ends[1]["TX"]["inner_state"]["end"]
    assert "inner state is not finite" in segment["refused"]["CA"]
    assert last.inner_state == ends[2]["SA"]["inner_state"]["end"]
    assert segment["shared"]["name"] == ends[3]["CA"]["inner_state"]["end"]
    assert bench.store.list(f"{folder}/round-0003") == ["inner.safetensors", "model.safetensors", "outer.safetensors"]


def test_a_state_that_no_gradients_leave_is_refused_on_record(bench: Bench) -> None:
    """What simulated sites leave has a norm of 7, so that a clip of 8 is what trainers would be held to."""
    step = {"sequences": PER_STEP, "tokens": PER_STEP * 8, "grad_clip": 8.0}
    plan = bench.plan([{"CA": 1, "TX": 1}] * 2, ("CA", "TX"), shared={"name": "fresh"}, step_size=step)
    segment = bench.run(plan, (Fault("TX", 1, "huge state"),))
    assert segment["refused"].keys() == {"TX"} and segment["rounds"][0]["steps"] == {"CA": 1, "TX": 1}
    assert "the muon part of its inner state has norm" in segment["rounds"][1]["refused"]["TX"]
    (state,) = [load_file(path) for path in bench.store.path("scratch").rglob("round-0001/inner.safetensors")]
    assert max(np.abs(values).max() for values in state.values()) < 10


def test_a_merged_state_outlives_a_round_without_an_update(bench: Bench) -> None:
    plan = bench.plan([{"CA": 1, "TX": 1}] * 3, ("CA", "TX"), shared={"name": "fresh"})
    segment = bench.run(plan, (Fault("CA", 1, "no state"), Fault("TX", 1, "nan")))
    assert segment["refused"].keys() == {"CA", "TX"} and "its inner state cannot be had" in segment["refused"]["CA"]
    before, after = [next(o for _, o in bench.transport.sent if o.round == n) for n in (1, 2)]
    assert before.shared == after.shared and segment["shared"]["name"] != before.inner_state


def test_local_mode_assigns(bench: Bench) -> None:
    segment = bench.run(bench.plan([{"CA": 3}, {"CA": 2}], ("CA",)))
    (last,) = segment["rounds"][1]["steps"].items()
    assert last == ("CA", 2) and segment["norm_history"] and segment["stop_reason"] == "plan finished"
    journal = [json.loads(line) for line in bench.store.read_bytes("scratch/ckpt-000001/1/rounds.jsonl").splitlines()]
    assert segment["weights"]["sha256"] == journal[1]["results"]["CA"]["weights"]["sha256"]


REFUSED = (
    "nan", "huge", "corrupt", "shape", "stale", "greedy", "halved", "boastful", "dreamer", "other round", "gone"
)  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refused_update_rolls_back_and_the_site_goes_on(bench: Bench, kind: Any) -> None:
    segment = bench.run(bench.plan([{"CA": 2, "TX": 2}] * 3, ("CA", "TX")), (Fault("TX", 1, kind),))
    assert set(segment["rounds"][1]["refused"]) == {"TX"} and segment["rounds"][1]["steps"] == {"CA": 2}
    before, refused, after = bench.orders("TX")
    assert after["inner_state"] == refused["inner_state"] != before["inner_state"]
    assert refused["lease"] == [[1, 8, 16]] and after["lease"] == [[1, 8, 24]]  # the ranges came back
    assert segment["sites"]["TX"]["consumed"] == [[1, 0, 16]] and segment["sites"]["TX"]["steps"] == 4
    assert (after["first_step"], after["members"]) == (106, 2)
    assert segment["stop_reason"] == "plan finished" and set(segment["refused"]) == {"TX"} and not segment["lost"]


def test_a_site_that_talks_up_its_work_does_not_decide_the_merge(bench: Bench) -> None:
    rounds = [{"CA": 2, "TX": 2, "SA": 2}]
    segment = bench.run(bench.plan(rounds), (Fault("TX", 0, "boastful"), Fault("SA", 0, "halved")))
    assert segment["refused"]["TX"] == "it claims 6400 tokens, its 2 steps took 64"
    assert segment["refused"]["SA"] == "its ranges hold 4 sequences, its 2 steps took 8"
    journal = [json.loads(line) for line in bench.store.read_bytes("scratch/ckpt-000001/1/rounds.jsonl").splitlines()]
    assert journal[0]["merge"]["accepted"]["CA"]["share"] == 1.0


@pytest.mark.parametrize("differing", ["refuse", "record"])
def test_a_site_with_another_torch_is_refused_or_recorded(bench: Bench, differing: str) -> None:
    terms = {"made_with": {"torch": "2.13.0"}, "differing": differing}
    plan = bench.plan([{"CA": 1, "TX": 1}] * 2, ("CA", "TX"), terms=terms)
    segment = bench.run(plan, (Fault("TX", 1, "other torch"),))
    said = "it works with torch 0.4.1 instead of 2.13.0"
    if differing == "refuse":
        assert segment["refused"]["TX"].startswith(said) and segment["rounds"][1]["steps"] == {"CA": 1}
    else:
        assert segment["rounds"][1]["odd"] == {"TX": said} and segment["sites"]["TX"]["steps"] == 2
        assert segment["sites"]["TX"]["made_with"] == {"torch": "0.4.1"} and not segment["refused"]
    assert segment["sites"]["CA"]["made_with"] == {"torch": "2.13.0+cpu"}  # a build for one device is the same release


@pytest.mark.parametrize("lost_state", ["refuse", "fresh"])
def test_a_lost_inner_state_is_recorded_or_refused(bench: Bench, lost_state: str) -> None:
    given = "sha256:" + "a" * 64
    plan = bench.plan(
        [{"CA": 1, "TX": 1}] * 2, ("CA", "TX"), terms={"lost_state": lost_state}, inner_state={"TX": given}
    )
    segment = bench.run(plan, (Fault("TX", 0, "lost state"),))
    if lost_state == "refuse":
        assert f"it began with state fresh, not {given}" in segment["refused"]["TX"]
    else:
        assert segment["rounds"][0]["odd"]["TX"].startswith("it began fresh: the inner state sha256:aaaa")
        assert segment["sites"]["TX"]["inner_state"]["begin"] == "fresh" and not segment["refused"]
        # what is repeated is what was done
        replayed = bench.run(replay(plan, segment), folder="scratch/replay")
        assert replayed["weights"] == segment["weights"] | {"key": replayed["weights"]["key"]}


def test_a_gate_refuses_what_is_worse_on_heldout_text(bench: Bench) -> None:
    losses = {"CA": 5.05, "TX": 5.2, "SA": float("nan")}

    def heldout_loss(weights: StoredWeights) -> float:
        return next((loss for site, loss in losses.items() if weights.key.endswith(f"{site}.safetensors")), 5.0)

    plan = bench.plan([{"CA": 1, "TX": 1, "SA": 1}], heldout_gate=0.1)
    segment = bench.run(plan, heldout_loss=heldout_loss)
    assert segment["rounds"][0]["steps"] == {"CA": 1} and segment["refused"].keys() == {"TX", "SA"}
    assert "held-out loss 5.2 is more than 0.1 above the round's start of 5" in segment["refused"]["TX"]


def test_starting_weights_damaged_while_a_round_runs_are_not_merged_with(bench: Bench) -> None:
    def damage() -> None:
        path = bench.store.path("scratch/ckpt-000001/1/round-0000/model.safetensors")
        if path.exists():
            data = bytearray(path.read_bytes())
            data[-3] ^= 1
            path.write_bytes(data)

    with pytest.raises(FederationError, match=r"round-0000/model.safetensors was damaged while its round ran"):
        bench.run(bench.plan([{"CA": 2, "TX": 2}] * 3, ("CA", "TX")), on_poll=damage)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("kill", "no heartbeat for 8 s"),
        ("restart", "its agent restarted"),
        ("error", "trainer answered 500"),
        ("hang", "no progress for 1[56] s: train"),
        ("undelivered", "it has not worked on its order for 30 s and no result has come"),
    ],
)
def test_a_lost_site_ends_the_segment_after_the_round(bench: Bench, kind: Any, reason: str) -> None:
    segment = bench.run(bench.plan([{"CA": 2, "TX": 2}] * 4, ("CA", "TX")), (Fault("TX", 1, kind),))
    assert len(segment["rounds"]) == 2 and segment["rounds"][1]["steps"] == {"CA": 2}
    assert re.match(f"TX lost: {reason}", segment["stop_reason"]), segment["stop_reason"]
    assert segment["sites"]["TX"]["consumed"] == [[1, 0, 8]] and segment["lost"].keys() == {"TX"}
    end = segment["sites"]["TX"]["inner_state"]["end"]
    assert end == bench.orders("TX")[1]["inner_state"]  # the state at the lost round's start
    assert bench.now < (32 if kind == "undelivered" else 17 if kind == "hang" else 12)


def test_a_silent_but_living_site_is_waited_for(bench: Bench) -> None:
    def late() -> None:
        if bench.now > 500:
            bench.transport.faults.clear()
            bench.transport._pending = [sent for sent in bench.transport.sent if sent[0] == "TX"]

    segment = bench.run(bench.plan([{"CA": 2, "TX": 2}], ("CA", "TX")), (Fault("TX", 0, "mute"),), late)
    assert segment["rounds"][0]["steps"] == {"CA": 2, "TX": 2} and bench.now > 500


def test_nothing_delivered_is_an_error_and_commits_nothing(bench: Bench) -> None:
    plan = bench.plan([{"CA": 2, "TX": 2}], ("CA", "TX"))
    with pytest.raises(FederationError, match=r"ckpt-000001: no site delivered .*CA: .*not finite.*TX: no heartbeat"):
        bench.run(plan, (Fault("CA", 0, "nan"), Fault("TX", 0, "kill")))
    assert not bench.store.exists("scratch/ckpt-000001/1/segment.json")


def test_a_superseded_attempt_stops(bench: Bench) -> None:
    plan = bench.plan([{"CA": 1, "TX": 1}] * 3, ("CA", "TX"))

    def supersede() -> None:
        bench.store.write_json("scratch/ckpt-000001/3/plan.json", {})

    with pytest.raises(FederationError, match="attempt 1 was superseded by attempt 3"):
        bench.run(plan, on_poll=supersede)
    assert not bench.store.exists("scratch/ckpt-000001/1/segment.json")


def test_bad_plans_are_named(bench: Bench) -> None:
    with pytest.raises(MessageError, match="mode local has one member"):
        bench.run(bench.plan([{"CA": 1, "TX": 1}], ("CA", "TX"), mode="local"))
    with pytest.raises(MessageError, match="round 0 has steps for 'TX', which is no member"):
        bench.run(bench.plan([{"CA": 1}], ("CA",)) | {"rounds": [{"index": 0, "steps": {"TX": 1}, "lease": {}}]})
    with pytest.raises(MessageError, match="give either rounds or open"):
        bench.run(bench.plan(None))


def test_a_segment_hands_its_last_step_on(bench: Bench) -> None:
    plan = bench.plan([{"CA": 2, "TX": 1}] * 2, ("CA", "TX"), exchange={"download": "int8"})
    segment = bench.run(plan)
    assert segment["delta"]["base"]["sha256"] == segment["rounds"][0]["weights"]["sha256"]
    parent = plan["parent"] | {"weights": segment["weights"]["key"], "sha256": segment["weights"]["sha256"]}
    behind = bench.plan([{"CA": 1, "TX": 1}], ("CA", "TX"), parent=parent | {"delta": segment["delta"]})
    bench.run(behind, folder="scratch/behind")
    assert bench.orders("CA")[0]["delta"] == segment["delta"]
