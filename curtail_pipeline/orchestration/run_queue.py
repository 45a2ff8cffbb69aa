"""The run queue of an instance: runs on demand are told apart, so that Dagster limits them per site.

In `dagster.yaml`:

    run_coordinator: {module: curtail_pipeline.orchestration.run_queue, class: SiteQueue}
    concurrency: {runs: {tag_concurrency_limits: [{key: curtail/on_demand, limit: 2}, ...]}}

A limit by Dagster's pools would not do. A run's pools are those of its steps, a constant of the definition: the replay
of one checkpoint and the live segment of another have the same (`run_op_concurrency`, Dagster 1.13.27), whatever sites
they train at, and with a limit of one the live segment is held back in the queue until the replay has ended.

The queue is looked at once a second. In the daemon a live segment starts without it where the limits leave room: its
sites wait.
"""

import os
from pathlib import Path
from typing import ClassVar

import dagster as dg
from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext
from dagster._core.storage.dagster_run import ACTIVE_RUN_STATUSES

from curtail_pipeline.errors import CurtailError
from curtail_pipeline.orchestration.runs import CHECKPOINT_TAG, PARTITION_TAG, SEGMENT_ASSET, SEGMENT_JOBS
from curtail_pipeline.settings.experiment import load_experiment
from curtail_pipeline.stages.project import EXPERIMENT_ENV
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.home import Home
from curtail_pipeline.storage.store import Store

ON_DEMAND_TAG = "curtail/on_demand"
"""Of every run that was asked for on a committed checkpoint: its key."""
WITHOUT_TRAINING = ("evaluate", "export")


def site_tag(site: str) -> str:
    """The tag of runs on demand that train at this site."""
    return f"curtail.on_demand/{site[:63]}"


def is_live(run: dg.DagsterRun) -> bool:
    """Whether the sensor asked for it, and nobody again."""
    return CHECKPOINT_TAG in run.tags and run.parent_run_id is None


def on_demand_tags(run: dg.DagsterRun, checkpoints: Checkpoints) -> dict[str, str]:
    """The tags that limits count: none for a live segment and for what has nothing to do with checkpoints."""
    asked = run.job_name in SEGMENT_JOBS or dg.AssetKey(SEGMENT_ASSET) in (run.asset_selection or ())
    key = run.tags.get(PARTITION_TAG)
    if key is None or not asked or is_live(run):
        return {}
    try:
        members = checkpoints.manifest(key).members
    except CurtailError:  # not committed: the run trains it, or says what is wrong
        return {}
    if _mode(run) in WITHOUT_TRAINING:
        members = []
    return {ON_DEMAND_TAG: key, **{site_tag(site): key for site in members}}


def _mode(run: dg.DagsterRun) -> str:
    """What the dialog asks for."""
    found: object = run.run_config
    for name in ("ops", SEGMENT_ASSET, "config", "mode"):
        found = found.get(name) if isinstance(found, dict) else None
    return str(found or "replay")


def _store() -> Store:
    named = Path(os.environ.get(EXPERIMENT_ENV, "laptop"))
    if named.name == Home(named.parent).experiment_file.name:
        return Home(named.parent).open_store()
    return Home.of(load_experiment(named)).open_store()


class SiteQueue(QueuedRunCoordinator[dg.DagsterInstance]):
    """Dagster's own queue, which tags runs on demand before they wait in it.

    The store is that of the experiment that `CURTAIL_EXPERIMENT` names, as for the code location.
    """

    starts_segments: ClassVar[bool] = False
    """Whether live segments need not queue: in the process that launches runs, which is the daemon's."""

    def submit_run(self, context: SubmitRunContext) -> dg.DagsterRun:
        run = context.dagster_run
        if self.starts_segments and self._need_not_queue(run):
            return self._instance.launch_run(run.run_id, context.workspace)
        tags = on_demand_tags(run, Checkpoints(_store()))
        if tags:
            self._instance.add_run_tags(run.run_id, tags)
        return super().submit_run(context)

    def _need_not_queue(self, run: dg.DagsterRun) -> bool:
        """Whether it is the sensor's run of a segment, and fits beside those that are active."""
        if not is_live(run) or run.status != dg.DagsterRunStatus.NOT_STARTED:
            return False
        queue = self._instance.get_concurrency_config().run_queue_config
        if queue is None:
            return False
        active = self._instance.get_runs(dg.RunsFilter(statuses=ACTIVE_RUN_STATUSES))
        segments = sum(CHECKPOINT_TAG in other.tags for other in active)
        limits = [limit["limit"] for limit in queue.tag_concurrency_limits if limit["key"] == CHECKPOINT_TAG]
        return len(active) < queue.max_concurrent_runs and all(segments < limit for limit in limits)
