"""What is told of a worker that makes and evaluates models elsewhere: every failure is one line with the fix."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from micro import write_experiment

from curtail_pipeline.errors import TrainingError
from curtail_pipeline.stages import model_worker
from curtail_pipeline.stages.evaluate import evaluate_checkpoint
from curtail_pipeline.stages.initialise import ensure_initialised
from curtail_pipeline.stages.model_server import Worker
from curtail_pipeline.stages.model_worker import WORKER_ENV, Made, ModelWorker, Wanted
from curtail_pipeline.stages.project import Project


@contextmanager
def served(worker: Worker) -> Iterator[str]:
    """The worker on a free port of loopback."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        server = uvicorn.Server(uvicorn.Config(worker.app(), log_level="error", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setenv("CURTAIL_HOME", str(tmp_path / "homes"))
    return Project.open(write_experiment(tmp_path / "input"))


def test_what_a_worker_cannot_do_is_one_line(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(Worker(lambda: project)) as url:
        monkeypatch.setenv(WORKER_ENV, f"{url}/")
        with pytest.raises(TrainingError, match=rf"the worker at {url} cannot initialise: .*tokenizer") as told:
            ensure_initialised(project)
        assert "\n" not in str(told.value)
        with pytest.raises(TrainingError, match="cannot evaluate: /elsewhere is not in this worker's store"):
            ModelWorker(url).evaluate(Wanted(store="/elsewhere", key="ckpt-000000"))
        with pytest.raises(TrainingError, match="answered 404 to evaluate; see its log"):
            ModelWorker(f"{url}/other").evaluate(Wanted(store="/elsewhere", key="ckpt-000000"))


def test_a_worker_that_is_away_is_waited_for_and_then_named(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_worker, "AWAY_S", 0.2)
    monkeypatch.setattr(model_worker, "PAUSE_S", 0.05)
    with socket.socket() as silent:  # bound and not listening: nobody answers
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv(WORKER_ENV, url)
        with pytest.raises(TrainingError, match=rf"no worker answers at {url} .* start it with `curtail worker`"):
            ensure_initialised(project)


def test_a_worker_is_asked_and_its_answer_kept(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluation that it gives is stored by who asked; without a worker this process needs torch."""
    asked = []

    class Told(Worker):
        def evaluate(self, body: bytes):  # type: ignore[no-untyped-def]
            asked.append(Wanted.read(body, "it"))
            return model_worker.Evaluation(loss=2.0, perplexity=7.4, bits_per_byte=0.7, tokens=9)

    monkeypatch.setattr(project.checkpoints, "check", lambda key: None)
    with served(Told(lambda: project)) as url:
        monkeypatch.setenv(WORKER_ENV, url)
        assert evaluate_checkpoint(project, "ckpt-000000").loss == 2.0
    assert asked == [Wanted(store=project.store.uri, key="ckpt-000000")]
    assert project.store.exists("evaluations/ckpt-000000.json")


def test_a_worker_whose_machine_is_gone_is_not_waited_for_for_ever() -> None:
    """The kernel asks after a connection that says nothing: /proc/net/tcp has the timer of keep-alive, 02."""
    timers: list[str] = []

    def answer(listening: socket.socket) -> None:
        line, (_, port) = listening.accept()
        with line:
            line.recv(1 << 16)
            rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
            timers.extend(row[5][:2] for row in rows if row[1] == f"0100007F:{port:04X}")
            body = Made(key="ckpt-000000").model_dump_json()
            line.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=answer, args=(listening,), daemon=True).start()
        assert ModelWorker(f"http://127.0.0.1:{listening.getsockname()[1]}").initialise().key == "ckpt-000000"
    assert timers == ["02"]
