"""Daily and intraday ingestion."""

from datetime import timedelta

import dagster as dg

from curtail_pipeline.orchestration.jobs import daily_pipeline, intraday_pipeline
from curtail_pipeline.orchestration.partitions import DAYS, range_tags
from curtail_pipeline.orchestration.runs import UNFINISHED
from sensors.membership import SWITCHED_ON

LOOKBACK_DAYS = 3
"""Days before yesterday that are ingested again: grid operators revise values for some days."""

DEFAULT_STATUS = dg.DefaultScheduleStatus.RUNNING if SWITCHED_ON else dg.DefaultScheduleStatus.STOPPED


@dg.schedule(
    description="Half an hour after midnight UTC, one run: yesterday, and the days before it for late revisions.",
    job=daily_pipeline,
    cron_schedule="30 0 * * *",
    execution_timezone="UTC",
    default_status=DEFAULT_STATUS,
)
def daily_pipeline_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Half an hour after midnight UTC, one run: yesterday, and the days before it for late revisions."""
    now = context.scheduled_execution_time
    known = DAYS.get_partition_keys()
    wanted = [(now - timedelta(days=n)).date().isoformat() for n in range(1 + LOOKBACK_DAYS, 0, -1)]
    days = [day for day in wanted if known[0] <= day <= known[-1]]
    if not days:
        return dg.SkipReason(f"{wanted[-1]} is outside the recorded trace ({known[0]} to {known[-1]})")
    return dg.RunRequest(run_key=f"daily@{now:%Y-%m-%d}", tags=range_tags(days))


@dg.schedule(
    description="Every five minutes: today so far.",
    job=intraday_pipeline,
    cron_schedule="*/5 * * * *",
    execution_timezone="UTC",
    default_status=DEFAULT_STATUS,
)
def intraday_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Every five minutes: today so far, unless the run before is still at it: a source that does not answer is waited
    for, and runs would fill the queue."""
    day = context.scheduled_execution_time.date().isoformat()
    known = DAYS.get_partition_keys()
    if day not in known:
        return dg.SkipReason(f"{day} is outside the recorded trace ({known[0]} to {known[-1]})")
    unfinished = dg.RunsFilter(job_name=intraday_pipeline.name, statuses=UNFINISHED)
    for run in context.instance.get_runs(unfinished, limit=1):
        return dg.SkipReason(f"run {run.run_id[:8]} of it is still at work")
    return dg.RunRequest(run_key=f"{context.scheduled_execution_time:%Y-%m-%dT%H:%M}", partition_key=day)
