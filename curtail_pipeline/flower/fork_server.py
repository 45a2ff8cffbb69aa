"""Forks Flower's processes for a site's agent, as the supervisor does for a local federation.

Flower starts a process for every message, and each needs 2 s of CPU to import what it needs. Here it is imported once;
Flower's commands on PATH are small scripts that ask for a fork.
"""

import contextlib
import gc
import os
import selectors
import signal
import socket
import time
from pathlib import Path

from curtail_pipeline.flower import control_api as control
from curtail_pipeline.flower.processes import SUPERVISOR_VARIABLE
from curtail_pipeline.flower.spawn_shims import write_shims
from curtail_pipeline.flower.spawned import SUPEREXEC, Spawned

SOCKET = "spawn.sock"


class ForkServer:
    """Of this process, which must have one thread only; to be used as a context. What was forked ends with it.

    Within it this process' own PATH has the scripts first, and so has that of all it starts.

    Args:
        folder: where the scripts and the socket go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._spawned = folder.absolute(), Spawned()
        self._line = socket.socket(socket.AF_UNIX)
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> "ForkServer":
        self._folder.mkdir(parents=True, exist_ok=True)
        write_shims(self._folder / "bin", SOCKET)
        # for all that this process starts and forks: a SuperExec, too, looks for its commands on PATH
        os.environ["PATH"] = os.pathsep.join([str(self._folder / "bin"), os.environ.get("PATH", os.defpath)])
        os.environ[SUPERVISOR_VARIABLE] = str(os.getpid())
        control.preload()
        gc.freeze()  # a collection in a child would copy every page it shares with this process
        before = Path.cwd()
        os.chdir(self._folder)  # the name of a socket is a hundred characters at most
        try:
            Path(SOCKET).unlink(missing_ok=True)
            self._line.bind(SOCKET)
        finally:
            os.chdir(before)
        self._line.listen(64)
        self._spawned.close = [self._line.fileno()]
        self._selector.register(self._line, selectors.EVENT_READ)
        return self

    def serve(self, seconds: float) -> bool:
        """Fork what is asked for in that time; whether a SuperExec has ended, without which no order is worked on."""
        deadline, ended = time.monotonic() + seconds, False
        while (left := deadline - time.monotonic()) > 0:
            if self._selector.select(left):
                self._spawned.answer(self._line)
            ended |= self._reap()
        return ended

    def _reap(self) -> bool:
        over = [found for found in self._spawned.listed() if _has_ended(found.pid)]
        for found in over:
            self._spawned.ended(found.pid, {})
        return any(found.command == SUPEREXEC for found in over)

    def __exit__(self, *_: object) -> None:
        for pid in self._spawned.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        self._selector.close()
        self._line.close()
        (self._folder / SOCKET).unlink(missing_ok=True)


def _has_ended(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG) != (0, 0)
    except ChildProcessError:
        return True
