"""With `supernode` what touches Flower's internals: the Control API, the app bundle, names inside its processes.

Flower's command line takes 1 to 2.5 s per call; these calls take milliseconds. None of it is a stable interface, so
the release is pinned and a contract test names everything used here: an upgrade that moves one of them fails there.
"""

import hashlib
import ssl
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curtail_pipeline.errors import FederationError
from curtail_pipeline.flower.run_config import FlowerValue

if TYPE_CHECKING:
    import httpx

PINNED = "1.41"
APP = Path(__file__).parent / "app"
TASK_POLL_S = 0.5
"""How often a SuperExec asks for tasks. Every question costs some 10 ms of CPU on the two sides together, also while a
site trains."""

PULL_BACKOFF = {"initial_backoff": 0.1, "backoff_cap": 1.0}
"""Seconds between two tries to pull a part of a message that its sender has not pushed yet. Flower's 1 s, doubled up to
10 s, is for large tensors on slow lines; these messages are a few hundred bytes."""

START_S, SILENT_S = 45.0, 60.0
"""How long a ServerApp or ClientApp may take from when it is asked for until its first sign of life, and between two.
Flower starts another one then. Its own 30 s to begin with are too few where many share a machine's cores: those that
are late are started beside themselves, again and again, and make each other later still."""

ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": str(TASK_POLL_S),
}
"""For every Flower process: nothing is sent to or fetched from the Internet."""


IDLE_S = 2.0
"""A connection that was idle for longer is not used again."""
PASSING = {408, 425, 429}
"""Answers below 500 that another try may not get: a front that waits, or has too much to do."""


@dataclass(frozen=True)
class RunStatus:
    """`status` is pending, starting, running or finished; `sub_status` of a finished run completed, failed, stopped."""

    run_id: int
    status: str
    sub_status: str
    details: str
    config: dict[str, FlowerValue]

    @property
    def finished(self) -> bool:
        return self.status == "finished"


@dataclass(frozen=True)
class Node:
    node_id: int
    status: str
    name: str
    public_key: bytes = b""
    """PEM."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what Flower's dependencies deprecate among themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@cache
def build_fab() -> tuple[str, bytes]:
    """(sha256, bytes) of the Flower app, built once per process."""
    with quiet():
        from flwr.cli.build import build_fab_from_disk

        content = build_fab_from_disk(APP)
    return hashlib.sha256(content).hexdigest(), content


class Refused(FederationError):
    """A SuperLink that answers, and not with what was asked for; asking again would not help."""


class Control:
    """A SuperLink's Control API at `host:port`.

    Args:
        authority: PEM file of the authority that signed the SuperLink's certificate; None for plain HTTP.

    Raises:
        FederationError: (every method) the SuperLink cannot be reached or refuses the request.
    """

    def __init__(self, address: str, authority: Path | None = None) -> None:
        import httpx

        with quiet():
            from flwr.supercore.control import ControlHttpClient
            from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        self.address = address
        verify = trusting(authority) if authority else False
        self._client = ControlHttpClient(
            f"{'https' if authority else 'http'}://{address}",
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-cli")],
            verify=False,
        )
        self._client._client.close()
        # a proxy from the environment must not see loopback requests; the server closes what was idle for 5 s, just
        # when httpx by itself would still use it
        limits = httpx.Limits(keepalive_expiry=IDLE_S)
        self._client._client = httpx.Client(trust_env=False, verify=verify, timeout=30.0, limits=limits)

    def close(self) -> None:
        self._client._client.close()

    def __enter__(self) -> "Control":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start_run(self, config: Mapping[str, FlowerValue]) -> int:
        """Start a run of the app with these run-config values; its id."""
        from flwr.common.serde import fab_to_proto, user_config_to_proto
        from flwr.proto.control_pb2 import StartRunRequest
        from flwr.supercore.fab import Fab

        digest, content = build_fab()
        request = StartRunRequest(
            fab=fab_to_proto(Fab(digest, content, {})), override_config=user_config_to_proto(dict(config))
        )
        return int(self._call("StartRun", request).run_id)

    def runs(self) -> dict[int, RunStatus]:
        from flwr.proto.control_pb2 import ListRunsRequest

        answer = self._call("ListRuns", ListRunsRequest())
        return {int(run_id): _status(run) for run_id, run in answer.run_dict.items()}

    def status(self, run_id: int) -> RunStatus | None:
        """None when the SuperLink does not know the run."""
        from flwr.proto.control_pb2 import ListRunsRequest

        try:
            answer = self._call("ListRuns", ListRunsRequest(run_id=run_id))
        except FederationError as error:
            if _is_unknown(error):
                return None
            raise
        return _status(answer.run_dict[run_id]) if run_id in answer.run_dict else None

    def nodes(self) -> list[Node]:
        from flwr.proto.control_pb2 import ListNodesRequest

        answer = self._call("ListNodes", ListNodesRequest())
        return [Node(int(node.node_id), node.status, node.name, node.public_key) for node in answer.nodes_info]

    def register(self, name: str, public_key: bytes) -> int:
        """Let the holder of a key join under that name; its node id, which stays the same for this key.

        Raises:
            FederationError: another key is registered under that name.
        """
        from flwr.proto.control_pb2 import RegisterNodeRequest

        if self._registered(name):
            raise FederationError(
                f"site {name!r} is registered at {self.address} already; `curtail site revoke {name}` ends that"
            )
        request = RegisterNodeRequest(public_key=public_key, name=name)
        return int(self._call("RegisterNode", request).node_id)

    def admit(self, name: str, public_key: bytes) -> str:
        """As `register`, for whoever asks again after every start; what became of it.

        Raises:
            FederationError: another key is registered under that name.
        """
        mine = [node for node in self.nodes() if node.public_key.strip() == public_key.strip()]
        if any(not _is_registered(node) for node in mine):
            return "was put out, and stays so"
        if any(node.name == name for node in mine):
            return "is admitted"
        return f"may join as node {self.register(name, public_key)}"

    def revoke(self, name: str) -> None:
        """Let nobody join under that name any more.

        Raises:
            FederationError: no such name is registered.
        """
        from flwr.proto.control_pb2 import UnregisterNodeRequest

        registered = self._registered(name)
        if not registered:
            known = ", ".join(sorted({node.name for node in self.nodes() if _is_registered(node)})) or "none"
            raise FederationError(f"no site {name!r} is registered at {self.address}; it has {known}")
        for node in registered:
            self._call("UnregisterNode", UnregisterNodeRequest(node_id=node.node_id))

    def _registered(self, name: str) -> list[Node]:
        return [node for node in self.nodes() if node.name == name and _is_registered(node)]

    def stop_run(self, run_id: int) -> None:
        """Stop a run. The order that a site is working on is not interrupted: ask its trainer to stop."""
        from flwr.proto.control_pb2 import StopRunRequest

        self._call("StopRun", StopRunRequest(run_id=run_id))

    def logs(self, run_id: int) -> str:
        """What the ServerApp of a finished run printed. (For a run that goes on, this waits for its end.)"""
        from flwr.proto.control_pb2 import StreamLogsRequest

        request = StreamLogsRequest(run_id=run_id, after_timestamp=0.0)
        with self._said_plainly("StreamLogs"):  # the answer comes in parts, and may break off
            return "".join(part.log_output for part in self._client.StreamLogs(request))

    def _call(self, method: str, request: Any) -> Any:
        with self._said_plainly(method):
            return getattr(self._client, method)(request)

    @contextmanager
    def _said_plainly(self, method: str) -> Iterator[None]:
        """Errors of a request as one of ours."""
        import httpx

        try:
            yield
        except httpx.HTTPStatusError as error:
            status, text = error.response.status_code, _text(error.response)
            kind = Refused if 400 <= status < 500 and status not in PASSING else FederationError
            raise kind(f"the SuperLink at {self.address} refused {method}: {status} {text}") from error
        except httpx.HTTPError as error:
            raise FederationError(
                f"no SuperLink answers at {self.address} ({type(error).__name__}: {error}); run "
                "`curtail federation up`, or `curtail superlink` where CURTAIL_SUPERLINK names it"
            ) from error


def _text(response: "httpx.Response") -> str:
    """What an error's answer says; nothing of one that came in parts and was not read."""
    import httpx

    try:
        return response.text[:300]
    except httpx.ResponseNotRead:
        return ""


def _is_unknown(error: FederationError) -> bool:
    """Whether a SuperLink answered that it has no such thing; an address can have any digits."""
    import httpx

    cause = error.__cause__
    return isinstance(cause, httpx.HTTPStatusError) and cause.response.status_code == httpx.codes.NOT_FOUND


def _is_registered(node: Node) -> bool:
    return bool(node.name) and node.status != "unregistered"


def trusting(authority: Path) -> ssl.SSLContext:
    """For TLS with what this authority signed.

    Raises:
        FederationError: the file is no certificate.
    """
    try:
        return ssl.create_default_context(cafile=str(authority))
    except (OSError, ssl.SSLError) as error:
        raise FederationError(f"{authority} is no certificate of an authority ({error}); see CURTAIL_CA") from None


def _status(run: Any) -> RunStatus:
    from flwr.common.serde import user_config_from_proto

    status = run.status
    config = dict(user_config_from_proto(run.override_config))
    return RunStatus(int(run.run_id), status.status, status.sub_status, status.details, config)


def entry_point(name: str) -> Callable[[], object]:
    """The function behind one of Flower's commands."""
    import flwr.supercore.cli
    import flwr.superlink.cli
    import flwr.supernode.cli
    from flwr.supercore.corestate import in_memory_corestate, sql_corestate
    from flwr.supercore.inflatable import inflatable_utils

    for pull in (inflatable_utils.pull_objects, inflatable_utils.pull_and_inflate_object_from_tree):
        pull.__kwdefaults__.update(PULL_BACKOFF)  # type: ignore[union-attr]
    for tasks in (in_memory_corestate, sql_corestate):
        tasks.HEARTBEAT_DEFAULT_INTERVAL, tasks.HEARTBEAT_PATIENCE = START_S, SILENT_S / START_S  # type: ignore[attr-defined]
    return {
        "flower-superlink": flwr.superlink.cli.flower_superlink,
        "flower-supernode": flwr.supernode.cli.flower_supernode,
        "flower-superexec": flwr.supercore.cli.flower_superexec,
        "flwr-serverapp": flwr.superlink.cli.flwr_serverapp,
        "flwr-clientapp": flwr.supernode.cli.flwr_clientapp,
    }[name]


SPAWNED = ("flower-superexec", "flwr-serverapp", "flwr-clientapp")
"""Commands that Flower's own processes start by name, through PATH."""


def preload() -> None:
    """Import all that Flower's processes import, so that forked ones have it already. Starts no thread."""

    import curtail_pipeline.federation.merge
    import curtail_pipeline.flower.client
    import curtail_pipeline.flower.server  # noqa: F401

    for name in ("flower-superlink", "flower-superexec"):
        entry_point(name)
