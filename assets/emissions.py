"""Energy and CO2 of every checkpoint, and the report."""

from collections.abc import Iterator

import dagster as dg
import polars as pl

from curtail_pipeline.orchestration.io import KEY_METADATA
from curtail_pipeline.orchestration.metadata import checkpoint_observation, ledger_metadata, report_metadata
from curtail_pipeline.orchestration.partitions import CHECKPOINTS
from curtail_pipeline.orchestration.resources import PipelineResource
from curtail_pipeline.orchestration.story import plain_failure


@dg.asset(
    partitions_def=CHECKPOINTS,
    group_name="emissions",
    deps=["aggregated_checkpoint", dg.AssetDep("carbon_traces", partition_mapping=dg.AllPartitionMapping())],
    io_manager_key="tables",
    metadata={KEY_METADATA: "emissions/{partition}.parquet"},
    kinds={"polars", "parquet"},
    owners=["team:sustainability"],
)
def emissions_ledger(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.Output[pl.DataFrame]:
    """kWh and gCO2 per site and power state: power intervals times the step-held trace, never interpolated."""
    from curtail_pipeline.stages.account import checkpoint_ledger
    from curtail_pipeline.stages.evaluate import stored_loss

    project, key = pipeline.project(), context.partition_key
    with plain_failure(context.log, f"the accounts of {key}"):
        table = checkpoint_ledger(project, key)
        if stored_loss(project, key) is not None:
            context.log_event(checkpoint_observation(project, key))
    return dg.Output(table, metadata=ledger_metadata(table))


REFRESHED = (
    dg.AutomationCondition.any_deps_updated()
    .ignore(dg.AssetSelection.assets("curtailment_windows"))
    .since_last_handled()
    & ~dg.AutomationCondition.in_progress()
).with_label("after every segment")
"""Not `eager`: that waits until no upstream partition is missing, and the segment in progress always is."""


@dg.asset(
    group_name="emissions",
    deps=[
        dg.AssetDep("emissions_ledger", partition_mapping=dg.AllPartitionMapping()),
        dg.AssetDep("curtailment_windows", partition_mapping=dg.AllPartitionMapping()),
    ],
    kinds={"altair", "html"},
    owners=["team:sustainability"],
    automation_condition=REFRESHED,
    output_required=False,
)
def emissions_report(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> Iterator[dg.MaterializeResult]:
    """Totals against each always-on single-site baseline, with plots, as one HTML page that works offline.

    Ledgers that were counted before a trace was revised are counted again first.
    """
    from curtail_pipeline.stages.account import refresh_ledgers, stored_ledgers
    from curtail_pipeline.stages.run_report import write_report
    from curtail_pipeline.stages.signal_versions import SignalVersions

    project = pipeline.project()
    with plain_failure(context.log, "the report"):
        if stored_ledgers(project) is None:
            context.log.warning("no segment has been accounted yet: there is nothing to report, and none was written")
            return
        signals = SignalVersions(project)
        for key, table in refresh_ledgers(project, signals):
            context.log.info(f"{key} is counted again: its signal was revised")
            facts = ledger_metadata(table)
            context.log_event(dg.AssetMaterialization("emissions_ledger", partition=key, metadata=facts))
        yield dg.MaterializeResult(metadata=report_metadata(write_report(project, signals), project))
