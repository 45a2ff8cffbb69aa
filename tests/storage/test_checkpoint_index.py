"""The index of checkpoints: never believed against the folders, and made again when it is lost."""

import errno
import itertools
import os
import time
from pathlib import Path

import pytest
from checkpoint_cases import commit_three, fields

from curtail_pipeline.storage import checkpoint_index, file_index, folder_store
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.manifest import parse_manifest, sealed
from curtail_pipeline.storage.store import Store

KEYS = ["ckpt-000000", "ckpt-000001", "ckpt-000002"]


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as settled at once, so that the index is used."""
    monkeypatch.setattr(file_index, "SETTLED_NS", 0)


@pytest.fixture
def store(tmp_path: Path, files: dict[str, Path]) -> FolderStore:
    store = FolderStore(tmp_path / "store")
    commit_three(Checkpoints(store), files)
    return store


def opened(store: FolderStore) -> Checkpoints:
    """As another process opens it."""
    return Checkpoints(store)


def manifest_of(store: FolderStore, key: str) -> Path:
    return store.path(f"checkpoints/{key}/manifest.json")


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys whose manifests are read for the index from now on."""
    seen: list[str] = []

    def read(key: str, data: bytes) -> str | None:
        seen.append(key)
        return checkpoint_index.summarise_bytes(key, data)

    monkeypatch.setattr("curtail_pipeline.storage.checkpoints.summarise_bytes", read)
    return seen


def test_what_has_not_changed_is_not_read_again(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened(store).keys() == KEYS
    seen = reads(monkeypatch)
    checkpoints = opened(store)
    assert checkpoints.keys() == KEYS and checkpoints.last() == KEYS[-1]
    assert [row.total_tokens for row in checkpoints.summaries()] == [0, 40, 80]
    assert seen == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_bytes(path.read_bytes().replace(b'"seed": 1', b'"seed": 2')),
        lambda path: path.write_bytes(path.read_bytes() + b"\n"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(manifest_of_another(path)),
    ],
    ids=["absent", "cut", "flipped", "longer", "empty", "another's"],
)
def test_a_damaged_manifest_does_not_exist_whatever_the_index_says(store: FolderStore, damage) -> None:  # type: ignore[no-untyped-def]
    checkpoints = opened(store)
    assert checkpoints.keys() == KEYS
    path = manifest_of(store, KEYS[-1])
    whole = path.read_bytes()
    damage(path)
    for found in (checkpoints, opened(store)):
        assert found.keys() == KEYS[:2]
        assert found.last() == KEYS[1]
        assert [row.key for row in found.summaries()] == KEYS[:2]
    path.write_bytes(whole)
    for found in (checkpoints, opened(store)):
        assert found.keys() == KEYS and found.last() == KEYS[-1]


def manifest_of_another(path: Path) -> bytes:
    return (path.parent.parent / KEYS[1] / "manifest.json").read_bytes()


def test_the_last_one_is_checked_even_when_its_file_looks_unchanged(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flipped bit on the disk changes no time."""
    checkpoints = opened(store)
    assert checkpoints.last() == KEYS[-1]
    path = manifest_of(store, KEYS[-1])
    key = path.relative_to(store.root).as_posix()
    (before,) = store.stamps([key])
    path.write_bytes(path.read_bytes().replace(b'"seed": 1', b'"seed": 2'))
    of = store.stamps
    monkeypatch.setattr(
        store, "stamps", lambda keys: (before if name == key else next(iter(of([name]))) for name in keys)
    )
    assert checkpoints.last() == KEYS[1]


@pytest.mark.parametrize("lost", [Path.unlink, lambda path: path.write_bytes(b"no database" * 1000)])
def test_a_lost_index_is_made_again(store: FolderStore, monkeypatch: pytest.MonkeyPatch, lost) -> None:  # type: ignore[no-untyped-def]
    assert opened(store).keys() == KEYS
    index = store.path("index.sqlite")
    lost(index)
    assert opened(store).keys() == KEYS
    assert opened(store).keys() == KEYS  # a damaged file is removed by the first
    seen = reads(monkeypatch)
    assert opened(store).keys() == KEYS and seen == []
    assert index.read_bytes().startswith(b"SQLite format 3")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_that_cannot_be_written_is_listed(store: FolderStore) -> None:
    store.root.chmod(0o555)
    try:
        assert opened(store).keys() == KEYS
    finally:
        store.root.chmod(0o755)


def test_an_index_that_another_process_holds_delays_nobody(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    monkeypatch.setattr(file_index, "_BUSY_S", 0.01)
    assert opened(store).keys() == KEYS
    index = store.path("index.sqlite")
    before = index.stat().st_ino
    holder = sqlite3.connect(index)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        begin = time.monotonic()
        assert opened(store).keys() == KEYS
        assert time.monotonic() - begin < 2
    finally:
        holder.close()
    assert opened(store).keys() == KEYS
    assert index.stat().st_ino == before, "the index of others was removed"


def test_a_file_that_has_just_changed_is_not_kept(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_index, "SETTLED_NS", 10**12)
    checkpoints = opened(store)
    assert checkpoints.keys() == KEYS
    seen = reads(monkeypatch)
    assert checkpoints.keys() == KEYS and seen == KEYS


def test_sealed_is_true_of_what_was_written_alone(store: FolderStore) -> None:
    data = manifest_of(store, KEYS[1]).read_bytes()
    assert sealed(data) and parse_manifest(data, KEYS[1])
    for place in range(0, len(data), 7):
        assert not sealed(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


def test_a_commit_is_seen_by_whoever_has_looked_before(store: FolderStore, files: dict[str, Path]) -> None:
    reader, writer = opened(store), opened(store)
    assert reader.last() == KEYS[-1]
    writer.commit("ckpt-000003", files, fields(KEYS[-1], begin=10, first=10), 3)
    assert reader.last() == "ckpt-000003" and reader.keys() == [*KEYS, "ckpt-000003"]


def test_a_file_that_could_not_be_read_is_read_again(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_more_files(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    checkpoints = opened(store)
    with monkeypatch.context() as short:
        short.setattr(folder_store.os, "open", no_more_files)
        assert checkpoints.keys() == []
    assert checkpoints.keys() == opened(store).keys() == KEYS


def test_what_another_thread_forgets_meanwhile_is_not_taken_for_damaged(
    store: FolderStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket's stamps are listed at once, and the index goes on to change."""
    monkeypatch.setattr(FolderStore, "changed", Store.changed)
    checkpoints = opened(store)
    assert checkpoints.keys() == KEYS
    look = checkpoints._indexed(KEYS)
    first, _ = next(look)
    checkpoints.index.forget("manifest", KEYS[1])
    assert [first, *(key for key, found in look if found is not None)] == KEYS


def test_files_changed_and_unchanged_in_any_order_are_told_apart(store: FolderStore) -> None:
    """Behind a changed file the next is opened without being looked at first."""
    keys = [f"checkpoints/{key}/manifest.json" for key in KEYS]
    for changed in itertools.product((False, True), repeat=3):
        known = [
            (key, None if new else stamp) for key, stamp, new in zip(keys, store.stamps(keys), changed, strict=True)
        ]
        found = list(store.changed(known))
        assert [stamp for stamp, _ in found] == list(store.stamps(keys))
        assert [data for _, data in found] == [
            store.read_bytes(key) if new else None for key, new in zip(keys, changed, strict=True)
        ]
    absent = [(keys[0], None), ("checkpoints/none", None), (keys[2], None)]
    assert [stamp is None for stamp, _ in store.changed(absent)] == [False, True, False]


def test_a_file_that_grows_is_read_to_its_end(store: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write_bytes("long", whole := bytes(range(256)) * 1024)
    monkeypatch.setattr(folder_store.os, "fstat", lambda _: os.stat_result((0,) * 6 + (100,) + (0,) * 3))
    assert store.read_bytes("long") == whole
