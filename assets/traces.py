"""Grid signals in, curtailment windows out."""

from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta

import dagster as dg

from curtail_pipeline.orchestration.metadata import ingestion_metadata, trace_events, windows_facts
from curtail_pipeline.orchestration.partitions import ALL_REGIONS, DAY_AND_REGION, DAYS
from curtail_pipeline.orchestration.resources import PipelineResource
from curtail_pipeline.signals.checks import CHECKS
from curtail_pipeline.stages.derive_windows import derive_days, save_derived
from curtail_pipeline.stages.ingest_days import Attempt, ingest_region, ingest_regions, refuse_failed, require_stored

FRESH = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=36), warn_window=timedelta(hours=26))
ONE_RUN = dg.BackfillPolicy.single_run()
PLOTTED_DAYS = 7
"""A run over more days draws no plots: half a second of CPU each. Nor does the intraday one."""

TRACE_CHECKS = [
    dg.AssetCheckSpec(name, asset="carbon_traces", blocking=True, description=text, partitions_def=DAY_AND_REGION)
    for name, text in CHECKS.items()
]


@dg.multi_asset(
    name="carbon_traces",
    specs=[
        dg.AssetSpec(
            "carbon_traces",
            description=(
                "A region's signals of one UTC day, normalised: g/kWh, MW or currency/MWh, null where a stamp is "
                "missing.\n\nA value is valid from its stamp until the next (step-hold). Materialising a day again "
                "replaces it and records what was revised; a day that fails a check replaces nothing. Rows whose "
                "source is `synthetic` come from a model, not from a grid."
            ),
            partitions_def=DAY_AND_REGION,
            group_name="signals",
            kinds={"polars", "parquet"},
            owners=["team:grid-signals"],
            freshness_policy=FRESH,
            skippable=True,
        )
    ],
    check_specs=TRACE_CHECKS,
    can_subset=True,
    backfill_policy=ONE_RUN,
)
def carbon_traces(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> Iterator[dg.MaterializeResult]:
    project = pipeline.project()
    attempts: list[Attempt] = []
    for key in context.partition_keys:
        assert isinstance(key, dg.MultiPartitionKey)
        ingested = ingest_region(project, key.keys_by_dimension["region"], key.keys_by_dimension["day"])
        for event in trace_events(ingested, project):
            context.log_event(event)
        attempts.append(ingested.attempt)
    refuse_failed([attempt for attempt in attempts if attempt.reason is not None], len(attempts))
    yield from ()  # all of it is logged above: of several days, a result would claim those that failed too


@dg.asset(
    partitions_def=DAYS,
    group_name="signals",
    kinds={"polars"},
    owners=["team:grid-signals"],
    freshness_policy=FRESH,
    backfill_policy=ONE_RUN,
)
def trace_ingestion(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    """Every region's trace of a day, fetched and checked: `carbon_traces` of the day, and what became of each.

    A region that fails keeps what is stored of it and costs no other region; the check `every_region_stored` fails the
    run at its end, when all else is stored.
    """
    project = pipeline.project()
    by_day: dict[str, list[Attempt]] = defaultdict(list)
    for ingested in ingest_regions(project, context.partition_keys):
        for event in trace_events(ingested, project):
            context.log_event(event)
        attempt = ingested.attempt
        by_day[attempt.day.isoformat()].append(attempt)
        if attempt.reason is not None:
            context.log.error(f"{attempt.region} {attempt.day} is not stored: {attempt.reason}")
    for day, attempts in by_day.items():
        context.add_asset_metadata(ingestion_metadata(attempts), partition_key=day)
    return dg.MaterializeResult()


@dg.asset(
    partitions_def=DAYS,
    group_name="signals",
    kinds={"polars", "parquet"},
    owners=["team:grid-signals"],
    freshness_policy=FRESH,
    backfill_policy=ONE_RUN,
    deps=[
        trace_ingestion,
        dg.AssetDep("carbon_traces", partition_mapping=ALL_REGIONS),
        dg.AssetDep(
            "curtailment_windows", partition_mapping=dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1)
        ),
    ],
)
def curtailment_windows(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    """When each site's grid counts as curtailed on this day, by the experiment's rule, with why it opened and closed.

    The rule's state is carried from day to day, so that any range gives what processing it at once would give. A day
    goes on from the newest state before it; over a hole windows stay closed, and the day is derived again when the hole
    is filled.
    """
    project, days = pipeline.project(), set(context.partition_keys)
    plot = len(days) <= PLOTTED_DAYS and context.job_name != "intraday_pipeline"
    for derived in derive_days(project, days):
        save_derived(project, derived)
        facts, day = windows_facts(derived, project, plot), derived.day.isoformat()
        for region, reason in derived.missing.items():
            context.log.warning(f"{region} {day}: windows stay closed, {reason}")
        if day in days:
            context.add_asset_metadata(facts, partition_key=day)
        else:  # a later day that followed from what was there before
            context.log_event(dg.AssetMaterialization("curtailment_windows", partition=day, metadata=facts))
    return dg.MaterializeResult()


@dg.asset_check(asset=trace_ingestion, additional_deps=[curtailment_windows])
def every_region_stored(context: dg.AssetCheckExecutionContext, pipeline: PipelineResource) -> dg.AssetCheckResult:
    """The end of a daily run: fails it when a region's day was not stored, after all others were."""
    require_stored(pipeline.project(), context.partition_keys)
    return dg.AssetCheckResult(passed=True, description="every region's trace is stored")
