"""A real `curtail ui`, acted on as its pages do: through GraphQL."""

import json
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from micro import start_curtail
from waiting import wait_until

from curtail_pipeline.flower.processes import free_port

REPOSITORY = {"repositoryName": "__repository__", "repositoryLocationName": "curtail_pipeline"}
LAUNCH = """mutation ($params: ExecutionParams!) { launchRun(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } } } }"""
AGAIN = """mutation ($params: ReexecutionParams!) { launchRunReexecution(reexecutionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
TERMINATE = """mutation ($id: String!) { terminateRun(runId: $id) { __typename } }"""
RUN = """query ($id: ID!) { runOrError(runId: $id) { ... on Run { status allPools } } }"""
POOLS = """query { instance { concurrencyLimits { concurrencyKey limit } } }"""
SENSOR = """query ($selector: SensorSelector!) { sensorOrError(sensorSelector: $selector) {
    ... on Sensor { sensorState { status ticks(limit: 1) { status skipReason runIds } } } } }"""
Answer = dict[str, Any]


@dataclass
class WebUi:
    home: Path
    port: int
    log: Path
    process: "subprocess.Popen[bytes]"

    def ask(self, query: str, **variables: object) -> Answer | None:
        """The data of an answer; None while nobody listens."""
        assert self.process.poll() is None, self.log.read_text()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql",
            data=json.dumps({"query": query, "variables": variables}).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                data: Answer = json.loads(answer.read())["data"]
                return data
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None

    def act(self, query: str, field: str, **variables: object) -> Answer:
        data = self.ask(query, **variables)
        assert data is not None
        found: Answer = data[field]
        assert found["__typename"].endswith("Success"), found
        return found

    def materialise(self, key: str, config: Answer | None = None) -> str:
        """The button on a checkpoint's partition; the run's id."""
        asset = {"assetSelection": [{"path": ["aggregated_checkpoint"]}]}
        selector = {**REPOSITORY, "pipelineName": "__ASSET_JOB", **asset}
        ops = {"ops": {"aggregated_checkpoint": {"config": config}}} if config else {}
        tags = {"tags": [{"key": "dagster/partition", "value": key}]}
        params = {"selector": selector, "mode": "default", "runConfigData": ops, "executionMetadata": tags}
        return str(self.act(LAUNCH, "launchRun", params=params)["run"]["runId"])

    def launch(self, job: str) -> str:
        selector = {**REPOSITORY, "pipelineName": job}
        params = {"selector": selector, "mode": "default", "runConfigData": {}}
        return str(self.act(LAUNCH, "launchRun", params=params)["run"]["runId"])

    def execute_again(self, run_id: str) -> str:
        params = {"parentRunId": run_id, "strategy": "ALL_STEPS"}
        return str(self.act(AGAIN, "launchRunReexecution", params=params)["run"]["runId"])

    def terminate(self, run_id: str) -> None:
        self.act(TERMINATE, "terminateRun", id=run_id)

    def status(self, run_id: str) -> str:
        data = self.ask(RUN, id=run_id)
        return str(data["runOrError"]["status"]) if data else "unknown"

    def pools(self, run_id: str) -> set[str]:
        """What the button *View pools* on a run's page shows."""
        data = self.ask(RUN, id=run_id)
        assert data is not None
        return set(data["runOrError"]["allPools"] or ())

    def pool_limits(self) -> dict[str, int]:
        """As the page Deployment > Concurrency shows them."""
        data = self.ask(POOLS)
        assert data is not None
        return {each["concurrencyKey"]: each["limit"] for each in data["instance"]["concurrencyLimits"]}

    def ended(self, run_id: str, deadline_s: float = 240) -> str:
        """The status with which a run ends."""

        def over() -> str | None:
            status = self.status(run_id)
            return status if status in ("SUCCESS", "FAILURE", "CANCELED") else None

        return str(wait_until(over, deadline_s, f"the end of run {run_id}"))

    def sensor(self) -> Answer:
        """State and newest tick of the membership sensor; empty while the code location loads."""
        data = self.ask(SENSOR, selector={**REPOSITORY, "sensorName": "membership_sensor"})
        found: Answer = (data or {}).get("sensorOrError", {}).get("sensorState", {})
        return found

    def skip_reason(self) -> str:
        ticks = self.sensor().get("ticks") or [{}]
        return ticks[0].get("skipReason") or ""


@contextmanager
def web_ui(home: Path, experiment: Path) -> Iterator[WebUi]:
    """Started on a home, empty or not, and stopped as by `kill`."""
    port, log = free_port(), home / "log"
    process = start_curtail("ui", "--experiment", str(experiment), "--port", str(port), home=home, log=log)
    ui = WebUi(home, port, log, process)
    try:
        yield ui
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
