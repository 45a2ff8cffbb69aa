"""A site as a child of this process, which it cannot outlive (Linux)."""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import IO

from curtail_pipeline.flower import processes
from curtail_pipeline.provisioning.provisioner import Standing

_BOUND = """
import os, signal, sys
from curtail_pipeline.flower.processes import die_with_parent
die_with_parent()
if os.getppid() != int(sys.argv[1]):
    sys.exit("whoever started this site is gone")
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_DFL)
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes the command, bound to who started it, whose ignored signals are not its own (one in the background ignores
SIGINT, and then by Dagster SIGTERM). In a program with many threads nothing may be run between fork and exec."""
STOP_S = 70.0
"""A site ends its step and its parts within 60 s."""
_TAIL = 2000


class ChildSite:
    """Runs one command. To be started from a thread that stays: the kernel kills the child when that one ends."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._child: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self._ended = ""
        """How the last one ended by itself."""
        self._guard = threading.Lock()

    def start(self, site: str) -> None:
        with self._guard:
            if self._child is not None and self._child.poll() is None:
                return
            self._forget()
            self._ended = ""
            self._output = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the child)
            self._child = subprocess.Popen(
                [sys.executable, "-c", _BOUND, str(os.getpid()), *self._command],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                start_new_session=True,
            )

    def stop(self, site: str) -> None:
        with self._guard:
            if self._child is None:
                return
            self._child.terminate()
            try:
                self._child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                processes.end_tree([self._child.pid], 0)
                self._child.wait()
            self._forget()

    def state(self, site: str) -> Standing:
        with self._guard:
            if self._child is None:
                return Standing("off", self._ended)
            code = self._child.poll()
            if code is None:
                return Standing("on")
            self._ended = f"its process ended with {code}: {self._last_line()}"
            self._forget()
            return Standing("off", self._ended)

    @property
    def pid(self) -> int | None:
        with self._guard:
            return self._child.pid if self._child else None

    def _last_line(self) -> str:
        if self._output is None:
            return ""
        self._output.seek(max(0, self._output.seek(0, 2) - _TAIL))
        lines = self._output.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "without a word"

    def _forget(self) -> None:
        if self._output is not None:
            self._output.close()
        self._child = self._output = None
