"""What it wins that sites behind slow links do not share every round: 3, 10 and 100 sites, every third link slow.

    curtail bench sync

A model of 561 million parameters travels as float32 both ways in every round of ten minutes, at 1 Gbit/s or at 50
Mbit/s, where that takes six minutes each way. Sites' power is clean in stretches of some hours. With `rounds.sync: all`
whoever has a window shares the round; with `paying` those that do the most steps together; `forecast` (with a perfect
one) plans who shares which round. The figures are the simulator's, whose decisions and rounds are those of a run: the
same on any machine.
"""

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from curtail_pipeline.settings.experiment import Experiment, parse_experiment
from curtail_pipeline.simulation.compare import simulate_run
from curtail_pipeline.storage.records import Json
from curtail_pipeline.times import HOUR

START = datetime(2026, 1, 1, tzinfo=UTC)
CADENCE = timedelta(minutes=5)
PER_HOUR = 12
FAST_MBIT_S = 1_000.0
WAYS = (("threshold", "all"), ("threshold", "paying"), ("forecast", "all"))
"""Policies, and who shares their rounds; what is planned is the same by either."""


def _traces(regions: Sequence[str], hours: float) -> pl.DataFrame:
    """About 20 g/kWh in a third of the time, else about 420, in stretches of one to four hours."""
    count = round(hours * PER_HOUR)
    parts = []
    for number, region in enumerate(regions):
        rng = np.random.default_rng(number)
        clean = np.repeat(rng.random(count) < 1 / 3, rng.integers(PER_HOUR, 4 * PER_HOUR, count))[:count]
        values = np.where(clean, 20.0, 420.0) + 20.0 * rng.random(count)
        times = [START + i * CADENCE for i in range(count)]
        columns = {"time": times, "region": region, "value": values, "kind": "marginal_intensity"}
        parts.append(pl.DataFrame(columns, schema_overrides={"time": pl.Datetime("us", "UTC")}))
    return pl.concat(parts)


def _experiment(sites: int, hours: float, share: float, slow_mbit_s: float) -> Experiment:
    speed = 0.3665
    content: dict[str, Json] = {
        "name": "sync",
        "traces": {"provider": "file", "path": "unused.csv"},
        "sites": [
            {
                "name": f"S{k:03d}", "region": f"R{k:03d}", "training_kw": 2.024, "idle_kw": 0.468,
                "steps_per_s": speed, "link": {"up_mbit_s": mbit_s, "down_mbit_s": mbit_s, "rtt_ms": 50},
            }
            for k in range(sites)
            for mbit_s in [slow_mbit_s if k % 3 == 2 else FAST_MBIT_S]
        ],
        "overheads": {"connect_s": 20, "outer_step_s": 3},
        "rounds": {"round_s": 600, "update_mb": 2_244},
        "job": {"steps": round(share * sites * hours * 3_600 * speed)},
    }  # fmt: skip
    return parse_experiment(content, "benchmark")


def _row(run: Experiment, rows: pl.DataFrame, policy: str, sync: str, hours: float) -> dict[str, Json]:
    rounds = run.rounds.model_copy(update={"sync": sync})
    forecast = "perfect" if policy == "forecast" else None
    begun = time.process_time()
    done = simulate_run(
        run.model_copy(update={"rounds": rounds}), rows, policy=policy, forecast=forecast, deadline_h=hours
    )
    walk = done.walk
    found: dict[str, Json] = {
        "sites": len(run.sites),
        "policy": policy,
        "sync": sync,
        "finished": walk.finished,
        "steps": walk.steps,
        "hours": round((walk.last_step - walk.start) / HOUR, 2),
        "co2_kg": round(done.account.co2_kg, 3),
        "g_per_step": round(1_000 * done.account.co2_kg / walk.steps, 4) if walk.steps else None,
        "rounds": walk.rounds,
        "cpu_s": round(time.process_time() - begun, 2),
    }
    print("  ".join(f"{key} {value}" for key, value in found.items()), file=sys.stderr)
    return found


def run(sites: str = "3,10,100", hours: float = 8.0, share: float = 0.15, slow_mbit_s: float = 50.0) -> dict[str, Json]:
    """Simulate.

    Args:
        sites: numbers of them.
        hours: until the deadline, and of the traces.
        share: the job's steps, of those that all sites could do in that time without overheads.
        slow_mbit_s: of every third link, both ways.

    Returns:
        rows: sites, policy, sync, finished, steps, hours (to the last step), co2_kg, g_per_step, rounds, cpu_s.
    """
    rows: list[Json] = []
    for count in map(int, str(sites).split(",")):
        experiment = _experiment(count, hours, share, slow_mbit_s)
        traces = _traces(experiment.regions, hours)
        rows += [_row(experiment, traces, policy, sync, hours) for policy, sync in WAYS]
    return {"rows": rows}
