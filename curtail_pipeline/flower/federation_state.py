"""What the supervisor of a local federation makes known (`federation.json`)."""

from typing import Literal

from pydantic import Field

from curtail_pipeline.storage.records import Message, Record

STATE_FILE = "federation.json"

FederationPhase = Literal["down", "starting", "ready", "stopping", "failed"]


class ProcessState(Record):
    pid: int | None = None
    ready: bool = False


class SuperLinkState(ProcessState):
    address: str = ""


class TrainerProcess(ProcessState):
    endpoint: str
    """File with port and token."""


class SuperNodeState(ProcessState):
    node_id: int | None = None


class SiteProcesses(Record):
    trainer: TrainerProcess
    supernode: SuperNodeState


class SpawnedProcess(Record):
    """A process that one of Flower's own asked for."""

    pid: int
    command: str
    """`flower-superexec`, `flwr-serverapp` or `flwr-clientapp`."""
    owner: int | None
    """With which it ends: the SuperLink or SuperNode of a SuperExec."""


class FederationState(Message):
    """Of a federation that is `down` nothing but that is known."""

    state: FederationPhase
    error: str = ""
    pid: int = 0
    """Of the supervisor."""
    created: float = 0.0
    """When that process was created (`processes.started_at`)."""
    owner: int | None = None
    """The process with which it ends."""
    owner_created: float | None = None
    """When that one was created."""
    store: str = ""
    superlink: SuperLinkState = SuperLinkState()
    sites: dict[str, SiteProcesses] = Field(default_factory=dict)
    spawned: tuple[SpawnedProcess, ...] = ()
    logs: str = ""


DOWN = FederationState(state="down")
