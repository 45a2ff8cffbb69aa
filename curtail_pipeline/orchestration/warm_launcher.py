"""Runs start in a process that has imported everything and waits for one; Dagster's own launcher imports after it.

In `dagster.yaml`:

    run_launcher: {module: curtail_pipeline.orchestration.warm_launcher, class: WarmLauncher}

Every run still has a process of its own (`run_worker`), forked by a child of whoever takes runs from the queue, the
daemon, and ends with it; a run survives the end of the code server.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import dagster as dg
from dagster._core.events import EngineEventData
from dagster._core.launcher import DefaultRunLauncher
from dagster._core.launcher.base import LaunchRunContext
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import ConfigurableClassData, serialize_value

import curtail_pipeline
from curtail_pipeline.orchestration.run_workers import STARTER, WORKER, is_alive, worker_of

USED = ("curtail_pipeline.definitions", "curtail_pipeline.stages.initialise", "curtail_pipeline.stages.train")
"""What a segment's run imports before it trains."""
SOURCES = [Path(curtail_pipeline.__file__).parents[1] / name for name in ("curtail_pipeline", "assets", "sensors")]


class _Workers:
    """The process that forks run workers of one state of the code."""

    def __init__(self) -> None:
        self.sources = _sources()
        # a process that forks has one thread; what a run computes with it, it computes in few
        variables = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", WORKER, *USED]
        self.process = subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, env=variables)
        threading.Thread(target=self.process.wait, daemon=True).start()  # so that no zombie is left

    def take(self, order: str) -> bool:
        """Hand a run over; False when the process has ended, or has imported code that has changed since."""
        if self.process.poll() is not None:
            return False
        if self.sources != _sources():
            self._write("")  # it ends after the runs that it has
            return False
        return self._write(order)

    def _write(self, line: str) -> bool:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line.encode() + b"\n")
        except BrokenPipeError:
            return False
        return True

    def close(self) -> None:
        """Have it end, and every run that it has."""
        assert self.process.stdin is not None
        self.process.stdin.close()


class WarmLauncher(DefaultRunLauncher):
    """See the module."""

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(inst_data)
        self._started: list[_Workers] = []
        """Those that have not ended; the last one takes runs."""
        self._launching = threading.Lock()
        """The daemon launches in the thread of its queue and in that of its sensors."""

    def launch_run(self, context: LaunchRunContext) -> None:
        run, instance = context.dagster_run, self._instance
        if context.job_code_origin is None:
            raise dg.DagsterInvariantViolationError(f"run {run.run_id} does not say which code it is of")
        order = serialize_value(ExecuteRunArgs(context.job_code_origin, run.run_id, instance.get_ref()))
        with self._launching:
            for each in [each for each in self._started if each.process.poll() is not None]:
                each.close()
                self._started.remove(each)
            while not (self._started and self._started[-1].take(order)):
                self._started.append(_Workers())
            pid = self._started[-1].process.pid
        instance.report_engine_event(f"{STARTER} {pid}.", run, EngineEventData({"pid": str(pid)}), type(self))

    def terminate(self, run_id: str) -> bool:
        run = self._instance.get_run_by_id(run_id)
        if run is None or run.is_finished:
            return False
        self._instance.report_run_canceling(run)
        found = worker_of(self._instance, run_id)
        if found is not None and is_alive(*found):
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                os.kill(found[0], signal.SIGTERM)
        return True  # one that has not begun sees that it was cancelled, and does not begin

    def dispose(self) -> None:
        for workers in self._started:
            workers.close()
        super().dispose()


def _sources() -> float:
    """When the code that a worker imports was changed last."""
    return max(file.stat().st_mtime for folder in SOURCES for file in folder.rglob("*.py"))
