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
from curtail_pipeline.federation.orders import Plan, Segment, SharedState
from curtail_pipeline.federation.plan import REPLAYS, plan_key, read_journal, replay_folder, replay_of, segment_key
from curtail_pipeline.federation.progress import SegmentProgress
from curtail_pipeline.flower.processes import tail
from curtail_pipeline.flower.standing import connect
from curtail_pipeline.flower.submit import events_of, submit_and_follow
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.manifest import FRESH, Manifest
from curtail_pipeline.storage.store import NotStored, Store
from curtail_pipeline.training.retention import SNAPSHOTS, merged_key, snapshot_key

POLL_S = 0.25
STOP_S = 30.0


@dataclass(frozen=True)
class Taken:
    """Inner states, kept in a place aside from now on: each site's own, or the merged one; and residuals."""

    own: dict[str, str]
    residual: dict[str, str]
    merged: SharedState | None
    lost: tuple[str, ...]
    """Sites whose state was pruned, so that they start fresh."""

    def replay_of(self, plan: Plan, realised: Segment, identity: str) -> Plan:
        """The plan that repeats a segment from these states."""
        return replay_of(plan, realised, self.own, identity, shared=self.merged, residuals=self.residual)


@dataclass(frozen=True)
class Aside:
    """A place to train in; it is gone after the block that made it."""

    store: Store
    identity: str

    @property
    def folder(self) -> str:
        return replay_folder(self.identity)

    def take_begin(self, manifest: Manifest) -> Taken:
        """What a checkpoint's segment began with."""
        merged, sites = manifest.inner_state, manifest.sites
        return self._take(
            {site: done.inner_state.begin for site, done in sites.items()},
            {site: done.residual.begin for site, done in sites.items() if done.residual},
            merged.begin if merged else None,
        )

    def take_end(self, manifest: Manifest) -> Taken:
        """What it ended with."""
        merged, sites = manifest.inner_state, manifest.sites
        return self._take(
            {site: done.inner_state.end for site, done in sites.items()},
            {site: done.residual.end for site, done in sites.items() if done.residual},
            merged.end if merged else None,
        )

    def _take(self, own: Mapping[str, str], left: Mapping[str, str], merged: str | None) -> Taken:
        residual = self._snapshots(left)
        lost = [site for site, state in left.items() if residual[site] != state]
        if merged is None:
            states = self._snapshots(own)
            lost += [site for site, state in own.items() if states[site] != state and site not in lost]
            return Taken(states, residual, None, tuple(lost))
        kept = merged_key(merged) and f"{self.folder}/{merged_key(merged)}"
        if merged == FRESH or self._copied(merged_key(merged), kept):
            return Taken({}, residual, SharedState(name=merged, key=kept), tuple(lost))
        return Taken({}, residual, SharedState(name=FRESH), tuple(own))

    def _snapshots(self, states: Mapping[str, str]) -> dict[str, str]:
        """Of each site, kept here from now on; `fresh` for one that was pruned."""
        return {
            site: state
            if state == FRESH
            or self._copied(snapshot_key(site, state), snapshot_key(site, state, f"{self.folder}/{SNAPSHOTS}"))
            else FRESH
            for site, state in states.items()
        }

    def _copied(self, key: str, kept: str) -> bool:
        try:
            self.store.copy(key, kept)
        except NotStored:
            return False
        return True


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

    Addresses go to members that have no account at the store now, whatever was so when a plan of old was made.

    Raises:
        FederationError: it failed, or its outcome is not its own.
    """
    key, settings = plan_key(place.folder), project.experiment.federation
    own = settings.replay == "own"
    linked = () if own else tuple(site for site in plan.members if site in settings.linked)
    place.store.write_record(key, plan.model_copy(update={"linked": linked}))
    if own:
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
            for line in read_journal(store, place.folder, seen):
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
