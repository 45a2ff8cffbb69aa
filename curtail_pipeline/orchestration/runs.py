"""What the Dagster instance knows of segments and of the preparation."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile

import dagster as dg
from dagster._core.storage.dagster_run import FINISHED_STATUSES

from curtail_pipeline.scheduling.reconcile import BACKOFF_S, Setback

SEGMENT_JOBS = ("local_training", "federated_rounds")
SEGMENT_ASSET = "aggregated_checkpoint"
PARTITION_TAG = "dagster/partition"
PREPARE_JOB = "prepare"
CHECKPOINT_TAG = "curtail/checkpoint"
"""Of every run that trains a segment: its key."""
MEMBERS_TAG = "curtail/members"
"""... and its members; see `member_tags`."""
_TAG_CHARS = 2_000
"""Postgres indexes the tags of runs, and no row of an index has more than 2,704 bytes."""
_NAMES_PER_TAG = 30
"""Of 64 characters each at most, and a comma."""
SKIPPED_TAG = "curtail/skipped"
"""Of a run whose segment ended before its first step: why."""
UNFINISHED = [status for status in dg.DagsterRunStatus if status not in FINISHED_STATUSES]
CUT_SHORT = [dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


def member_tags(members: Sequence[str]) -> dict[str, str]:
    """What says who trains, as tags of a run.

    Where the names are too long for one tag it has their number and sha256, for whoever filters by it, and tags
    numbered from `curtail/members.000` on have the names.
    """
    names = ",".join(members)
    if len(names) <= _TAG_CHARS:
        return {MEMBERS_TAG: names}
    parts = [members[first : first + _NAMES_PER_TAG] for first in range(0, len(members), _NAMES_PER_TAG)]
    whole = f"{len(members)} sites, sha256 {hashlib.sha256(names.encode()).hexdigest()}"
    return {MEMBERS_TAG: whole} | {_part_tag(number): ",".join(part) for number, part in enumerate(parts)}


def members_of(tags: Mapping[str, str]) -> tuple[str, ...]:
    """Whom `member_tags` names; a run that was marked anew may have parts of a larger membership behind those."""
    told = tags.get(MEMBERS_TAG, "")
    if " " not in told:  # no site has one in its name
        return tuple(told.split(","))
    count = int(told.split()[0])
    parts = [tags[_part_tag(number)].split(",") for number in range(-(-count // _NAMES_PER_TAG))]
    return tuple(name for part in parts for name in part)


def _part_tag(number: int) -> str:
    return f"{MEMBERS_TAG}.{number:03d}"


def active_segment(instance: dg.DagsterInstance, key: str) -> tuple[str, ...] | None:
    """Members of the segment whose run is queued or training; None when there is none.

    Args:
        key: the next one to be committed. A run of an earlier one has trained, and evaluates and accounts what it has
            committed, while the next segment starts.
    """
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=UNFINISHED, tags={CHECKPOINT_TAG: key})):
        if MEMBERS_TAG in run.tags:
            return members_of(run.tags)
    return None


def end_abandoned(instance: dg.DagsterInstance) -> list[str]:
    """Mark segment runs as failed whose process was killed; returns their ids.

    Only for the holder of the home's lock: nobody else executes segments of this instance then.
    """
    ended = []
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=UNFINISHED)):
        if run.job_name in (*SEGMENT_JOBS, PREPARE_JOB) or CHECKPOINT_TAG in run.tags:
            instance.report_run_failed(run, "the process that executed this run was killed")
            ended.append(run.run_id)
    return ended


def setback(instance: dg.DagsterInstance, key: str) -> Setback | None:
    """What the newest runs for this checkpoint came to, where it was nothing."""
    records = instance.get_run_records(filters=dg.RunsFilter(tags={CHECKPOINT_TAG: key}), limit=len(BACKOFF_S))
    failed = [*takewhile(lambda record: record.dagster_run.status in CUT_SHORT, records)]
    if failed:
        return Setback(_ended(failed[0]), len(failed))
    if records and SKIPPED_TAG in (tags := records[0].dagster_run.tags):
        return Setback(_ended(records[0]), without_step=members_of(tags))
    return None


def terminated(instance: dg.DagsterInstance, key: str) -> str | None:
    """The run of this checkpoint's segment that somebody terminated; None when a later one was started since.

    A run that ended because its process was told to stop (the daemon's host went down) was terminated by nobody.
    """
    newest = _newest(instance, dg.RunsFilter(tags={CHECKPOINT_TAG: key}))
    return newest.dagster_run.run_id if newest is not None and _by_somebody(instance, newest) else None


@dataclass(frozen=True)
class Preparation:
    """How far the job `prepare` has come on this instance."""

    active: bool
    attempts: int
    terminated: str | None
    """The newest run, where somebody terminated it."""
    last_failure: datetime | None


def preparation(instance: dg.DagsterInstance) -> Preparation:
    """What is known of runs of the job `prepare`."""
    newest = _newest(instance, dg.RunsFilter(job_name=PREPARE_JOB))
    if newest is None:
        return Preparation(False, 0, None, None)
    status = newest.dagster_run.status
    return Preparation(
        active=status in UNFINISHED,
        attempts=instance.get_runs_count(dg.RunsFilter(job_name=PREPARE_JOB)),
        terminated=newest.dagster_run.run_id if _by_somebody(instance, newest) else None,
        last_failure=_ended(newest) if status in CUT_SHORT else None,
    )


def _newest(instance: dg.DagsterInstance, filters: dg.RunsFilter) -> dg.RunRecord | None:
    found = instance.get_run_records(filters=filters, limit=1)
    return found[0] if found else None


def _ended(record: dg.RunRecord) -> datetime:
    return datetime.fromtimestamp(record.end_time or record.update_timestamp.timestamp(), UTC)


def _by_somebody(instance: dg.DagsterInstance, record: dg.RunRecord) -> bool:
    """Whether a run was cancelled through the instance; then that was recorded before it ended."""
    if record.dagster_run.status is not dg.DagsterRunStatus.CANCELED:
        return False
    asked = instance.all_logs(record.dagster_run.run_id, of_type=dg.DagsterEventType.RUN_CANCELING)
    return bool(asked)
