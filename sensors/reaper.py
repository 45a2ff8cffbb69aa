"""Ends runs whose worker was killed, so that what they held is free and is tried again."""

from datetime import UTC, datetime

import dagster as dg

from curtail_pipeline.orchestration.run_workers import end_dead
from sensors.membership import DEFAULT_STATUS


@dg.sensor(
    minimum_interval_seconds=10,
    default_status=DEFAULT_STATUS,
    description=(
        "Ends runs whose worker process on this host is gone. The membership sensor then starts the segment again, "
        "which goes on with its Flower run where that is still at work."
    ),
)
def reaper_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    dead = end_dead(context.instance, datetime.now(UTC))
    for each in dead:
        context.log.warning(f"{each.run.job_name} {each.run.run_id} ended: {each.reason}")
    if not dead:
        return dg.SkipReason("every run's worker is at work")
    return dg.SkipReason("ended " + ", ".join(f"{each.run.job_name} {each.run.run_id[:8]}" for each in dead))
