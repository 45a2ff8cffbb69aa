"""`curtail ui`: Dagster's webserver, daemon and code server on an experiment's instance.

They are started here rather than by `dagster dev`: beside the federation, in processes of their own that a Ctrl-C on
the terminal does not reach, so that they are stopped in order, and with their logs in files.
"""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from curtail_pipeline.errors import CurtailError
from curtail_pipeline.flower.processes import die_with_parent, free_port, tail, without_proxy
from curtail_pipeline.orchestration.watchdog import watching
from curtail_pipeline.stages.project import CLOCK_ENV, EXPERIMENT_ENV, Project
from curtail_pipeline.storage.clock import ReplayClock

WORKSPACE = """\
load_from:
  - grpc_server: {{host: 127.0.0.1, port: {port}, location_name: curtail_pipeline}}
"""
START_S = 120.0
"""How long code server and webserver may take to answer."""
STOP_S = 20.0
"""How long they may take to stop before they are killed."""
POLL_S = 0.1
MOST_ENDS, STEADY_S = 3, 120.0
"""What ends by itself more often within so many seconds is not started again."""


_log = logging.getLogger(__name__)


class UiError(CurtailError):
    """A part of the UI did not start, or ended by itself again and again."""


def environment(project: Project, sensors: bool) -> dict[str, str]:
    """Environment of the code location: this experiment, its instance, and its clock."""
    recorded = project.span is not None
    return {
        **os.environ,
        **without_proxy(os.environ),  # gRPC asks one for the code server, too
        EXPERIMENT_ENV: str(project.home.experiment_file),
        CLOCK_ENV: "replay" if recorded else "live",
        "CURTAIL_SENSORS": "on" if sensors else "off",
        "DAGSTER_HOME": str(project.home.dagster),
    }


class Services:
    """The processes of the UI."""

    def __init__(self, project: Project, host: str, port: int, sensors: bool) -> None:
        self.host, self.port = host, port
        self._folder, self._environment = project.home.dagster, environment(project, sensors)
        self._logs = project.home.root / "ui"  # Dagster empties a folder `logs` of its own
        self._logs.mkdir(exist_ok=True)
        self._code_port = free_port()
        self._workspace = self._folder / "workspace.yaml"
        self._workspace.write_text(WORKSPACE.format(port=self._code_port))
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._modules: dict[str, Sequence[str]] = {}
        self._ends: dict[str, list[float]] = {}

    @property
    def address(self) -> str:
        return f"http://{'localhost' if self.host in ('127.0.0.1', '0.0.0.0') else self.host}:{self.port}"

    def prepare(self) -> None:
        """Start what needs no federation: the code server and, once it answers, the webserver."""
        module = ["-m", "curtail_pipeline.definitions", "--location-name", "curtail_pipeline"]
        address = ["--host", "127.0.0.1", "--port", str(self._code_port)]
        self._start("code-server", ["dagster", "code-server", "start", *module, *address])
        self._await("code-server", "127.0.0.1", self._code_port)
        where = ["-h", self.host, "-p", str(self.port)]
        self._start("webserver", ["dagster_webserver", "-w", str(self._workspace), *where])

    def run(self) -> str:
        """Start the daemon, and with it sensors and schedules; the address of the UI once it answers."""
        self._start("daemon", ["curtail_pipeline.orchestration.daemon", "run", "-w", str(self._workspace)])
        self._await("webserver", self.host, self.port)
        return self.address

    def wait(self) -> None:
        """Start again what ends by itself.

        Raises:
            UiError: one does not last; says which, and how its log ends.
        """
        while True:
            for name, process in [*self._running.items()]:
                if process.poll() is not None:
                    self._start_again(name, process.returncode)
            time.sleep(POLL_S * 5)

    def _start_again(self, name: str, code: int) -> None:
        now = time.monotonic()
        self._ends[name] = [*(at for at in self._ends.get(name, ()) if now - at < STEADY_S), now]
        if len(self._ends[name]) > MOST_ENDS:
            raise self._failed(name, code)
        _log.warning("the %s of the UI ended with %s and is started again", name, code)
        self._start(name, self._modules[name])

    def stop(self) -> None:
        """The daemon first, so that nothing new is started."""
        family = self._family()
        for name in ("daemon", "webserver", "code-server"):
            if name in self._running:
                self._running[name].terminate()
        _, alive = psutil.wait_procs(family, STOP_S)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, STOP_S)

    def _family(self) -> list[psutil.Process]:
        """Every process of the UI, runs included."""
        found = []
        for child in self._running.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = psutil.Process(child.pid)
                found += [parent, *parent.children(recursive=True)]
        return found

    def _start(self, name: str, module: Sequence[str]) -> None:
        self._modules[name] = module
        with self._log(name).open("ab") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", *module],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def _await(self, name: str, host: str, port: int) -> None:
        deadline = time.monotonic() + START_S
        while not _answers(host, port):
            self._look()
            if time.monotonic() > deadline:
                raise UiError(f"the {name} does not answer on port {port} after {START_S:.0f} s; {self._ending(name)}")
            time.sleep(POLL_S)

    def _look(self) -> None:
        """While they start: what was killed is started again; what ended by itself would do so again."""
        for name, process in [*self._running.items()]:
            code = process.poll()
            if code is not None and code < 0:
                self._start_again(name, code)
            elif code is not None:
                raise self._failed(name, code)

    def _failed(self, name: str, code: int) -> UiError:
        return UiError(f"the {name} of the UI ended with exit code {code}; {self._ending(name)}")

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _ending(self, name: str) -> str:
        return f"its log {self._log(name)} ends:\n{tail(self._log(name))}"


@contextmanager
def services(project: Project, host: str, port: int, sensors: bool) -> Iterator[Services]:
    """The processes of the UI, stopped when the block ends.

    A replayed clock goes on from the last checkpoint: time in which nobody watched is not skipped. On an empty home it
    starts when the home is prepared.

    Raises:
        UiError: the port is taken.
    """
    if _answers(host, port):
        raise UiError(f"port {port} of {host} is taken by another program; stop it, or give another port with --port")
    if project.span is not None and project.checkpoints.last() is not None:
        begin = max(project.parent.end, project.start)
        clock = ReplayClock(project.store, begin, project.experiment.replay.speed)
        clock.anchor(begin, project.experiment.replay.speed)
    found = Services(project, host, port, sensors)
    try:
        with watching(project.home.dagster, os.getpid(), found.address):
            yield found
    finally:
        with _deaf():
            found.stop()


@contextmanager
def _deaf() -> Iterator[None]:
    """A second Ctrl-C does not cut the end short: processes would be left behind."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _answers(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1.0):
        return True
    return False
