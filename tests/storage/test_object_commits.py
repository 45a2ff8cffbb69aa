"""Commits to a bucket: one of many writers wins, a reader sees all or nothing, and a writer that dies is made good."""

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from checkpoint_cases import commit_three, fields

from curtail_pipeline.benchmarks.s3_server import S3Server
from curtail_pipeline.errors import StoreError
from curtail_pipeline.stages.initialise import initialise_here
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.claims import Fenced
from curtail_pipeline.storage.commits import AlreadyCommitted
from curtail_pipeline.storage.object_commits import ObjectCommits
from curtail_pipeline.storage.s3_calls import Place
from curtail_pipeline.storage.s3_store import S3Store

Files = dict[str, Path]


@pytest.fixture
def machine(s3: S3Server, tmp_path: Path) -> Callable[[str], Checkpoints]:
    place = Place(s3.bucket(), "p")
    return lambda name: Checkpoints(S3Store(place, tmp_path / name, 1 << 24, s3.connect))


def test_commit_and_read_on_another_machine(machine: Callable[[str], Checkpoints], files: Files) -> None:
    commit_three(machine("one"), files)
    other = machine("two")
    assert other.keys() == ["ckpt-000000", "ckpt-000001", "ckpt-000002"] and other.last() == "ckpt-000002"
    assert other.verify_chain() == other.keys() and [s.parent for s in other.summaries()][1] == "ckpt-000000"
    assert other.store.list("scratch/.staged") == []
    assert sorted(other.store.list("checkpoints/ckpt-000001")) == sorted([*files, "manifest.json"])
    with other.folder("ckpt-000001") as folder:
        assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
        assert (folder / "model.safetensors").read_bytes() == files["model.safetensors"].read_bytes()
    with pytest.raises(AlreadyCommitted):
        other.commit("ckpt-000001", files, fields("ckpt-000000"), 9)
    with pytest.raises(StoreError, match=r"no checkpoint 'ckpt-000007' in s3://.*; the store has ckpt-000000 to"):
        other.manifest("ckpt-000007")


def test_a_list_reads_no_manifest_twice(
    machine: Callable[[str], Checkpoints],
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commit_three(machine("one"), files)
    assert len(machine("two").keys()) == 3
    read: list[str] = []
    monkeypatch.setattr(S3Store, "read_bytes", lambda self, key: read.append(key))
    assert [s.key for s in machine("two").summaries()] == ["ckpt-000000", "ckpt-000001", "ckpt-000002"] and not read


def test_files_that_are_in_the_store_are_copied_there(machine: Callable[[str], Checkpoints], files: Files) -> None:
    checkpoints = machine("one")
    for name, path in files.items():
        checkpoints.store.put_file(path, f"scratch/x/{name}")
    checkpoints.commit("ckpt-000000", {name: f"scratch/x/{name}" for name in files}, fields(), 0)
    assert checkpoints.verify("ckpt-000000").files.keys() == files.keys()
    with pytest.raises(StoreError, match=r"scratch/y, to be config\.json of a checkpoint, does not exist"):
        checkpoints.commit("ckpt-000001", {"config.json": "scratch/y"}, fields("ckpt-000000"), 1)
    with pytest.raises(StoreError, match=r"to be config\.json of a checkpoint, does not exist"):
        checkpoints.commit("ckpt-000001", {"config.json": Path("/nowhere")}, fields("ckpt-000000"), 1)
    assert checkpoints.keys() == ["ckpt-000000"] and checkpoints.store.list("scratch/.staged") == []


def test_an_older_writer_is_fenced(machine: Callable[[str], Checkpoints], files: Files) -> None:
    one, two = machine("one"), machine("two")
    one.commit("ckpt-000000", files, fields(), 0)
    one.claim("ckpt-000001", 3, 2)
    two.claim("ckpt-000001", 4, 1)
    for generation, attempt in ((3, 9), (4, 0)):
        with pytest.raises(Fenced, match="overtaken by generation 4, attempt 1"):
            one.claim("ckpt-000001", generation, attempt)
        with pytest.raises(Fenced):
            one.commit("ckpt-000001", files, fields("ckpt-000000", attempt=attempt), generation)
    assert one.keys() == ["ckpt-000000"] and one.store.list("scratch/.staged") == []
    assert two.commit("ckpt-000001", files, fields("ckpt-000000", attempt=1), 4).attempt == 1


def test_of_many_writers_one_commits(machine: Callable[[str], Checkpoints], files: Files) -> None:
    machine("one").commit("ckpt-000000", files, fields(), 0)
    outcomes: list[str] = []
    gate = threading.Barrier(4)

    def commit(attempt: int) -> None:
        mine = machine(f"m{attempt}")
        gate.wait()
        try:
            mine.commit("ckpt-000001", files, fields("ckpt-000000", attempt=attempt), 1)
            outcomes.append(f"done {attempt}")
        except (AlreadyCommitted, Fenced) as error:
            outcomes.append(type(error).__name__)

    writers = [threading.Thread(target=commit, args=(n,)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    (winner,) = [outcome for outcome in outcomes if outcome.startswith("done")]
    assert len(outcomes) == 4 and machine("one").verify("ckpt-000001").attempt == int(winner[-1])


def test_a_commit_that_comes_between_two_looks_is_seen(
    machine: Callable[[str], Checkpoints],
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another writer commits at the worst moments: before each of the looks at the log in turn."""
    one, two = machine("one"), machine("two")
    one.commit("ckpt-000000", files, fields(), 0)
    looks = [0]
    newest = ObjectCommits._newest
    for at in (1, 2, 3):
        key, parent = f"ckpt-{at:06d}", f"ckpt-{at - 1:06d}"
        content = fields(parent, begin=5 * (at - 1), first=5 * (at - 1), attempt=1)

        def interrupted(self: ObjectCommits, key: str, at: int = at, content: dict[str, object] = content) -> object:
            looks[0] += 1
            if looks[0] == at:
                monkeypatch.setattr(ObjectCommits, "_newest", newest)
                two.commit(key, files, {**content, "attempt": 2}, 1)
                monkeypatch.setattr(ObjectCommits, "_newest", interrupted)
            return newest(self, key)

        looks[0] = 0
        monkeypatch.setattr(ObjectCommits, "_newest", interrupted)
        if at < 3:
            with pytest.raises((AlreadyCommitted, Fenced)):
                one.commit(key, files, content, 1)
            assert two.verify(key).attempt == 2
        else:  # there is no third look before the decision
            assert one.commit(key, files, content, 1).attempt == 1 and looks[0] == 2
            assert two.verify(key).attempt == 1
        monkeypatch.setattr(ObjectCommits, "_newest", newest)


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("after", "next_one"), [(0, "claim"), (4, "claim"), (1, "commit")])
def test_a_decided_commit_is_carried_out_by_whoever_comes_next(
    machine: Callable[[str], Checkpoints],
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
    after: int,
    next_one: str,
) -> None:
    one, two = machine("one"), machine("two")
    one.commit("ckpt-000000", files, fields(), 0)
    copies = [0]
    copy = S3Store.copy

    def dies(self: S3Store, source: str, key: str) -> None:
        if copies[0] == after:
            raise Killed
        copies[0] += 1
        copy(self, source, key)

    monkeypatch.setattr(S3Store, "copy", dies)
    with pytest.raises(Killed):
        one.commit("ckpt-000001", files, fields("ckpt-000000", attempt=1), 1)
    monkeypatch.setattr(S3Store, "copy", copy)
    assert two.keys() == ["ckpt-000000"] and not two.exists("ckpt-000001"), "nothing of it is visible"
    if next_one == "claim":
        two.claim("ckpt-000001", 1, 2)
    else:
        with pytest.raises(AlreadyCommitted):
            two.commit("ckpt-000001", files, fields("ckpt-000000", attempt=2), 1)
    assert two.verify("ckpt-000001").attempt == 1 and two.verify_chain() == ["ckpt-000000", "ckpt-000001"]
    assert next_one == "commit" or two.store.list("scratch/.staged") == []


def test_an_initialised_model_whose_commit_was_cut_off_is_not_made_again(
    machine: Callable[[str], Checkpoints],
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, two = machine("one"), machine("two")

    def dies(self: S3Store, source: str, key: str) -> None:
        raise Killed

    with monkeypatch.context() as cut_off:
        cut_off.setattr(S3Store, "copy", dies)
        with pytest.raises(Killed):
            one.commit("ckpt-000000", files, fields(), 0)
    assert not two.exists("ckpt-000000")
    project = cast(Project, SimpleNamespace(store=two.store, checkpoints=two))  # nothing that could make another
    assert initialise_here(project).sha256() == two.verify("ckpt-000000").sha256()


def test_one_that_dies_before_the_decision_leaves_nothing_that_counts(
    machine: Callable[[str], Checkpoints],
    files: Files,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, two = machine("one"), machine("two")
    one.commit("ckpt-000000", files, fields(), 0)

    def dies(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(ObjectCommits, "_decide", dies)
        one.commit("ckpt-000001", files, fields("ckpt-000000", attempt=1), 1)
    assert two.store.list("scratch/.staged/ckpt-000001") != []
    assert two.commit("ckpt-000001", files, fields("ckpt-000000", attempt=2), 1).attempt == 2
    assert two.store.list("scratch/.staged") == []  # what the dead one left, too


def test_a_damaged_checkpoint_is_named_and_not_replaced(
    machine: Callable[[str], Checkpoints],
    files: Files,
) -> None:
    one = machine("one")
    commit_three(one, files)
    one.store.write_bytes("checkpoints/ckpt-000002/model.safetensors", b"x")
    for check in (one.verify, one.check):
        with pytest.raises(StoreError, match=r"ckpt-000002/model\.safetensors is corrupt: expected sha256"):
            check("ckpt-000002")
    one.store.delete("checkpoints/ckpt-000001/model.safetensors")
    with pytest.raises(StoreError, match=r"ckpt-000001/model\.safetensors is missing"):
        one.check("ckpt-000001")
    manifest: dict[str, object] = json.loads(one.store.read_bytes("checkpoints/ckpt-000002/manifest.json"))
    one.store.write_json("checkpoints/ckpt-000002/manifest.json", {**manifest, "seed": 2})
    assert one.last() == "ckpt-000001"
    with pytest.raises(StoreError, match="was committed and is damaged"):
        one.claim("ckpt-000002", 9, 1)
    with pytest.raises(StoreError, match="was committed and is damaged"):
        one.commit("ckpt-000002", files, fields("ckpt-000001", begin=5, first=5), 9)


def test_export(machine: Callable[[str], Checkpoints], files: Files, tmp_path: Path) -> None:
    one = machine("one")
    one.commit("ckpt-000000", files, fields(), 0)
    shutil.rmtree(tmp_path / "one", ignore_errors=True)
    assert one.export("ckpt-000000", tmp_path / "out", "card") == [
        "config.json", "model.safetensors", "tokenizer.json", "README.md",
    ]  # fmt: skip
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == files["model.safetensors"].read_bytes()
    assert not (tmp_path / "out" / "model.safetensors").is_symlink()
    with pytest.raises(StoreError, match=r"'s3://bucket/out' is not a folder to export"):
        one.export("ckpt-000000", "s3://bucket/out")


def test_a_damaged_checkpoint_without_a_child_is_set_aside_and_made_again(
    machine: Callable[[str], Checkpoints],
    files: Files,
) -> None:
    one, two = machine("one"), machine("two")
    commit_three(one, files)
    one.store.delete("checkpoints/ckpt-000002/model.safetensors")
    with pytest.raises(StoreError, match="missing"):
        one.check("ckpt-000002")
    with pytest.raises(StoreError, match="ckpt-000001 is what other checkpoints were made from"):
        one.withdraw("ckpt-000001")
    aside = one.withdraw("ckpt-000002").removeprefix(f"{one.store.uri}/")
    assert one.store.list(aside) == sorted({*files, "manifest.json"} - {"model.safetensors"})
    assert two.last() == "ckpt-000001" and two.verify_chain() == ["ckpt-000000", "ckpt-000001"]
    content = fields("ckpt-000001", begin=5, first=5)
    with pytest.raises(Fenced):  # whoever was overtaken then still is
        two.commit("ckpt-000002", files, content, 0)
    two.commit("ckpt-000002", files, content, 7)
    assert one.verify_chain() == ["ckpt-000000", "ckpt-000001", "ckpt-000002"]
