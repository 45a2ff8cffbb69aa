"""What the Dagster instance knows of segments."""

from datetime import UTC, datetime

import dagster as dg
from dagster._core.storage.dagster_run import FINISHED_STATUSES

SEGMENT_JOBS = ("local_training", "federated_rounds")
UNFINISHED = [status for status in dg.DagsterRunStatus if status not in FINISHED_STATUSES]


def active_segment(instance: dg.DagsterInstance) -> tuple[str, ...] | None:
    """Members of the segment whose run is queued or running; None when there is none."""
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=UNFINISHED)):
        if run.job_name in SEGMENT_JOBS and "curtail/members" in run.tags:
            return tuple(run.tags["curtail/members"].split(","))
    return None


def end_abandoned(instance: dg.DagsterInstance) -> list[str]:
    """Mark segment runs as failed whose process was killed; returns their ids.

    Only for the holder of the home's lock: nobody else executes segments of this instance then.
    """
    ended = []
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=UNFINISHED)):
        if run.job_name in SEGMENT_JOBS:
            instance.report_run_failed(run, "the process that executed this run was killed")
            ended.append(run.run_id)
    return ended


def last_failure(instance: dg.DagsterInstance, key: str) -> datetime | None:
    """When the newest failed or cancelled run for this checkpoint ended (wall time)."""
    statuses = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    records = instance.get_run_records(
        filters=dg.RunsFilter(statuses=statuses, tags={"curtail/checkpoint": key}), limit=1
    )
    if not records:
        return None
    ended = records[0].end_time or records[0].update_timestamp.timestamp()
    return datetime.fromtimestamp(ended, UTC)
