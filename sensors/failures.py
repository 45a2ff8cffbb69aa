"""Tells people when a run has failed."""

import dagster as dg

from curtail_pipeline.orchestration.alerts import post, told
from curtail_pipeline.orchestration.resources import PipelineResource
from sensors.membership import DEFAULT_STATUS


@dg.run_failure_sensor(
    default_status=DEFAULT_STATUS,
    minimum_interval_seconds=15,
    description="Posts every failed run to the webhook of the experiment's `alerts`, or of CURTAIL_WEBHOOK.",
)
def failure_sensor(context: dg.RunFailureSensorContext, pipeline: PipelineResource) -> dg.SkipReason | None:
    alerts = pipeline.project().experiment.alerts
    if alerts.address is None:
        return dg.SkipReason("nobody is told: set alerts.webhook in the experiment, or CURTAIL_WEBHOOK")
    post(alerts.address, told(context), alerts.timeout_s)
    context.log.info(f"told of the failed run {context.dagster_run.run_id}")
    return None
