"""The daily job over many days as one backfill, on a real instance.

    curtail bench backfill

A home of synthetic traces; `daily_pipeline` over all days in one run, as `BackfillPolicy.single_run` makes it: traces
with their checks, windows, and every policy on every day. Target: 90 days x 3 regions in at most 120 s on 2 cores.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TypedDict

REGIONS = ("CAISO_NORTH", "SPP_TX", "NEM_SA")
START = "2026-01-01T00:00:00Z"


class Backfill(TypedDict):
    """What `run` measured."""

    days: int
    regions: int
    seconds: float
    """Of the process, its start included."""
    cpu_s: float
    """Of it and its workers: on two cores half of this is the least, whatever else runs there."""
    success: bool
    partitions: dict[str, int]
    step_s: dict[str, float]


def run(days: int = 90, regions: int = 3) -> Backfill:
    """Measure."""
    from curtail_pipeline.orchestration.backfill import Backfilled
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
        begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-W", "ignore", "-m", __name__]
        done = subprocess.run(command, env={**os.environ, **chosen}, stdout=subprocess.PIPE, text=True, check=True)
        seconds = round(time.perf_counter() - begun, 1)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = Backfilled.read(done.stdout.splitlines()[-1], "the child's answer")
    return {
        "days": days,
        "regions": regions,
        "seconds": seconds,
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "success": found.success,
        "partitions": found.partitions,
        "step_s": found.step_s,
    }


def _print_backfilled() -> None:
    from curtail_pipeline.definitions import defs
    from curtail_pipeline.orchestration.backfill import run_backfill

    print(run_backfill(defs).model_dump_json())


if __name__ == "__main__":
    _print_backfilled()
