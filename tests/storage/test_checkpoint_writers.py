"""Writers of checkpoints that race, are killed, or have no room or right to write."""

import multiprocessing
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from checkpoint_cases import commit_three, fields, tree

from curtail_pipeline.errors import StoreError
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.folder_store import FolderStore


def _race(root: Path, files: dict[str, Path], attempt: int, gate: Any, results: Any) -> None:
    gate.wait()
    try:
        Checkpoints(FolderStore(root)).commit("ckpt-000001", files, fields("ckpt-000000", attempt=attempt), 1)
        results.put(("done", attempt))
    except StoreError as error:
        results.put((type(error).__name__, attempt))


def test_of_many_writers_one_commits(tmp_path: Path, checkpoints: Checkpoints, files: dict[str, Path]) -> None:
    checkpoints.commit("ckpt-000000", files, fields(), 0)
    context = multiprocessing.get_context("spawn")
    gate, results = context.Barrier(4), context.Queue()
    root = checkpoints.store.root
    writers = [context.Process(target=_race, args=(root, files, n, gate, results)) for n in range(4)]
    for writer in writers:
        writer.start()
    outcomes = [results.get(timeout=300) for _ in writers]
    for writer in writers:
        writer.join()
    winners = [attempt for outcome, attempt in outcomes if outcome == "done"]
    assert len(winners) == 1, outcomes
    assert {outcome for outcome, _ in outcomes} <= {"done", "AlreadyCommitted", "Fenced"}
    assert checkpoints.verify("ckpt-000001").attempt == winners[0]
    assert not [*checkpoints.store.path("checkpoints").glob(".*.tmp")]


_SLOW_COMMIT = """
import sys, pathlib
sys.path.insert(0, {tests!r})
from checkpoint_cases import fields
from curtail_pipeline.storage import checkpoints as c
place = c.FolderCommits._place
def slow(self, source, target):
    result = place(self, source, target)
    if target.name == "plan.json":
        print("half way", flush=True)
        sys.stdin.read()
    return result
c.FolderCommits._place = slow
folder = pathlib.Path({files!r})
c.Checkpoints(c.FolderStore({root!r})).commit(
    "ckpt-000001", {{p.name: p for p in folder.iterdir()}}, fields("ckpt-000000"), 1)
"""


def test_a_writer_killed_half_way_leaves_nothing_that_counts(checkpoints: Checkpoints, files: dict[str, Path]) -> None:
    checkpoints.commit("ckpt-000000", files, fields(), 0)
    code = _SLOW_COMMIT.format(
        tests=str(Path(__file__).parent), files=str(files["plan.json"].parent), root=str(checkpoints.store.root)
    )
    writer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdout and writer.stdin
    assert writer.stdout.readline() == b"half way\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdin.close()
    writer.stdout.close()
    assert [*checkpoints.store.path("checkpoints").glob(".*.tmp")]
    assert checkpoints.keys() == ["ckpt-000000"]
    begin = time.monotonic()
    checkpoints.commit("ckpt-000001", files, fields("ckpt-000000"), 1)
    assert time.monotonic() - begin < 5, "the dead writer's lock was not released"
    assert not [*checkpoints.store.path("checkpoints").glob(".*.tmp")]
    checkpoints.verify_chain()


def test_full_disk(checkpoints: Checkpoints, files: dict[str, Path]) -> None:
    """The limit on file size stands in for a full disk: the kernel refuses a write half way."""
    commit_three(checkpoints, files)
    before = tree(checkpoints.store.path("checkpoints"))
    files["model.safetensors"].write_bytes(b"0" * 100_000)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, old[1]))
    try:
        with pytest.raises(StoreError, match=r"File too large.*free space"):
            checkpoints.commit("ckpt-000003", files, fields("ckpt-000002", begin=10, first=10), 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert tree(checkpoints.store.path("checkpoints")) == before
    checkpoints.commit("ckpt-000003", files, fields("ckpt-000002", begin=10, first=10), 3)


_AS_NOBODY = """
import os, sys
sys.path.insert(0, {tests!r})
from checkpoint_cases import fields
from curtail_pipeline.errors import StoreError
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.folder_store import FolderStore
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
store = Checkpoints(FolderStore({root!r}))
print(store.keys())
try:
    store.commit("ckpt-000003", {{}}, fields("ckpt-000002", begin=10, first=10), 3)
except StoreError as error:
    print(error)
"""


def test_read_only_store(files: dict[str, Path]) -> None:
    with tempfile.TemporaryDirectory() as outside:
        root = Path(outside) / "store"
        checkpoints = Checkpoints(FolderStore(root))
        commit_three(checkpoints, files)
        before = tree(root)
        folders = [Path(outside), root, *(p for p in root.rglob("*") if p.is_dir())]
        for folder in folders:
            folder.chmod(0o555)
        try:
            for path in root.rglob("*"):
                if path.is_file():
                    path.chmod(0o444)
            code = _AS_NOBODY.format(tests=str(Path(__file__).parent), root=str(root))
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        finally:
            for folder in folders:
                folder.chmod(0o755)
        assert "ckpt-000002" in done.stdout, done.stderr
        assert "Permission denied" in done.stdout and "make the folder writable" in done.stdout
        assert tree(root) == before
