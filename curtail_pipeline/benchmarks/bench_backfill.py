"""The daily job over many days as one backfill, through a real instance and its own daemon code.

    curtail bench backfill

A home of synthetic traces; `daily_pipeline` over all days in one run, as `BackfillPolicy.single_run` makes it: traces
with their checks, windows, and every policy on every day. Target: 90 days x 3 regions in at most 120 s on 2 cores.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REGIONS = ("CAISO_NORTH", "SPP_TX", "NEM_SA")
START = "2026-01-01T00:00:00Z"

_RUN = """
import json, os, sys
import dagster as dg
from curtail_pipeline.definitions import defs
from curtail_pipeline.orchestration.partitions import DAYS, range_tags
with dg.DagsterInstance.from_config(os.environ["DAGSTER_HOME"]) as instance:
    result = defs.resolve_job_def("daily_pipeline").execute_in_process(
        instance=instance, tags=range_tags(DAYS.get_partition_keys()), raise_on_error=False,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )
    found = {name: len(instance.get_materialized_partitions(dg.AssetKey(name)))
             for name in ("carbon_traces", "trace_ingestion", "curtailment_windows", "what_if")}
    steps = {event.step_key: round(event.step_success_data.duration_ms / 1000, 1)
             for event in result.all_events if event.event_type_value == "STEP_SUCCESS"}
    print(json.dumps({"success": result.success, "partitions": found, "step_s": steps}))
"""


def run(days: int = 90, regions: int = 3) -> dict[str, object]:
    """Measure.

    Returns:
        days; regions; seconds (of the process, its start included); partitions (materialised, by asset); step_s
        (seconds by step); success.
    """
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
        command = [sys.executable, "-W", "ignore", "-c", _RUN]
        done = subprocess.run(command, env={**os.environ, **chosen}, stdout=subprocess.PIPE, text=True, check=True)
        seconds = time.perf_counter() - begun
    measured: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return {"days": days, "regions": regions, "seconds": round(seconds, 1), **measured}


if __name__ == "__main__":
    print(json.dumps(run()))
