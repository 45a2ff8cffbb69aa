"""A process that waits for a run: it says whether it took an order, and ends with who started it."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from waiting import wait_until

from curtail_pipeline.orchestration import warm_launcher


def test_a_worker_that_ends_while_it_is_given_a_run_did_not_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lives when it is looked at, and nobody reads what it is sent: as if it ended between the two."""
    (tmp_path / "deaf.py").write_text(
        f"import os, pathlib, time; os.close(0); pathlib.Path({str(tmp_path / 'closed')!r}).touch(); time.sleep(600)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(warm_launcher, "WORKER", "deaf")
    workers = warm_launcher._Workers()
    try:
        wait_until((tmp_path / "closed").exists, 60, "a worker that reads nothing")
        assert workers.process.poll() is None and workers.take("a run") is False
    finally:
        workers.process.kill()
    workers.process.wait()
    assert workers.take("a run") is False
    workers.close()


LAUNCHER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE)
time.sleep(600)
"""
FORKING = """
from curtail_pipeline.orchestration import run_worker
run_worker.BEFORE, run_worker.can_fork_torch = (), lambda: False  # which take long to import
run_worker.main([])
"""


@pytest.mark.parametrize(("stopped", "killed"), [(1, 0), (2, 0), (2, 1)])
def test_one_that_was_stopped_ends_with_who_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: int, killed: int
) -> None:
    """Of a daemon, the process that forks workers, and a worker."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, FORKING])
    line = [psutil.Process(launcher.pid)]
    try:
        while len(line) < 3:
            line += wait_until(line[-1].children)
        wait_until(lambda: list(tmp_path.iterdir()), what="a worker that has opened its instance")
        line[stopped].suspend()
        line[killed].kill()
        wait_until(lambda: not any(map(runs, line[killed + 1 :])), 20, "the end of those below")
    finally:
        for process in reversed(line):
            if runs(process):
                process.kill()
        launcher.wait()


def runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
