"""One tick of the controller: decide, reconcile, write what changed. The sensor and the headless run call it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType

from curtail_pipeline.scheduling.absence import ABSENCES_KEY, Absences
from curtail_pipeline.scheduling.decide import Decision, decide, holding
from curtail_pipeline.scheduling.provision import (
    WANTS_KEY,
    Phase,
    Provisioned,
    Wants,
    held,
    managed,
    not_up,
    provisioned_key,
    wanted,
)
from curtail_pipeline.scheduling.provisioned_time import Ordered, differs, write_ordered
from curtail_pipeline.scheduling.reconcile import (
    MEMBERSHIP_KEY,
    Attempts,
    Desired,
    InForce,
    SegmentRequest,
    Setback,
    reconcile,
    request_key,
)
from curtail_pipeline.scheduling.view import Job, SiteDecision, View
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.checkpoints import following
from curtail_pipeline.storage.manifest import Manifest

IN_FORCE_KEY = "decision.json"


def _in_force(project: Project) -> InForce | None:
    store = project.store
    return store.read_record(IN_FORCE_KEY, InForce) if store.exists(IN_FORCE_KEY) else None


def remember(
    project: Project,
    sites: Mapping[str, SiteDecision],
    parent: str,
    *,
    ended: bool = False,
    phases: Mapping[str, Phase] = MappingProxyType({}),
) -> None:
    """Keep the decision in force, which policies that plan ahead start from.

    Args:
        parent: the last committed checkpoint.
        ended: this is the decision at the very end of that checkpoint's segment, where the pause after it begins.
            Without it the decision that was in force when the checkpoint was first seen is taken for that.
        phases: of sites with a provisioner.
    """
    before = _in_force(project)
    if ended:
        at_parent = dict(sites)
    elif before is not None and before.parent == parent:
        at_parent = before.at_parent
    else:
        at_parent = before.sites if before is not None else {}
    wall = project.clock_mode != "headless"
    record = InForce(sites=dict(sites), parent=parent, at_parent=at_parent, ordered=wall, phases=dict(phases))
    project.store.write_record(IN_FORCE_KEY, record)


def remembered(project: Project) -> dict[str, SiteDecision]:
    """The decision in force, empty before the first one."""
    before = _in_force(project)
    return before.sites if before is not None else {}


def _before_pause(project: Project, parent: str) -> dict[str, SiteDecision]:
    """The decision in force at the end of the last checkpoint's segment."""
    before = _in_force(project)
    if before is None:
        return {}
    return before.at_parent if before.parent == parent else before.sites


def absences(project: Project) -> Absences:
    """The sites that were lost and have not delivered since."""
    known = project.store.exists(ABSENCES_KEY)
    return project.store.read_record(ABSENCES_KEY, Absences) if known else Absences()


def provisioned(project: Project) -> dict[str, Provisioned]:
    """What the sites with a provisioner were brought to; none in virtual time, where nothing can be waited for."""
    if project.clock_mode == "headless":
        return {}
    store, found = project.store, {}
    for site in managed(project.experiment.sites):
        key = provisioned_key(site.name)
        found[site.name] = store.read_record(key, Provisioned) if store.exists(key) else Provisioned()
    return found


def wants(project: Project) -> Wants:
    """What was last wanted of them."""
    return project.store.read_record(WANTS_KEY, Wants) if project.store.exists(WANTS_KEY) else Wants()


def _as_provisioned(
    project: Project,
    view: View,
    job: Job,
    decision: Decision,
    away: Mapping[str, str],
    known: Mapping[str, Provisioned],
    active: Collection[str],
    wall: datetime,
) -> tuple[Decision, dict[str, str]]:
    """The decision for the sites as they really are, and those that take no part because they are not up.

    What is wanted of them is written down. A lost site is wanted as before: whoever starts it finds it gone.
    """
    wish = decide(view, decision.at, job) if away else decision
    speed = project.experiment.replay.speed if project.clock_mode == "replay" else 1.0
    found = wanted(view, wish, known, active, speed)
    if found != wants(project):
        project.store.write_record(WANTS_KEY, found)
    starting = {site: why for site, why in not_up(found, known, wall).items() if site not in away}
    if starting:
        decision = decide(view.without({**away, **starting}), decision.at, job)
    return holding(decision, held(found, known, decision)), starting


@dataclass(frozen=True)
class Tick:
    request: SegmentRequest | None
    reason: str
    generation: int
    decision: Decision | None


def tick(
    project: Project,
    *,
    active: tuple[str, ...] | None,
    setback: Setback | None,
    wall: datetime,
    paused: str = "",
    parent: Manifest | None = None,
) -> Tick:
    """Decide at the clock's now and bring the store in line; returns the segment to start, if any.

    A headless run takes no notice of failures and of `paused`: whoever started it wants it to go on.

    Args:
        active: members of the segment that trains.
        setback: what the newest runs at the next key came to, where it was nothing.
        wall: wall-clock now.
        paused: that somebody stopped the next key's segment, and how to go on.
        parent: the last committed checkpoint, where the caller has looked it up.

    Raises:
        StoreError: there is no initialised model yet.
        TraceError: the days that the decision needs have not been ingested.
    """
    now = project.clock.now()
    if project.span is not None and now >= project.span[1]:
        return Tick(None, f"the recorded trace ends at {project.span[1]:%Y-%m-%d %H:%M} UTC", 0, None)
    parent, store = parent or project.parent, project.store
    previous = remembered(project)
    view, job = project.view(now), project.job(parent, previous)
    away = absences(project).away(wall)
    decision = decide(view.without(away), now, job)
    if known := provisioned(project):
        decision, starting = _as_provisioned(project, view, job, decision, away, known, active or (), wall)
        away |= starting
    desired = store.read_record(MEMBERSHIP_KEY, Desired) if store.exists(MEMBERSHIP_KEY) else None
    key = following(parent.key)
    earlier = store.read_record(request_key(key), SegmentRequest).attempt if store.exists(request_key(key)) else 0
    action = reconcile(
        decision,
        desired,
        active=active,
        parent=parent.key,
        key=key,
        attempts=Attempts(earlier) if project.clock_mode == "headless" else Attempts(earlier, setback, paused),
        wall=wall,
        previous=previous,
        before_pause=_before_pause(project, parent.key),
        away=away,
    )
    if project.clock_mode != "headless":
        before = _in_force(project)
        phases = {name: site.phase for name, site in known.items()}
        told = before is not None and before.ordered and before.phases == phases
        if not told or differs(decision.sites, previous):
            write_ordered(store, Ordered(at=now, sites=decision.sites, phases=phases))
        remember(project, decision.sites, parent.key, phases=phases)
    if action.changed:
        store.write_record(MEMBERSHIP_KEY, action.desired)
    if action.request is not None:
        store.write_record(request_key(key), action.request)
    return Tick(action.request, action.reason, action.desired.generation, decision)
