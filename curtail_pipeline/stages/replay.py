"""A committed segment again, from its parent; what is committed is never touched."""

import time
from dataclasses import dataclass

from curtail_pipeline.errors import FederationError, StoreError
from curtail_pipeline.federation.orders import Plan, Segment
from curtail_pipeline.federation.plan import plan_key, replay_of, segment_key
from curtail_pipeline.federation.progress import SegmentProgress
from curtail_pipeline.signals.checks import CheckOutcome
from curtail_pipeline.stages.aside import aside, run_aside
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.checkpoints import WEIGHTS_FILE
from curtail_pipeline.storage.manifest import Manifest
from curtail_pipeline.storage.store import file_sha256

REPLAY_IDENTICAL = "replay_identical"
DESCRIPTION = "Repeating the segment from its parent gave the weights that are committed, bit for bit."


@dataclass(frozen=True)
class Replayed:
    """What repeating a committed checkpoint gave."""

    manifest: Manifest
    committed_sha256: str
    replayed_sha256: str
    steps: int
    """Trained again."""
    seconds: float
    """Wall time, waiting for trainers included."""
    fresh_states: tuple[str, ...]
    """Sites whose inner state at the segment's start was pruned, so that they started fresh."""

    @property
    def identical(self) -> bool:
        return self.committed_sha256 == self.replayed_sha256

    def check(self) -> CheckOutcome:
        """As the asset check `replay_identical`."""
        said = f"{self.steps} steps again from {self.manifest.parent} gave "
        if self.identical:
            text = f"{said}the same weights, {self.replayed_sha256[:12]}"
        elif self.fresh_states:
            text = (
                f"{said}other weights: the inner optimiser state of {', '.join(self.fresh_states)} was pruned "
                "(training.keep_inner_states) and started fresh"
            )
        else:
            text = (
                f"{said}{self.replayed_sha256[:12]}, committed is {self.committed_sha256[:12]}; was it other hardware, "
                "another number of threads or another version of torch?"
            )
        found: dict[str, object] = {"committed_sha256": self.committed_sha256, "replayed_sha256": self.replayed_sha256}
        return CheckOutcome(REPLAY_IDENTICAL, self.identical, "warning" if self.fresh_states else "error", text, found)


def realised_plan(project: Project, key: str) -> tuple[Manifest, Plan, Segment]:
    """A committed segment as it was asked for and as it went.

    Raises:
        StoreError: the checkpoint or its parent is damaged, or nothing was trained to get it.
    """
    store, manifest = project.store, project.checkpoints.verify(key)
    if manifest.parent is None:
        raise StoreError(f"{key} is the initialised model and has no segment to repeat; choose a later checkpoint")
    if manifest.steps.end == manifest.steps.begin:
        raise StoreError(f"{key} was committed without a step, so there is nothing to repeat; choose another one")
    project.checkpoints.verify(manifest.parent)
    committed = f"checkpoints/{key}"
    return (
        manifest,
        store.read_record(plan_key(committed), Plan),
        store.read_record(segment_key(committed), Segment),
    )


def replay_segment(project: Project, key: str, on_progress: SegmentProgress) -> Replayed:
    """Repeat a committed segment and compare; any number of times, also beside a live segment.

    Raises:
        StoreError: the checkpoint or its parent is damaged, or nothing was trained to get it.
        FederationError: the repetition failed or did not train all steps.
    """
    began = time.monotonic()
    manifest, plan, realised = realised_plan(project, key)
    states = {site: result.inner_state.begin for site, result in manifest.sites.items()}
    with aside(project.store) as place:
        begin = place.take_states(states)
        segment = run_aside(project, place, replay_of(plan, realised, begin, place.identity), on_progress)
        wanted = manifest.steps.end - manifest.steps.begin
        if segment.steps != wanted:
            why = "; ".join(f"{site}: {reason}" for site, reason in {**segment.refused, **segment.lost}.items())
            raise FederationError(
                f"the repetition of {key} trained {segment.steps} of {wanted} steps ({why or segment.stop_reason}); "
                "materialise it again"
            )
        replayed = file_sha256(project.store.path(segment.weights.key))
    return Replayed(
        manifest,
        manifest.files[WEIGHTS_FILE].sha256,
        replayed,
        segment.steps,
        time.monotonic() - began,
        tuple(site for site, state in states.items() if begin[site] != state),
    )
