"""A committed segment again, from its parent, in scratch; what is committed is never touched."""

import itertools
from dataclasses import dataclass

from curtail_pipeline.errors import StoreError
from curtail_pipeline.federation.orders import Plan, Segment
from curtail_pipeline.federation.plan import plan_key, replay_of, segment_key
from curtail_pipeline.federation.progress import SegmentProgress
from curtail_pipeline.flower.standing import connect
from curtail_pipeline.flower.submit import submit_and_follow
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.checkpoints import WEIGHTS_FILE
from curtail_pipeline.storage.manifest import FRESH, Manifest
from curtail_pipeline.storage.store import file_sha256
from curtail_pipeline.training.retention import has_snapshot


@dataclass(frozen=True)
class Replayed:
    """What repeating a committed checkpoint gave."""

    manifest: Manifest
    committed_sha256: str
    replayed_sha256: str
    fresh_states: tuple[str, ...]
    """Sites whose inner state at the segment's start was pruned, so that they started fresh."""

    @property
    def identical(self) -> bool:
        return self.committed_sha256 == self.replayed_sha256


def replay_segment(project: Project, key: str, on_progress: SegmentProgress) -> Replayed:
    """Repeat a committed segment and compare.

    Raises:
        StoreError: the checkpoint or its parent is damaged, or it is the initialised model.
    """
    store, manifest = project.store, project.checkpoints.verify(key)
    if manifest.parent is None:
        raise StoreError(f"{key} is the initialised model and has no segment to replay")
    project.checkpoints.verify(manifest.parent)
    committed = f"checkpoints/{key}"
    plan = store.read_record(plan_key(committed), Plan)
    realised = store.read_record(segment_key(committed), Segment)
    states = {site: result.inner_state.begin for site, result in manifest.sites.items()}
    pruned = tuple(site for site, state in states.items() if not has_snapshot(store, site, state))
    number = next(n for n in itertools.count(1) if not store.exists(f"scratch/{key}/replay-{n}"))
    scratch = f"scratch/{key}/replay-{number}"
    begin = {site: FRESH if site in pruned else state for site, state in states.items()}
    store.write_record(plan_key(scratch), replay_of(plan, realised, begin))
    with connect(project.home.root, project.experiment) as federation:
        segment = submit_and_follow(federation, plan_key(scratch), store, on_progress=on_progress)
    replayed = file_sha256(store.path(segment.weights.key))
    store.delete(scratch)
    return Replayed(manifest, manifest.files[WEIGHTS_FILE].sha256, replayed, pruned)
