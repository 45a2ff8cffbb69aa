"""Which snapshots stay: those that committed checkpoints name, as many as asked for, and those in use."""

from pathlib import Path

from checkpoint_cases import fields

from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.training.retention import merged_key, prune_merged, prune_snapshots, snapshot_key

SITE = "SPP_TX"


def state(number: int) -> str:
    return f"sha256:{number:064x}"


def committed(store: FolderStore, tmp_path: Path, segments: int) -> None:
    """A chain in which segment n begins with state n - 1 and ends with state n."""
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    checkpoints = Checkpoints(store)
    checkpoints.commit("ckpt-000000", {weights.name: weights}, fields(), 0)
    for n in range(1, segments + 1):
        content = fields(f"ckpt-{n - 1:06d}", begin=5 * (n - 1), first=5 * (n - 1))
        content["sites"][SITE]["inner_state"] = {"begin": state(n - 1) if n > 1 else "fresh", "end": state(n)}
        checkpoints.commit(f"ckpt-{n:06d}", {weights.name: weights}, content, n)


def test_residuals_are_kept_as_long(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    checkpoints = Checkpoints(store)
    checkpoints.commit("ckpt-000000", {weights.name: weights}, fields(), 0)
    for n in range(1, 4):
        content = fields(f"ckpt-{n - 1:06d}", begin=5 * (n - 1), first=5 * (n - 1))
        for name, first in (("inner_state", 0), ("residual", 100)):
            begin = state(first + n - 1) if n > 1 else "fresh"
            content["sites"][SITE][name] = {"begin": begin, "end": state(first + n)}
            store.write_bytes(snapshot_key(SITE, state(first + n)), b"state")
        checkpoints.commit(f"ckpt-{n:06d}", {weights.name: weights}, content, n)
    assert prune_snapshots(store, SITE, 2) == [state(1), state(101)]


def test_the_newest_that_are_named_and_those_in_use_stay(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    committed(store, tmp_path, 4)
    for n in range(1, 7):  # 5 and 6 belong to a segment that goes on; the first to one that was given up
        store.write_bytes(snapshot_key(SITE, state(n)), b"state")
    removed = prune_snapshots(store, SITE, 2, protected=[state(5), state(6)])
    assert removed == [state(1), state(2)]
    assert all(store.exists(snapshot_key(SITE, state(n))) for n in (3, 4, 5, 6))
    assert prune_snapshots(store, SITE, 2) == [state(5), state(6)]
    assert not store.exists(snapshot_key(SITE, state(5)))
    assert prune_snapshots(store, "NEM_SA", 1) == []


def test_merged_states_stay_as_long_as_the_newest_checkpoints_name_them(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    checkpoints = Checkpoints(store)
    checkpoints.commit("ckpt-000000", {weights.name: weights}, fields(), 0)
    for n in range(1, 4):
        content = fields(f"ckpt-{n - 1:06d}", begin=5 * (n - 1), first=5 * (n - 1))
        content["inner_state"] = {"begin": state(n - 1) if n > 1 else "fresh", "end": state(n)}
        checkpoints.commit(f"ckpt-{n:06d}", {weights.name: weights}, content, n)
        store.write_bytes(merged_key(state(n)), b"state")
    store.write_bytes(merged_key(state(9)), b"of a segment that was never committed")
    assert prune_merged(store, 2) == [state(1), state(9)]
    assert all(store.exists(merged_key(state(n))) for n in (2, 3)) and prune_merged(store, 2) == []
    assert checkpoints.manifest("ckpt-000001").inner_state is not None
    assert b"inner_state" not in store.read_bytes("checkpoints/ckpt-000000/manifest.json")
