"""The picture of a checkpoint, from what the store knows of it so far."""

from curtail_pipeline.emissions.basis import is_synthetic
from curtail_pipeline.emissions.checkpoint_picture import Shown, picture
from curtail_pipeline.stages.account import checkpoint_ledger, days_of
from curtail_pipeline.stages.project import Project
from curtail_pipeline.stages.run_report import heldout_losses, training_losses
from curtail_pipeline.storage.manifest import Manifest

SEGMENTS = 24
"""Of the lineage that the loss curve goes back over."""


def checkpoint_picture(project: Project, key: str) -> bytes:
    """Loss curve, held-out loss, tokens, power and gCO2 by site, as a small PNG.

    Raises:
        StoreError: there is no such checkpoint.
        TraceError: the traces of its days have not been ingested.
    """
    manifest = project.checkpoints.manifest(key)
    recent = _recent(project, manifest)
    return picture(
        Shown(
            manifest=manifest,
            sites=project.experiment.sites,
            losses=training_losses(project, recent),
            heldout=heldout_losses(project, recent),
            ledger=checkpoint_ledger(project, key),
            synthetic=is_synthetic(project.traces(days_of(project, manifest.start, manifest.end))),
        )
    )


def _recent(project: Project, manifest: Manifest) -> list[Manifest]:
    """The end of the lineage, oldest first."""
    found = [manifest]
    while len(found) < SEGMENTS and (parent := found[-1].parent) is not None:
        found.append(project.checkpoints.manifest(parent))
    return found[::-1]
