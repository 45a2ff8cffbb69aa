"""Checkpoints of a finished run made again, with real processes: on demand, and where files are damaged."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from micro import curtail
from whole_runs import Finished, manifests, materialise

from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.folder_store import FolderStore

pytestmark = pytest.mark.long

REPLAYED = ("local", "federated", "federated")
WISHES = (
    {"mode": "evaluate"},
    {"mode": "export", "destination": "exports/one"},
    {"mode": "export", "destination": "exports/one"},
    {"mode": "extend", "rounds": 2},
    {"mode": "branch", "seed": 99},
    {"mode": "branch"},
)
"""Of a federated checkpoint."""


@pytest.fixture(scope="module")
def asked(copied: Finished) -> list[dict[str, Any]]:
    """What replays and then wishes came to, in one process on one federation; the main lineage is as it was."""
    home = copied.home
    before = {name: found.sha256() for name, found in manifests(home).items()}
    key = copied.key_of("federated")
    wanted = [copied.key_of(mode) for mode in REPLAYED] + [f"{key}={json.dumps(wish)}" for wish in WISHES]
    found = materialise(home, *wanted)
    assert {name: found.sha256() for name, found in manifests(home).items()} == before, "the main lineage was touched"
    return found


def test_materialising_earlier_keys_reproduces_their_weights(copied: Finished, asked: list[dict[str, Any]]) -> None:
    """A local and a federated one, the latter twice in a row."""
    home = copied.home
    for mode, found in zip(REPLAYED, asked, strict=False):
        committed = manifests(home)[copied.key_of(mode)]
        assert found["identical"] is True and found["checks"] == {"replay_identical": True, "token_ledger": True}
        assert found["replay"]["replayed_sha256"] == committed.files["model.safetensors"].sha256
        assert found["replayed_steps"] == committed.steps.end - committed.steps.begin > 0
    assert not FolderStore(home / "micro" / "store").list("scratch/replays")


def test_on_demand_a_checkpoint_is_evaluated_exported_and_branched_off(
    copied: Finished, asked: list[dict[str, Any]]
) -> None:
    home, summary = copied.home, copied.summary
    key = copied.key_of("federated")
    evaluated, exported, refused, longer, other, unsaid = asked[len(REPLAYED) :]
    row = next(row for row in summary["checkpoints"] if row["key"] == key)
    assert evaluated["success"] and evaluated["checks"] == {}
    assert evaluated["held-out loss (nat/token)"] == pytest.approx(row["heldout_loss"], rel=1e-3)
    assert (Path(exported["exported to"]) / "README.md").exists()
    assert exported["exported to"] == str(home / "micro" / "exports" / "one")
    assert not refused["success"] and "export to a new one" in str(refused["errors"])
    assert not unsaid["success"] and "set `seed`" in str(unsaid["errors"])

    committed = manifests(home)[key]
    store = FolderStore(home / "micro" / "store")
    extended = Checkpoints(FolderStore(store.path(f"branches/{longer['branch']}")))
    (tip,) = [extended.verify(name) for name in extended.keys() if name != key]
    assert tip.parent == key and tip.rounds == 2 and tip.steps.begin == committed.steps.end
    steps = tip.steps.end - tip.steps.begin
    assert steps > 0 and longer["branch trained"].startswith(f"2 rounds, {steps:,} steps, ")
    assert longer["branch manifest"]["files"]["model.safetensors"]["sha256"].startswith(longer["branch weights"])
    seeded = Checkpoints(FolderStore(store.path(f"branches/{other['branch']}")))
    again = seeded.verify(key)
    assert again.seed == 99 and again.steps == committed.steps and again.ledger == committed.ledger
    assert again.files["model.safetensors"].sha256 != committed.files["model.safetensors"].sha256
    assert not store.list("scratch/replays")


def test_a_replay_in_a_process_of_its_own_gives_the_same_weights(finished: Finished, tmp_path: Path) -> None:
    """`federation.replay: own`: no SuperLink, no resident trainer."""
    own = finished.copy(tmp_path, "own")
    (found,) = materialise(tmp_path, own.key_of("federated"), PATH="/nowhere")
    assert found["success"], found["errors"]
    assert found["identical"] is True
    assert not (tmp_path / "micro" / "federation" / "federation.json").exists()


def test_damaged_files_are_found_and_made_again(finished: Finished, tmp_path: Path) -> None:
    """Weights and outer state by training the segment again, the rest by copying; all of it to the byte."""
    home, key = finished.home, finished.key_of("federated")
    settings = finished.copy(tmp_path, "own").home / "micro" / "experiment.yaml"
    folder, committed = (root / "micro" / "store" / "checkpoints" / key for root in (tmp_path, home))
    wrong = ("model.safetensors", "outer.safetensors", "config.json")
    for name in wrong:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(bytes(data))
    (folder / "tokenizer.json").unlink()
    (folder.parent / "ckpt-000000" / "model.safetensors").unlink()

    def command(*words: str) -> "subprocess.CompletedProcess[str]":
        return curtail("checkpoints", *words, "--experiment", str(settings), home=tmp_path, timeout=300)

    found = command("verify")
    assert found.returncode == 1
    assert all(word in found.stderr for word in ("model.safetensors", "is missing", "checkpoints repair ckpt-000000"))
    repaired = command("repair")
    assert repaired.returncode == 0, repaired.stderr
    assert f"{key}: config.json copied from ckpt-" in repaired.stdout and "are intact" in repaired.stdout
    for name in (*wrong, "tokenizer.json"):
        assert (folder / name).read_bytes() == (committed / name).read_bytes()
        assert (folder / name).stat().st_nlink == 1, "damage to one file would be damage to two"
    assert "ckpt-000000: model.safetensors initialised again" in repaired.stdout
    assert manifests(tmp_path) == manifests(home)

    (folder / "plan.json").write_bytes(b"{}")
    refused = command("repair", key)
    assert refused.returncode == 1 and "plan.json" in refused.stderr and "restore it from a copy" in refused.stderr
