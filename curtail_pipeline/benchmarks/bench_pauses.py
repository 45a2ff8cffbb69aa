"""How long sites wait between two segments of a live run: `curtail ui` where the signal is always low.

    curtail bench pauses

Two sites, a tiny model, segments of ten seconds. Targets on 2 cores: the first run is to be seen 30 s after the start
on an empty home, and 3 s pass from a checkpoint to the beginning of the next segment's run.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import TypedDict

from curtail_pipeline.errors import CurtailError
from curtail_pipeline.flower.processes import free_port, tail
from curtail_pipeline.orchestration.segment_starts import first_run, segment_starts

START = datetime(2026, 5, 1, tzinfo=UTC)
SITES = ("NORTH", "SOUTH")
DEADLINE_S = 600.0


class Pauses(TypedDict):
    """What `run` measured, in seconds."""

    first_run_s: float
    """From the command to the first run, on an empty home."""
    segments: int
    pause_s: float
    """From a checkpoint's commit to the beginning of the next segment's run; the median."""
    longest_pause_s: float
    requested_s: float
    """Of the pause, until the sensor's request."""
    load: float
    """Of the machine at the end, over a minute."""


class PausesError(CurtailError):
    """The UI ended, or did not come so far."""


def run(segments: int = 4) -> Pauses:
    """Measure so many pauses."""
    with tempfile.TemporaryDirectory(prefix="curtail-pauses-") as scratch:
        folder = Path(scratch)
        command = [sys.executable, "-W", "ignore", "-m", "curtail_pipeline.cli", "ui", "--port", str(free_port())]
        log = folder / "log"
        begun = time.time()
        with log.open("wb") as stream:
            ui = subprocess.Popen(
                [*command, "--experiment", str(_experiment(folder))],
                env={**os.environ, "CURTAIL_HOME": scratch},
                stdout=stream,
                stderr=stream,
            )
        try:
            home = folder / "pauses"
            _wait(ui, log, lambda: _manifest(home, f"ckpt-{segments + 1:06d}").exists())  # nothing that takes its time
        finally:
            ui.send_signal(signal.SIGTERM)
            ui.wait(60)
        seen, starts = first_run(home / "dagster"), segment_starts(home / "dagster")[: segments + 1]
        if seen is None:
            raise PausesError(f"{home} has checkpoints, its Dagster instance has no run")
        commits = {start.key: _manifest(home, start.key).stat().st_mtime for start in starts}
    pairs = [(commits[before.key], after) for before, after in pairwise(starts)]
    pauses = [after.begun - commit for commit, after in pairs]
    return {
        "first_run_s": round(seen - begun, 1),
        "segments": len(starts),
        "pause_s": round(statistics.median(pauses), 2),
        "longest_pause_s": round(max(pauses), 2),
        "requested_s": round(statistics.median(after.requested - commit for commit, after in pairs), 2),
        "load": round(os.getloadavg()[0], 1),
    }


def _manifest(home: Path, key: str) -> Path:
    return home / "store" / "checkpoints" / key / "manifest.json"


def _wait(ui: "subprocess.Popen[bytes]", log: Path, reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not reached():
        if ui.poll() is not None or time.monotonic() > deadline:
            fate = f"came to nothing in {DEADLINE_S:.0f} s" if ui.poll() is None else f"ended with {ui.poll()}"
            raise PausesError(f"the UI {fate}; its log ends:\n{tail(log)}")
        time.sleep(0.5)


def _experiment(folder: Path) -> Path:
    trace = folder / "trace.csv"
    stamps = [START + timedelta(minutes=5 * n) for n in range(12 * 24)]
    trace.write_text(f"time,{','.join(SITES)}\n" + "".join(f"{stamp.isoformat()},20,20\n" for stamp in stamps))
    content = {
        "name": "pauses",
        "traces": {"provider": "file", "path": str(trace), "kind": "marginal_intensity"},
        "replay": {"speed": 20},
        "sites": [
            {"name": name, "region": name, "training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 0.02} for name in SITES
        ],
        "overheads": {"provisioning_s": 0, "connect_s": 0},
        "policy": {"name": "paper"},
        "rounds": {"round_s": 100, "max_rounds": 2},
        "job": {"steps": 10**6},
        "corpus": {"vocab_size": 512, "sample_mib": 0.2, "heldout_fraction": 0.05, "max_documents": 400},
        "training": {"preset": "tiny", "sequence_length": 64, "total_batch_tokens": 512, "evaluation_sequences": 32},
    }
    file = folder / "pauses.yaml"
    file.write_text(json.dumps(content))  # JSON is YAML
    return file
