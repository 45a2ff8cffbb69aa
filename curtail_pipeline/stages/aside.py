"""Training beside the live lineage: a plan run in a scratch folder of its own, by trainers' spare time or by a process.

What runs here never takes part in a live segment: its orders carry an identity that nothing else has, its inner states
are its own, and its folder goes when it ends, however it ends. Folders whose process was killed go with the next one.
"""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from filelock import FileLock, Timeout

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation.orders import Plan, Segment
from curtail_pipeline.federation.plan import REPLAYS, plan_key, read_journal, replay_folder, segment_key
from curtail_pipeline.federation.progress import SegmentProgress
from curtail_pipeline.flower.processes import tail
from curtail_pipeline.flower.standing import connect
from curtail_pipeline.flower.submit import events_of, submit_and_follow
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.manifest import FRESH
from curtail_pipeline.storage.store import NotStored, Store
from curtail_pipeline.training.retention import SNAPSHOTS, snapshot_key

POLL_S = 0.25
STOP_S = 30.0


@dataclass(frozen=True)
class Aside:
    """A place to train in; it is gone after the block that made it."""

    store: Store
    identity: str

    @property
    def folder(self) -> str:
        return replay_folder(self.identity)

    def take_states(self, states: Mapping[str, str]) -> dict[str, str]:
        """The inner states to begin with, kept here from now on; `fresh` for one that was pruned."""
        return {site: self._take(site, state) for site, state in states.items()}

    def _take(self, site: str, state: str) -> str:
        if state == FRESH:
            return FRESH
        try:
            kept = snapshot_key(site, state, f"{self.folder}/{SNAPSHOTS}")
            self.store.copy(snapshot_key(site, state), kept)
        except NotStored:
            return FRESH
        return state


@contextmanager
def aside(store: Store) -> Iterator[Aside]:
    """A new identity with its scratch folder."""
    place = Aside(store, uuid.uuid4().hex[:12])
    lock = store.here(f"{place.folder}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock, timeout=0)
    with FileLock(store.here("scratch/.replays.lock")):
        _remove_abandoned(store)
        held.acquire()
    try:
        yield place
    finally:
        store.delete(place.folder)
        lock.unlink(missing_ok=True)
        held.release()


def _remove_abandoned(store: Store) -> None:
    """Remove the folders of processes that were killed: their locks are free."""
    for path in sorted(store.here(REPLAYS).glob("*.lock")):
        try:
            with FileLock(path, timeout=0):
                store.delete(replay_folder(path.stem))
                path.unlink(missing_ok=True)
        except Timeout:
            continue


def run_aside(project: Project, place: Aside, plan: Plan, on_progress: SegmentProgress) -> Segment:
    """Run a plan in its place, as `federation.replay` says; the segment it came to.

    Raises:
        FederationError: it failed, or its outcome is not its own.
    """
    key = plan_key(place.folder)
    place.store.write_record(key, plan)
    if project.experiment.federation.replay == "own":
        segment = _own_process(place, key, on_progress)
    else:
        with connect(project.home, project.experiment) as federation:
            segment = submit_and_follow(federation, key, place.store, on_progress=on_progress)
    if not segment.weights.key.startswith(f"{place.folder}/"):
        raise FederationError(
            f"{plan.key} was not trained again: its weights would be {segment.weights.key}; look at the trainers' logs"
        )
    return segment


def _own_process(place: Aside, key: str, on_progress: SegmentProgress) -> Segment:
    """Train in a process of this machine that exists for this plan only."""
    store = place.store
    log = store.here(f"{place.folder}/trainer.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "curtail_pipeline.training.plan_runner", "--store", store.uri, "--plan", key,
        "--parent-pid", str(os.getpid()),
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    seen = 0
    try:
        while True:
            over = process.poll() is not None
            for line in read_journal(store, place.folder)[seen:]:
                seen += 1
                for event in events_of(line):
                    on_progress(event)
            if over:
                break
            time.sleep(POLL_S)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    if process.returncode != 0 or not store.exists(segment_key(place.folder)):
        raise FederationError(
            f"the trainer of {place.folder} ended with {process.returncode}; its log ends:\n{tail(log)}"
        )
    return store.read_record(segment_key(place.folder), Segment)
