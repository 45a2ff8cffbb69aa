"""Has sites started ahead of their windows and stopped after them."""

import dagster as dg

from curtail_pipeline.orchestration.resources import PipelineResource
from curtail_pipeline.stages.site_keepers import provision
from sensors.membership import DEFAULT_STATUS


@dg.sensor(
    minimum_interval_seconds=2,
    default_status=DEFAULT_STATUS,
    description=(
        "Hands what the membership sensor wants of sites with a provisioner to a thread per site, which starts, stops "
        "and measures it. It waits for none of them."
    ),
)
def provisioning_sensor(pipeline: PipelineResource) -> dg.SkipReason:
    return dg.SkipReason(provision(pipeline.project()))
