"""`curtail ui`: the Dagster webserver and daemon on an experiment's instance."""

import os
import signal
import subprocess
import sys

from curtail_pipeline.stages.project import CLOCK_ENV, EXPERIMENT_ENV, Project
from curtail_pipeline.storage.clock import ReplayClock

WORKSPACE = """\
load_from:
  - python_module:
      module_name: curtail_pipeline.definitions
      location_name: curtail_pipeline
"""
"""Written into the home, so that an installed package needs no checkout."""
STOP_S = 60.0
"""How long `dagster dev` may take to stop its processes before they are killed."""


def environment(project: Project, sensors: bool) -> dict[str, str]:
    """Environment of the code location: this experiment, its instance, and its clock."""
    recorded = project.span is not None
    return {
        **os.environ,
        EXPERIMENT_ENV: str(project.home.experiment_file),
        CLOCK_ENV: "replay" if recorded else "live",
        "CURTAIL_SENSORS": "on" if sensors else "off",
        "DAGSTER_HOME": str(project.home.dagster),
    }


def serve(project: Project, host: str, port: int, sensors: bool) -> int:
    """Run `dagster dev` until it ends or this process is told to stop; returns its exit code.

    A replayed clock goes on from the last checkpoint: time in which nobody watched is not skipped. On an empty home it
    starts when the home is prepared.
    """
    if project.span is not None and project.checkpoints.last() is not None:
        begin = max(project.parent.end, project.start)
        clock = ReplayClock(project.store, begin, project.experiment.replay.speed)
        clock.anchor(begin, project.experiment.replay.speed)
    workspace = project.home.dagster / "workspace.yaml"
    workspace.write_text(WORKSPACE)
    command = [sys.executable, "-m", "dagster", "dev", "-w", str(workspace), "-h", host, "-p", str(port)]
    process = subprocess.Popen(
        command,
        cwd=project.home.dagster,
        env=environment(project, sensors),
        # A shell that starts this in the background ignores SIGINT; Dagster would inherit that and never stop.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )

    def forward(*_: object) -> None:
        process.send_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, forward)
    try:
        return process.wait()
    except KeyboardInterrupt:
        return _stop(process)
    finally:
        signal.signal(signal.SIGTERM, before)
        if process.poll() is None:
            _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> int:
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
