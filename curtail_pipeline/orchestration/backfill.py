"""The daily job over every day of the experiment as one run in this process."""

import dagster as dg

from curtail_pipeline.orchestration.partitions import DAYS, range_tags
from curtail_pipeline.storage.records import Message

_ASSETS = ("carbon_traces", "trace_ingestion", "curtailment_windows", "what_if")


class Backfilled(Message):
    """What became of it."""

    success: bool
    partitions: dict[str, int]
    """Materialised, by asset."""
    step_s: dict[str, float]
    """Seconds by step."""


def run_backfill(defs: dg.Definitions) -> Backfilled:
    """Run it on the instance of DAGSTER_HOME."""
    with dg.DagsterInstance.get() as instance:
        result = defs.resolve_job_def("daily_pipeline").execute_in_process(
            instance=instance,
            tags=range_tags(DAYS.get_partition_keys()),
            raise_on_error=False,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
        steps = {
            event.step_key: round(event.step_success_data.duration_ms / 1000, 1)
            for event in result.all_events
            if event.step_key is not None and event.event_type_value == "STEP_SUCCESS"
        }
        partitions = {name: len(instance.get_materialized_partitions(dg.AssetKey(name))) for name in _ASSETS}
        return Backfilled(success=result.success, partitions=partitions, step_s=steps)
