"""A real `dagster dev` on a replayed trace: its daemon alone trains locally, then federated, and leaves nothing."""

import json
import signal
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from micro import EXPERIMENT, start_curtail, write_experiment
from test_end_to_end import manifests, processes_of, wait_for

from curtail_pipeline.flower.processes import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SPEED = 40.0
QUERY = """
{ sensorsOrError(repositorySelector: {repositoryName: "__repository__", repositoryLocationName: "curtail_pipeline"}) {
    ... on Sensors { results { name sensorState { status } } } } }
"""


def ask(port: int, query: str) -> dict | None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql",
        data=json.dumps({"query": query}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())["data"]
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None


def test_the_daemon_by_itself_starts_a_local_and_a_federated_segment(tmp_path: Path) -> None:
    rounds = {"round_s": 240, "max_rounds": 2}
    sites = [{**site, "steps_per_s": 0.02} for site in EXPERIMENT["sites"]]
    job = {"steps": 10**6}
    experiment = write_experiment(tmp_path / "input", replay={"speed": SPEED}, rounds=rounds, sites=sites, job=job)
    port = free_port()
    log = tmp_path / "log"
    process = start_curtail("ui", "--experiment", str(experiment), "--port", str(port), home=tmp_path, log=log)
    try:
        running: list[str] = []

        def sensor_runs() -> bool:
            assert process.poll() is None, log.read_text()
            data = ask(port, QUERY)
            results = (data or {}).get("sensorsOrError", {}).get("results", [])
            running[:] = [found["name"] for found in results if found["sensorState"]["status"] == "RUNNING"]
            return bool(running)

        wait_for(sensor_runs, 240, "a running membership sensor in the UI")
        assert running == ["membership_sensor"]

        def both_modes() -> bool:
            assert process.poll() is None, log.read_text()
            return {"local", "federated"} <= {found.mode for found in manifests(tmp_path).values()}

        wait_for(both_modes, 300, f"a local and a federated checkpoint; the log says {log}")
        committed = [found for found in manifests(tmp_path).values() if found.mode != "init"]
        assert all(found.tokens.segment > 0 for found in committed)
        assert all(found.intervals for found in committed)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(90)
    wait_for(lambda: not processes_of(tmp_path), 30, "the end of every process of the UI and the federation")
