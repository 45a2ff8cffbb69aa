"""The run queue of an instance: a run on demand waits in it for a slot of the pool of every site that it trains at.

In `dagster.yaml`:

    run_coordinator: {module: curtail_pipeline.orchestration.run_queue, class: SiteQueue}
    concurrency: {pools: {granularity: run}, runs: {...}}

Dagster reads a run's pools off its steps when the run is created, the same for every checkpoint. The queue goes by what
the stored run says (`GlobalOpConcurrencyLimitsCounter`, Dagster 1.13.27), so that this one says which sites the run
trains at before it waits. A run gets a slot of each of its pools or of none, and has them as long as it is in progress:
no two wait for each other, and a run that was killed has none once it counts as failed. Limits are those of the UI's
page Deployment > Concurrency; a pool that has none yet gets one here. Live segments have no pool and wait for none.

The queue is looked at once a second. In the daemon a live segment starts without it where the limits leave room: its
sites wait.
"""

import math
import os
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import ClassVar

import dagster as dg
from dagster._core.instance.config import PoolGranularity
from dagster._core.run_coordinator import QueuedRunCoordinator, SubmitRunContext
from dagster._core.run_coordinator.queued_run_coordinator import RunQueueConfig
from dagster._core.storage.dagster_run import ACTIVE_RUN_STATUSES, RunOpConcurrency
from dagster._core.storage.tags import POOL_TAG_PREFIX
from dagster_shared.record import copy

from curtail_pipeline.errors import CurtailError
from curtail_pipeline.orchestration.runs import CHECKPOINT_TAG, PARTITION_TAG, SEGMENT_ASSET, SEGMENT_JOBS
from curtail_pipeline.settings.experiment import Experiment, load_experiment
from curtail_pipeline.stages.project import EXPERIMENT_ENV
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.home import Home
from curtail_pipeline.storage.store import Store, StoreUnavailable

ON_DEMAND_TAG = "curtail/on_demand"
"""Of every run that was asked for on a committed checkpoint: its key."""
ON_DEMAND_POOL = "on_demand"
"""Of all of them; they leave room in the queue for live segments."""
WITHOUT_TRAINING = ("evaluate", "export")
UNLIMITED = -1
"""What `max_concurrent_runs` says where nothing is to be limited."""


def site_pool(site: str) -> str:
    """The pool of runs on demand that train at this site."""
    return f"site/{site}"


def pools_of_all(experiment: Experiment) -> frozenset[str]:
    """Every pool of an experiment."""
    return frozenset({ON_DEMAND_POOL, *(site_pool(site.name) for site in experiment.sites)})


def limit_pools(instance: dg.DagsterInstance, pools: AbstractSet[str]) -> None:
    """Give a limit to those that have none yet, for the operator to see and to change: one run per site.

    All of them together get half of the queue's, and no limit where the queue has none.
    """
    events, queue = instance.event_log_storage, instance.get_concurrency_config().run_queue_config
    half = max(1, _most_at_once(queue) / 2) if queue is not None else 1
    for pool in sorted(pools - events.get_concurrency_keys()):
        limit = half if pool == ON_DEMAND_POOL else 1
        if limit < math.inf:
            events.set_concurrency_slots(pool, int(limit))


def _most_at_once(queue: RunQueueConfig) -> float:
    return math.inf if queue.max_concurrent_runs == UNLIMITED else queue.max_concurrent_runs


def is_live(run: dg.DagsterRun) -> bool:
    """Whether the sensor asked for it, and nobody again."""
    return CHECKPOINT_TAG in run.tags and run.parent_run_id is None


def pools_of(run: dg.DagsterRun, checkpoints: Checkpoints) -> frozenset[str]:
    """What a run on demand needs a slot of: nothing for a live segment and what has nothing to do with checkpoints.

    Raises:
        StoreUnavailable: it cannot be told at which sites the run trains, and it may not train there without a limit.
    """
    asked = run.job_name in SEGMENT_JOBS or dg.AssetKey(SEGMENT_ASSET) in (run.asset_selection or ())
    key = run.tags.get(PARTITION_TAG)
    if key is None or not asked or is_live(run):
        return frozenset()
    try:
        members = checkpoints.manifest(key).members
    except StoreUnavailable:
        raise
    except CurtailError:  # not committed: the run trains it, or says what is wrong
        return frozenset()
    return frozenset({ON_DEMAND_POOL, *map(site_pool, members if _mode(run) not in WITHOUT_TRAINING else ())})


def _mode(run: dg.DagsterRun) -> str:
    """What the dialog asks for."""
    found: object = run.run_config
    for name in ("ops", SEGMENT_ASSET, "config", "mode"):
        found = found.get(name) if isinstance(found, dict) else None
    return str(found or "replay")


def _experiment() -> tuple[Experiment, Store]:
    named = Path(os.environ.get(EXPERIMENT_ENV, "laptop"))
    experiment = load_experiment(named)
    return experiment, (Home.of_copy(named) or Home.of(experiment)).open_store()


class SiteQueue(QueuedRunCoordinator[dg.DagsterInstance]):
    """Dagster's own queue, which gives runs on demand the pools of their sites before they wait in it.

    Experiment and store are those that `CURTAIL_EXPERIMENT` names, as for the code location.
    """

    starts_segments: ClassVar[bool] = False
    """Whether live segments need not queue: in the process that launches runs, which is the daemon's."""
    _limited: frozenset[str] = frozenset()
    """Pools that this process has seen to have a limit."""

    def submit_run(self, context: SubmitRunContext) -> dg.DagsterRun:
        run = context.dagster_run
        if self.starts_segments and self._need_not_queue(run):
            return self._instance.launch_run(run.run_id, context.workspace)
        experiment, store = _experiment()
        pools = pools_of(run, Checkpoints(store))
        if new := (pools_of_all(experiment) | pools) - self._limited:
            limit_pools(self._instance, new)
            self._limited |= new
        if pools and run.status == dg.DagsterRunStatus.NOT_STARTED:  # else it is in the queue already
            self._hold(run, pools)
        return super().submit_run(context)

    def _hold(self, run: dg.DagsterRun, pools: frozenset[str]) -> None:
        """Have the stored run say that it needs these pools, and its log and their pages too."""
        instance = self._instance
        tags = {ON_DEMAND_TAG: run.tags[PARTITION_TAG], **{f"{POOL_TAG_PREFIX}{pool}": "true" for pool in pools}}
        instance.add_run_tags(run.run_id, tags)
        stored = instance.get_run_by_id(run.run_id)
        assert stored is not None and stored.remote_job_origin is not None
        needs = RunOpConcurrency(
            root_key_counts=dict.fromkeys(pools, 1), has_unconstrained_root_nodes=False, all_pools=pools
        )
        # of what a run storage does, this alone writes a run as it is given; its origin stays what it is
        instance.run_storage.replace_job_origin(copy(stored, run_op_concurrency=needs), stored.remote_job_origin)
        said = f"Needs a slot of each of the pools {', '.join(sorted(pools))} (Deployment > Concurrency)"
        if instance.get_concurrency_config().pool_config.pool_granularity is not PoolGranularity.RUN:
            said += ", which limit runs only with `concurrency: {pools: {granularity: run}}` in dagster.yaml"
        instance.report_engine_event(said, stored)

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
        return len(active) < _most_at_once(queue) and all(segments < limit for limit in limits)
