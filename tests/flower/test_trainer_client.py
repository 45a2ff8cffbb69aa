"""The way of an order from a Flower message to a site's trainer, and its answer back."""

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from flower_orders import context, order_for, result_of

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation.orders import Order
from curtail_pipeline.federation.trainer_api import Answer, Endpoint, Refusal, Stopped, TrainerStatus, Waiting
from curtail_pipeline.flower import control_api as control
from curtail_pipeline.flower import trainer_client
from curtail_pipeline.flower.trainer_client import Trainer

with control.quiet():
    from flwr.app import ConfigRecord, Message, MessageType, RecordDict
    from flwr.supercore.task_identity import TaskIdentity

    from curtail_pipeline.flower.client import answer


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


Scripted = tuple[Path, list[Any], list[str]]


def doing(order: Order | None) -> TrainerStatus:
    """The status of a trainer that works on this order."""
    which = ("key", "attempt", "replay", "round")
    name = order.model_dump(include={*which}) if order else dict.fromkeys(which)
    still = dict.fromkeys(("step", "steps", "loss", "tokens_per_s"))
    return TrainerStatus.model_validate({"site": "CA", "pid": 1, "busy": order is not None, **name, **still})


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Scripted]:
    """A trainer whose answers are scripted: each is (status, body) or None for a broken connection. Idle when it
    has nothing more to say."""
    script: list[Any] = []
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            waiting = bool(script) and isinstance(script[0], tuple) and isinstance(script[0][1], TrainerStatus)
            self.reply(script.pop(0) if waiting else (200, doing(None)))

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            seen.append(self.path)
            self.reply(script.pop(0))

        def reply(self, step: Any) -> None:
            if self.headers["Authorization"] != "Bearer secret":
                step = (401, Refusal(error="token"))
            if step is not None:
                data = step[1].model_dump_json().encode()
                self.send_response(step[0])
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    endpoint = tmp_path / "endpoint.json"
    endpoint.write_text(Endpoint(port=server.server_port, pid=1, token="secret").model_dump_json())
    yield endpoint, script, seen
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_order_reaches_the_trainer(trainer: Scripted) -> None:
    endpoint, script, seen = trainer
    asked, earlier = order_for("CA", "ckpt-000002", 1), order_for("CA", "ckpt-000001", 1)
    order = Message(RecordDict({"order": ConfigRecord({"order": asked.model_dump_json()})}), 7, MessageType.TRAIN)
    done, idle = (200, result_of(asked)), (200, doing(None))

    def reply() -> Answer:
        text = answer(order, context("CA", endpoint)).content.config_records["answer"]["answer"]
        return Answer.read(text, "the answer")

    script.append(done)
    assert reply() == Answer(name="CA", result=result_of(asked))
    script.append((409, Refusal(error="busy with another order")))
    assert reply() == Answer(name="CA", error="the trainer answered 409: busy with another order")
    # a round of a segment that was given up ends first; this very order, sent again, does not
    busy = (200, doing(earlier))
    script += [busy, (200, Stopped(stopped=True)), busy, idle, done]
    seen.clear()
    assert reply().result is not None and seen == ["/stop", "/train"] and not script
    script += [(200, doing(asked)), done]
    seen.clear()
    assert reply().result is not None and seen == ["/train"]
    again = asked.model_copy(update={"replay": "r"})
    order = Message(RecordDict({"order": ConfigRecord({"order": again.model_dump_json()})}), 7, MessageType.TRAIN)
    seen.clear()
    script += [(202, Waiting(running=False)), (200, result_of(again))]
    assert reply() == Answer(name="CA", waiting=True), "a replay that waits keeps the node from nothing"
    assert reply() == Answer(name="CA", result=result_of(again)) and seen == ["/train", "/train"]
    order = Message(RecordDict({"order": ConfigRecord({"order": asked.model_dump_json()})}), 7, MessageType.TRAIN)
    script.append(None)
    assert "did not answer /train: RemoteProtocolError" in (reply().error or "")
    endpoint.write_text(endpoint.read_text().replace("secret", "guess"))
    assert reply().error == "the trainer answered 401: token"
    endpoint.unlink()
    assert "no trainer at" in (reply().error or "")


def test_an_order_is_given_up_when_the_trainer_is_mute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_client, "_PULSE_S", 0.05)
    with socket.socket() as mute:  # accepts, never answers
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        endpoint = tmp_path / "endpoint.json"
        endpoint.write_text(Endpoint(port=mute.getsockname()[1], pid=1, token="t").model_dump_json())
        monkeypatch.setattr(Trainer, "_make_room", lambda self, order: None)
        with pytest.raises(FederationError, match=r"the order was given up: .*ReadTimeout"):
            Trainer(endpoint).train(order_for("CA"), patience=2)
