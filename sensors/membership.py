"""Starts local training or federated rounds when curtailment windows say which sites should train."""

import os
import textwrap
from datetime import UTC, datetime

import dagster as dg

from curtail_pipeline.orchestration.jobs import federated_rounds, local_training
from curtail_pipeline.orchestration.partitions import CHECKPOINTS
from curtail_pipeline.orchestration.preparation import prepare
from curtail_pipeline.orchestration.resources import PipelineResource
from curtail_pipeline.orchestration.runs import (
    CHECKPOINT_TAG,
    active_segment,
    member_tags,
    preparation,
    setback,
    terminated,
)
from curtail_pipeline.scheduling.reconcile import backoff_due
from curtail_pipeline.stages.tick import Tick, tick
from curtail_pipeline.storage.checkpoints import following
from curtail_pipeline.times import iso

SENSORS_ENV = "CURTAIL_SENSORS"
"""`on` switches sensors and schedules on by default (as `curtail ui` does); they are off otherwise."""

TAG_CHARS = 60
"""Of a reason in the list of runs; the run's log has all of it."""

SWITCHED_ON = os.environ.get(SENSORS_ENV) == "on"
DEFAULT_STATUS = dg.DefaultSensorStatus.RUNNING if SWITCHED_ON else dg.DefaultSensorStatus.STOPPED


@dg.sensor(
    jobs=[local_training, federated_rounds, prepare],
    minimum_interval_seconds=1,
    description=(
        "Compares the membership that windows ask for with the segment that runs, and requests the next one: "
        "local_training for one site, federated_rounds for more. No site curtailed is a pause."
    ),
    default_status=DEFAULT_STATUS,
)
def membership_sensor(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> dg.SensorResult:
    """Compares the membership that windows ask for with the segment that runs, and starts the next one.

    One site that trains requests `local_training`, two or more `federated_rounds`; none is a pause. An empty home
    requests `prepare`. It reads small local tables and the clock, never the network. A changed membership ends the
    active segment through the store. Terminating a segment's run pauses training until its key is resumed; of one that
    has committed there is nothing to resume, and the next one is started.
    """
    project, wall = pipeline.project(), datetime.now(UTC)
    last = project.checkpoints.last()
    if last is None:
        return _preparation(context.instance, wall)
    key = following(last)
    result: Tick = tick(
        project,
        active=active_segment(context.instance, key),
        setback=setback(context.instance, key),
        wall=wall,
        paused=_paused(terminated(context.instance, key), key),
        parent=project.checkpoints.manifest(last),
    )
    request = result.request
    if request is None:
        return dg.SensorResult(skip_reason=result.reason, cursor=str(result.generation))
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                # with the time: where the store was restored from an earlier copy the same attempt comes again, and
                # Dagster launches no key twice
                run_key=f"{request.key}-{request.attempt}-{wall.isoformat()}",
                job_name="local_training" if request.mode == "local" else "federated_rounds",
                partition_key=request.key,
                tags={
                    CHECKPOINT_TAG: request.key,
                    **member_tags(request.members),
                    "curtail/reason": textwrap.shorten(request.reason, TAG_CHARS, placeholder="…"),
                    "dagster/priority": "10",  # before whatever was asked for on demand
                },
            )
        ],
        dynamic_partitions_requests=[CHECKPOINTS.build_add_request([request.key])],
        cursor=str(result.generation),
    )


def _paused(run_id: str | None, key: str) -> str:
    if run_id is None:
        return ""
    return (
        f"paused: run {run_id[:8]} of {key} was terminated; to resume, re-execute that run, or materialise {key} of "
        "aggregated_checkpoint"
    )


def _preparation(instance: dg.DagsterInstance, wall: datetime) -> dg.SensorResult:
    """On an empty home: the job that makes all that a segment needs."""
    known = preparation(instance)
    if known.active:
        return dg.SensorResult(skip_reason="the home is being prepared")
    if known.terminated is not None:
        return dg.SensorResult(
            skip_reason=f"paused: run {known.terminated[:8]} of prepare was terminated; to resume, launch prepare again"
        )
    if known.last_failure is not None:
        due = backoff_due(known.attempts, known.last_failure)
        if known.last_failure <= wall < due:  # no wait for a clock that was set back
            return dg.SensorResult(skip_reason=f"prepare failed; attempt {known.attempts + 1} is due at {iso(due)}")
    request = dg.RunRequest(run_key=f"prepare-{known.attempts + 1}", job_name=prepare.name)
    return dg.SensorResult(run_requests=[request])
