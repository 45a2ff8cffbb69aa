"""Rounds that overlap, with real trainers: what is answered is stored later, and everything repeats to the bit."""

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from training_case import CONFIG, SITE, WEIGHTS, behind, changed, fill_store, make_experiment, overlapping

from curtail_pipeline.errors import TrainingError
from curtail_pipeline.federation.answered import Delivered
from curtail_pipeline.federation.orders import Plan, Segment, StoredWeights
from curtail_pipeline.federation.plan import replay_of
from curtail_pipeline.federation.rounds import run_segment
from curtail_pipeline.federation.update_file import write_weights
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.store import file_sha256
from curtail_pipeline.training.plan_runner import TrainersHere
from curtail_pipeline.training.trainer import SiteTrainer

SITES = (SITE, "TX")
EXPERIMENT = make_experiment()
EXPERIMENT = EXPERIMENT.model_copy(
    update={"sites": [EXPERIMENT.sites[0].model_copy(update={"name": name}) for name in SITES]}
)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> FolderStore:
    return fill_store(tmp_path_factory.mktemp("filled"), EXPERIMENT)


@pytest.fixture
def store(filled: FolderStore, tmp_path: Path) -> FolderStore:
    shutil.copytree(filled.root, tmp_path / "store")
    return FolderStore(tmp_path / "store")


def plan_of(store: FolderStore, shared: str | None, sites: tuple[str, ...] = SITES, **changes: Any) -> Plan:
    content = {
        "schema": 1, "key": "ckpt-000001", "members": sites, "mode": "federated" if len(sites) > 1 else "local",
        "first_step": 0, "total_steps": 20,
        "parent": {"key": "ckpt-000000", "weights": WEIGHTS, "sha256": file_sha256(store.path(WEIGHTS)),
                   "config": CONFIG},
        "rounds": [{"index": n, "steps": dict.fromkeys(sites, 2),
                    "lease": {site: [[1, 8 * n, 8 * n + 8]] for site in sites}} for n in range(3)],
        "outer": {"lr": 0.7, "momentum": 0.9}, "norm_bound": 5.0,
        "exchange": {"upload": "int2", "download": "int8", "state": shared or "fp32", "overlap": True},
        "shared": {"name": "fresh"} if shared else None,
    }  # fmt: skip
    return Plan.read(content | changes, "the plan")


def run(store: FolderStore, plan: Plan, folder: str, rounds: int | None = None) -> Segment:
    """With trainers that remember nothing; the server is killed once so many rounds are merged."""
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        if len(lines) == rounds:
            raise InterruptedError

    trainers = {site: SiteTrainer(store, site, EXPERIMENT) for site in plan.members}
    try:
        transport = TrainersHere(trainers.__getitem__, threading.Event())
        return run_segment(transport, plan, store, folder=folder, wait=lambda _: None, log=log)
    finally:
        for trainer in trainers.values():
            trainer.close()


@pytest.mark.parametrize("shared", [None, "int4"], ids=["own", "merged"])
def test_a_segment_repeats_to_the_bit_also_after_a_kill(store: FolderStore, shared: str | None) -> None:
    plan = plan_of(store, shared)
    whole = run(store, plan, "scratch/whole")
    with pytest.raises(InterruptedError):
        run(store, plan, "scratch/cut", rounds=2)
    again = run(store, plan, "scratch/cut")
    replayed = replay_of(plan, whole, dict.fromkeys(SITES, "fresh"), "", shared=plan.shared)
    repeated = run(store, replayed, "scratch/repeated")
    for other in (again, repeated):
        assert other.weights.sha256 == whole.weights.sha256 and other.sites == whole.sites
        assert other.outer.sha256 == whole.outer.sha256 and other.delta.sha256 == whole.delta.sha256
        assert (other.shared and other.shared.name) == (whole.shared and whole.shared.name)
    waited = plan.model_copy(update={"exchange": plan.exchange.model_copy(update={"overlap": False})})
    assert run(store, waited, "scratch/waited").weights.sha256 != whole.weights.sha256
    assert whole.steps == 12 and not whole.refused


def test_one_site_has_nothing_to_wait_for(store: FolderStore) -> None:
    """Overlapped or not, it goes on from what it has trained."""
    plan = plan_of(store, "int4", (SITE,))
    waited = plan.model_copy(update={"exchange": plan.exchange.model_copy(update={"overlap": False})})
    one, two = run(store, waited, "scratch/waited"), run(store, plan, "scratch/overlapped")
    assert one.weights.sha256 == two.weights.sha256 and one.sites == two.sites
    assert one.shared.name == two.shared.name


class Gate:
    """A store whose files wait at a gate."""

    def __init__(self, store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open, self.put = threading.Event(), store.put_file
        monkeypatch.setattr(store, "put_file", self._put)

    def _put(self, source: Path, key: str) -> None:
        assert self.open.wait(30)
        self.put(source, key)


def test_the_next_round_trains_while_an_update_is_on_its_way(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, order = SiteTrainer(store, SITE, EXPERIMENT), overlapping(store)
    gate = Gate(store, monkeypatch)
    result = trainer.train(order)
    assert not store.exists(order.out) and trainer.has(order.out)
    assert not store.exists(order.inner_out) and not store.exists(order.delivered)
    begun: list[bool] = []
    second = behind(order, result)

    def on_phase(phase: str) -> None:
        begun.append(store.exists(order.out))
        if phase == "store":
            gate.open.set()

    after = trainer.train(second, on_phase=on_phase)
    assert not any(begun), "it had trained before anything was stored"
    trainer.close()
    for done, ended in ((order, result), (second, after)):
        told = store.read_record(done.delivered, Delivered)
        assert told.weights_sha256 == ended.weights.sha256 == file_sha256(store.path(done.out)) and not told.error
        assert f"sha256:{file_sha256(store.path(done.inner_out))}" == ended.inner_state.end
    # the start is the parent's weights minus the update, and whoever has nothing in memory comes to the same
    made = store.path("made")
    written = write_weights(store.path(order.parent.key), store.path(order.out), order.codec, made)
    assert after.begun_sha256 == written.sha256 and result.begun_sha256 is None
    other = SiteTrainer(store, SITE, EXPERIMENT)
    again = other.train(changed(second, attempt=1, out="scratch/again.safetensors"))
    other.close()
    assert (again.weights.sha256, again.inner_state, again.residual, again.begun_sha256) == (
        after.weights.sha256, after.inner_state, after.residual, after.begun_sha256
    )  # fmt: skip
    assert load_file(made).keys() == load_file(store.path(WEIGHTS)).keys()


def test_a_replay_in_between_waits_for_no_upload(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, order = SiteTrainer(store, SITE, EXPERIMENT), overlapping(store)
    gate = Gate(store, monkeypatch)
    result = trainer.train(order)
    folder = "scratch/replays/again/r0"
    places = {"out": f"{folder}/a", "inner_out": f"{folder}/b", "delivered": f"{folder}/c.json", "replay": "again"}
    assert trainer.train(changed(order, **places)).weights.sha256 == result.weights.sha256
    assert not store.exists(order.out)
    assert trainer.train(behind(order, result, max_steps=0), on_phase=lambda _: gate.open.set()).begun_sha256
    trainer.close()
    assert store.exists(order.out) and store.exists(f"{folder}/a")


@pytest.mark.parametrize("own", [True, False], ids=["own", "merged"])
def test_states_that_are_on_their_way_are_there_for_the_next_round(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    """Also when a replay of other text came between, so that they are not in memory any more."""
    trainer, order = SiteTrainer(store, SITE, EXPERIMENT), overlapping(store)
    order = changed(order, shared=None, inner_out="") if own else order
    gate = Gate(store, monkeypatch)
    result = trainer.train(order)
    folder = "scratch/replays/again/r0"
    places = {"out": f"{folder}/a", "inner_out": "" if own else f"{folder}/b", "delivered": f"{folder}/c.json"}
    trainer.train(changed(order, **places, replay="again", lease=[(1, 40, 200)]))
    second = behind(order, result, **({"shared": None, "inner_out": ""} if own else {}))
    assert not store.exists(order.delivered)
    after = trainer.train(second, on_phase=lambda phase: gate.open.set() if phase == "store" else None)
    trainer.close()
    assert after.inner_state.begin == result.inner_state.end
    assert after.residual.begin == result.residual.end


def test_a_repetition_in_one_process_is_not_taken_for_silent(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sites write no heartbeat, and storing takes longer than one may be away for."""
    plan, put, now, over = plan_of(store, None), store.put_file, [0.0], threading.Event()

    def slow(source: Path, key: str) -> None:
        over.wait(0.2)
        put(source, key)

    def wait(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(store, "put_file", slow)
    trainers = {site: SiteTrainer(store, site, EXPERIMENT) for site in plan.members}
    transport = TrainersHere(trainers.__getitem__, threading.Event())
    segment = run_segment(transport, plan, store, folder="scratch/own", clock=lambda: now[0], wait=wait)
    over.set()
    for trainer in trainers.values():
        trainer.close()
    assert not segment.refused and segment.steps == 12


def test_what_a_replay_had_on_its_way_goes_with_the_next_one(store: FolderStore) -> None:
    trainer, order = SiteTrainer(store, SITE, EXPERIMENT), overlapping(store)
    for replay in ("first", "second"):
        folder = f"scratch/replays/{replay}"
        places = {"out": f"{folder}/a", "inner_out": f"{folder}/b", "delivered": f"{folder}/c.json", "replay": replay}
        trainer.train(changed(order, **places))
    trainer.close()
    assert store.exists("scratch/replays/first/a")
    left = [path.parts[-3] for path in store.here("scratch/replays").glob("*/pending/*")]
    assert left == ["second"]


def test_an_upload_that_fails_is_told_and_training_goes_on(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, order = SiteTrainer(store, SITE, EXPERIMENT), overlapping(store)

    def full(source: Path, key: str) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "put_file", full)
        result = trainer.train(order)
        trainer.close()
    told = store.read_record(order.delivered, Delivered)
    assert "No space left on device" in told.error
    second = behind(order, result)
    assert trainer.train(second).steps == second.max_steps  # whether it counts is the server's to say
    trainer.close()
    with pytest.raises(TrainingError, match=f"site {SITE} cannot go on from its last update: .* is not in the store"):
        SiteTrainer(store, SITE, EXPERIMENT).train(second)


def test_another_update_than_the_order_means_is_not_gone_on_from(store: FolderStore) -> None:
    trainer, order = SiteTrainer(store, SITE, EXPERIMENT), overlapping(store)
    result = trainer.train(order)
    trainer.close()
    strange = StoredWeights(key=order.out, sha256="f" * 64)
    with pytest.raises(TrainingError, match="and the order goes on from ffffffffffff"):
        trainer.train(behind(order, result, own=strange))
