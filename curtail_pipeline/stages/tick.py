"""One tick of the controller: decide, reconcile, write what changed. The sensor and the headless run call it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from curtail_pipeline.scheduling.decide import Decision, decide
from curtail_pipeline.scheduling.reconcile import (
    MEMBERSHIP_KEY,
    Attempts,
    Desired,
    SegmentRequest,
    reconcile,
    request_key,
    site_from_json,
    site_to_json,
)
from curtail_pipeline.scheduling.view import SiteDecision
from curtail_pipeline.stages.project import Project

_PREVIOUS_KEY = "decision.json"


def remember(project: Project, sites: Mapping[str, SiteDecision]) -> None:
    """Keep the decision in force, which policies that plan ahead start from."""
    project.store.write_json(_PREVIOUS_KEY, {name: site_to_json(site) for name, site in sites.items()})


def remembered(project: Project) -> dict[str, SiteDecision]:
    """The decision in force, empty before the first one."""
    if not project.store.exists(_PREVIOUS_KEY):
        return {}
    return {name: site_from_json(site) for name, site in project.store.read_json(_PREVIOUS_KEY).items()}


@dataclass(frozen=True)
class Tick:
    request: SegmentRequest | None
    reason: str
    generation: int
    decision: Decision | None


def tick(project: Project, *, active: tuple[str, ...] | None, last_failure: datetime | None, wall: datetime) -> Tick:
    """Decide at the clock's now and bring the store in line; returns the segment to start, if any.

    Raises:
        StoreError: there is no initialised model yet.
        TraceError: the days that the decision needs have not been ingested.
    """
    now = project.clock.now()
    if project.span is not None and now >= project.span[1]:
        return Tick(None, f"the recorded trace ends at {project.span[1]:%Y-%m-%d %H:%M} UTC", 0, None)
    parent, store = project.parent, project.store
    previous = remembered(project)
    decision = decide(project.view(now), now, project.job(parent, previous))
    desired = Desired.from_json(store.read_json(MEMBERSHIP_KEY)) if store.exists(MEMBERSHIP_KEY) else None
    key = project.checkpoints.next_key()
    earlier = store.read_json(request_key(key))["attempt"] if store.exists(request_key(key)) else 0
    action = reconcile(
        decision,
        desired,
        active=active,
        parent=parent.key,
        key=key,
        attempts=Attempts(earlier, None if project.clock_mode == "headless" else last_failure),
        wall=wall,
        previous=previous,
    )
    if project.clock_mode != "headless":
        remember(project, decision.sites)
    if action.changed:
        store.write_json(MEMBERSHIP_KEY, action.desired.to_json())
    if action.request is not None:
        store.write_json(request_key(key), action.request.to_json())
    return Tick(action.request, action.reason, action.desired.generation, decision)
