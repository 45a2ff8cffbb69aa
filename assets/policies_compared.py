"""What every policy would have made of a day."""

from collections.abc import Iterator

import dagster as dg

from assets.traces import ONE_RUN, PLOTTED_DAYS
from curtail_pipeline.errors import IncompleteError
from curtail_pipeline.orchestration.metadata import comparison_metadata
from curtail_pipeline.orchestration.partitions import ALL_REGIONS, DAYS
from curtail_pipeline.orchestration.resources import PipelineResource


@dg.asset(
    partitions_def=DAYS,
    group_name="emissions",
    kinds={"polars", "altair"},
    owners=["team:sustainability"],
    backfill_policy=ONE_RUN,
    output_required=False,
    deps=[dg.AssetDep("carbon_traces", partition_mapping=ALL_REGIONS), "curtailment_windows"],
)
def what_if(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> Iterator[dg.MaterializeResult]:
    """The experiment simulated on this day's traces under every policy: hours, kWh, kgCO2, regret, no training."""
    from curtail_pipeline.stages.compare_days import compare_days

    days, failed = list(context.partition_keys), []
    for compared in compare_days(pipeline.project(), days, plot=len(days) <= PLOTTED_DAYS):
        if compared.reason is not None:
            failed.append(f"{compared.day}: {compared.reason}")
            continue
        facts = comparison_metadata(compared.policies, compared.plot)
        context.log_event(dg.AssetMaterialization("what_if", partition=compared.day, metadata=facts))
    if failed:
        raise IncompleteError(f"{len(failed)} of {len(days)} days cannot be compared: {'; '.join(failed[:5])}")
    yield from ()  # each day is logged above
