"""Which snapshots stay: those that committed checkpoints name, as many as asked for, and those in use."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoint_cases import fields

from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.store import file_sha256
from curtail_pipeline.training import snapshots
from curtail_pipeline.training.linked import LinkedFolder
from curtail_pipeline.training.retention import RecentStates, merged_key, prune_merged, prune_snapshots, snapshot_key

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


def test_a_site_that_sees_no_manifest_keeps_what_its_last_segments_began_with(tmp_path: Path) -> None:
    store, recent = FolderStore(tmp_path), RecentStates()
    keys = {snapshot_key(SITE, state(n)): n for n in range(200)}

    def there() -> list[int]:
        names = [f"inner_state/{SITE}/{name}" for name in store.list(f"inner_state/{SITE}") if name[0] != "."]
        return sorted(keys[name] for name in names)

    for n in range(6):  # segments of three rounds; states 3n to 3n + 3, residuals from 100 on
        if n == 4:
            recent = RecentStates()  # its trainer was started again
        for at in range(3 * n, 3 * n + 3):
            for end in (at + 1, at + 101):
                store.write_bytes(snapshot_key(SITE, state(end)), b"state")
            order: Any = SimpleNamespace(
                key=f"ckpt-{n:06d}", attempt=1, site=SITE, links="addresses", own=None,
                inner_state=state(at) if at else "fresh", residual=state(100 + at) if at else "fresh",
            )  # fmt: skip
            recent.prune(store, order, {state(at + 1), state(at + 101)}, 2)
    begun = [12, 15]  # the last two segments, of which the last one's states are all there
    assert there() == [*begun, 16, 17, 18, *(100 + n for n in (*begun, 16, 17, 18))]
    recent.prune(store, order, set(), None)
    assert len(there()) == 10, "all stay where no number was given"


def test_what_a_site_goes_back_to_is_there_after_a_restart_too(tmp_path: Path) -> None:
    """The update of round 0 is refused when round 1 was trained on top of it, by a trainer started since: round 2
    begins with what round 0 had begun with."""
    store = FolderStore(tmp_path)

    def trained(recent: RecentStates, key: str, begin: int, own: str | None) -> None:
        store.write_bytes(snapshot_key(SITE, state(begin + 1)), b"state")
        order: Any = SimpleNamespace(
            key=key, attempt=1, site=SITE, links=None, own=own, inner_state=state(begin), residual="fresh"
        )
        recent.prune(store, order, {state(begin + 1)}, 1)

    store.write_bytes(snapshot_key(SITE, state(0)), b"state")
    trained(RecentStates(), "ckpt-000001", 0, None)
    recent = RecentStates()
    trained(recent, "ckpt-000001", 1, "its update of round 0")
    assert store.exists(snapshot_key(SITE, state(0)))
    trained(recent, "ckpt-000002", 2, None)
    assert [store.exists(snapshot_key(SITE, state(n))) for n in range(4)] == [False, False, True, True]


def test_what_a_trainer_that_was_killed_left_goes_with_the_next_order(tmp_path: Path) -> None:
    own = FolderStore(tmp_path)
    folder = LinkedFolder(own).store
    stays = ["inner_state/SPP_TX/a.safetensors", "scratch/replays/r/inner_state/SPP_TX/b.safetensors"]
    for key in (*stays, "scratch/ckpt-000001/1/round-0000/model.safetensors", "shards/SPP_TX/00000.bin"):
        folder.write_bytes(key, b"x")
    folder.write_bytes("model.safetensors", b"weights")
    links: Any = SimpleNamespace(read=lambda key: b"{}", get={}, send=lambda key, path: None)
    order: Any = SimpleNamespace(
        site=SITE, config="config.json", experiment_uri="experiment.json", delta=None, shared=None, own=None,
        parent=SimpleNamespace(key="model.safetensors", sha256=file_sha256(folder.path("model.safetensors"))),
        out="out.safetensors", inner_out="", delivered="yes",
    )  # fmt: skip
    with LinkedFolder(own).working(order, links, lambda key: False):
        left = [path.relative_to(folder.root).as_posix() for path in folder.root.rglob("*.safetensors")]
    assert sorted(left) == sorted([*stays, "model.safetensors"])


def test_part_of_a_state_that_a_killed_process_has_left_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, write = FolderStore(tmp_path), snapshots.write_tensors

    def killed(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        write(path, tensors)
        raise KeyboardInterrupt  # before it has its name

    monkeypatch.setattr(snapshots, "write_tensors", killed)
    for value in (1.0, 2.0):
        with pytest.raises(KeyboardInterrupt):
            snapshots.save_snapshot(store, SITE, {"momentum": torch.tensor([value])})
    monkeypatch.setattr(snapshots, "write_tensors", write)
    name = snapshots.save_snapshot(store, SITE, {"momentum": torch.tensor([3.0])})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in files] == [f"{name.removeprefix('sha256:')}.safetensors"]
