"""What every policy would have made of a day."""

import dagster as dg

from curtail_pipeline.orchestration.metadata import comparison_metadata
from curtail_pipeline.orchestration.partitions import ALL_REGIONS, DAYS
from curtail_pipeline.orchestration.resources import PipelineResource


@dg.asset(
    partitions_def=DAYS,
    group_name="emissions",
    kinds={"polars", "altair"},
    owners=["team:sustainability"],
    deps=[dg.AssetDep("carbon_traces", partition_mapping=ALL_REGIONS), "curtailment_windows"],
)
def what_if(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    """The experiment simulated on this day's traces under every policy: hours, kWh, kgCO2, regret, no training."""
    from curtail_pipeline.stages.account import compare_day

    return dg.MaterializeResult(metadata=comparison_metadata(*compare_day(pipeline.project(), context.partition_key)))
