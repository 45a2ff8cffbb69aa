"""Forks Flower's processes for a site's agent or a standing SuperLink, as the supervisor does for a local federation.

Flower starts a process for every message and every run, and each needs 2 s of CPU to import what it needs. Here it is
imported once; Flower's commands on PATH are small scripts that ask for a fork.
"""

import contextlib
import gc
import os
import selectors
import signal
import socket
import time
from pathlib import Path

from curtail_pipeline.errors import FederationError
from curtail_pipeline.flower import control_api as control
from curtail_pipeline.flower.processes import SUPERVISOR_VARIABLE
from curtail_pipeline.flower.spawn_shims import write_shims
from curtail_pipeline.flower.spawned import Spawned
from curtail_pipeline.garbage import seldom_collected

SOCKET = "spawn.sock"
STEADY_S, MOST_ENDS = 60.0, 3
"""A SuperExec that ends more often in so long is not started again."""


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
        self._ends: list[float] = []
        """When SuperExecs have ended of late."""

    def __enter__(self) -> "ForkServer":
        self._folder.mkdir(parents=True, exist_ok=True)
        write_shims(self._folder / "bin", SOCKET)
        # for all that this process starts and forks: a SuperExec, too, looks for its commands on PATH
        os.environ["PATH"] = os.pathsep.join([str(self._folder / "bin"), os.environ.get("PATH", os.defpath)])
        os.environ[SUPERVISOR_VARIABLE] = str(os.getpid())
        with seldom_collected():
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

    def serve(self, seconds: float, owner: int | None = None) -> bool:
        """Fork what is asked for in that time, and the SuperExec of `owner` again; whether it had ended.

        Args:
            owner: process id of a SuperNode or SuperLink.

        Raises:
            FederationError: it ends again and again.
        """
        deadline, again = time.monotonic() + seconds, False
        while (left := deadline - time.monotonic()) > 0:
            if self._selector.select(left):
                self._spawned.answer(self._line)
            again |= self._reap(owner)
        return again

    def _reap(self, owner: int | None) -> bool:
        owners = {owner: None} if owner else {}
        over = [(pid, code) for pid in self._spawned.pids if (code := _exit_code(pid)) is not None]
        again = [self._spawned.ended(pid, code, owners) for pid, code in over]
        if not any(again):
            return False
        now = time.monotonic()
        self._ends = [*(at for at in self._ends if now - at < STEADY_S), now]
        if len(self._ends) > MOST_ENDS:
            raise FederationError(
                f"a SuperExec ended {len(self._ends)} times within {STEADY_S:.0f} s; see its output above"
            )
        return True

    def __exit__(self, *_: object) -> None:
        for pid in self._spawned.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        self._selector.close()
        self._line.close()
        (self._folder / SOCKET).unlink(missing_ok=True)


def _exit_code(pid: int) -> int | None:
    """Of a child, negative for a signal; None while it runs."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return 0
    return os.waitstatus_to_exitcode(status) if ended else None
