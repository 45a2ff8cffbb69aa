"""Real trainers whose weights are exchanged in fragments: what they start from, what is left, and that it repeats."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from training_case import CONFIG, SITE, WEIGHTS, changed, make_experiment, make_order

from curtail_pipeline.errors import TrainingError
from curtail_pipeline.federation.fragments import Fragment
from curtail_pipeline.federation.orders import Plan, Segment, SharedState, SiteTerms
from curtail_pipeline.federation.plan import replay_of
from curtail_pipeline.federation.rounds import run_segment
from curtail_pipeline.federation.tensor_stream import TensorFile
from curtail_pipeline.federation.terms import oddities
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.store import file_sha256
from curtail_pipeline.training.plan_runner import TrainersHere
from curtail_pipeline.training.retention import snapshot_key
from curtail_pipeline.training.trainer import SiteTrainer

EXPERIMENT = make_experiment()


def plan_of(store: FolderStore, exchange: dict[str, Any], shared: bool = False, rounds: int = 5) -> Plan:
    content = {
        "schema": 1, "key": "ckpt-000001", "members": [SITE], "mode": "local", "first_step": 0, "total_steps": 99,
        "parent": {"key": "ckpt-000000", "weights": WEIGHTS, "sha256": file_sha256(store.path(WEIGHTS)),
                   "config": CONFIG},
        "rounds": [{"index": n, "steps": {SITE: 2}, "lease": {SITE: [[1, 8 * n, 8 * n + 8]]}} for n in range(rounds)],
        "outer": {"lr": 0.7, "momentum": 0.9}, "norm_bound": 5.0, "exchange": exchange,
        "shared": {"name": "fresh"} if shared else None,
    }  # fmt: skip
    return Plan.read(content, "the plan")


def trained(store: FolderStore, wanted: Plan, folder: str, cut: int | None = None, forgets: bool = False) -> Segment:
    """The server is killed behind round `cut`; the trainer of each order is a new one where it forgets."""
    lines: list[str] = []
    kept: dict[str, SiteTrainer] = {}

    def log(line: str) -> None:
        lines.append(line)
        if len(lines) == cut:
            raise InterruptedError

    def trainer(site: str) -> SiteTrainer:
        if forgets and site in kept:
            kept.pop(site).close()
        return kept.setdefault(site, SiteTrainer(store, site, EXPERIMENT))

    transport = TrainersHere(trainer, threading.Event())
    return run_segment(transport, wanted, store, folder=folder, wait=lambda _: None, log=log)


@pytest.mark.parametrize("overlap", [False, True])
def test_a_site_alone_trains_as_if_nothing_was_exchanged(store: FolderStore, overlap: bool) -> None:
    """It goes on from where it is, whatever was sent and however coded: only what the last exchange's codec rounds is
    not as if there were no rounds at all."""
    plain = trained(store, plan_of(store, {}), "scratch/plain")
    whole, first = load_file(store.path(plain.weights.key)), load_file(store.path(WEIGHTS))
    for upload, loss in (("bf16", 0.01), ("int4", 0.1)):
        exchange = {"upload": upload, "fragments": 3, "overlap": overlap}
        segment = trained(store, plan_of(store, exchange), f"scratch/{upload}")
        done = [round_.loss[SITE][1] for round_ in segment.rounds]
        np.testing.assert_allclose(done, [round_.loss[SITE][1] for round_ in plain.rounds], rtol=1e-5)
        for name, values in load_file(store.path(segment.weights.key)).items():
            moved = np.abs(whole[name] - first[name]).max()
            assert np.abs(values - whole[name]).max() <= loss * moved
    coded = trained(store, plan_of(store, {"upload": "int4"}), "scratch/coded")
    assert abs(coded.rounds[-1].loss[SITE][1] - plain.rounds[-1].loss[SITE][1]) > 1e-5 * plain.rounds[-1].loss[SITE][1]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("shared", [False, True], ids=["own", "merged"])
def test_it_repeats_to_the_bit_also_after_a_kill_and_with_trainers_that_remember_nothing(
    store: FolderStore, shared: bool, overlap: bool
) -> None:
    exchange = {"upload": "int4", "download": "int8", "state": "int8", "fragments": 3, "overlap": overlap}
    plan = plan_of(store, exchange, shared)
    whole = trained(store, plan, "scratch/whole")
    with pytest.raises(InterruptedError):
        trained(store, plan, "scratch/cut", cut=2)
    again = trained(store, plan, "scratch/cut", forgets=True)
    repeats = replay_of(plan, whole, {SITE: "fresh"}, "", shared=plan.shared)
    repeated = trained(store, repeats, "scratch/repeated", forgets=True)
    for other in (again, repeated):
        assert other.weights.sha256 == whole.weights.sha256 and other.sites == whole.sites
        assert other.outer.sha256 == whole.outer.sha256
        assert (other.shared and other.shared.name) == (whole.shared and whole.shared.name)
    assert [str(done.fragment) for done in whole.rounds] == ["0/3", "1/3", "2/3", "0/3", "None"]
    assert (whole.shared is None) == (not shared) and whole.steps == 10


def test_an_update_of_a_fragment_is_a_part_of_the_bytes(store: FolderStore) -> None:
    order = make_order(store, codec="int8", goes_on=True)
    sizes = []
    for index in range(2):
        part = Fragment(index=index, of=2)
        result = SiteTrainer(store, SITE, EXPERIMENT).train(changed(order, fragment=part, attempt=index))
        with TensorFile(store.path(WEIGHTS)) as weights, TensorFile(store.path(order.out)) as update:
            assert update.tensors.keys() == part.names(weights.tensors.values())
        sizes.append(result.weights.bytes)
    whole = SiteTrainer(store, SITE, EXPERIMENT).train(changed(order, attempt=2)).weights.bytes
    assert sum(sizes) == pytest.approx(whole, rel=0.1) and max(sizes) < 0.75 * whole


def test_an_order_without_steps_sends_weights_and_state_that_are_left(store: FolderStore) -> None:
    first = make_order(
        store, codec="bf16", goes_on=True, fragment=Fragment(index=0, of=2), shared=SharedState(name="fresh")
    )
    trainer = SiteTrainer(store, SITE, EXPERIMENT)
    result = trainer.train(first)
    assert result.inner_state.end != "fresh" and store.exists(snapshot_key(SITE, result.inner_state.end))
    last = changed(
        first, round=1, fragment=None, shared=None, max_steps=0, inner_state=result.inner_state.end,
        residual=result.residual.end, out="scratch/last.safetensors", inner_out="scratch/last/inner.safetensors",
    )  # fmt: skip
    done = trainer.train(last)
    assert done.steps == 0 and done.tokens == 0 and done.consumed == () and done.begun_sha256 is not None
    state, sent = (
        load_file(store.path(snapshot_key(SITE, result.inner_state.end))),
        load_file(store.path(last.inner_out)),
    )
    assert state.keys() == sent.keys() and all((state[name] == sent[name]).all() for name in state)
    left = load_file(store.path(snapshot_key(SITE, done.residual.end)))
    before = load_file(store.path(snapshot_key(SITE, result.residual.end)))
    assert sum(np.abs(values).sum() for values in left.values()) < 0.01 * sum(
        np.abs(values).sum() for values in before.values()
    )
    again = SiteTrainer(store, SITE, EXPERIMENT).train(last)
    assert (again.weights.sha256, again.residual) == (done.weights.sha256, done.residual)


def test_what_was_left_and_is_lost_is_begun_without_or_refused(store: FolderStore) -> None:
    first = make_order(store, codec="int8", goes_on=True, fragment=Fragment(index=0, of=2))
    result = SiteTrainer(store, SITE, EXPERIMENT).train(first)
    second = changed(first, round=1, residual=result.residual.end, inner_state=result.inner_state.end)
    store.delete(snapshot_key(SITE, second.residual))
    done = SiteTrainer(store, SITE, EXPERIMENT).train(second)
    assert done.residual.begin == "fresh" and done.begun_sha256 is None
    assert oddities(second, done) == [f"what its last update left out ({second.residual[:19]}) was lost"]
    with pytest.raises(TrainingError, match="is not in the store"):
        SiteTrainer(store, SITE, EXPERIMENT).train(changed(second, terms=SiteTerms(lost_state="refuse")))


def test_a_snapshot_of_other_weights_is_not_taken_off(store: FolderStore, tmp_path: Path) -> None:
    first = make_order(store, codec="int8", goes_on=True, fragment=Fragment(index=0, of=2))
    trainer = SiteTrainer(store, SITE, EXPERIMENT)
    result = trainer.train(first)
    trainer._residual._left["odd"] = np.zeros(3, np.float32)
    second = changed(first, round=1, residual=result.residual.end, inner_state=result.inner_state.end)
    with pytest.raises(TrainingError, match="what updates left out of tensor odd is of other weights"):
        trainer.train(second)


@pytest.mark.parametrize("inner_codec", ["fp32", "int8"])
def test_a_site_that_never_did_a_step_answers_an_order_for_everything(store: FolderStore, inner_codec: str) -> None:
    order = make_order(
        store, codec="int8", goes_on=True, shared=SharedState(name="fresh"), max_steps=0, inner_codec=inner_codec,
        inner_out="scratch/last/inner.safetensors",
    )  # fmt: skip
    result = SiteTrainer(store, SITE, EXPERIMENT).train(order)
    assert result.steps == 0 and result.begun_sha256 is None and result.inner_state.begin == "fresh"


def test_an_order_without_steps_sends_what_is_left_where_states_are_not_merged_too(store: FolderStore) -> None:
    first = make_order(store, codec="bf16", goes_on=True, fragment=Fragment(index=0, of=2))
    trainer = SiteTrainer(store, SITE, EXPERIMENT)
    result = trainer.train(first)
    last = changed(
        first, round=1, fragment=None, max_steps=0, inner_state=result.inner_state.end, residual=result.residual.end,
        out="scratch/last.safetensors",
    )  # fmt: skip
    done = trainer.train(last)
    assert done.inner_state.end == result.inner_state.end and done.residual.begin == result.residual.end
    before, left = (load_file(store.path(snapshot_key(SITE, each.residual.end))) for each in (result, done))
    assert sum(np.abs(v).sum() for v in left.values()) < 0.01 * sum(np.abs(v).sum() for v in before.values())
