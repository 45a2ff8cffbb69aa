"""A committed segment again, from its parent; what is committed is never touched."""

import time

from curtail_pipeline.errors import FederationError, StoreError
from curtail_pipeline.federation.orders import Plan, Segment
from curtail_pipeline.federation.plan import plan_key, segment_key
from curtail_pipeline.federation.progress import SegmentProgress
from curtail_pipeline.stages.aside import Aside, aside, run_aside
from curtail_pipeline.stages.project import Project
from curtail_pipeline.stages.replay_check import Replayed
from curtail_pipeline.storage.checkpoints import WEIGHTS_FILE
from curtail_pipeline.storage.manifest import Manifest


def realised_plan(project: Project, key: str) -> tuple[Manifest, Plan, Segment]:
    """A committed segment as it was asked for and as it went.

    Raises:
        StoreError: the checkpoint or its parent is damaged, or nothing was trained to get it.
    """
    manifest = project.checkpoints.check(key)
    return (manifest, *segment_of(project, manifest))


def segment_of(project: Project, manifest: Manifest) -> tuple[Plan, Segment]:
    """What a checkpoint's segment was asked for and how it went, its parent checked; its own weights are not looked at.

    Raises:
        StoreError: the parent is damaged, or nothing was trained to get it.
    """
    store, key = project.store, manifest.key
    if manifest.parent is None:
        raise StoreError(f"{key} is the initialised model and has no segment to repeat; choose a later checkpoint")
    if manifest.steps.end == manifest.steps.begin:
        raise StoreError(f"{key} was committed without a step, so there is nothing to repeat; choose another one")
    project.checkpoints.check(manifest.parent)
    committed = f"checkpoints/{key}"
    return store.read_record(plan_key(committed), Plan), store.read_record(segment_key(committed), Segment)


def repeat(project: Project, place: Aside, manifest: Manifest, again: Plan, on_progress: SegmentProgress) -> Segment:
    """Train a committed segment again in a place aside, all of its steps.

    Raises:
        FederationError: it failed or did not train all steps.
    """
    segment = run_aside(project, place, again, on_progress)
    wanted = manifest.steps.end - manifest.steps.begin
    if segment.steps != wanted:
        why = "; ".join(f"{site}: {reason}" for site, reason in {**segment.refused, **segment.lost}.items())
        raise FederationError(
            f"the repetition of {manifest.key} trained {segment.steps} of {wanted} steps "
            f"({why or segment.stop_reason}); materialise it again"
        )
    return segment


def replay_segment(project: Project, key: str, on_progress: SegmentProgress) -> Replayed:
    """Repeat a committed segment and compare; any number of times, also beside a live segment.

    Raises:
        StoreError: the checkpoint or its parent is damaged, or nothing was trained to get it.
        FederationError: the repetition failed or did not train all steps.
    """
    began = time.monotonic()
    manifest, plan, realised = realised_plan(project, key)
    with aside(project.store) as place:
        begin = place.take_begin(manifest)
        segment = repeat(project, place, manifest, begin.replay_of(plan, realised, place.identity), on_progress)
        replayed = project.store.digest(segment.weights.key).sha256
    return Replayed(
        manifest,
        manifest.files[WEIGHTS_FILE].sha256,
        replayed,
        segment.steps,
        time.monotonic() - began,
        begin.lost,
    )
