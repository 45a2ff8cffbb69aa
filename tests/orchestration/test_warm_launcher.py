"""Runs of a real instance in worker processes that wait for them."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.launcher.base import LaunchRunContext
from micro import ROOT, write_experiment
from waiting import wait_until

from curtail_pipeline.definitions import defs
from curtail_pipeline.orchestration import warm_launcher
from curtail_pipeline.orchestration.headless import prepare_instance
from curtail_pipeline.orchestration.run_workers import LAUNCH_TIMEOUT, end_dead, is_alive, worker_of
from curtail_pipeline.orchestration.warm_launcher import WarmLauncher
from curtail_pipeline.stages.project import CLOCK_ENV, EXPERIMENT_ENV, Project

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
PATIENCE_S = 300.0


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    project = Project.open(write_experiment(tmp_path / "input"), "replay", tmp_path / "home")
    prepare_instance(project)
    monkeypatch.setenv(EXPERIMENT_ENV, str(project.home.experiment_file))
    monkeypatch.setenv(CLOCK_ENV, "replay")
    monkeypatch.setenv("DAGSTER_HOME", str(project.home.dagster))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with dg.DagsterInstance.get() as found:
        yield found


def launched(instance: dg.DagsterInstance) -> dg.DagsterRun:
    """A run of the job `reporting`, which has nothing to report."""
    code = ReconstructableRepository.for_module("curtail_pipeline.definitions", "defs")
    run = instance.create_run_for_job(
        defs.resolve_job_def("reporting"),
        job_code_origin=code.get_reconstructable_job("reporting").get_python_origin(),
        status=dg.DagsterRunStatus.STARTING,
    )
    instance.run_launcher.launch_run(LaunchRunContext(run, None))
    return run


def test_a_run_is_taken_by_the_process_that_waits_for_it(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = instance.run_launcher
    assert isinstance(launcher, WarmLauncher)

    def status(run: dg.DagsterRun) -> dg.DagsterRunStatus:
        found = instance.get_run_by_id(run.run_id)
        assert found is not None
        return found.status

    def ended(run: dg.DagsterRun) -> bool:
        return status(run) not in (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED)

    def parent() -> int:
        return launcher._started[-1].process.pid

    def pid_of(run: dg.DagsterRun) -> int:
        found = worker_of(instance, run.run_id)
        assert found is not None
        return found[0]

    used: set[int] = set()

    def unused() -> psutil.Process | None:
        return next((each for each in psutil.Process(forking).children() if each.pid not in used), None)

    killed = launched(instance)
    forking = parent()
    # it imports before it says that it has started
    wait_until(unused, PATIENCE_S, "the first worker").kill()
    wait_until(lambda: ended(killed), 30, "the end of a run whose worker was killed before it began")
    assert status(killed) == dg.DagsterRunStatus.FAILURE

    first, second = launched(instance), launched(instance)
    assert parent() == forking
    for run in (first, second):
        wait_until(lambda run=run: ended(run), PATIENCE_S, "the end of a run")
        assert status(run) == dg.DagsterRunStatus.SUCCESS
    used |= {pid_of(run) for run in (first, second)}
    waiting = wait_until(unused, PATIENCE_S, "the next worker")
    third = launched(instance)
    wait_until(lambda: ended(third), PATIENCE_S, "the end of a run")
    assert parent() == forking
    assert pid_of(third) == waiting.pid, "the one that had imported everything did not take the run"

    used.add(waiting.pid)
    waiting = wait_until(unused, PATIENCE_S, "the next worker")
    waiting.kill()  # no run is lost with it
    wait_until(lambda: not is_alive(waiting.pid, time.time()), PATIENCE_S, "its end")
    fourth = launched(instance)
    wait_until(lambda: ended(fourth), PATIENCE_S, "the end of a run")
    assert status(fourth) == dg.DagsterRunStatus.SUCCESS and parent() == forking

    stale = launcher._started[-1].process
    monkeypatch.setattr(warm_launcher, "_sources", lambda: 1e12)  # somebody has edited the code since
    cut_short = launched(instance)
    assert launcher.terminate(cut_short.run_id), "of a run that has not begun"
    assert stale.wait(PATIENCE_S) == 0, "it was given a run"
    last = launcher._started[-1].process
    launcher.dispose()
    assert last.wait(PATIENCE_S) == 0
    end_dead(instance, datetime.now(UTC) + 2 * LAUNCH_TIMEOUT)
    assert status(cut_short) == dg.DagsterRunStatus.CANCELED
