"""Jobs. Training jobs are asset jobs over one checkpoint; the daily and intraday ones are ops.

They are ops because one run refreshes assets of different partitions (a trace per day and region, one table of windows
per day), which an asset job cannot; the events they log are those of the assets.
"""

from datetime import UTC, datetime

import dagster as dg

from curtail_pipeline.orchestration.metadata import report_check, trace_event, windows_event
from curtail_pipeline.orchestration.partitions import DAYS
from curtail_pipeline.orchestration.resources import PipelineResource
from curtail_pipeline.stages.derive_windows import derive_following, save_derived
from curtail_pipeline.stages.ingest import ingest_day, save_ingested

SEGMENT_ASSETS = dg.AssetSelection.assets("aggregated_checkpoint", "checkpoint_evaluation", "emissions_ledger")

local_training = dg.define_asset_job(
    "local_training",
    SEGMENT_ASSETS,
    description="One segment at one site: train, evaluate, account.",
    executor_def=dg.in_process_executor,
)
federated_rounds = dg.define_asset_job(
    "federated_rounds",
    SEGMENT_ASSETS,
    description="One segment of Flower rounds over two or more sites: train and merge, evaluate, account.",
    executor_def=dg.in_process_executor,
)
corpus_preparation = dg.define_asset_job(
    "corpus_preparation",
    dg.AssetSelection.assets("tokenizer", "training_shards", "heldout_shard"),
    description="Tokenizer, the token shards of one site and the held-out shard.",
    executor_def=dg.in_process_executor,
)
reporting = dg.define_asset_job(
    "reporting",
    dg.AssetSelection.assets("emissions_report"),
    description="The emissions report over all checkpoints.",
    executor_def=dg.in_process_executor,
)


def _refresh(context: dg.OpExecutionContext, pipeline: PipelineResource, day: str, plot: bool) -> None:
    project = pipeline.project()
    for region in project.experiment.regions:
        found = ingest_day(project, region, day)
        for check in found.checks:
            report_check(context.instance, check, f"{day}|{region}")
        if found.blocked:
            # The stored day stays as it is; its signal ages and the windows of the region close.
            context.log.error(
                f"{region} {day} is not stored: {'; '.join(check.description for check in found.blocked)}"
            )
            continue
        save_ingested(project, found)
        context.log_event(trace_event(found, project))
    for derived in derive_following(project, day):
        save_derived(project, derived)
        context.log_event(windows_event(derived, project, plot))


@dg.op(description="Every region's trace of the partition's day, checked, then the day's windows.")
def refresh_day(context: dg.OpExecutionContext, pipeline: PipelineResource) -> None:
    _refresh(context, pipeline, context.partition_key, plot=True)


@dg.job(
    partitions_def=DAYS,
    executor_def=dg.in_process_executor,
    description="A whole UTC day: traces of all regions with their checks, then the windows of all sites.",
)
def daily_pipeline() -> None:
    refresh_day()


@dg.op(description="Today's traces so far, checked, then today's windows.")
def refresh_today(context: dg.OpExecutionContext, pipeline: PipelineResource) -> None:
    _refresh(context, pipeline, datetime.now(UTC).date().isoformat(), plot=False)


@dg.job(executor_def=dg.in_process_executor, description="Today so far; cheap enough for every five minutes.")
def intraday_pipeline() -> None:
    refresh_today()
