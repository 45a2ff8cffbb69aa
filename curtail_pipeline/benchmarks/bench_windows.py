"""Windows of a year of 5-minute values in 1,000 regions, against merely reading those values.

    curtail bench windows

The traces lie on disk as one Parquet file per region (time, value; zstd, as the product writes them), made by a cheap
generator that is not timed. The rule has two thresholds, an exit delay and a minimum duration judged by history. The
work is done in child processes, so that `peak_mib` is its own. Targets: 8 s, 1 GiB, three times the read.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TypedDict

import numpy as np
import polars as pl

from curtail_pipeline.storage.atomic import replacing
from curtail_pipeline.storage.records import Message
from curtail_pipeline.times import SECOND, times_column, to_us

START = datetime(2025, 1, 1, tzinfo=UTC)
CADENCE_S = 300
PER_DAY = 86_400 // CADENCE_S
REPEATS = 2


def generate(folder: Path, regions: int, days: int, seed: int = 0) -> None:
    """Marginal intensity that is bimodal like a real one: near zero in a surplus of wind and sun, else a gas unit's.

    About 5 % of the time below 100 g/kWh in a thousand stretches a year. Values are multiples of 0.1 lb/MWh, as
    WattTime's are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    n = days * PER_DAY
    hours = n // 12 + 1
    steps = np.arange(n)
    time_column = times_column(steps * CADENCE_S * SECOND + to_us(START))
    # An autocorrelated wind (0.95 from hour to hour), by its spectrum.
    frequency = np.fft.rfftfreq(hours)
    spectrum = np.sqrt((1 - 0.95**2) / (1 + 0.95**2 - 1.9 * np.cos(2 * np.pi * frequency)))
    for region in range(regions):
        path = folder / f"R{region:04d}.parquet"
        if path.exists():
            continue
        rng = np.random.default_rng((seed, region))
        hourly = np.fft.irfft(np.fft.rfft(rng.normal(size=hours)) * spectrum, hours)
        wind = np.interp(steps / 12, np.arange(hours), hourly)
        sun = np.maximum(np.sin(2 * np.pi * (steps / PER_DAY - rng.uniform())), 0)
        surplus = 0.9 * wind + 1.2 * sun - 2.0 + 0.12 * rng.normal(size=n)
        noise = rng.normal(size=n)
        pounds = np.where(surplus > 0, 120 * np.abs(noise), 900 + 60 * wind + 40 * noise)
        values = np.maximum(pounds, 0).round(1) * 0.45359237
        with replacing(path) as scratch:
            pl.DataFrame({"time": time_column, "value": values}).write_parquet(scratch, compression="zstd")


def _files(folder: Path, regions: int) -> dict[str, Path]:
    return {f"R{region:04d}": folder / f"R{region:04d}.parquet" for region in range(regions)}


def _read_frames(files: dict[str, Path]) -> None:
    with ThreadPoolExecutor(max_workers=2) as pool:
        list(pool.map(lambda path: pl.read_parquet(path).height, files.values()))


def _read_streaming(files: dict[str, Path]) -> None:
    scan = pl.scan_parquet(list(files.values()))
    scan.select(pl.col("time").max(), pl.col("value").sum()).collect(engine="streaming")


def _timed(read: Callable[[dict[str, Path]], None], files: dict[str, Path]) -> float:
    begun = time.perf_counter()
    read(files)
    return time.perf_counter() - begun


def _peak_mib() -> float:
    """Peak resident memory of this process alone (`getrusage` would include what its parent had before the exec)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM in /proc/self/status; this benchmark runs on Linux")


class Measured(Message):
    """What a child process prints."""

    seconds: float
    windows: int = 0
    peak_mib: float = 0.0


class Speed(TypedDict):
    """What `run` measured."""

    rows: int
    seconds: float
    """Of the work."""
    read_seconds: float
    """The fastest of two ways of reading with polars, each twice."""
    ratio_to_read: float
    rows_per_s: int
    peak_mib: float
    """Of the work."""
    windows: int
    ns_per_row: float
    ns_per_row_tenth: float
    """On a tenth of the regions: equal to `ns_per_row` when the cost is linear."""


def _child(what: str, folder: Path, regions: int, days: int) -> Measured:
    files = _files(folder, regions)
    # Each child does one small piece untimed, so that loading of code is not measured.
    if what == "read":
        _read_streaming(_files(folder, 1))
        return Measured(seconds=min(_timed(way, files) for way in (_read_frames, _read_streaming) * REPEATS))
    from curtail_pipeline.settings.job import PolicySettings
    from curtail_pipeline.settings.rule_settings import RuleSettings
    from curtail_pipeline.settings.sites import Site
    from curtail_pipeline.windows.bulk import windows_of_files

    sites = [Site(name=name, region=name, training_kw=2, idle_kw=0.5, steps_per_s=1) for name in files]
    rule = RuleSettings(min_duration_s=1800, start_up_s=340)
    work = partial(
        windows_of_files,
        files,
        policy=PolicySettings(name="hysteresis"),
        start=START,
        end=START + timedelta(days=days),
        rules=dict.fromkeys(files, rule),
    )
    work(sites=sites[:1])
    begun = time.perf_counter()
    table = work(sites=sites)
    return Measured(seconds=time.perf_counter() - begun, windows=table.height, peak_mib=_peak_mib())


def _in_child(what: str, folder: Path, regions: int, days: int) -> Measured:
    command = [
        sys.executable,
        "-m",
        "curtail_pipeline.benchmarks.bench_windows",
        what,
        str(folder),
        str(regions),
        str(days),
    ]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Measured.read(done.stdout.splitlines()[-1], "the child's answer")


def _seconds(measured: Measured) -> float:
    return measured.seconds


def run(regions: int = 1000, days: int = 365, folder: str | None = None) -> Speed:
    """Measure.

    Args:
        folder: where the traces are kept for the next time; a temporary folder when not given.
    """
    with tempfile.TemporaryDirectory(prefix="curtail-windows-") as scratch:
        root = Path(folder or scratch)
        print(f"making {regions} regions x {days} days in {root}", file=sys.stderr)
        generate(root, regions, days)
        rows = regions * days * PER_DAY
        # Also brings the files into the page cache, for the reads and for the work alike.
        read = _in_child("read", root, regions, days)
        work = min((_in_child("windows", root, regions, days) for _ in range(REPEATS)), key=_seconds)
        tenth = max(1, regions // 10)
        part = min((_in_child("windows", root, tenth, days) for _ in range(REPEATS)), key=_seconds)
    return {
        "rows": rows,
        "seconds": round(work.seconds, 3),
        "read_seconds": round(read.seconds, 3),
        "ratio_to_read": round(work.seconds / read.seconds, 2),
        "rows_per_s": round(rows / work.seconds),
        "peak_mib": round(work.peak_mib, 1),
        "windows": work.windows,
        "ns_per_row": round(work.seconds / rows * 1e9, 1),
        "ns_per_row_tenth": round(part.seconds / (tenth * days * PER_DAY) * 1e9, 1),
    }


if __name__ == "__main__":
    print(_child(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])).model_dump_json())
