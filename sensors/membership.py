"""Starts local training or federated rounds when curtailment windows say which sites should train."""

import os
import textwrap
from datetime import UTC, datetime

import dagster as dg

from curtail_pipeline.orchestration.jobs import federated_rounds, local_training
from curtail_pipeline.orchestration.partitions import CHECKPOINTS
from curtail_pipeline.orchestration.resources import PipelineResource
from curtail_pipeline.orchestration.runs import active_segment, last_failure
from curtail_pipeline.stages.tick import Tick, tick

SENSORS_ENV = "CURTAIL_SENSORS"
"""`on` switches sensors and schedules on by default (as `curtail ui` does); they are off otherwise."""

TAG_CHARS = 60
"""Of a reason in the list of runs; the run's log has all of it."""

DEFAULT_STATUS = (
    dg.DefaultSensorStatus.RUNNING if os.environ.get(SENSORS_ENV) == "on" else dg.DefaultSensorStatus.STOPPED
)


@dg.sensor(
    jobs=[local_training, federated_rounds],
    minimum_interval_seconds=1,
    description=(
        "Compares the membership that windows ask for with the segment that runs, and requests the next one: "
        "local_training for one site, federated_rounds for more. No site curtailed is a pause."
    ),
    default_status=DEFAULT_STATUS,
)
def membership_sensor(context: dg.SensorEvaluationContext, pipeline: PipelineResource) -> dg.SensorResult:
    """Compares the membership that windows ask for with the segment that runs, and starts the next one.

    One site that trains requests `local_training`, two or more `federated_rounds`; none is a pause. It reads small
    local tables and the clock, never the network. A changed membership ends the active segment through the store.
    """
    project = pipeline.project()
    key = project.checkpoints.next_key()
    result: Tick = tick(
        project,
        active=active_segment(context.instance),
        last_failure=last_failure(context.instance, key),
        wall=datetime.now(UTC),
    )
    request = result.request
    if request is None:
        return dg.SensorResult(skip_reason=result.reason, cursor=str(result.generation))
    return dg.SensorResult(
        run_requests=[
            dg.RunRequest(
                run_key=f"{request.key}-{request.attempt}",
                job_name="local_training" if request.mode == "local" else "federated_rounds",
                partition_key=request.key,
                tags={
                    "curtail/checkpoint": request.key,
                    "curtail/members": ",".join(request.members),
                    "curtail/reason": textwrap.shorten(request.reason, TAG_CHARS, placeholder="…"),
                },
            )
        ],
        dynamic_partitions_requests=[CHECKPOINTS.build_add_request([request.key])],
        cursor=str(result.generation),
    )
