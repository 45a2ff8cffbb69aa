"""The daily job over many days as one backfill, on a real instance.

    curtail bench backfill

A home of synthetic traces; `daily_pipeline` over all days in one run, as `BackfillPolicy.single_run` makes it: traces
with their checks, windows, and every policy on every day. Target: 90 days x 3 regions in at most 120 s on 2 cores.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TypedDict

from curtail_pipeline.storage.records import Message

REGIONS = ("CAISO_NORTH", "SPP_TX", "NEM_SA")
START = "2026-01-01T00:00:00Z"


class Measured(Message):
    """What the child process prints."""

    success: bool
    partitions: dict[str, int]
    """Materialised, by asset."""
    step_s: dict[str, float]
    """Seconds by step."""


class Backfill(TypedDict):
    """What `run` measured."""

    days: int
    regions: int
    seconds: float
    """Of the process, its start included."""
    success: bool
    partitions: dict[str, int]
    step_s: dict[str, float]


def run(days: int = 90, regions: int = 3) -> Backfill:
    """Measure."""
    from curtail_pipeline.orchestration.headless import prepare_instance
    from curtail_pipeline.settings.experiment import parse_experiment
    from curtail_pipeline.stages.project import CLOCK_ENV, EXPERIMENT_ENV, Project

    power = {"training_kw": 2.024, "idle_kw": 0.468, "steps_per_s": 0.006}
    content = {
        "name": "backfill",
        "traces": {"provider": "synthetic", "seed": 307, "start": START, "days": days},
        "sites": [{"name": name, "region": name, **power} for name in REGIONS[:regions]],
        "job": {"steps": 4000},
    }
    with tempfile.TemporaryDirectory(prefix="curtail-backfill-") as scratch:
        project = Project.open(parse_experiment(content, "benchmark"), "headless", Path(scratch) / "home")
        prepare_instance(project)
        chosen = {
            EXPERIMENT_ENV: str(project.home.experiment_file),
            CLOCK_ENV: "headless",
            "DAGSTER_HOME": str(project.home.dagster),
        }
        begun = time.perf_counter()
        command = [sys.executable, "-W", "ignore", "-m", __name__]
        done = subprocess.run(command, env={**os.environ, **chosen}, stdout=subprocess.PIPE, text=True, check=True)
        seconds = round(time.perf_counter() - begun, 1)
    found = Measured.read(done.stdout.splitlines()[-1], "the child's answer")
    return {
        "days": days,
        "regions": regions,
        "seconds": seconds,
        "success": found.success,
        "partitions": found.partitions,
        "step_s": found.step_s,
    }


def _backfill() -> Measured:
    import dagster as dg

    from curtail_pipeline.definitions import defs
    from curtail_pipeline.orchestration.partitions import DAYS, range_tags

    assets = ("carbon_traces", "trace_ingestion", "curtailment_windows", "what_if")
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
        partitions = {name: len(instance.get_materialized_partitions(dg.AssetKey(name))) for name in assets}
        return Measured(success=result.success, partitions=partitions, step_s=steps)


if __name__ == "__main__":
    print(_backfill().model_dump_json())
