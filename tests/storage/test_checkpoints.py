import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from checkpoint_cases import commit_three, fields, ledger, tree

from curtail_pipeline.errors import LedgerError, StoreError
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.claims import Fenced
from curtail_pipeline.storage.commits import AlreadyCommitted
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.store import file_sha256


def test_commit_and_read(checkpoints: Checkpoints, files: dict[str, Path]) -> None:
    assert checkpoints.keys() == [] and checkpoints.last() is None
    commit_three(checkpoints, files)
    assert checkpoints.keys() == ["ckpt-000000", "ckpt-000001", "ckpt-000002"]
    assert checkpoints.last() == "ckpt-000002"
    assert checkpoints.lineage("ckpt-000002") == checkpoints.keys() == checkpoints.verify_chain()
    manifest = checkpoints.manifest("ckpt-000002")
    assert manifest.ledger["SPP_TX"].consumed == [(1, 0, 10)]
    assert manifest.tokens.total == 80 and manifest.steps.end == 10 and manifest.generation == 2
    assert manifest.parent_manifest_sha256 == file_sha256(Path(checkpoints.where("ckpt-000001")) / "manifest.json")
    assert manifest.sha256() == file_sha256(Path(checkpoints.where("ckpt-000002")) / "manifest.json")
    assert manifest.versions["curtail_pipeline"]
    shown = checkpoints.show("ckpt-000002")
    assert shown.manifest_sha256 == manifest.sha256() and shown.steps == manifest.steps


def test_manifest_bytes_depend_on_content_alone(tmp_path: Path, files: dict[str, Path]) -> None:
    shuffled = dict(reversed(fields().items()))
    shuffled["start"] = "2026-01-11T18:00:00+01:00"
    one = Checkpoints(FolderStore(tmp_path / "a")).commit("ckpt-000000", files, fields(), 0)
    two = Checkpoints(FolderStore(tmp_path / "b")).commit("ckpt-000000", dict(reversed(files.items())), shuffled, 0)
    assert one.sha256() == two.sha256()


def test_a_folder_without_a_valid_manifest_does_not_exist(checkpoints: Checkpoints, files: dict[str, Path]) -> None:
    commit_three(checkpoints, files)
    for name in ("ckpt-000003", "ckpt-000007", "notes", ".ckpt-000009.tmp"):
        Path(checkpoints.where("ckpt-000000")).with_name(name).mkdir()
    torn = Path(checkpoints.where("ckpt-000003"))
    (torn / "model.safetensors").write_bytes(b"half")
    (torn / "manifest.json").write_bytes(b'{"format": 1, "key"')
    assert checkpoints.last() == "ckpt-000002"
    checkpoints.commit("ckpt-000003", files, fields("ckpt-000002", begin=10, first=10), 3)
    assert checkpoints.verify_chain()[-1] == "ckpt-000003"
    (aside,) = checkpoints.store.path("set_aside").iterdir()
    assert (aside / "model.safetensors").read_bytes() == b"half"


def test_flipping_any_one_byte_is_found(checkpoints: Checkpoints, files: dict[str, Path]) -> None:
    commit_three(checkpoints, files)
    folder = Path(checkpoints.where("ckpt-000001"))
    for path in sorted(folder.iterdir()):
        original = path.read_bytes()
        positions = range(len(original)) if path.name == "manifest.json" else [len(original) // 2]
        for position in positions:
            damaged = bytearray(original)
            damaged[position] ^= 1
            path.write_bytes(damaged)
            with pytest.raises(StoreError, match=path.name.replace(".", r"\.")):
                checkpoints.verify("ckpt-000001")
        with pytest.raises(StoreError, match="ckpt-000001"):
            checkpoints.verify_chain()
        path.write_bytes(original)
    checkpoints.verify_chain()
    manifest = folder / "manifest.json"
    original = manifest.read_bytes()
    manifest.write_bytes(json.dumps(json.loads(original)).encode())
    with pytest.raises(StoreError, match=r"manifest\.json was changed"):
        checkpoints.verify("ckpt-000001")
    manifest.write_bytes(original)
    weights = folder / "model.safetensors"
    expected = file_sha256(weights)
    weights.write_bytes(b"other")
    with pytest.raises(StoreError) as error:
        checkpoints.verify("ckpt-000001")
    assert expected in str(error.value) and file_sha256(weights) in str(error.value)
    weights.unlink()
    with pytest.raises(StoreError, match="missing"):
        checkpoints.verify("ckpt-000001")


def test_damage_to_one_checkpoint_or_source_is_not_damage_to_another(
    checkpoints: Checkpoints, files: dict[str, Path]
) -> None:
    """Stored files share no bytes on disk, except that weights move out of scratch without a copy."""
    scratch = checkpoints.store.path("scratch/ckpt-000001/0")
    scratch.mkdir(parents=True)
    weights = scratch / "model.safetensors"
    weights.write_bytes(b"weights")
    checkpoints.commit("ckpt-000000", files, fields(), 0)
    checkpoints.commit("ckpt-000001", {**files, "model.safetensors": weights}, fields("ckpt-000000"), 1)
    stored = Path(checkpoints.where("ckpt-000001")) / "model.safetensors"
    assert stored.samefile(weights)
    again = {**files, "model.safetensors": weights}
    checkpoints.commit("ckpt-000002", again, fields("ckpt-000001", begin=5, first=5), 2)
    assert not (Path(checkpoints.where("ckpt-000002")) / "model.safetensors").samefile(stored)
    with (Path(checkpoints.where("ckpt-000002")) / "tokenizer.json").open("r+b") as stream:
        stream.write(b"X")
    checkpoints.verify("ckpt-000001")


def test_a_committed_key_is_never_replaced(checkpoints: Checkpoints, files: dict[str, Path]) -> None:
    commit_three(checkpoints, files)
    before = tree(checkpoints.store.path("checkpoints"))
    with pytest.raises(AlreadyCommitted, match="ckpt-000001"):
        checkpoints.commit("ckpt-000001", files, fields("ckpt-000000"), 99)
    # Nor when it is damaged: the next run may be the one that could still restore it.
    (Path(checkpoints.where("ckpt-000002")) / "manifest.json").write_bytes(b"{}")
    for _ in range(2):
        with pytest.raises(StoreError, match="was committed and is damaged"):
            checkpoints.claim("ckpt-000002", 99, 1)  # said before anything is trained, and not forgotten by saying it
    with pytest.raises(StoreError, match="damaged"):
        checkpoints.commit("ckpt-000002", files, fields("ckpt-000001", begin=5, first=5), 99)
    with pytest.raises(StoreError, match="ckpt-000002"):
        checkpoints.verify_chain()
    after = tree(checkpoints.store.path("checkpoints"))
    assert {k: v for k, v in after.items() if "000002/manifest" not in k} == {
        k: v for k, v in before.items() if "000002/manifest" not in k
    }
    # Moving the folder away is the user's word that it may be trained again.
    shutil.rmtree(Path(checkpoints.where("ckpt-000002")))
    checkpoints.commit("ckpt-000002", files, fields("ckpt-000001", begin=5, first=5), 99)


def test_an_overtaken_writer_is_fenced(checkpoints: Checkpoints, files: dict[str, Path]) -> None:
    checkpoints.commit("ckpt-000000", files, fields(), 0)
    checkpoints.claim("ckpt-000001", generation=4, attempt=1)
    for generation, attempt in [(3, 9), (4, 0)]:
        with pytest.raises(Fenced, match="overtaken by generation 4, attempt 1"):
            checkpoints.claim("ckpt-000001", generation, attempt)
        with pytest.raises(Fenced):
            checkpoints.commit("ckpt-000001", files, fields("ckpt-000000", attempt=attempt), generation)
    assert checkpoints.keys() == ["ckpt-000000"]
    assert checkpoints.commit("ckpt-000001", files, fields("ckpt-000000", attempt=1), 4).attempt == 1


def test_missing_source_and_bad_names(checkpoints: Checkpoints, files: dict[str, Path]) -> None:
    with pytest.raises(StoreError, match=r"nowhere.*does not exist"):
        checkpoints.commit("ckpt-000000", {"model.safetensors": Path("nowhere")}, fields(), 0)
    for name in ("../model.safetensors", "manifest.json", ".."):
        with pytest.raises(StoreError, match="plain name"):
            checkpoints.commit("ckpt-000000", {name: files["plan.json"]}, fields(), 0)
    for key in ("ckpt-1", "../ckpt-000001", "latest", "ckpt-000001\n"):
        with pytest.raises(StoreError, match="not a checkpoint key"):
            checkpoints.commit(key, files, fields(), 0)
    with pytest.raises(StoreError, match="stop_reason"):
        checkpoints.commit("ckpt-000000", files, {k: v for k, v in fields().items() if k != "stop_reason"}, 0)
    assert checkpoints.keys() == [] and not [*checkpoints.store.path("checkpoints").glob(".*.tmp")]
    with pytest.raises(StoreError, match="the store has none"):
        checkpoints.manifest("ckpt-000000")


def test_a_checkpoint_has_to_follow_from_its_parent(checkpoints: Checkpoints, files: dict[str, Path]) -> None:
    commit_three(checkpoints, files)
    good = fields("ckpt-000002", begin=10, first=10)

    def refused(kind: type[Exception], match: str, **change: Any) -> None:
        with pytest.raises(kind, match=match):
            checkpoints.commit("ckpt-000003", files, {**good, **change}, 3)

    refused(StoreError, "no checkpoint", parent="ckpt-000009")
    refused(StoreError, "steps", steps={"begin": 9, "end": 15})
    refused(StoreError, "tokens", tokens={"segment": 41})
    refused(LedgerError, "ckpt-000003: ledger of SPP_TX, epoch 1", ledger=ledger([(1, 0, 14)]))
    refused(LedgerError, "ledger of SPP_TX is written as", ledger=ledger([(1, 0, 9), (1, 9, 15)]))
    refused(LedgerError, "ledger of SPP_TX is written as", ledger={"SPP_TX": {"epoch": 2, "consumed": [(1, 0, 15)]}})
    refused(LedgerError, "belongs to another site", ledger=ledger([(1, 0, 15)], moved=[(1, 12, 20, "NEM_SA")]))
    refused(
        LedgerError, "moved to NEM_SA after it was trained", ledger=ledger([(1, 0, 15)], moved=[(1, 4, 6, "NEM_SA")])
    )
    refused(StoreError, "greater than or equal to 1", ledger={"SPP_TX": {"epoch": 0, "consumed": [(1, 0, 15)]}})
    with pytest.raises(LedgerError, match=r"SPP_TX, epoch 1: sequences \[8, 10\) are counted twice"):
        checkpoints.commit("ckpt-000003", files, fields("ckpt-000002", begin=10, first=8), 3)
    assert checkpoints.last() == "ckpt-000002"
    checkpoints.commit("ckpt-000003", files, {**good, "ledger": ledger([(1, 0, 15)])}, 3)


def test_text_moved_to_another_site_is_counted_in_its_owners_ledger(
    checkpoints: Checkpoints, files: dict[str, Path]
) -> None:
    commit_three(checkpoints, files)
    assert b"moved" not in checkpoints.manifest("ckpt-000002").to_bytes()
    third = fields("ckpt-000002", begin=10)
    third["sites"] = {"NEM_SA": {**third["sites"]["SPP_TX"], "consumed": [(1, 20, 25, "SPP_TX")]}}
    with pytest.raises(LedgerError, match="belongs to another site"):
        checkpoints.commit("ckpt-000003", files, {**third, "ledger": ledger([(1, 0, 10), (1, 20, 25)])}, 3)
    moved = ledger([(1, 0, 10), (1, 20, 25)], moved=[(1, 20, 30, "NEM_SA")])
    checkpoints.commit("ckpt-000003", files, {**third, "ledger": moved}, 3)
    # The next one inherits the move.
    fourth = fields("ckpt-000003", begin=15)
    fourth["sites"] = {"NEM_SA": {**fourth["sites"]["SPP_TX"], "consumed": [(1, 25, 30, "SPP_TX")]}}
    manifest = checkpoints.commit("ckpt-000004", files, fourth, 4)
    assert manifest.ledger["SPP_TX"].consumed == [(1, 0, 10), (1, 20, 30)]
    assert manifest.ledger["SPP_TX"].moved == [(1, 20, 30, "NEM_SA")]
    assert checkpoints.verify_chain()[-1] == "ckpt-000004"


def test_an_empty_list_of_moves_is_none(checkpoints: Checkpoints, files: dict[str, Path]) -> None:
    commit_three(checkpoints, files)
    good = fields("ckpt-000002", begin=10, first=10)
    manifest = checkpoints.commit("ckpt-000003", files, {**good, "ledger": ledger([(1, 0, 15)], moved=[])}, 3)
    assert manifest == checkpoints.manifest("ckpt-000003") and b"moved" not in manifest.to_bytes()


def test_a_replaced_parent_breaks_the_chain(tmp_path: Path, checkpoints: Checkpoints, files: dict[str, Path]) -> None:
    commit_three(checkpoints, files)
    other = Checkpoints(FolderStore(tmp_path / "other"))
    other.commit("ckpt-000000", files, fields(), 0)
    other.commit("ckpt-000001", files, fields("ckpt-000000", seed=2), 1)
    shutil.rmtree(Path(checkpoints.where("ckpt-000001")))
    Path(other.where("ckpt-000001")).rename(Path(checkpoints.where("ckpt-000001")))
    checkpoints.verify("ckpt-000001")
    with pytest.raises(StoreError, match="ckpt-000002 names parent ckpt-000001 with manifest sha256"):
        checkpoints.verify_chain(files=False)


def test_export(tmp_path: Path, checkpoints: Checkpoints, files: dict[str, Path]) -> None:
    commit_three(checkpoints, files)
    dest = tmp_path / "out" / "model"
    names = checkpoints.export("ckpt-000002", dest, model_card="# card")
    assert sorted(names) == ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
    assert sorted(p.name for p in dest.iterdir()) == sorted(names)
    with pytest.raises(StoreError, match="not an empty folder"):
        checkpoints.export("ckpt-000002", dest)
    with (Path(checkpoints.where("ckpt-000002")) / "model.safetensors").open("r+b") as stream:
        stream.write(b"X")
    with pytest.raises(StoreError, match="corrupt"):
        checkpoints.export("ckpt-000002", tmp_path / "second")
    assert not (tmp_path / "second").exists() and [p.name for p in (tmp_path / "out").iterdir()] == ["model"]
