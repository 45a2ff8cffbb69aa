"""The contract with Flower's internals, the app bundle, and the two ends of a message without a network."""

import inspect
import io
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from flower_orders import context, order_for, result_of

from curtail_pipeline.errors import FederationError, SitesDown
from curtail_pipeline.federation.orders import (
    Order,
    OuterSettings,
    ParentCheckpoint,
    Plan,
)
from curtail_pipeline.federation.server_life import ServerFailure, ServerLife, failure_key, life_key
from curtail_pipeline.federation.trainer_api import Answer
from curtail_pipeline.federation.transport import Failure, Malformed
from curtail_pipeline.flower import control_api as control
from curtail_pipeline.flower import standing, submit
from curtail_pipeline.flower.local import Federation
from curtail_pipeline.flower.processes import SUPERVISOR_VARIABLE
from curtail_pipeline.flower.run_config import RunConfig
from curtail_pipeline.flower.spawn_shims import write_shims
from curtail_pipeline.settings.federation_settings import DEFAULT_LIMITS
from curtail_pipeline.storage.folder_store import FolderStore

with control.quiet():
    import flwr.app
    import flwr.supernode.start_client_internal
    from flwr.app import ConfigRecord, Context, Error, Message, MessageType, RecordDict
    from flwr.proto import control_pb2, node_pb2, run_pb2
    from flwr.serverapp import Grid
    from flwr.supercore import constant
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.corestate import in_memory_corestate, sql_corestate
    from flwr.supercore.inflatable import inflatable_utils
    from flwr.supercore.superexec import run_superexec
    from flwr.supercore.task_identity import TaskIdentity

    from curtail_pipeline.flower import server
    from curtail_pipeline.flower.client import answer
    from curtail_pipeline.flower.server import FlowerTransport, resolve_nodes, serve


def test_the_pinned_release_still_has_what_is_used() -> None:
    """When an upgrade fails here, `flower/control_api.py` has to follow it."""
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
    from flwr.supercore.version import package_version

    assert package_version.startswith(control.PINNED + ".")
    assert (TIMESTAMP_TOLERANCE, SYSTEM_TIME_TOLERANCE) == (standing.BEHIND_S, standing.AHEAD_S)
    for method in ("StartRun", "StopRun", "ListRuns", "ListNodes", "StreamLogs", "RegisterNode", "UnregisterNode"):
        assert list(inspect.signature(getattr(ControlHttpClient, method)).parameters) == ["self", "request"]
    assert {"base_url", "interceptors", "verify"} <= inspect.signature(ControlHttpClient.__init__).parameters.keys()
    fields = {
        control_pb2.StartRunRequest: {"fab", "override_config"},
        control_pb2.ListRunsResponse: {"run_dict"},
        control_pb2.ListNodesResponse: {"nodes_info"},
        control_pb2.StreamLogsRequest: {"run_id", "after_timestamp"},
        control_pb2.RegisterNodeRequest: {"public_key", "name"},
        control_pb2.RegisterNodeResponse: {"node_id"},
        control_pb2.UnregisterNodeRequest: {"node_id"},
        run_pb2.Run: {"run_id", "status", "override_config"},
        run_pb2.RunStatus: {"status", "sub_status", "details"},
        node_pb2.NodeInfo: {"node_id", "name", "status"},
    }
    for message, names in fields.items():
        assert names <= set(message.DESCRIPTOR.fields_by_name), message
    for name in ("flower-superlink", "flower-supernode", "flower-superexec", "flwr-serverapp", "flwr-clientapp"):
        assert callable(control.entry_point(name))
    assert set(control.SPAWNED) - {"flower-superexec"} == {
        constant.TASK_TYPE_TO_COMMAND[kind] for kind in (constant.TaskType.SERVER_APP, constant.TaskType.CLIENT_APP)
    }
    for started in (flwr.supernode.start_client_internal, sys.modules["flwr.superlink.cli.flower_superlink"]):
        assert '"flower-superexec"' in inspect.getsource(started)
    assert run_superexec._TASK_POLL_INTERVAL_ENV in control.ENVIRONMENT
    for pull in (inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree):
        assert {name: inspect.signature(pull).parameters[name].default for name in control.PULL_BACKOFF} == (
            control.PULL_BACKOFF
        )
    for tasks in (
        in_memory_corestate,
        sql_corestate,
    ):  # how long a process may take to begin, and between signs of life
        source = inspect.getsource(tasks)
        assert "active_until = claimed_at + timedelta(seconds=HEARTBEAT_DEFAULT_INTERVAL)" in source.replace(
            "=cl", " = cl"
        )
        assert source.count("HEARTBEAT_PATIENCE * HEARTBEAT_DEFAULT_INTERVAL") == 2
        assert tasks.HEARTBEAT_DEFAULT_INTERVAL == control.START_S
        assert tasks.HEARTBEAT_PATIENCE * tasks.HEARTBEAT_DEFAULT_INTERVAL == control.SILENT_S
    # the SuperNode's pause between two questions, which `_poll_faster` shortens, and the line the supervisor reads
    source = inspect.getsource(flwr.supernode.start_client_internal)
    assert "time.sleep(3)" in source and "time.sleep(0.5)" in source and '"SuperNode ID: %s"' in source


def test_the_bundle_is_thin() -> None:
    digest, content = control.build_fab()
    assert control.build_fab() is control.build_fab() and len(digest) == 64
    with zipfile.ZipFile(io.BytesIO(content)) as bundle:
        names = {name for name in bundle.namelist() if not name.startswith(".info")}
    package = "curtail_flower"
    assert names == {"pyproject.toml", *(f"{package}/{n}.py" for n in ("__init__", "client_app", "server_app"))}


def test_a_message_imports_no_torch() -> None:
    code = (
        "import sys; from curtail_pipeline.flower import control_api; control_api.preload();"
        "print([m for m in ('torch', 'transformers', 'dagster') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


class FakeGrid(Grid):
    """Nodes that answer at once. `replies` maps a node to what makes its reply."""

    def __init__(self, names: dict[int, str], replies: Any = None) -> None:
        self.names, self.replies = names, replies or {}
        self.pushed: list[Message] = []
        self.taken: set[int] = set()

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> Any:
        return None

    def create_message(self, *args: Any, **options: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.names)

    def get_nodes(self) -> Iterable[Any]:
        return [node_pb2.NodeInfo(node_id=i, name=name) for i, name in self.names.items()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        first = len(self.pushed)
        self.pushed.extend(messages)
        return [str(i) for i in range(first, len(self.pushed))]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        out = []
        for i in message_ids:
            message = self.pushed[int(i)]
            make = self.replies.get(message.metadata.dst_node_id)
            if make is not None:
                message.metadata.__dict__["_message_id"] = i
                reply = make(message)
                reply.metadata.__dict__["_src_node_id"] = message.metadata.dst_node_id
                out.append(reply)
        return out

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def says(name: str) -> Any:
    return lambda message: answer(message, context(name))


def test_nodes_by_registered_name_by_hint_and_by_asking() -> None:
    grid = FakeGrid({10: "CA", 11: "", 12: "", 13: ""}, {12: says("SA"), 13: says("ELSE")})
    assert resolve_nodes(grid, ["CA"], {}) == {"CA": 10} and not grid.pushed
    assert resolve_nodes(grid, ["CA", "TX"], {"TX": 11, "CA": 99}) == {"CA": 10, "TX": 11} and not grid.pushed
    found = resolve_nodes(grid, ["TX", "CA", "SA"], {"TX": 11, "SA": 98})
    assert found == {"TX": 11, "CA": 10, "SA": 12} and list(found) == ["TX", "CA", "SA"]
    assert {m.metadata.dst_node_id for m in grid.pushed} == {12, 13}
    assert all(m.metadata.message_type == MessageType.QUERY for m in grid.pushed)
    now = iter(range(0, 10**6, 7))
    waiting = {"clock": lambda: next(now), "wait": lambda _: None}
    assert resolve_nodes(grid, ["CA", "TX", "NOWHERE"], {}, **waiting) == {"CA": 10}  # the others go on
    with pytest.raises(FederationError, match=r"no SuperNode of TX, NOWHERE is online \(4 nodes are\)"):
        resolve_nodes(grid, ["TX", "NOWHERE"], {}, **waiting)


def test_a_node_that_was_cut_off_is_not_waited_for_long() -> None:
    """Flower may say that it is online for as long as its clock was set back."""
    now = [100.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    grid = FakeGrid({11: "", 12: ""}, {11: says("CA")})
    assert resolve_nodes(grid, ["CA", "TX"], {}, clock=lambda: now[0], wait=wait) == {"CA": 11}
    assert 100 + server.QUERY_TIMEOUT_S <= now[0] <= 100 + server.QUERY_TIMEOUT_S + 1
    assert max(message.metadata.ttl for message in grid.pushed) <= server.QUERY_TIMEOUT_S


def test_nodes_that_come_and_go_are_not_waited_for_again_and_again() -> None:
    """A SuperNode that crashes as it starts comes back as another node each time."""
    now = [100.0]
    grid = FakeGrid({11: ""}, {11: says("CA")})

    def wait(seconds: float) -> None:
        now[0] += seconds
        grid.names = {11: "", 100 + int(now[0] / 5): ""}
        assert now[0] < 1000, "it waits for as long as they come"

    assert resolve_nodes(grid, ["CA", "TX"], {}, clock=lambda: now[0], wait=wait) == {"CA": 11}
    assert now[0] <= 100 + server.NODES_S + server.QUERY_TIMEOUT_S + 1


def test_members_of_whom_no_node_is_there_are_named_to_whoever_follows_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "NODES_S", 0.0)
    monkeypatch.delenv(SUPERVISOR_VARIABLE, raising=False)
    store, folder = FolderStore(tmp_path), "scratch/ckpt-000001/1"
    plan = Plan(
        key="ckpt-000001", parent=ParentCheckpoint(key="ckpt-000000", weights="w", sha256="0" * 64, config="c"),
        members=("CA", "TX"), mode="federated", first_step=0, total_steps=1, rounds=(),
        outer=OuterSettings(lr=1.0, momentum=0.0), norm_bound=5.0,
    )  # fmt: skip
    store.write_record(f"{folder}/plan.json", plan)
    config = RunConfig(store=str(tmp_path), plan=f"{folder}/plan.json", nodes={}, limits=DEFAULT_LIMITS)
    down = {"CA": "its SuperNode is not online", "TX": "its SuperNode is not online"}
    with pytest.raises(SitesDown, match=r"no SuperNode of CA, TX is online \(1 nodes are\)"):
        serve(FakeGrid({10: "SA"}), Context(1, 1, {}, RecordDict(), config.to_flower(), 1))
    assert store.read_record(failure_key(folder), ServerFailure).sites == down
    assert store.read_record(life_key(folder), ServerLife).doing == "collecting", "it showed no life while it looked"
    with control.Control("127.0.0.1:9") as nowhere:
        following = submit._Follower(
            Federation(tmp_path), nowhere, store, folder, 7, plan, lambda event: None, lambda: False
        )
        with pytest.raises(SitesDown, match="Flower run 7 failed: crashed") as told:
            following.check(control.RunStatus(7, "finished", "failed", "crashed", {}))
    assert told.value.sites == down


def test_a_site_without_a_node_is_lost_at_once() -> None:
    transport = FlowerTransport(FakeGrid({10: "CA"}), {"CA": 10})
    transport.send("TX", order_for("TX"))
    assert transport.poll() == [("TX", Failure("its SuperNode is not online"))] and transport.poll() == []


def test_a_registered_node_is_no_other_site() -> None:
    now = iter(range(0, 10**6, 7))
    grid = FakeGrid({10: "CA", 11: "TX"}, {11: says("SA")})
    found = resolve_nodes(grid, ["CA", "SA"], {}, clock=lambda: next(now), wait=lambda _: None)
    assert found == {"CA": 10} and not grid.pushed


def test_an_order_that_the_superlink_does_not_take_is_a_failure_of_that_site() -> None:
    class Refusing(FakeGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            return [""] * len(list(messages))

    transport = FlowerTransport(Refusing({10: "CA"}, {}), {"CA": 10})
    transport.send("CA", order_for("CA"))
    assert transport.poll() == [("CA", Failure("the SuperLink takes no order for CA; was it revoked?"))]
    assert transport.poll() == []


def replies(message: Message, content: str) -> Message:
    return Message(RecordDict({"answer": ConfigRecord({"answer": content})}), reply_to=message)


@pytest.mark.parametrize("text", ["[]", "17", "no JSON", '{"schema": 1}', None])
def test_an_answer_that_is_no_mapping_is_refused_and_not_waited_for(text: str | None) -> None:
    def reply(message: Message) -> Message:
        content = {} if text is None else {"answer": ConfigRecord({"answer": text})}
        return Message(RecordDict(content), reply_to=message)

    transport = FlowerTransport(FakeGrid({10: "CA"}, {10: reply}), {"CA": 10})
    transport.send("CA", order_for("CA"))
    ((site, answered),) = transport.poll()
    assert site == "CA" and isinstance(answered, Malformed)
    # nor does it keep the others from being found
    assert resolve_nodes(FakeGrid({10: "", 11: ""}, {10: reply, 11: says("CA")}), ["CA"], {}) == {"CA": 11}


def test_orders_and_results_over_a_grid() -> None:
    def fails(message: Message) -> Message:
        return Message(Error(8, "ClientApp stopped responding."), reply_to=message)

    def result(message: Message) -> Message:
        order = Order.read(message.content.config_records["order"]["order"], "the order")
        return replies(message, Answer(name="CA", result=result_of(order)).model_dump_json())

    def other_version(message: Message) -> Message:
        return replies(message, '{"schema": 2, "name": "OR"}')

    grid = FakeGrid({10: "", 11: "", 12: "", 13: ""}, {10: result, 11: fails, 12: says("SA"), 13: other_version})
    transport = FlowerTransport(grid, {"CA": 10, "TX": 11, "SA": 12, "OR": 13})
    assert transport.poll() == []
    for site in ("CA", "TX", "SA", "OR"):
        transport.send(site, order_for("ELSEWHERE" if site == "SA" else site))
    answers = dict(transport.poll())
    assert answers["CA"] == result_of(order_for("CA"))
    assert answers["TX"] == Failure("Flower error 8: ClientApp stopped responding.", round=4)
    assert "an order for 'ELSEWHERE' reached 'SA'" in answers["SA"].reason
    assert isinstance(answers["OR"], Malformed) and "has schema 2" in answers["OR"].reason
    assert transport.poll() == []
    assert grid.pushed[0].metadata.ttl == 7 * 24 * 3600 and grid.pushed[0].metadata.group_id == "ckpt-000001/4"


def test_without_the_supervisor_a_command_starts_the_usual_way(tmp_path: Path) -> None:
    write_shims(tmp_path / "bin", "spawn.sock")
    run = subprocess.run([tmp_path / "bin" / "flwr-clientapp", "--help"], capture_output=True, text=True, check=True)
    assert "usage: flwr-clientapp" in run.stdout
    assert "spawning flwr-clientapp without the supervisor" in run.stderr


def test_no_superlink() -> None:
    with control.Control("127.0.0.1:9") as nowhere, pytest.raises(FederationError, match="curtail federation up"):
        nowhere.nodes()


def test_an_idle_connection_is_left_before_the_superlink_closes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert uvicorn.Config("any").timeout_keep_alive > control.IDLE_S
    opened: list[int] = []

    class Link(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            opened.append(1)
            super().setup()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    monkeypatch.setattr(control, "IDLE_S", 0.2)
    with ThreadingHTTPServer(("127.0.0.1", 0), Link) as link:
        link.daemon_threads = True
        threading.Thread(target=link.serve_forever).start()
        try:
            with control.Control(f"127.0.0.1:{link.server_port}") as found:
                assert found.runs() == found.runs() == {} and len(opened) == 1
                time.sleep(0.3)  # idle for longer
                assert found.runs() == {} and len(opened) == 2
        finally:
            link.shutdown()
