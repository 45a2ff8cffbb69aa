"""Weights exchanged in parts: how they are dealt, what a round moves, and that all of it counts and repeats."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, load_file, save_file
from test_delayed import drawn_faults, quorum_of, require_counted_and_repeated, require_same
from test_rounds import Bench, Fault, replay, require_counted_once
from test_rounds_resumed import killed_in_round

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation import inner_states
from curtail_pipeline.federation.codecs import CODECS
from curtail_pipeline.federation.fragments import Fragment, turn
from curtail_pipeline.federation.merge import merge
from curtail_pipeline.federation.merge_pass import Update
from curtail_pipeline.federation.orders import JournalLine
from curtail_pipeline.federation.progress import merged_round
from curtail_pipeline.federation.tensor_stream import TensorFile, TensorInfo
from curtail_pipeline.federation.update_file import UpdateFile, write_update, write_weights
from curtail_pipeline.settings.federation_settings import RoundSettings

SITES = ("CA", "TX")
PLAIN = {"lr": 1.0, "momentum": 0.0}


def exchange(fragments: int = 2, upload: str = "int8", **more: Any) -> dict[str, Any]:
    return {"exchange": {"upload": upload, "fragments": fragments, **more}}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def two(bench: Bench, rounds: int, **changes: Any) -> dict[str, Any]:
    return bench.plan([{"CA": 2, "TX": 3}] * rounds, SITES, **exchange() | changes)


def lines(bench: Bench, folder: str = "scratch/ckpt-000001/1") -> list[JournalLine]:
    text = bench.store.read_bytes(f"{folder}/rounds.jsonl")
    return [JournalLine.read(line, "the journal") for line in text.splitlines()]


def tensors(sizes: dict[str, int]) -> list[TensorInfo]:
    return [TensorInfo(name, "F32", (size,), 0, 4 * size) for name, size in sizes.items()]


@given(
    st.dictionaries(st.text(st.sampled_from("ab.0123"), max_size=9), st.integers(0, 50), max_size=30),
    st.integers(2, 9),
)
def test_every_tensor_is_in_one_fragment_and_layers_are_whole(sizes: dict[str, int], of: int) -> None:
    parts = [Fragment(index=index, of=of).names(tensors(sizes)) for index in range(of)]
    assert sorted(name for part in parts for name in part) == sorted(sizes)
    shuffled = dict(reversed(sizes.items()))
    assert parts == [Fragment(index=index, of=of).names(tensors(shuffled)) for index in range(of)]


def test_layers_are_dealt_in_turn_and_the_largest_first() -> None:
    layers = {f"model.layers.{n}.{kind}": size for n in range(12) for kind, size in (("q", 40), ("up", 60))}
    dealt = [Fragment(index=i, of=3).names(tensors({"embed": 400, "head": 400, "norm": 1, **layers})) for i in range(3)]
    numbers = [sorted({int(name.split(".")[2]) for name in part if "layers" in name}) for part in dealt]
    assert numbers == [[4, 7, 10], [5, 8, 11], [0, 1, 2, 3, 6, 9]]
    assert [("embed" in part, "head" in part) for part in dealt] == [(True, False), (False, True), (False, False)]
    only = [Fragment(index=i, of=4).names(tensors(layers)) for i in range(4)]
    assert [{int(name.split(".")[2]) % 4 for name in part} for part in only] == [{0}, {1}, {2}, {3}]


def test_turns() -> None:
    assert turn(1, 5) is None and [turn(3, index) and turn(3, index).index for index in range(4)] == [0, 1, 2, 0]
    assert Fragment.parse("2/3") == Fragment(index=2, of=3) and str(Fragment(index=2, of=3)) == "2/3"
    for text in ("3/3", "0/1", "1/2 ", "-1/2", "1", "١/٢", "99999/100000"):
        with pytest.raises(FederationError, match=r"its fragment is .*, not one like 0/4"):
            Fragment.parse(text)


def test_fragments_need_updates_that_are_coded() -> None:
    with pytest.raises(ValueError, match=r"fragments 4 takes updates that say what was moved, .* set it to bf16"):
        RoundSettings(fragments=4)
    assert RoundSettings(fragments=4, upload_codec="bf16").fragments == 4


@pytest.mark.parametrize("codec", CODECS)
def test_an_update_of_a_fragment_leaves_out_all_of_the_others(tmp_path: Path, codec: Any) -> None:
    random = np.random.default_rng(0)
    before = {f"layers.{n}.w": random.standard_normal((20, 30)).astype(np.float32) for n in range(3)}
    after = {
        name: values + np.float32(0.01) * random.standard_normal(values.shape, np.float32)
        for name, values in before.items()
    }
    left = {name: random.standard_normal(values.size, np.float32) * np.float32(1e-3) for name, values in before.items()}
    was = {name: values.copy() for name, values in left.items()}
    parent, path, made = tmp_path / "parent", tmp_path / "update", tmp_path / "made"
    save_file(before, parent, {"format": "pt"})
    part = Fragment(index=1, of=3)
    with TensorFile(parent) as weights:
        written = write_update(
            path,
            CODECS[codec],
            weights,
            lambda name, first, count: after[name].ravel()[first : first + count],
            left,
            part,
        )
        with UpdateFile(path, codec, weights) as update:
            assert update.fragment == part and [*update.file.tensors] == ["layers.1.w"]
        with pytest.raises(FederationError, match="its codec is"):
            UpdateFile(path, "fp32", weights)
    assert written.bytes == path.stat().st_size
    write_weights(parent, path, codec, made)
    for name, values in load_file(made).items():
        decoded = (before[name] - values).ravel()
        if name != "layers.1.w":
            assert not decoded.any()
            np.testing.assert_array_equal(left[name], was[name] + (before[name] - after[name]).ravel())
        np.testing.assert_allclose(left[name] + decoded, was[name] + (before[name] - after[name]).ravel(), atol=1e-6)


def test_a_merge_takes_the_fragment_that_was_asked_for(tmp_path: Path) -> None:
    before = {f"layers.{n}.w": np.ones((20, 30), np.float32) for n in range(2)}
    parent = tmp_path / "parent"
    save_file(before, parent, {"format": "pt"})
    with TensorFile(parent) as weights:

        def sent(name: str, part: Fragment | None) -> Update:
            written = write_update(
                tmp_path / name, CODECS["int8"], weights, lambda n, f, c: np.full(c, 0.9, np.float32), {}, part
            )
            return Update(name, tmp_path / name, 1, written.sha256, "p", 0, "int8")

        updates = [sent("CA", Fragment(index=0, of=2)), sent("SA", Fragment(index=1, of=2)), sent("TX", None)]
    report = merge(
        parent, None, updates, "federated", 0.5, 0.5, tmp_path / "out", tmp_path / "outer", 5.0, [],
        parent_sha256="p", round_index=0, fragment=Fragment(index=0, of=2),
    )  # fmt: skip
    assert report.accepted.keys() == {"CA"}
    assert report.refused == {
        "SA": "its update is of fragment 1/2, not of fragment 0/2",
        "TX": "its update is of everything, not of fragment 0/2",
    }
    out, outer = load_file(tmp_path / "out"), load_file(tmp_path / "outer")
    np.testing.assert_array_equal(out["layers.1.w"], before["layers.1.w"])
    assert not outer["layers.1.w"].any() and outer["layers.0.w"].all()
    np.testing.assert_allclose(out["layers.0.w"], 1 - 0.5 * (0.1 + 0.5 * 0.1), atol=1e-3)
    merge(
        parent, tmp_path / "outer", updates[1:2], "federated", 0.5, 0.5, tmp_path / "out", tmp_path / "next", 5.0, [],
        parent_sha256="p", round_index=0, fragment=Fragment(index=1, of=2),
    )  # fmt: skip
    after = load_file(tmp_path / "next")
    np.testing.assert_array_equal(after["layers.0.w"], outer["layers.0.w"])
    assert after["layers.1.w"].all(), "each fragment has its own momentum"


@pytest.mark.parametrize("upload", ["bf16", "int8"])
def test_rounds_by_hand(bench: Bench, upload: str) -> None:
    """Streaming DiLoCo with plain averaging, worked out with whole arrays: what is sent is averaged, the rest stays."""
    plan = bench.plan([{"CA": 2, "TX": 3}] * 3, SITES, outer=PLAIN, **exchange(upload=upload))
    kept: dict[int, dict[str, Any]] = {}
    begun: dict[tuple[int, str], dict[str, Any]] = {}

    def keep() -> None:
        for path in bench.store.path("scratch/ckpt-000001/1").glob("round-*/model.safetensors"):
            kept.setdefault(int(path.parent.name[-4:]), load(path.read_bytes()))
        for site, order in bench.transport._pending:
            left = load_file(bench.transport.sites[site]._left(order.residual)) if order.residual != "fresh" else {}
            parent = load_file(bench.store.path(order.parent.key))
            begun[order.round, site] = {
                n: v - left.get(n, np.zeros(v.size, np.float32)).reshape(v.shape) for n, v in parent.items()
            }

    segment = bench.run(plan, on_poll=keep)
    keep()
    first = load_file(bench.store.path("checkpoints/ckpt-000000/model.safetensors"))
    fragments = {0: ["a"], 1: ["b"]}  # `a` is the larger one
    for number in (0, 1, 2):
        before = first if number == 0 else kept[number - 1]
        sent = [*first] if number == 2 else fragments[number % 2]
        for name in first:
            if name not in sent:
                np.testing.assert_array_equal(kept[number][name], before[name])
            else:
                assert (kept[number][name] != before[name]).any()
    assert [str(line.done.fragment) for line in lines(bench)] == ["0/2", "1/2", "None"]
    # `b` was left in round 0, so a site began round 1 where it had come to, and what both had moved was averaged then
    came_to = {site: begun[1, site]["b"] for site in SITES}
    assert all((came_to[site] != first["b"]).any() for site in SITES)
    assert segment["steps"] == 15 and segment["stop_reason"] == "plan finished"
    assert [line.merge.accepted["TX"].share for line in lines(bench)] == pytest.approx([0.6] * 3)
    require_counted_once(segment)
    told = merged_round(lines(bench)[0])
    assert told.steps == {"CA": 2, "TX": 3} and told.tokens > 0


def test_a_site_alone_ends_where_it_has_trained_to(bench: Bench) -> None:
    """But for what its codec loses: nothing of the fragments is left behind, whatever was sent when."""
    rounds = [{"CA": 2}] * 5
    segment = bench.run(bench.plan(rounds, ("CA",), **exchange(upload="bf16")))
    left = load_file(bench.transport.sites["CA"]._left(segment["sites"]["CA"]["residual"]["end"]))
    first = load_file(bench.store.path("checkpoints/ckpt-000000/model.safetensors"))
    last = load_file(bench.store.path(segment["weights"]["key"]))
    for name, values in last.items():
        moved = np.abs(first[name] - values).mean()
        assert np.abs(left[name]).max() < 0.02 * moved, "all but the rounding of bf16 is in the weights"


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("shared", [None, {"name": "fresh"}], ids=["own", "merged"])
@pytest.mark.parametrize("live", [False, True])
def test_a_segment_that_ends_early_sends_what_is_left(bench: Bench, live: bool, shared: Any, overlap: bool) -> None:
    """TX leaves after three rounds (live), or is lost in the third: a last round without steps has the rest."""
    more = exchange(3, download="int4", overlap=overlap) | {"shared": shared}
    if live:
        plan = bench.live(SITES, max_rounds=9, **more)

        def leave() -> None:
            if bench.transport.sent[-1][1].round == 2:
                bench.membership(4, {"TX": "its window closes"}, CA="train", TX="warm")

        segment = bench.run(plan, on_poll=leave, steps_per_round=2)
        assert segment["stop_reason"] == "TX leaves: its window closes"
    else:
        plan = bench.plan([{"CA": 2, "TX": 3}] * 9, SITES, **more)
        segment = bench.run(plan, (Fault("TX", 2, "kill"),))
        assert segment["stop_reason"].startswith("TX lost: no heartbeat")
    found = lines(bench)
    assert [str(line.done.fragment) for line in found] == ["0/3", "1/3", "2/3", "None"]
    last = found[-1]
    assert last.done.steps == dict.fromkeys(SITES if live else ("CA",), 0) and last.done.index == 9 + 3
    assert not any(last.done.tokens.values()) and (last.merge.inner is not None) == bool(shared)
    assert [line.merge.inner for line in found[:-1]] == [None] * 3, "states are merged with everything else"
    assert all(order.residual != "fresh" for order in last.orders.values())
    if shared:
        assert segment["shared"]["name"] == f"sha256:{last.merge.inner.sha256}"
        for site, result in found[1].results.items():
            assert result.inner_state.begin == found[0].results[site].inner_state.end
        if overlap:  # then the merged one is not fetched
            sent = sum(result.weights.bytes + last.merge.inner.bytes for result in last.results.values())
            assert merged_round(last).bytes == sent + last.merge.delta.bytes * len(last.orders)
    require_counted_once(segment)
    require_same(bench.run(replay(plan, segment), folder="scratch/replay"), segment)
    again = lines(bench, "scratch/replay")[-1].orders
    for site, order in last.orders.items():
        assert (again[site].parent.sha256, again[site].own) == (order.parent.sha256, None), "from merged weights alone"


def test_what_a_lost_site_had_left_comes_with_its_next_update(bench: Bench) -> None:
    plan = two(bench, 9)
    segment = bench.run(plan, (Fault("TX", 1, "kill"),))
    assert segment["sites"]["TX"]["steps"] == 3 and [r["steps"] for r in segment["rounds"]][-1] == {"CA": 0}
    residual = segment["sites"]["TX"]["residual"]
    assert residual["begin"] == "fresh" != residual["end"]
    again = two(bench, 1) | {"attempt": 2, "residual": {"TX": residual["end"]}}
    alone = bench.run(again)
    order = bench.orders("TX")[0]
    assert order["residual"] == residual["end"] and order["goes_on"] and order["fragment"] is None
    fresh = bench.run(two(bench, 1) | {"attempt": 3})
    assert alone["weights"]["sha256"] != fresh["weights"]["sha256"] and not alone["refused"]


def test_what_no_merge_takes_is_not_gone_on_from(bench: Bench) -> None:
    """Of a fragment that it has not trained since: what a codec had left out of it stays with the site."""
    rounds = [{"CA": 2, "TX": steps} for steps in (3, 0, 0, 3, 3)]
    segment = bench.run(bench.plan(rounds, SITES, **exchange(overlap=True)))
    sent, orders = [line.merge.accepted.keys() for line in lines(bench)], bench.orders("TX")
    assert sent == [{*SITES}, {*SITES}, {"CA"}, {*SITES}, {*SITES}]
    assert [order["own"] is None for order in orders] == [True, False, False, True, False]
    assert orders[3]["residual"] == orders[2]["residual"] != orders[1]["residual"]
    require_counted_once(segment)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_site_that_lost_its_state_sends_what_it_has_left_all_the_same(
    bench: Bench, overlap: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others' states are merged without it, as if they were all there are."""
    sites = ("CA", "NM", "SA", "TX")
    plan = bench.plan([dict.fromkeys(sites, 2)] * 4, sites, **exchange(overlap=overlap), shared={"name": "fresh"})
    lost = (Fault("SA", 1, "kill"), Fault("TX", 4 + 2, "lost state"))
    merge_states, shares = inner_states.merge_states, list[dict[str, float]]()
    monkeypatch.setattr(inner_states, "merge_states", lambda *a: shares.append(dict(a[1])) or merge_states(*a))
    segment = bench.run(plan, lost)
    last = lines(bench)[-1]
    assert last.merge.accepted.keys() == {"CA", "NM", "TX"} and last.done.fresh == ("TX",) and not last.done.refused
    assert shares == [{"CA": 0.5, "NM": 0.5}]
    require_counted_once(segment)
    require_same(bench.run(replay(plan, segment), folder="scratch/replay"), segment)


def test_a_site_without_a_step_sends_what_it_has_left_and_nothing_where_it_has_none(bench: Bench) -> None:
    rounds = [{"CA": 2, "TX": 3}, {"CA": 2, "TX": 0}, {"CA": 2, "TX": 3}]
    segment = bench.run(bench.plan(rounds, SITES, **exchange()))
    assert [line.merge.accepted.keys() for line in lines(bench)] == [{*SITES}] * 3
    assert lines(bench)[1].merge.accepted["TX"].share == pytest.approx(3 / 7), "of two rounds of CA and one of TX"
    require_counted_once(segment)
    idle = bench.run(bench.plan([{"CA": 2, "TX": 0}] * 2, SITES, **exchange(), attempt=2))
    assert [line.merge.empty for line in lines(bench, "scratch/ckpt-000001/2")] == [("TX",)] * 2
    assert idle["sites"]["TX"]["steps"] == 0 and "residual" not in idle["sites"]["TX"]
    more = exchange() | {"shared": {"name": "fresh"}, "attempt": 3}
    idle = bench.run(bench.plan([{"CA": 2, "TX": 0}] * 2, SITES, **more), (Fault("TX", 1, "no state"),))
    assert not idle["refused"], "it has no state before its first step"


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("shared", [None, {"name": "fresh"}], ids=["own", "merged"])
@pytest.mark.parametrize("index", [1, 2, 3, 13])
def test_a_server_that_takes_over_gives_the_same_weights(bench: Bench, index: int, shared: Any, overlap: bool) -> None:
    """In the one without steps, too: its index is one that no round before it can have had."""
    plan = two(bench, 9, **exchange(3, overlap=overlap), shared=shared)
    faults = (Fault("TX", 3, "kill"),)
    whole = bench.run(plan, faults, folder="scratch/whole", steps_per_round=2)
    killed_in_round(bench, plan, index, faults)
    resumed = bench.run(plan, faults if index < 13 else (), steps_per_round=2)
    require_same(resumed, whole)
    assert [line.done.index for line in lines(bench)] == [0, 1, 2, 3, 9 + 4]


@settings(max_examples=15, deadline=None)
@given(
    drawn_faults(SITES, 6, "kill", "error", "late", "no state", "lost state", "lost rest"),
    st.integers(2, 4),
    st.sampled_from([None, {"name": "fresh"}]),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), min_size=1, max_size=5),
)
def test_tokens_count_exactly_once_whatever_fails(
    tmp_path_factory: Any, faults: list[Fault], fragments: int, shared: Any, overlap: bool, steps: list[tuple[int, int]]
) -> None:
    bench = Bench(tmp_path_factory.mktemp("store"))
    rounds = [{"CA": ca, "TX": tx} for ca, tx in steps]
    more = exchange(fragments, overlap=overlap) | {"shared": shared, "quorum": quorum_of(1, faults)}
    require_counted_and_repeated(bench, bench.plan(rounds, SITES, **more), faults)
