"""Calls to a SuperLink that is away for a while."""

import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from curtail_pipeline.errors import FederationError
from curtail_pipeline.flower.control_api import Control, Refused, RunStatus
from curtail_pipeline.flower.local import Federation
from curtail_pipeline.flower.run_config import FlowerValue, RunConfig
from curtail_pipeline.flower.standing import StandingFederation
from curtail_pipeline.flower.submit import _patiently, _start
from curtail_pipeline.settings.federation_settings import DEFAULT_LIMITS
from curtail_pipeline.storage.folder_store import FolderStore


class SuperLink:
    def __init__(self, away: int) -> None:
        self.away, self.pauses = away, list[float]()

    def call(self) -> str:
        self.away -= 1
        if self.away >= 0:
            raise FederationError("no SuperLink answers at 127.0.0.1:1 (ConnectError)")
        return "answer"


def test_a_call_waits_with_backoff_for_a_superlink_that_starts_again(tmp_path: Path) -> None:
    link, standing = SuperLink(5), StandingFederation(tmp_path, start_timeout_s=60)
    assert _patiently(standing, link.call, link.pauses.append) == "answer"
    assert link.pauses == [0.25, 0.5, 1.0, 2.0, 4.0]  # 8 s and no more than 5 s late


def test_a_call_gives_up_in_time_and_at_once_where_nobody_will_start_one(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="no SuperLink answers"):
        _patiently(StandingFederation(tmp_path, start_timeout_s=0.1), SuperLink(99).call)
    link = SuperLink(99)
    with pytest.raises(FederationError, match="no SuperLink answers"):
        _patiently(Federation(tmp_path), link.call, link.pauses.append)  # no supervisor in this folder
    assert link.pauses == []


def test_a_run_whose_answer_got_lost_is_not_started_twice(tmp_path: Path) -> None:
    started = list[RunStatus]()

    class Deaf(Control):
        def __init__(self) -> None:
            self.address = "127.0.0.1:1"

        def runs(self) -> dict[int, RunStatus]:
            return {run.run_id: run for run in started}

        def start_run(self, config: Mapping[str, FlowerValue]) -> int:
            started.append(RunStatus(len(started) + 1, "running", "", "", dict(config)))
            raise FederationError("no SuperLink answers at 127.0.0.1:1 (ReadTimeout)")

    store, plan = FolderStore(tmp_path), "scratch/ckpt-000001/1/plan.json"
    config = RunConfig(store=store.uri, plan=plan, nodes={}, limits=DEFAULT_LIMITS)
    standing = StandingFederation(tmp_path, start_timeout_s=60)
    assert _patiently(standing, lambda: _start(Deaf(), store, plan, config), lambda _: None) == 1
    assert len(started) == 1


def test_a_superlink_that_is_away_at_an_address_with_404_in_it_still_knows_its_runs() -> None:
    with Control("127.0.0.1:40404") as control, pytest.raises(FederationError, match="no SuperLink answers"):
        control.status(1)


class Answering(BaseHTTPRequestHandler):
    status: ClassVar[int]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("status", "asked_again"), [(403, False), (404, False), (429, True), (503, True)])
def test_a_refusal_is_not_asked_for_again(tmp_path: Path, status: int, asked_again: bool) -> None:
    handler = type("Handler", (Answering,), {"status": status})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        pauses: list[float] = []
        standing = StandingFederation(tmp_path, start_timeout_s=0.4)
        with Control(f"127.0.0.1:{server.server_port}") as control, pytest.raises(FederationError) as caught:
            _patiently(standing, control.runs, pauses.append)
        server.shutdown()
    assert isinstance(caught.value, Refused) != asked_again and bool(pauses) == asked_again
    assert f"refused ListRuns: {status}" in str(caught.value)
