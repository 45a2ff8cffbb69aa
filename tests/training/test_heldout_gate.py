"""What judges an update before it is merged: the loss that an evaluation finds, or that the update is none."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_case import CONFIG, SEQUENCE, SITE, WEIGHTS

from curtail_pipeline.corpus.batches import HeldoutReader
from curtail_pipeline.federation.orders import Plan, StoredDelta, StoredWeights
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.store import file_sha256
from curtail_pipeline.training import heldout_gate
from curtail_pipeline.training.heldout_gate import HeldoutGate
from curtail_pipeline.training.heldout_loss import evaluate
from curtail_pipeline.training.weights import write_tensors


@pytest.fixture
def known(store: FolderStore) -> StoredWeights:
    return StoredWeights(key=WEIGHTS, sha256=file_sha256(store.path(WEIGHTS)))


@pytest.fixture
def gate(store: FolderStore, known: StoredWeights) -> HeldoutGate:
    content = {
        "schema": 1, "key": "ckpt-000001", "members": [SITE], "mode": "local", "first_step": 0, "total_steps": 9,
        "parent": {"key": "ckpt-000000", "weights": WEIGHTS, "sha256": known.sha256, "config": CONFIG},
        "rounds": [], "outer": {"lr": 0.7, "momentum": 0.9}, "norm_bound": 5.0,
    }  # fmt: skip
    return HeldoutGate(store, Plan.read(content, "the plan"))


def test_it_measures_what_the_evaluation_does(store: FolderStore, gate: HeldoutGate, known: StoredWeights) -> None:
    found = evaluate(store.path(WEIGHTS).parent, HeldoutReader(store, SEQUENCE)).loss
    assert gate(known) == pytest.approx(found, rel=1e-6)


def test_what_cannot_be_read_or_is_another_models_is_left_to_the_merge(store: FolderStore, gate: HeldoutGate) -> None:
    assert gate(StoredWeights(key=CONFIG, sha256="0" * 64)) is None
    tensors = load_file(store.path(WEIGHTS))
    shorter = {**tensors, "lm_head.weight": tensors["lm_head.weight"][1:].clone()}
    for key, other in {"scratch/shorter": shorter, "scratch/more": {**tensors, "more": torch.zeros(1)}}.items():
        store.path(key).parent.mkdir(exist_ok=True)
        assert gate(StoredWeights(key=key, sha256=write_tensors(store.path(key), other))) is None


def test_want_of_memory_says_nothing_of_an_update(
    gate: HeldoutGate, known: StoredWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be merged unjudged."""

    def full(_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gate._model, "load_state_dict", full)
    with pytest.raises(torch.OutOfMemoryError):
        gate(known)


def test_what_a_killed_server_left_goes_with_the_next_delta(
    store: FolderStore, gate: HeldoutGate, known: StoredWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = store.here("scratch/gate/left/model.safetensors")
    left.parent.mkdir(parents=True)
    left.write_bytes(b"weights")

    def moved(base: Path, delta: Path, codec: str, made: Path) -> StoredWeights:
        shutil.copyfile(base, made)
        return known

    monkeypatch.setattr(heldout_gate, "write_weights", moved)
    delta = StoredDelta(key=WEIGHTS, sha256="0" * 64, codec="int4", base=known)
    assert gate(delta) == gate(known)
    assert not [*store.here("scratch/gate").iterdir()]
