"""The supervisor of the local federation: `python -m curtail_pipeline.flower.supervisor`.

It starts a SuperLink and, per site, a SuperNode and a resident trainer; restarts what dies; and leaves nothing behind.

Flower starts a process for every message and every run, and each needs 2 s of CPU to import what it needs, a trainer
4 s. So the supervisor imports it once and *forks* trainers and Flower's processes: SuperLink and SuperNodes itself, and
on request those that Flower starts by name. Their names on PATH are a small script that asks the supervisor through a
socket; where the socket does not answer, it starts the command the usual way. Every process is thus a child of the
supervisor, which reaps it, and is killed by the kernel when the supervisor dies (Linux). The supervisor has one thread,
as forking demands.

What it knows stands in `federation.json`; `local.py` reads it.
"""

import argparse
import contextlib
import fcntl
import gc
import json
import os
import re
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from curtail_pipeline.errors import FederationError, MessageError, StoreError
from curtail_pipeline.federation.orders import Heartbeat, agent_key
from curtail_pipeline.federation.trainer_api import Endpoint
from curtail_pipeline.flower import control_api as control
from curtail_pipeline.flower import processes
from curtail_pipeline.flower.federation_state import (
    STATE_FILE,
    FederationPhase,
    FederationState,
    SiteProcesses,
    SuperLinkState,
    SuperNodeState,
    TrainerProcess,
)
from curtail_pipeline.flower.hangs import HANGS_S, Hangs, healthy
from curtail_pipeline.flower.kept_process import Child
from curtail_pipeline.flower.processes import SUPERVISOR_VARIABLE
from curtail_pipeline.flower.spawn_shims import write_shims
from curtail_pipeline.flower.spawned import Spawned
from curtail_pipeline.flower.supernode import supernode
from curtail_pipeline.garbage import seldom_collected
from curtail_pipeline.settings.federation_settings import LivenessLimits
from curtail_pipeline.storage.atomic import write_whole
from curtail_pipeline.storage.stores import open_store
from curtail_pipeline.training import serve

LOCK_FILE = "supervisor.lock"
SOCKET = "spawn.sock"
TURN_S = 0.2
START_TRIES = 3
LONGEST_BACKOFF_S = 30.0
STEADY_S = 60.0
"""A child that lived so long is no longer blamed for earlier ends."""
STOP_GRACE_S = 4.0
LOG_LIMIT = 32 << 20
"""Bytes of a log after which it is set aside as `.1`."""


class Supervisor:
    """See the module. `run` returns the exit code when the federation has stopped."""

    def __init__(
        self,
        folder: Path,
        store: str,
        sites: Sequence[str],
        owner: int | None,
        trainer: Sequence[str] | None,
        limits: LivenessLimits,
    ) -> None:
        self.folder, self.store, self.sites = folder, open_store(store, patience_s=1.0), list(sites)
        self.owner = owner
        self.owner_created = processes.started_at(owner) if owner else None
        self.trainer = trainer
        """A command to start in place of the product's own trainer."""
        self.created = processes.started_at(os.getpid())
        self.stopping = ""
        self.failed = ""
        self.ready = False
        self.address = ""
        self.spawned = Spawned()
        self.hangs = Hangs(self.store, limits)
        self._looked_for_hangs = 0.0
        self.children: dict[str, Child] = {}
        self.original_environment = dict(os.environ)
        self._written = b""
        self._looked_at_logs = time.monotonic()
        (folder / "logs").mkdir(exist_ok=True)

    # Set-up

    def run(self) -> int:
        os.chdir(self.folder)
        lock = os.open(LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("another supervisor holds this folder", file=sys.stderr)
            return 3
        processes.become_subreaper()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda n, _: setattr(self, "stopping", self.stopping or signal.Signals(n).name))
        write_shims(self.folder / "bin", SOCKET)
        self._set_environment()
        line = socket.socket(socket.AF_UNIX)
        Path(SOCKET).unlink(missing_ok=True)
        line.bind(SOCKET)
        line.listen(64)
        self.inherited = [lock, line.fileno()]
        self.spawned.close = self.inherited
        try:
            self._publish()
            with seldom_collected():
                control.preload()
                self._add("superlink", self._start_superlink)  # it starts up while this process goes on importing
                if self.trainer is None and processes.can_fork_torch():
                    serve.preload()
            gc.freeze()  # a collection in a child would copy every page it shares with this process
            for site in self.sites:
                self._add(f"trainer-{site}", partial(self._start_trainer, site))
            with selectors.DefaultSelector() as selector:
                selector.register(line, selectors.EVENT_READ)
                while not self.stopping and not self.failed:
                    if selector.select(TURN_S):
                        self.spawned.answer(line)
                    self._turn()
        except FederationError as error:
            self.failed = str(error)
        finally:
            line.close()
            self._publish()
            self._stop()
        if self.failed:
            print(self.failed, file=sys.stderr)
        return 1 if self.failed else 0

    def _set_environment(self) -> None:
        """For this process, before it imports Flower, and so for all that it forks."""
        os.environ |= control.ENVIRONMENT
        os.environ["FLWR_HOME"] = str(self.folder / "flwr")
        os.environ[SUPERVISOR_VARIABLE] = str(os.getpid())
        os.environ["PATH"] = os.pathsep.join([str(self.folder / "bin"), os.environ.get("PATH", os.defpath)])
        os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
        os.environ |= processes.without_proxy(os.environ)

    # Children

    def _add(self, name: str, start: Callable[[Child], int]) -> None:
        child = Child(name, start, self.folder / "logs" / f"{name}.log")
        child.log.unlink(missing_ok=True)
        self.children[name] = child
        self._launch(child)

    def _launch(self, child: Child) -> None:
        child.offset = child.log.stat().st_size if child.log.exists() else 0
        child.forget()
        child.began = time.monotonic()
        child.pid = child.start(child)

    def _fork(self, child: Child, body: Callable[[], object], argv: list[str] | None = None) -> int:
        log = os.open(child.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            return processes.fork_into(body, stdout=log, stderr=log, close=self.inherited, argv=argv)
        finally:
            os.close(log)

    def _start_trainer(self, site: str, child: Child) -> int:
        endpoint = self._endpoint(site)
        endpoint.unlink(missing_ok=True)
        options = ["--site", site, "--store", self.store.uri, "--endpoint", str(endpoint)]
        options += ["--parent-pid", str(os.getpid())]

        def body() -> None:
            os.environ.clear()
            os.environ.update(self.original_environment)
            if self.trainer is None and processes.can_fork_torch():
                serve.run(options)
            command = self.trainer or [sys.executable, "-m", serve.__name__]
            os.execvp(command[0], [*command, *options])

        return self._fork(child, body)

    def _start_superlink(self, child: Child) -> int:
        if not any(f"supernode-{site}" in self.children for site in self.sites):
            # a port that something else took meanwhile ends the process, and the next try has another
            self.address = f"127.0.0.1:{processes.free_port()}"
        argv = [
            "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", self.address.split(":")[1],
            "--disable-runtime-dependency-installation",
        ]  # fmt: skip
        return self._fork(child, control.entry_point(argv[0]), argv)

    def _start_supernode(self, site: str, child: Child) -> int:
        config = f'name="{site}" endpoint="{self._endpoint(site)}"'
        argv = [
            "flower-supernode", "--insecure", "--superlink", self.address, "--host", "127.0.0.1",
            "--port", str(processes.free_port()), "--node-config", config,
        ]  # fmt: skip
        return self._fork(child, supernode, argv)

    def _endpoint(self, site: str) -> Path:
        return self.folder / "trainers" / f"{site}.json"

    # The loop

    def _turn(self) -> None:
        now = time.monotonic()
        if self.owner and (self.owner_created is None or not processes.is_alive(self.owner, self.owner_created)):
            self.stopping = "the owner has ended"
            return
        for pid, code in processes.reap():
            owners = {child.pid: child.log for child in self.children.values() if child.pid}
            if again := self.spawned.ended(pid, code, owners):
                self._say(f"{again} ended with {code} and was started again")
            for child in self.children.values():
                if child.pid == pid:
                    self._ended(child, code, now)
        for child in list(self.children.values()):
            if child.pid is None and now >= child.due:
                self._launch(child)
        self._learn()
        if now - self._looked_for_hangs > HANGS_S:
            self._looked_for_hangs = now
            self._end_hung(now)
        if not self.ready and all(child.ready for child in self.children.values()):
            self.ready = len(self.children) == 1 + 2 * len(self.sites)
        self._publish()
        if now - self._looked_at_logs > 30:
            self._looked_at_logs = now
            self._set_logs_aside()

    def _ended(self, child: Child, code: int, now: float) -> None:
        child.ends = 1 if now - child.began > STEADY_S else child.ends + 1
        child.pid = None
        child.forget()
        if child.name == "superlink":
            # its state was in memory: a database on disk costs a second per round, and its runs end with it anyway
            for site in self.sites:
                node = self.children.get(f"supernode-{site}")
                if node and node.pid:
                    os.kill(node.pid, signal.SIGKILL)
        self._say(f"{child.name} ended with {code}")
        if not self.ready and child.ends >= START_TRIES:
            self.failed = f"{child.name} ended with {code} {child.ends} times; its log {child.log} ends:\n" + (
                processes.tail(child.log) or "(empty)"
            )
        child.due = now + min(LONGEST_BACKOFF_S, 0.5 * 2 ** (child.ends - 1))

    def _end_hung(self, now: float) -> None:
        """Kill what lives and does nothing; it is started again as if it had died."""
        mine = {child.pid: child.name for child in self.children.values() if child.pid}
        link = self.children.get("superlink")
        trainers = {site: child for site in self.sites if (child := self.children.get(f"trainer-{site}"))}
        hung = self.hangs.found(
            [*mine, *self.spawned.pids],
            {site: child.pid for site, child in trainers.items() if child.ready and child.pid},
            (link.pid, self.address) if link and link.ready and link.pid else None,
            now,
        )
        for pid, reason in hung.items():
            self._say(f"{mine.get(pid, f'process {pid}')} is killed: {reason}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @staticmethod
    def _say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def _learn(self) -> None:
        """Find out what has become ready since the last turn."""
        link = self.children.get("superlink")
        if link and link.pid and not link.ready and healthy(self.address, 0.5):
            link.ready = True
            for site in self.sites:
                if f"supernode-{site}" not in self.children:
                    self._add(f"supernode-{site}", partial(self._start_supernode, site))
        for site in self.sites:
            trainer, node = self.children[f"trainer-{site}"], self.children.get(f"supernode-{site}")
            if trainer.pid and not trainer.ready and self._serves(site, trainer.pid):
                trainer.ready = True
            if node and node.pid and not node.ready:
                found = re.search(r"SuperNode ID: (\d+)", node.output())
                if found:
                    node.ready, node.node_id = True, int(found[1])

    def _serves(self, site: str, pid: int) -> bool:
        """Whether the trainer has written its endpoint and its first heartbeat."""
        path = self._endpoint(site)
        try:
            endpoint = Endpoint.read(path.read_bytes(), str(path))
            return endpoint.pid == pid and self.store.read_record(agent_key(site), Heartbeat).pid == pid
        except (OSError, StoreError, MessageError):
            return False

    def _state(self) -> FederationState:
        phase: FederationPhase = (
            "failed" if self.failed else "stopping" if self.stopping else "ready" if self.ready else "starting"
        )
        link = self.children.get("superlink")
        return FederationState(
            state=phase,
            error=self.failed,
            pid=os.getpid(),
            created=self.created or 0.0,
            owner=self.owner,
            owner_created=self.owner_created,
            store=self.store.uri,
            superlink=SuperLinkState(
                pid=link.pid if link else None, ready=bool(link and link.ready), address=self.address
            ),
            sites={site: self._site_state(site) for site in self.sites},
            spawned=self.spawned.listed(),
            logs=str(self.folder / "logs"),
        )

    def _site_state(self, site: str) -> SiteProcesses:
        trainer, node = self.children.get(f"trainer-{site}"), self.children.get(f"supernode-{site}")
        return SiteProcesses(
            trainer=TrainerProcess(
                pid=trainer.pid if trainer else None,
                ready=bool(trainer and trainer.ready),
                endpoint=str(self._endpoint(site)),
            ),
            supernode=SuperNodeState(pid=node.pid, ready=node.ready, node_id=node.node_id)
            if node
            else SuperNodeState(),
        )

    def _publish(self) -> None:
        """Write `federation.json` when something in it has changed."""
        content = self._state().model_dump_json(indent=1).encode() + b"\n"
        if content != self._written:
            write_whole(self.folder / STATE_FILE, content)
            self._written = content

    def _set_logs_aside(self) -> None:
        """Processes hold their logs open, so a log that is set aside is copied, then emptied."""
        for log in (self.folder / "logs").glob("*.log"):
            if log.stat().st_size > LOG_LIMIT:
                log.with_suffix(".log.1").write_bytes(log.read_bytes())
                os.truncate(log, 0)
                for child in self.children.values():
                    child.offset = 0 if child.log == log else child.offset

    def _stop(self) -> None:
        self._say(f"stopping: {self.stopping or self.failed}")
        mine = [child.pid for child in self.children.values() if child.pid]
        processes.end_tree([*mine, *self.spawned.pids], STOP_GRACE_S)
        processes.end_tree(processes.descendants(), 0.0)
        processes.reap()
        (self.folder / SOCKET).unlink(missing_ok=True)
        if not self.failed:
            (self.folder / STATE_FILE).unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="curtail_pipeline.flower.supervisor", description=__doc__)
    parser.add_argument("--folder", required=True, type=Path, help="runtime folder, <home>/federation")
    parser.add_argument("--store", required=True)
    parser.add_argument("--sites", required=True, help="names, separated by commas")
    parser.add_argument("--owner", type=int, help="stop when this process ends")
    parser.add_argument("--limits", default="{}", help="JSON: `federation_settings.LivenessLimits`")
    parser.add_argument("--trainer", help="JSON: command of the resident trainer")
    arguments = parser.parse_args()
    limits = LivenessLimits.model_validate_json(arguments.limits)
    trainer = json.loads(arguments.trainer) if arguments.trainer else None
    folder = arguments.folder.resolve()
    return Supervisor(folder, arguments.store, arguments.sites.split(","), arguments.owner, trainer, limits).run()


if __name__ == "__main__":
    sys.exit(main())
