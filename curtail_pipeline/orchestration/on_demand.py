"""What materialising a committed checkpoint does: the dialog's settings, and how each answer reads in the UI."""

import time
from enum import Enum

import dagster as dg
from pydantic import Field

from curtail_pipeline.errors import SettingsError
from curtail_pipeline.federation.progress import SegmentProgress
from curtail_pipeline.orchestration.metadata import (
    Facts,
    branch_metadata,
    check_result,
    checkpoint_metadata,
    evaluation_metadata,
    replay_metadata,
    significant,
)
from curtail_pipeline.orchestration.runs import CHECKPOINT_TAG, SEGMENT_ASSET, SKIPPED_TAG, member_tags
from curtail_pipeline.scheduling.reconcile import SegmentRequest
from curtail_pipeline.stages.check_tokens import check_tokens
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.manifest import Manifest


class Mode(Enum):
    replay = "replay"
    evaluate = "evaluate"
    export = "export"
    extend = "extend"
    branch = "branch"
    repair = "repair"


class OnDemand(dg.Config):
    """For a committed key. A key that the sensor requested is trained, whatever stands here."""

    mode: Mode = Field(
        default=Mode.replay,
        description="replay: repeat the segment and compare. evaluate: held-out loss only. export: to `destination`. "
        "extend: `rounds` more, as a branch. branch: the same segment with another `seed`. Branches never touch the "
        "main lineage. repair: make damaged files again.",
    )
    destination: str = Field(default="", description="export: a new folder (in the home), or hf://owner/name.")
    rounds: int = Field(default=1, description="extend: how many more rounds.")
    seed: int | None = Field(default=None, description="branch: the other seed.")


def answer(project: Project, key: str, wanted: OnDemand, on_progress: SegmentProgress) -> dg.MaterializeResult:
    """Do what is wanted of a committed checkpoint.

    Raises:
        CurtailError: it cannot be done; the message says what to change.
    """
    began = time.monotonic()
    if wanted.mode is Mode.replay:
        from curtail_pipeline.stages.replay import replay_segment

        replayed = replay_segment(project, key, on_progress)
        return dg.MaterializeResult(
            asset_key=SEGMENT_ASSET,
            metadata=replay_metadata(project, replayed),
            check_results=[
                check_result(replayed.check()),
                check_result(check_tokens(project, key)),
            ],
        )
    found: Facts
    if wanted.mode is Mode.evaluate:
        from curtail_pipeline.stages.evaluate import evaluate_checkpoint

        found = evaluation_metadata(evaluate_checkpoint(project, key))
    elif wanted.mode is Mode.export:
        from curtail_pipeline.stages.export import export_checkpoint, in_home

        where = export_checkpoint(project, key, in_home(project, wanted.destination))
        found = {"exported to": dg.MetadataValue.url(where) if "://" in where else dg.MetadataValue.path(where)}
    elif wanted.mode is Mode.repair:
        from curtail_pipeline.stages.repair import repair_checkpoint

        found = {"repaired": str(repair_checkpoint(project, key, on_progress))}
    else:
        found = _branch(project, key, wanted, on_progress)
    seconds = {"on demand": wanted.mode.value, "seconds": significant(time.monotonic() - began)}
    return dg.MaterializeResult(
        asset_key=SEGMENT_ASSET,
        metadata={**checkpoint_metadata(project, project.checkpoints.manifest(key)), **found, **seconds},
    )


def committed(project: Project, manifest: Manifest) -> dg.MaterializeResult:
    """A checkpoint that this run made, or found."""
    return dg.MaterializeResult(
        asset_key=SEGMENT_ASSET,
        metadata=checkpoint_metadata(project, manifest),
        check_results=[check_result(check_tokens(project, manifest.key))],
    )


def mark_segment(context: dg.AssetExecutionContext, request: SegmentRequest) -> None:
    """Tag a run that trains a segment as the sensor tags those it requests; this one may come from the UI's button."""
    tags = {CHECKPOINT_TAG: request.key} | member_tags(request.members)
    if any(context.run.tags.get(name) != value for name, value in tags.items()):
        context.instance.add_run_tags(context.run.run_id, tags)


def skip(context: dg.AssetExecutionContext, key: str, reason: str) -> None:
    """End a run whose segment trained no step: a success without a checkpoint, whose tag says why."""
    context.log.info(f"{key}: no step was trained ({reason}); nothing to commit, the sensor decides again")
    context.instance.add_run_tags(context.run.run_id, {SKIPPED_TAG: reason[:250]})


def _branch(project: Project, key: str, wanted: OnDemand, on_progress: SegmentProgress) -> Facts:
    from curtail_pipeline.stages.branch import another_seed, extend
    from curtail_pipeline.stages.evaluate import evaluated

    if wanted.mode is Mode.extend:
        branch = extend(project, key, wanted.rounds, on_progress)
    elif wanted.seed is None:
        raise SettingsError(f"no seed for a branch of {key}; set `seed` beside `mode: branch`")
    else:
        branch = another_seed(project, key, wanted.seed, on_progress)
    return branch_metadata(project, branch, evaluated(project, branch.checkpoints, branch.manifest.key))
