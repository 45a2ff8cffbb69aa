"""A run worker that is killed under a real daemon: noticed, ended, and told of by webhook."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import dagster as dg
import psutil
import pytest
from dagster._core.events import EngineEventData
from micro import EXPERIMENT, environment
from waiting import wait_until

from curtail_pipeline.flower.processes import free_port
from curtail_pipeline.orchestration import run_workers
from curtail_pipeline.orchestration.headless import prepare_instance
from curtail_pipeline.orchestration.run_workers import (
    LAUNCH_TIMEOUT,
    SLOWEST_START,
    STARTER,
    WORKER,
    dead_runs,
    end_dead,
    is_alive,
)
from curtail_pipeline.orchestration.watchdog import code_servers, watching
from curtail_pipeline.settings.experiment import parse_experiment
from curtail_pipeline.stages.project import Project

NOTICED_S = 60.0
LAUNCH = """
mutation($job: String!, $day: String!) { launchRun(executionParams: {
    selector: {jobName: $job, repositoryName: "__repository__", repositoryLocationName: "curtail_pipeline"},
    executionMetadata: {tags: [{key: "dagster/partition", value: $day}]}, runConfigData: {}
}) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }
"""


class Signal(BaseHTTPRequestHandler):
    """A provider that never answers, and a chat that takes what it is told."""

    told: ClassVar[list[str]] = []
    over = threading.Event()

    def do_GET(self) -> None:
        self.over.wait(300)

    def do_POST(self) -> None:
        self.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def network() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Signal)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    Signal.over.set()
    server.shutdown()
    server.server_close()


def ask(port: int, query: str, variables: dict[str, Any]) -> dict[str, Any] | None:
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql", data=body, headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            found: dict[str, Any] = json.loads(answer.read())["data"]
            return found
    except OSError:
        return None


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_killed_run_worker_is_noticed_within_a_minute_and_told_of(tmp_path: Path, network: str) -> None:
    today = datetime.now(UTC).date().isoformat()
    traces = {"provider": "watttime", "base_url": network, "timeout_s": 200}
    content = {**EXPERIMENT, "traces": traces, "clock": {"start": f"{today}T00:00:00Z"}}
    project = Project.open(parse_experiment(content, "test"), "live", tmp_path / "home")
    prepare_instance(project)
    with dg.DagsterInstance.from_config(str(project.home.dagster)):
        pass  # its tables are made before several processes would
    port, log = free_port(), tmp_path / "log"
    chosen = {
        **environment(tmp_path),
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "CURTAIL_EXPERIMENT": str(project.home.experiment_file),
        "CURTAIL_SENSORS": "on",
        "CURTAIL_WEBHOOK": f"{network}/chat",
        "DAGSTER_HOME": str(project.home.dagster),
        "WATTTIME_USERNAME": "user",
        "WATTTIME_PASSWORD": "word",
    }
    workspace = tmp_path / "workspace.yaml"
    workspace.write_text(
        "load_from: [{python_module: {module_name: curtail_pipeline.definitions, location_name: curtail_pipeline}}]"
    )
    command = [sys.executable, "-m", "dagster", "dev", "-w", str(workspace), "-p", str(port)]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            env=chosen,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=tmp_path,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
        )
    try:
        with (
            watching(project.home.dagster, process.pid, f"http://127.0.0.1:{port}"),
            dg.DagsterInstance.from_config(str(project.home.dagster)) as instance,
        ):

            def launched() -> str | None:
                assert process.poll() is None, log.read_text()
                data = ask(port, LAUNCH, {"job": "intraday_pipeline", "day": today})
                return ((data or {}).get("launchRun") or {}).get("run", {}).get("runId")

            run_id = wait_until(launched, 600, "a launched run")

            def worker() -> int | None:
                found = instance.get_records_for_run(run_id).records
                steps = [each.event_log_entry.dagster_event for each in found if each.event_log_entry.dagster_event]
                pids = [
                    event.engine_event_data.metadata["pid"].value
                    for event in steps
                    if event.is_engine_event and (event.message or "").startswith("Started process for run")
                ]
                return int(str(pids[0])) if pids and any(event.is_step_start for event in steps) else None

            pid = wait_until(worker, 600, "a run worker at its first step")
            assert dead_runs(instance, datetime.now(UTC)) == [], "a worker that works is left alone"
            # Every sensor runs in the code server; it is killed too, as with its machine or its container.
            for server in code_servers(process.pid):
                psutil.Process(server).kill()
            assert psutil.Process(pid).is_running(), "a run ended with the code server"
            os.kill(pid, signal.SIGKILL)
            begun = time.monotonic()

            def ended() -> bool:
                run = instance.get_run_by_id(run_id)
                return run is not None and run.status == dg.DagsterRunStatus.FAILURE

            wait_until(ended, NOTICED_S, f"the end of a run whose worker was killed; log: {log.read_text()[-3000:]}")
            print(f"noticed after {time.monotonic() - begun:.1f} s")
            wait_until(lambda: [text for text in Signal.told if run_id in text], 600, "a post to the webhook")
            (text, *_) = [text for text in Signal.told if run_id in text]
            assert text.startswith(f"intraday_pipeline of {today} failed: ") and f"pid {pid}" in text
    finally:
        Signal.over.set()
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def started(instance: dg.DagsterInstance, pid: int, status: dg.DagsterRunStatus) -> dg.DagsterRun:
    """A run whose worker said that it has this process id."""

    @dg.job
    def sleeping() -> None: ...

    run = instance.create_run_for_job(sleeping, status=dg.DagsterRunStatus.STARTING)
    from dagster._core.events import EngineEventData

    instance.report_engine_event(f"Started process for run (pid: {pid}).", run, EngineEventData.in_process(pid))
    if status == dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceling(run)
    found = instance.get_run_by_id(run.run_id)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("status", "ends"),
    [
        (dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.FAILURE),
        (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED),
    ],
)
def test_only_runs_of_dead_workers_are_ended(
    tmp_path: Path, status: dg.DagsterRunStatus, ends: dg.DagsterRunStatus
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    now = datetime.now(UTC)
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        alive, gone = started(instance, os.getpid(), status), started(instance, dead.pid, status)
        assert [each.run.run_id for each in end_dead(instance, now)] == [gone.run_id]
        statuses = {run.run_id: run.status for run in instance.get_runs()}
        assert statuses == {alive.run_id: status, gone.run_id: ends}


def test_a_run_that_no_worker_took_up_is_ended(tmp_path: Path) -> None:
    @dg.job
    def sleeping() -> None: ...

    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        instance.create_run_for_job(sleeping, status=dg.DagsterRunStatus.STARTING)
        assert dead_runs(instance, datetime.now(UTC)) == []
        (found,) = dead_runs(instance, datetime.now(UTC) + 2 * LAUNCH_TIMEOUT)
        assert "code server" in found.reason


def test_a_start_is_waited_for_as_long_as_what_starts_it_lives(tmp_path: Path) -> None:
    @dg.job
    def sleeping() -> None: ...

    with (
        dg.DagsterInstance.local_temp(str(tmp_path)) as instance,
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as starter,
    ):
        run = instance.create_run_for_job(sleeping, status=dg.DagsterRunStatus.STARTING)
        said = EngineEventData({"pid": str(starter.pid)})
        instance.report_engine_event(f"{STARTER} {starter.pid}.", run, said)
        assert dead_runs(instance, datetime.now(UTC) + 2 * LAUNCH_TIMEOUT) == []
        (slow,) = dead_runs(instance, datetime.now(UTC) + 2 * SLOWEST_START)
        assert "too much to do" in slow.reason
        starter.kill()
        starter.wait()
        (gone,) = dead_runs(instance, datetime.now(UTC))
        assert f"what starts it (pid {starter.pid}) is gone" in gone.reason


def test_a_process_that_was_killed_and_not_reaped_does_not_hide_the_code_server() -> None:
    sleep = "import time; time.sleep(60)"
    start = "import subprocess, sys; "
    server = f"{start}subprocess.Popen([sys.executable, '-c', {sleep!r}, 'grpc']); {sleep}"
    servers = f"subprocess.Popen([sys.executable, '-c', {server!r}, 'code-server'])"
    parent = f"{start}gone = subprocess.Popen(['true']); {servers}; {sleep}"
    process = subprocess.Popen([sys.executable, "-c", parent])
    try:

        def is_zombie_there() -> bool:
            children = psutil.Process(process.pid).children()
            return any(child.status() == psutil.STATUS_ZOMBIE for child in children)

        wait_until(is_zombie_there, 120, "a process that nobody waits for")
        assert wait_until(lambda: code_servers(process.pid), 120, "the code server")
    finally:
        for each in [*psutil.Process(process.pid).children(recursive=True), process]:
            each.kill()
        process.wait()


def test_any_launchers_worker_lives_though_the_clock_was_set_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as worker:
        assert not is_alive(worker.pid, time.time() - 3600), "a later process with its number"
        monkeypatch.setattr(run_workers, "_BOOTED", psutil.boot_time() - 3600)
        assert is_alive(worker.pid, time.time() - 3600)
        worker.kill()


def test_a_worker_lives_though_the_clock_was_set_ahead_and_another_process_of_its_number_is_none() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()", WORKER], stdin=subprocess.PIPE) as worker:
        assert is_alive(worker.pid, time.time())
        # for a moment after it was started a process has no command line
        wait_until(lambda: is_alive(worker.pid, time.time() - 3600), 10, "its command to tell")
        assert is_alive(os.getpid(), time.time()) and not is_alive(os.getpid(), 0.0)
        worker.kill()
        wait_until(lambda: not is_alive(worker.pid, time.time()))
