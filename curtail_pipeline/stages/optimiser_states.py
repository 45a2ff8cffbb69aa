"""Inner optimiser states between segments: what the next one begins with, and what is kept of them."""

from curtail_pipeline.federation.orders import Plan, Segment, SharedState
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.manifest import FRESH, InnerStates, Manifest, SiteResult
from curtail_pipeline.storage.store import Store
from curtail_pipeline.training.retention import merged_key, prune_merged, prune_snapshots


def inner_states(project: Project, parent: Manifest, members: tuple[str, ...]) -> dict[str, str]:
    """Per member, the inner optimiser state it last left in this lineage."""
    found = _latest(project, parent, members)
    return {site: found[site].inner_state.end if site in found else FRESH for site in members}


def residuals(project: Project, parent: Manifest, members: tuple[str, ...]) -> dict[str, str]:
    """Per member, what codecs left out of its updates so far, where they do."""
    return {site: done.residual.end for site, done in _latest(project, parent, members).items() if done.residual}


def _latest(project: Project, parent: Manifest, members: tuple[str, ...]) -> dict[str, SiteResult]:
    """Per member that has trained in this lineage, what it did last."""
    found: dict[str, SiteResult] = {}
    manifest: Manifest | None = parent
    while manifest is not None and len(found) < len(members):
        for site in members:
            if site not in found and site in manifest.sites:
                found[site] = manifest.sites[site]
        manifest = project.checkpoints.manifest(manifest.parent) if manifest.parent else None
    return found


def merged_of(parent: Manifest) -> SharedState:
    """The merged inner state that a checkpoint ends with; fresh where it has none."""
    name = parent.inner_state.end if parent.inner_state else FRESH
    return SharedState(name=name, key=merged_key(name))


def merged_states(plan: Plan, segment: Segment) -> InnerStates | None:
    """What a manifest says of the merged inner state; None where each site goes on from its own."""
    if plan.shared is None or segment.shared is None:
        return None
    return InnerStates(begin=plan.shared.name, end=segment.shared.name)


def keep_merged(store: Store, plan: Plan, segment: Segment) -> None:
    """Keep the merged state that a segment ends with beyond its scratch folder."""
    end = segment.shared
    if end is not None and end != plan.shared and end.name != FRESH:
        store.copy(end.key, merged_key(end.name))


def prune_states(project: Project) -> None:
    """Keep the newest snapshots of each site that checkpoints name, as many as the setting says; and merged states."""
    keep = project.experiment.training.keep_inner_states
    if keep is not None:
        prune_merged(project.store, keep)
        for site in project.store.list("inner_state"):
            prune_snapshots(project.store, site, keep)
