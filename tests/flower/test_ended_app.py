"""Apps that ended without a word, on Flower's own state; that they are killed for real is in `test_local`."""

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from curtail_pipeline.flower import ended_app
from curtail_pipeline.flower.control_api import quiet

with quiet():
    from flwr.common.constant import Status, SubStatus
    from flwr.server.superlink.linkstate import LinkStateFactory
    from flwr.supercore.constant import TaskType
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.superlink.federation import NoOpFederationManager

RUNNING = [ended_app.SERVER_APP, "--runtime-api-address", "127.0.0.1:9", "--token", "x", "--insecure"]


class Runtime(HTTPServer):
    """Gives every request the same answer."""

    answer = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, bytes]] = []


class Handler(BaseHTTPRequestHandler):
    server: Runtime

    def do_POST(self) -> None:
        self.server.asked.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(self.server.answer)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def speak(runtime: Runtime, code: int) -> None:
    address = f"127.0.0.1:{runtime.server_port}"
    with quiet():
        ended_app.speak([ended_app.CLIENT_APP, "--insecure", "--runtime-api-address", address, "--token", "t"], code)


def test_an_app_that_was_killed_is_said_to_have_failed(runtime: Runtime) -> None:
    speak(runtime, -9)
    ((path, said),) = runtime.asked
    assert path == "/v1/runtime/push-task-output"
    assert b"failed" in said and b"it was ended by signal 9" in said


@pytest.mark.parametrize("answer", [401, 403])
def test_one_that_has_said_so_itself_is_no_fault(
    runtime: Runtime, answer: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Its token is no longer known then; Flower's own client would interrupt the process, or raise."""
    runtime.answer = answer
    speak(runtime, 1)
    assert len(runtime.asked) == 1 and not caplog.records


def test_what_cannot_be_said_is_logged(runtime: Runtime, caplog: pytest.LogCaptureFixture) -> None:
    runtime.answer = 500
    speak(runtime, -9)
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith("flwr-clientapp could not be spoken for: Server error '500") and "\n" not in said


@pytest.mark.parametrize(
    ("argv", "code", "spoken_for"),
    [(RUNNING, -9, True), (RUNNING, 1, True), (RUNNING, 0, False), (["flower-superexec", "--insecure"], -9, False)],
)
def test_who_ended_well_or_is_no_app_is_not_spoken_for(argv: list[str], code: int, spoken_for: bool) -> None:
    assert ended_app.speaks_for(argv, code) is spoken_for


def test_nobody_to_tell_is_no_fault() -> None:
    ended_app.speak(RUNNING, -9)


@pytest.fixture
def state(tmp_path: Path) -> Callable[[], Any]:
    """Opens a SuperLink's, as another process would."""
    database = str(tmp_path / "superlink.db")

    def opened() -> Any:
        store = ObjectStoreFactory(database)
        return LinkStateFactory(database, NoOpFederationManager(), store).state()

    return opened


@pytest.mark.filterwarnings("ignore:No path_separator:DeprecationWarning")
def test_a_superlink_that_starts_again_knows_that_its_apps_have_ended(state: Callable[[], Any], tmp_path: Path) -> None:
    database = tmp_path / "superlink.db"
    ended_app.speak_for_all(database)  # of a folder that is new
    assert not database.exists()
    before, tasks = state(), []
    for _ in range(3):
        run = before.create_run("a/b", "1.0", "0" * 64, {}, "@none/default", None, "owner", TaskType.SERVER_APP)
        tasks += [task.task_id for task in before.get_tasks(run_ids=[run])]
    running, starting, waiting = tasks
    assert before.claim_task(running) and before.activate_task(running) and before.claim_task(starting)
    ended_app.speak_for_all(database)
    found = {task.task_id: task.status for task in state().get_tasks(task_ids=tasks)}
    assert (found[running].status, found[running].sub_status) == (Status.FINISHED, SubStatus.FAILED)
    assert found[starting].status == found[waiting].status == Status.PENDING, "another is started"
