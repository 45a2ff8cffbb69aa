"""Grid signals in, curtailment windows out."""

from collections.abc import Iterator
from datetime import timedelta

import dagster as dg
import polars as pl

from curtail_pipeline.orchestration.io import KEY_METADATA
from curtail_pipeline.orchestration.metadata import check_result, trace_metadata, window_metadata
from curtail_pipeline.orchestration.partitions import ALL_REGIONS, DAY_AND_REGION, DAYS
from curtail_pipeline.orchestration.resources import PipelineResource
from curtail_pipeline.signals.checks import CHECKS
from curtail_pipeline.stages.derive_windows import derive_day
from curtail_pipeline.stages.ingest import ingest_day, save_forecasts

FRESH = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=36), warn_window=timedelta(hours=26))


@dg.asset(
    partitions_def=DAY_AND_REGION,
    group_name="signals",
    kinds={"polars", "parquet"},
    owners=["team:grid-signals"],
    io_manager_key="tables",
    metadata={KEY_METADATA: "traces/{day}/{region}.parquet"},
    freshness_policy=FRESH,
    check_specs=[
        dg.AssetCheckSpec(name, asset="carbon_traces", blocking=True, description=text) for name, text in CHECKS.items()
    ],
)
def carbon_traces(
    context: dg.AssetExecutionContext, pipeline: PipelineResource
) -> Iterator[dg.Output[pl.DataFrame] | dg.AssetCheckResult]:
    """A region's signals of one UTC day, normalised: g/kWh, MW or currency/MWh, null where a stamp is missing.

    A value is valid from its stamp until the next (step-hold). Materialising a day again replaces it and records what
    was revised. Rows whose source is `synthetic` come from a model, not from a grid.
    """
    key = context.partition_key
    assert isinstance(key, dg.MultiPartitionKey)
    day, region = key.keys_by_dimension["day"], key.keys_by_dimension["region"]
    project = pipeline.project()
    found = ingest_day(project, region, day)
    save_forecasts(project, found)
    yield dg.Output(found.table, metadata=trace_metadata(found))
    for result in found.checks:
        yield check_result(result)


@dg.asset(
    partitions_def=DAYS,
    group_name="signals",
    kinds={"polars", "parquet"},
    owners=["team:grid-signals"],
    io_manager_key="tables",
    metadata={KEY_METADATA: "windows/{partition}.parquet"},
    freshness_policy=FRESH,
    ins={"carbon_traces": dg.AssetIn(partition_mapping=ALL_REGIONS)},
    deps=[
        dg.AssetDep(
            "curtailment_windows", partition_mapping=dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1)
        )
    ],
)
def curtailment_windows(
    context: dg.AssetExecutionContext, pipeline: PipelineResource, carbon_traces: pl.DataFrame
) -> dg.Output[pl.DataFrame]:
    """When each site's grid counts as curtailed on this day, by the experiment's rule, with why it opened and closed.

    The rule's state is carried from day to day, so that any range gives what processing it at once would give.
    """
    derived = derive_day(pipeline.project(), context.partition_key, carbon_traces)
    return dg.Output(derived.table, metadata=window_metadata(derived))
