"""A segment whose server was killed, or that is trained again: it gives the same weights."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_rounds import Bench, replay

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation.simulated import Fault
from curtail_pipeline.federation.update_file import write_weights


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


class Killed(Exception):
    """Stands for the end of the server's process."""


def killed_in_round(bench: Bench, plan: dict[str, Any], index: int, faults: tuple[Fault, ...] = ()) -> None:
    def die() -> None:
        if bench.transport.sent[-1][1].round == index:
            raise Killed

    with pytest.raises(Killed):
        bench.run(plan, faults, on_poll=die, steps_per_round=2)


@pytest.mark.parametrize("shared", [None, {"name": "fresh"}], ids=["own", "merged"])
@pytest.mark.parametrize("live", [False, True])
def test_another_server_goes_on_behind_what_was_merged(bench: Bench, live: bool, shared: Any) -> None:
    rounds = [{"CA": 2, "TX": 1, "SA": 1}] * 4
    plan = (bench.live(max_rounds=4) if live else bench.plan(rounds)) | {"shared": shared}
    whole = bench.run(plan, (Fault("TX", 1, "nan"),), folder="scratch/whole", steps_per_round=2)
    killed_in_round(bench, plan, 2, (Fault("TX", 1, "nan"),))
    resumed = bench.run(plan, steps_per_round=2)
    assert [order.round for site, order in bench.transport.sent if site == "CA"] == [2, 3]
    assert "goes on behind round 1" in bench.lines[-3]
    assert resumed["weights"]["sha256"] == whole["weights"]["sha256"] and resumed["sites"] == whole["sites"]
    assert resumed["refused"].keys() == {"TX"} and len(resumed["rounds"]) == 4
    lines = bench.store.read_bytes("scratch/ckpt-000001/1/rounds.jsonl").splitlines()
    assert [json.loads(line)["done"]["index"] for line in lines] == [0, 1, 2, 3]


def test_what_a_killed_server_left_damaged_is_not_built_on(bench: Bench) -> None:
    plan = bench.plan([{"CA": 2, "TX": 1}] * 3, ("CA", "TX"))
    killed_in_round(bench, plan, 2)
    path = bench.store.path("scratch/ckpt-000001/1/round-0001/outer.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(FederationError, match=r"round-0001/outer\.safetensors was damaged"):
        bench.run(plan)
    assert bench.transport.sent == []  # trainers remember this attempt's orders: only another one begins anew


@pytest.mark.parametrize("shared", [None, {"name": "fresh"}], ids=["own", "merged"])
def test_replay_of_a_troubled_segment_gives_the_same_weights(bench: Bench, shared: Any) -> None:
    plan = bench.plan([{"CA": 2, "TX": 3, "SA": 1}] * 4, shared=shared)
    lost = (Fault("TX", 2, "lost state"),) if shared else ()
    segment = bench.run(plan, (Fault("TX", 1, "nan"), Fault("CA", 2, "huge"), Fault("SA", 3, "kill"), *lost))
    assert "SA lost" in segment["stop_reason"] and segment["rounds"][2]["refused"].keys() == {"CA"}
    again = replay(plan, segment) | {"attempt": 2}
    replayed = bench.run(again, folder="scratch/ckpt-000001/replay")
    assert replayed["weights"]["sha256"] == segment["weights"]["sha256"]
    assert replayed["outer"]["sha256"] == segment["outer"]["sha256"]
    assert replayed["sites"] == segment["sites"] and not replayed["lost"] and not replayed["refused"]
    assert "TX" not in {site for site, order in bench.transport.sent if order.round == 1}


@pytest.mark.parametrize(("upload", "download"), [("int2_topk", "fp32"), ("fp32", "int4"), ("int8", "bf16")])
def test_coded_exchange_of_a_troubled_segment(bench: Bench, upload: str, download: str) -> None:
    """Every round's weights are those before minus the delta, and a replay of what counted gives the same."""
    plan = bench.plan([{"CA": 2, "TX": 3, "SA": 1}] * 4, exchange={"upload": upload, "download": download})
    seen: dict[str, Path] = {}

    def keep() -> None:
        for site, order in bench.transport.sent:
            if site == "CA" and order.parent.sha256 not in seen:
                path = bench.store.path(order.parent.key)
                seen[order.parent.sha256] = kept = bench.store.path(f"kept/{len(seen)}")
                kept.parent.mkdir(exist_ok=True)
                kept.write_bytes(path.read_bytes())
                if order.delta is not None:
                    made = bench.store.path("kept/made")
                    base, delta = seen[order.delta.base.sha256], bench.store.path(order.delta.key)
                    assert write_weights(base, delta, order.delta.codec, made).sha256 == order.parent.sha256

    segment = bench.run(plan, (Fault("TX", 1, "corrupt"), Fault("CA", 2, "huge"), Fault("SA", 3, "kill")), keep)
    assert segment["rounds"][1]["refused"].keys() == {"TX"} and segment["rounds"][2]["refused"].keys() == {"CA"}
    assert [order["delta"] is None for order in bench.orders("CA")] == [True, *[download == "fp32"] * 3]
    again = bench.run(replay(plan, segment) | {"attempt": 2}, folder="scratch/ckpt-000001/replay")
    assert again["weights"]["sha256"] == segment["weights"]["sha256"] and again["sites"] == segment["sites"]


def test_a_site_alone_goes_on_from_what_was_decoded(bench: Bench) -> None:
    plan = bench.plan([{"CA": 2}] * 3, ("CA",), exchange={"upload": "int2"})
    segment = bench.run(plan)
    deltas = [order["delta"] for order in bench.orders("CA")]
    assert [delta["codec"] if delta else None for delta in deltas] == [None, "int2", "int2"]
    killed_in_round(bench, plan | {"attempt": 2}, 1)
    resumed = bench.run(plan | {"attempt": 2})
    assert resumed["weights"]["sha256"] == segment["weights"]["sha256"]


def test_an_update_by_another_codec_is_refused(bench: Bench) -> None:
    plan = bench.plan([{"CA": 1, "TX": 1}], ("CA", "TX"), exchange={"upload": "int8"})
    segment = bench.run(plan, (Fault("TX", 0, "nan"),))
    assert segment["refused"] == {"TX": "its codec is fp32, not int8"}


def test_a_round_that_gave_nothing_does_not_end_its_replay(bench: Bench) -> None:
    plan = bench.plan([{"CA": 2, "TX": 3}] * 3)
    segment = bench.run(plan, (Fault("CA", 1, "nan"), Fault("TX", 1, "nan")))
    assert segment["rounds"][1]["steps"] == {} and segment["rounds"][2]["steps"]
    replayed = bench.run(replay(plan, segment), folder="scratch/replays/again")
    assert replayed["weights"]["sha256"] == segment["weights"]["sha256"] and replayed["steps"] == segment["steps"]
