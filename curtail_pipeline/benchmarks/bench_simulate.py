"""The simulator on a year of 5-minute traces of many sites, and beside the co-simulator vessim.

    curtail bench simulate

Traces lie on disk as one Parquet file per region, made by the generator of the windows benchmark, which is not timed.
Timed is the whole simulation with the policy `boundary`: reading, windows, decisions, rounds, energy and CO2. Targets:
5 s for 100 sites, 120 s for 2,000, cost linear in events.
"""

import json
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import numpy as np

from curtail_pipeline.benchmarks.bench_windows import START, generate
from curtail_pipeline.settings.experiment import Experiment, parse_experiment
from curtail_pipeline.settings.overheads import product
from curtail_pipeline.simulation.fleet import simulate_files
from curtail_pipeline.storage.records import Json

REPEATS = 3


def _experiment(regions: list[str]) -> Experiment:
    power = {"training_kw": 2.024, "idle_kw": 0.468, "steps_per_s": 0.3665}
    return parse_experiment(
        {
            "name": "fleet",
            "traces": {"provider": "file", "path": "unused.csv"},
            "sites": [{"name": region, "region": region, **power} for region in regions],
            "overheads": product(600.0).model_dump(),
            "policy": {"name": "boundary"},
            "job": {"steps": 10**9},
        },
        "benchmark",
    )


def _simulated(folder: Path, sites: int, days: int) -> tuple[float, int]:
    """Seconds and events of one simulation."""
    files = {f"R{region:04d}": folder / f"R{region:04d}.parquet" for region in range(sites)}
    experiment = _experiment(list(files))
    begun = time.perf_counter()
    walk, account = simulate_files(experiment, files, start=START, end=START + timedelta(days=days))
    seconds = time.perf_counter() - begun
    print(
        f"{sites} sites, {days} days: {seconds:.2f} s, {walk.events} events, {walk.rounds} rounds, "
        f"{account.energy_kwh:.0f} kWh, {account.co2_kg:.0f} kg",
        file=sys.stderr,
    )
    return seconds, walk.events


def _vessim_seconds(days: int = 31) -> float:
    """One site that idles or trains, a grid connection and a carbon signal, stepped at 5 minutes."""
    import pandas as pd
    import vessim as vs

    stamps = pd.date_range("2025-01-01", periods=days * 288 + 1, freq="5min")
    rng = np.random.default_rng(0)
    load = pd.DataFrame({"load": np.where(rng.random(len(stamps)) < 0.1, 2_024.0, 468.0)}, index=stamps)
    carbon = pd.DataFrame({"carbon": 450 * rng.random(len(stamps))}, index=stamps)
    begun = time.perf_counter()
    environment = vs.Environment(sim_start="2025-01-01 00:00:00", step_size=300)
    environment.add_microgrid(
        actors=[vs.Consumer(name="site", signal=vs.Trace(load, column="load", anchor=stamps[0]))],
        dispatchables=[vs.GridConnection()],
        grid_signals={"carbon": vs.Trace(carbon, column="carbon", anchor=stamps[0])},
        name="site",
    )
    environment.run(until=days * 86_400)
    return time.perf_counter() - begun


def run(sites: int = 100, days: int = 365, many: int = 2000, folder: str | None = None) -> dict[str, Json]:
    """Measure.

    Args:
        many: number of sites of the large simulation; 0 leaves it out.
        folder: where the traces are kept for the next time; a temporary folder when not given.

    Returns:
        sites; hours (simulated); events; seconds; us_per_event; seconds_2000_sites, events_2000_sites and
        us_per_event_2000_sites (equal to the smaller run's when the cost is linear); vessim_ratio: how many times
        longer vessim takes per simulated site-hour.
    """
    with tempfile.TemporaryDirectory(prefix="curtail-simulate-") as scratch:
        root = Path(folder or scratch)
        print(f"making {max(sites, many)} regions x {days} days in {root}", file=sys.stderr)
        generate(root, max(sites, many), days)
        _simulated(root, 1, days)
        seconds, events = min(_simulated(root, sites, days) for _ in range(REPEATS))
        result: dict[str, Json] = {
            "sites": sites,
            "hours": days * 24,
            "events": events,
            "seconds": round(seconds, 3),
            "us_per_event": round(seconds / events * 1e6, 2),
        }
        if many:
            large, large_events = _simulated(root, many, days)
            result |= {
                f"seconds_{many}_sites": round(large, 2),
                f"events_{many}_sites": large_events,
                f"us_per_event_{many}_sites": round(large / large_events * 1e6, 2),
            }
    ours = seconds / (sites * days * 24)
    vessim = min(_vessim_seconds() for _ in range(REPEATS)) / (31 * 24)
    return result | {"vessim_ratio": round(vessim / ours, 1)}


if __name__ == "__main__":
    print(json.dumps(run()))
