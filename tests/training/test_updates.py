"""Rounds whose updates are coded: what is lost is in the inner state, and everything repeats to the bit."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from training_case import CONFIG, SITE, WEIGHTS, changed, make_experiment, make_order, next_order

from curtail_pipeline.errors import TrainingError
from curtail_pipeline.federation.codecs import CODECS
from curtail_pipeline.federation.orders import (
    Order,
    Plan,
    Result,
    Segment,
    SharedState,
    SiteTerms,
    StoredDelta,
    StoredWeights,
)
from curtail_pipeline.federation.plan import replay_of
from curtail_pipeline.federation.rounds import run_segment
from curtail_pipeline.federation.terms import breach, oddities
from curtail_pipeline.federation.update_file import write_weights
from curtail_pipeline.settings.exchange_size import moved
from curtail_pipeline.settings.federation_settings import RoundSettings
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.store import file_sha256
from curtail_pipeline.training.heldout_gate import HeldoutGate
from curtail_pipeline.training.plan_runner import TrainersHere
from curtail_pipeline.training.retention import snapshot_key
from curtail_pipeline.training.trainer import SiteTrainer
from curtail_pipeline.training.updates import receive

EXPERIMENT = make_experiment()


def committed(store: FolderStore, order: Order, result: Result) -> StoredWeights:
    """What a merge makes of the update of a site alone."""
    key = f"{order.out}.committed"
    written = write_weights(store.path(order.parent.key), store.path(order.out), result.codec, store.path(key))
    return StoredWeights(key=key, sha256=written.sha256)


def follow(store: FolderStore, order: Order, result: Result) -> Order:
    return next_order(order, result, parent=committed(store, order, result), residual=result.residual.end)


def state(store: FolderStore, name: str) -> dict[str, np.ndarray]:
    return load_file(store.path(snapshot_key(SITE, name)))


@pytest.mark.parametrize("codec", CODECS)
def test_a_replay_in_another_trainer_gives_the_same_bits(store: FolderStore, codec: str) -> None:
    trainer, order, done = SiteTrainer(store, SITE, EXPERIMENT), make_order(store, codec=codec), []
    for _ in range(3):
        result = trainer.train(order)
        done.append((order, result))
        order = follow(store, order, result)
    for order, was in done[1:]:
        again = SiteTrainer(store, SITE, EXPERIMENT).train(changed(order, attempt=1, out="scratch/again.safetensors"))
        assert again.weights.sha256 == was.weights.sha256
        assert (again.inner_state, again.residual) == (was.inner_state, was.residual)


def test_the_residual_is_what_the_codec_left_out_since_the_beginning(store: FolderStore) -> None:
    trainer = SiteTrainer(store, SITE, EXPERIMENT)
    first = make_order(store, codec="int2_topk")
    second = follow(store, first, one := trainer.train(first))
    two = trainer.train(second)
    trained = trainer.train(changed(second, codec="fp32", out="scratch/plain.safetensors"))
    begin, end = state(store, one.residual.end), state(store, two.residual.end)
    assert two.residual.begin == one.residual.end and trained.residual is None
    parent, weights = (load_file(store.path(key)) for key in (second.parent.key, trained.weights.key))
    after = load_file(store.path(committed(store, second, two).key))
    for name, before in parent.items():
        moved = begin[name] + (before.ravel() - weights[name].ravel())
        np.testing.assert_allclose(end[name], moved - (before - after[name]).ravel(), atol=1e-6)
    assert any(left.any() for left in end.values())
    # a refused update's state is not gone on with: the next order begins where the last one did
    assert trainer.train(changed(second, attempt=2)).weights.sha256 == two.weights.sha256


def test_a_round_without_steps_sends_nothing_and_keeps_the_residual(store: FolderStore) -> None:
    trainer = SiteTrainer(store, SITE, EXPERIMENT)
    order = make_order(store, codec="int2")
    second = follow(store, order, result := trainer.train(order))
    idle = trainer.train(changed(second, max_steps=0))
    assert (idle.inner_state.end, idle.residual.end) == (result.inner_state.end, result.residual.end)
    assert committed(store, second, idle).sha256 == second.parent.sha256
    busy = trainer.train(second)
    assert busy.weights.sha256 == SiteTrainer(store, SITE, EXPERIMENT).train(second).weights.sha256


def test_a_residual_stays_at_its_site_where_inner_states_are_merged(store: FolderStore) -> None:
    trainer = SiteTrainer(store, SITE, EXPERIMENT)
    order = make_order(
        store, codec="int2", shared=SharedState(name="fresh"), inner_out="scratch/r0/inner/NEM_SA.safetensors"
    )
    result = trainer.train(order)
    assert {name.partition("/")[0] for name in load_file(store.path(order.inner_out))} == {"muon", "adamw"}
    assert state(store, result.residual.end).keys() == load_file(store.path(order.parent.key)).keys()
    shared = SharedState(name=result.inner_state.end, key=order.inner_out)
    second = changed(follow(store, order, result), shared=shared, inner_out="scratch/r1/inner/NEM_SA.safetensors")
    one, two = trainer.train(second), SiteTrainer(store, SITE, EXPERIMENT).train(second)
    assert (one.weights, one.residual, one.inner_state) == (two.weights, two.residual, two.inner_state)


@pytest.mark.parametrize("shared", [None, "fp32", "int4"])
@pytest.mark.parametrize("mode", ["local", "federated"])
def test_a_coded_segment_repeats_to_the_bit_also_after_a_kill(
    store: FolderStore, mode: str, shared: str | None
) -> None:
    content = {
        "schema": 1, "key": "ckpt-000001", "members": [SITE], "mode": mode, "first_step": 0, "total_steps": 9,
        "parent": {"key": "ckpt-000000", "weights": WEIGHTS, "sha256": file_sha256(store.path(WEIGHTS)),
                   "config": CONFIG},
        "rounds": [{"index": n, "steps": {SITE: 2}, "lease": {SITE: [[1, 8 * n, 8 * n + 8]]}} for n in range(3)],
        "outer": {"lr": 0.7, "momentum": 0.9}, "norm_bound": 5.0,
        "exchange": {"upload": "int2", "download": "int8", "state": shared or "fp32"},
        "shared": {"name": "fresh"} if shared else None,
    }  # fmt: skip
    plan = Plan.read(content, "the plan")

    def run(wanted: Plan, folder: str, rounds: int = 3) -> Segment:
        """With trainers that remember nothing; the server is killed behind so many rounds."""
        lines: list[str] = []

        def log(line: str) -> None:
            lines.append(line)
            if len(lines) == rounds < 3:
                raise InterruptedError

        transport = TrainersHere(lambda site: SiteTrainer(store, site, EXPERIMENT), threading.Event())
        return run_segment(transport, wanted, store, folder=folder, wait=lambda _: None, log=log)

    whole = run(plan, "scratch/whole")
    with pytest.raises(InterruptedError):
        run(plan, "scratch/cut", rounds=1)
    again = run(plan, "scratch/cut")
    repeated = run(replay_of(plan, whole, {SITE: "fresh"}, "", shared=plan.shared), "scratch/repeated")
    for other in (again, repeated):
        assert other.weights.sha256 == whole.weights.sha256 and other.sites == whole.sites
        assert other.outer.sha256 == whole.outer.sha256 and other.delta.sha256 == whole.delta.sha256
    assert whole.delta.codec == ("int2" if mode == "local" else "int8")
    assert whole.sites[SITE].residual.begin == "fresh" != whole.sites[SITE].residual.end


@pytest.mark.parametrize("codec", ["bf16", "int8", "int4", "int2"])
def test_a_coded_inner_state_is_gone_on_with_as_it_travels(store: FolderStore, codec: str) -> None:
    trainer = SiteTrainer(store, SITE, EXPERIMENT)
    order = make_order(
        store, shared=SharedState(name="fresh"), inner_out="scratch/r0/inner/NEM_SA.safetensors", inner_codec=codec
    )
    result = trainer.train(order)
    shared = SharedState(name=result.inner_state.end, key=order.inner_out)
    second = next_order(order, result, shared=shared, inner_out="scratch/r1/inner/NEM_SA.safetensors")
    one, two = trainer.train(second), SiteTrainer(store, SITE, EXPERIMENT).train(second)
    assert (one.weights, one.inner_state) == (two.weights, two.inner_state)
    assert one.loss_first == two.loss_first and one.loss_last < result.loss_first


def test_a_lost_residual_is_begun_without_or_refused(store: FolderStore) -> None:
    order = make_order(store, codec="int2")
    second = follow(store, order, SiteTrainer(store, SITE, EXPERIMENT).train(order))
    store.delete(snapshot_key(SITE, second.residual))
    result = SiteTrainer(store, SITE, EXPERIMENT).train(second)
    assert result.residual.begin == "fresh" and result.inner_state.begin == second.inner_state
    assert oddities(second, result) == [f"what its last update left out ({second.residual[:19]}) was lost"]
    assert breach(second, result) is None
    strict = changed(second, terms=SiteTerms(lost_state="refuse"))
    assert "it began with state fresh" in breach(strict, result)
    with pytest.raises(TrainingError, match="is not in the store"):
        SiteTrainer(store, SITE, EXPERIMENT).train(strict)


def test_weights_that_are_not_finite_are_an_error_of_the_site(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, order = SiteTrainer(store, SITE, EXPERIMENT), make_order(store, codec="int8")
    step = SiteTrainer._step

    def spoil(self: SiteTrainer, *arguments: object) -> float:
        loss = step(self, *arguments)
        with torch.no_grad():
            next(iter(self._built().model.parameters()))[0, 0] = float("nan")
        return loss

    monkeypatch.setattr(SiteTrainer, "_step", spoil)
    with pytest.raises(TrainingError, match=f"site {SITE}: tensor .* cannot be coded"):
        trainer.train(changed(order, max_steps=1))


def test_the_gate_judges_the_weights_that_an_update_makes(store: FolderStore) -> None:
    order = make_order(store, codec="int4")
    result = SiteTrainer(store, SITE, EXPERIMENT).train(order)
    content = {
        "schema": 1, "key": "ckpt-000001", "members": [SITE], "mode": "local", "first_step": 0, "total_steps": 9,
        "parent": {"key": "ckpt-000000", "weights": WEIGHTS, "sha256": order.parent.sha256, "config": order.config},
        "rounds": [], "outer": {"lr": 0.7, "momentum": 0.9}, "norm_bound": 5.0,
    }  # fmt: skip
    gate = HeldoutGate(store, Plan.read(content, "the plan"))
    weights, before = committed(store, order, result), gate(order.parent)
    delta = StoredDelta(key=order.out, sha256=result.weights.sha256, codec="int4", base=order.parent)
    assert gate(delta) == gate(weights) < before
    assert gate(delta.model_copy(update={"base": weights})) not in (gate(weights), None), (
        "it moves what it is taken off"
    )
    assert gate(delta.model_copy(update={"codec": "int8"})) is None


def test_a_state_that_was_forgotten_for_an_order_that_failed_is_read_again(store: FolderStore) -> None:
    trainer, order = SiteTrainer(store, SITE, EXPERIMENT), make_order(store)
    second = next_order(order, trainer.train(order))
    lost = changed(order, replay="r1", codec="int2", residual=f"sha256:{'0' * 64}", out="scratch/replay.safetensors")
    with pytest.raises(TrainingError, match="is not in the store"):
        trainer.train(lost)
    assert trainer.train(second).weights.sha256 == SiteTrainer(store, SITE, EXPERIMENT).train(second).weights.sha256


class Cached(FolderStore):
    """A folder of which objects are read through a cache, as of a bucket."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.kept: dict[str, str] = {}
        self.before_keeping: Callable[[], None] = lambda: None

    @contextmanager
    def held(self, sha256: str) -> Iterator[Path | None]:  # type: ignore[override]
        yield self.path(WEIGHTS) if sha256 == file_sha256(self.path(WEIGHTS)) else None

    def keep(self, source: Path, sha256: str) -> None:
        do, self.before_keeping = self.before_keeping, lambda: None
        do()
        self.kept[sha256] = file_sha256(source)


def test_a_replay_of_another_process_makes_its_weights_elsewhere(store: FolderStore) -> None:
    """Weights are kept by their hash: another file in their place would be taken for them ever after."""
    cached, order, arrived = Cached(store.root), make_order(store, codec="int2"), []
    for seed in (5, 6):
        one = changed(order, seed=seed, out=f"scratch/{seed}.safetensors")
        result = SiteTrainer(store, SITE, EXPERIMENT).train(one)
        delta = StoredDelta(key=one.out, sha256=result.weights.sha256, codec="int2", base=order.parent)
        arrived.append((committed(store, one, result), delta))
    cached.before_keeping = lambda: receive(cached, changed(order, replay="r1"), *arrived[1])
    receive(cached, order, *arrived[0])
    assert len(cached.kept) == 2 and all(name == found for name, found in cached.kept.items())


@pytest.mark.parametrize("codec", ["bf16", "int8", "int4", "int2"])
def test_files_are_as_large_as_links_are_charged_for(store: FolderStore, codec: str) -> None:
    order = make_order(
        store, codec=codec, shared=SharedState(name="fresh"), inner_out="scratch/inner", inner_codec=codec
    )
    SiteTrainer(store, SITE, EXPERIMENT).train(order)
    own, merged = (
        moved(
            RoundSettings(upload_codec=codec, state_codec=codec, inner_state=state),
            EXPERIMENT.training,
            store.read_json(CONFIG)["vocab_size"],
            linked=False,
        )
        for state in ("own", "merged")
    )
    found = [store.path(key).stat().st_size for key in (WEIGHTS, order.out, order.inner_out)]
    expected = [1e6 * own.received, 1e6 * own.sent, 1e6 * (merged.sent - own.sent)]
    header = 8_000  # safetensors' own, which is nothing of a real model
    for size, value in zip(found, expected, strict=True):
        assert value <= size <= 1.02 * value + header
