"""Energy and CO2 of every checkpoint, and the report."""

import dagster as dg
import polars as pl

from curtail_pipeline.orchestration.io import KEY_METADATA
from curtail_pipeline.orchestration.metadata import ledger_metadata, report_metadata
from curtail_pipeline.orchestration.partitions import CHECKPOINTS
from curtail_pipeline.orchestration.resources import PipelineResource


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

    table = checkpoint_ledger(pipeline.project(), context.partition_key)
    return dg.Output(table, metadata=ledger_metadata(table))


@dg.asset(
    group_name="emissions",
    deps=[dg.AssetDep("emissions_ledger", partition_mapping=dg.AllPartitionMapping())],
    kinds={"altair", "html"},
    owners=["team:sustainability"],
)
def emissions_report(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    """Totals against each always-on single-site baseline, with plots, as one HTML page that works offline."""
    from curtail_pipeline.stages.account import write_report

    return dg.MaterializeResult(metadata=report_metadata(write_report(pipeline.project())))
