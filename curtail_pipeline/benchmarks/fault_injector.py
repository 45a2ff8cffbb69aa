"""Faults at a chosen moment of a running local federation: `at(site, phase).kill()`, `stop(5)`, `delay()`, `corrupt()`.

A phase is told from what the product publishes (the trainers' status, `server.json`, journals), so that nothing in the
product knows that it is being disturbed.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from curtail_pipeline.errors import FederationError, MessageError, StoreError
from curtail_pipeline.federation.plan import plan_key, read_journal, segment_key
from curtail_pipeline.federation.server_life import ServerLife, life_key
from curtail_pipeline.flower.federation_state import FederationState
from curtail_pipeline.flower.local import Federation
from curtail_pipeline.flower.trainer_client import Trainer
from curtail_pipeline.storage.checkpoints import WEIGHTS_FILE
from curtail_pipeline.storage.folder_store import FolderStore

LOOK_S = 0.01


class Phase(StrEnum):
    """Where a site's part in a run can be."""

    PROVISIONING = "provisioning"
    FETCH = "fetch"
    TRAIN = "train"
    ENCODE = "encode"
    UPLOAD = "upload"
    REPLY = "reply"
    MERGE = "merge"
    COMMIT = "commit"
    BETWEEN_ROUNDS = "between rounds"
    BETWEEN_SEGMENTS = "between segments"


class Part(StrEnum):
    """A process of a local federation."""

    TRAINER = "trainer"
    SUPERNODE = "supernode"
    SITE_SUPEREXEC = "superexec of a supernode"
    CLIENTAPP = "clientapp"
    SUPERLINK = "superlink"
    SUPEREXEC = "superexec of the superlink"
    SERVERAPP = "serverapp"
    SUPERVISOR = "supervisor"


class Target(StrEnum):
    """What can be damaged."""

    UPDATE = "update"
    INNER_STATE = "inner state"
    CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Strike:
    """A fault that took place."""

    phase: Phase
    """In which it did, whatever was waited for."""
    at: float
    """Monotonic seconds."""
    hit: str


class Injector:
    """Disturbs the federation of one experiment home.

    Args:
        patience_s: how long a phase or a process is waited for; then the fault comes in whatever phase there is.
    """

    def __init__(self, home: Path, patience_s: float = 20.0, alive: Callable[[], bool] = lambda: True) -> None:
        self.federation, self.store = Federation(home / "federation"), FolderStore(home / "store")
        self.patience_s, self.alive = patience_s, alive

    def at(self, site: str, phase: Phase) -> "Moment":
        """The next time that the site is in that phase."""
        return Moment(self, site, phase)

    def phase(self, site: str) -> Phase:
        """In which the site is now."""
        if self.federation.state().state != "ready":
            return Phase.PROVISIONING
        folder = self._folder()
        if folder is None:
            return Phase.BETWEEN_SEGMENTS
        if self.store.exists(segment_key(folder)):
            return Phase.COMMIT
        with contextlib.suppress(StoreError, MessageError):
            if self.store.read_record(life_key(folder), ServerLife).doing == "merging":
                return Phase.MERGE
        with contextlib.suppress(StoreError, MessageError, OSError):
            update = f"{folder}/round-{len(read_journal(self.store, folder)):04d}/{site}.safetensors"
            written = self.store.exists(update)
            doing = None
            with contextlib.suppress(FederationError, MessageError):
                doing = Trainer(self.federation.endpoint(site)).status(timeout_s=0.5).phase
            if doing == "store":
                return Phase.UPLOAD if written else Phase.ENCODE
            if doing is not None:
                return Phase.FETCH if doing == "fetch" else Phase.TRAIN
            return Phase.REPLY if written else Phase.BETWEEN_ROUNDS
        return Phase.BETWEEN_ROUNDS

    def _folder(self) -> str | None:
        """Scratch folder of the segment that runs."""
        keys = [name for name in self.store.list("scratch") if name.startswith("ckpt-")]
        folders = [f"scratch/{key}/{n}" for key in keys for n in self.store.list(f"scratch/{key}")]
        return max((f for f in folders if self.store.exists(plan_key(f))), default=None)

    def pid(self, site: str, part: Part) -> int | None:
        """The process, where there is one now."""
        state = self.federation.state()
        processes = state.sites.get(site)
        node, link = processes.supernode.pid if processes else None, state.superlink.pid
        return {
            Part.TRAINER: processes.trainer.pid if processes else None,
            Part.SUPERNODE: node,
            Part.SITE_SUPEREXEC: _spawned(state, "flower-superexec", node),
            Part.CLIENTAPP: _spawned(state, "flwr-clientapp", None),
            Part.SUPERLINK: link,
            Part.SUPEREXEC: _spawned(state, "flower-superexec", link),
            Part.SERVERAPP: _spawned(state, "flwr-serverapp", None),
            Part.SUPERVISOR: state.pid or None,
        }[part]

    def path(self, site: str, target: Target) -> Path | None:
        """The newest such file, where there is one now."""
        patterns = {
            Target.UPDATE: f"scratch/ckpt-*/*/round-*/{site}.safetensors",
            Target.INNER_STATE: "merged_state/*.safetensors",
            Target.CHECKPOINT: f"checkpoints/ckpt-*[1-9]/{WEIGHTS_FILE}",
        }
        found = [path for path in self.store.root.glob(patterns[target]) if path.is_file()]
        return max(found, key=lambda path: (path.parent, path.stat().st_mtime_ns), default=None)


def _spawned(state: FederationState, command: str, owner: int | None) -> int | None:
    found = [p.pid for p in state.spawned if p.command == command and (owner is None or p.owner == owner)]
    return found[-1] if found else None


@dataclass(frozen=True)
class Moment:
    """A site in a phase. Every fault waits for it, and for what it is to hit."""

    injector: Injector
    site: str
    phase: Phase

    def kill(self, part: Part = Part.TRAINER) -> Strike | None:
        """SIGKILL; None where there was no such process in time."""
        return self._signal(part, signal.SIGKILL)

    def stop(self, seconds: float | None, part: Part = Part.TRAINER) -> Strike | None:
        """SIGSTOP, and SIGCONT after so many seconds; never when None."""
        strike = self._signal(part, signal.SIGSTOP)
        if strike is not None and seconds is not None:
            threading.Timer(seconds, _continue, [int(strike.hit.rsplit(" ", 1)[1])]).start()
        return strike

    def delay(self, seconds: float = 2.0, part: Part = Part.TRAINER) -> Strike | None:
        """A stop that is over before anyone may call it one."""
        return self.stop(seconds, part)

    def corrupt(self, target: Target = Target.UPDATE) -> Strike | None:
        """One bit of a file flipped."""

        def flip() -> str | None:
            path = self.injector.path(self.site, target)
            if path is None:
                return None
            with path.open("r+b") as stream:
                stream.seek(-1, os.SEEK_END)
                last = stream.read(1)[0]
                stream.seek(-1, os.SEEK_END)
                stream.write(bytes([last ^ 1]))
            return f"{target} {path.name}"

        return self._strike(flip)

    def _signal(self, part: Part, number: signal.Signals) -> Strike | None:
        def hit() -> str | None:
            pid = self.injector.pid(self.site, part)
            if pid is None:
                return None
            os.kill(pid, number)
            return f"{part} {pid}"

        return self._strike(hit)

    def _strike(self, hit: Callable[[], str | None]) -> Strike | None:
        deadline = time.monotonic() + self.injector.patience_s
        while self.injector.alive():
            phase, late = self.injector.phase(self.site), time.monotonic() > deadline
            if phase == self.phase or late:
                with contextlib.suppress(OSError):  # it was gone by then
                    if (what := hit()) is not None:
                        return Strike(phase, time.monotonic(), what)
                if late:
                    return None
            time.sleep(LOOK_S)
        return None


def _continue(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
