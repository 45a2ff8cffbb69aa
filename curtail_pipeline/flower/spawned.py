"""Processes that Flower's own ask the supervisor for: forked on request, and a SuperExec again when it dies.

Flower starts a SuperExec once per SuperLink and SuperNode and never looks at it again; without it no message reaches a
ClientApp and no run a ServerApp. Nor does it look at these: that they were killed is said for them (`ended_app`).
"""

import contextlib
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from curtail_pipeline.flower import control_api as control
from curtail_pipeline.flower import ended_app, processes
from curtail_pipeline.flower.federation_state import SpawnedProcess

SUPEREXEC = "flower-superexec"
PARENT = "--parent-pid"


class Spawned:
    """The living ones."""

    def __init__(self) -> None:
        self._argv: dict[int, list[str]] = {}
        self.close: Sequence[int] = ()
        """Descriptors that none of them inherits."""

    @property
    def pids(self) -> list[int]:
        return [*self._argv]

    def listed(self) -> tuple[SpawnedProcess, ...]:
        """For `federation.json`."""
        return tuple(SpawnedProcess(pid=pid, command=argv[0], owner=_owner(argv)) for pid, argv in self._argv.items())

    def answer(self, line: socket.socket) -> None:
        """Fork a process that one of Flower's own asked for; it writes to the log of the one that asked."""
        with contextlib.suppress(OSError, ValueError):
            connection, _ = line.accept()
            with connection:
                connection.settimeout(1)
                message, outputs, _, _ = socket.recv_fds(connection, 1 << 16, 2)
                try:
                    argv = json.loads(message)
                    if argv[0] in control.SPAWNED and len(outputs) == 2 and not _hung_up(connection):
                        close = [*outputs, connection.fileno()]
                        self._fork(control.entry_point(argv[0]), argv, outputs[0], outputs[1], close)
                        connection.sendall(b"ok")  # two bytes: they never have to wait
                finally:
                    for descriptor in outputs:
                        os.close(descriptor)

    def _fork(
        self, body: Callable[[], object], argv: list[str], stdout: int, stderr: int, close: Sequence[int] = ()
    ) -> None:
        pid = processes.fork_into(body, stdout=stdout, stderr=stderr, close=[*self.close, *close], argv=argv)
        self._argv[pid] = argv

    def ended(self, pid: int, code: int, owners: Mapping[int, Path | None]) -> str | None:
        """Take note of an end, and start a SuperExec again whose owner lives; what was started.

        Args:
            code: its exit code; a negative one is a signal.
            owners: process id of each SuperLink and SuperNode, with its log; None where that is this process's.
        """
        argv = self._argv.pop(pid, None)
        if argv is not None and ended_app.speaks_for(argv, code):
            self._fork(partial(ended_app.speak, argv, code), [ended_app.SPEAKER], 1, 2)
        owner = _owner(argv) if argv else None
        if argv is None or owner is None or argv[0] != SUPEREXEC or owner not in owners:
            return None
        log = owners[owner]
        if log is None:
            self._fork(control.entry_point(argv[0]), argv, 1, 2)
            return "the SuperExec"
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._fork(control.entry_point(argv[0]), argv, output, output)
        finally:
            os.close(output)
        return f"the SuperExec of {log.stem}"


def _hung_up(connection: socket.socket) -> bool:
    """Whether who asked has waited for too long and starts its command itself: two would work on one task."""
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False


def _owner(argv: Sequence[str]) -> int | None:
    return int(argv[argv.index(PARENT) + 1]) if PARENT in argv else None
