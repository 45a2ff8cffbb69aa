"""Run workers that are ready, forked from one process that has imported what takes long.

    python -m curtail_pipeline.orchestration.run_worker MODULE...

Lines on standard input: the arguments of `dagster api execute_run`, which a worker that has imported the modules and
waits takes at once; or an empty one, after which there is no other run. Torch and transformers alone cost a run 3.6 s
of CPU, here once for all. At the end of the input all end, those that execute a run as by a SIGTERM.

What is imported before the fork starts no thread; modules that read tables do, and are imported after it.
"""

import gc
import importlib
import importlib.util
import os
import select
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import dagster as dg
from dagster._grpc.types import ExecuteRunArgs
from dagster._serdes import deserialize_value

from curtail_pipeline.flower.processes import can_fork_torch
from curtail_pipeline.garbage import seldom_collected
from curtail_pipeline.orchestration.migrations import preload_migrations
from curtail_pipeline.orchestration.run_workers import end_unstarted
from curtail_pipeline.parent_death import sent_at_parents_end

SETTLE_S = 5.0
"""The next worker begins to import so long after the last one took a run, when that has started up."""
TURN_S = 1.0
"""How often it is looked for workers that have ended."""
BEFORE = ("dagster._cli.api", "dagster._core.storage.sqlite_storage", "altair", "curtail_pipeline.settings.experiment")
TORCH = "transformers.models.nanochat.modeling_nanochat"
"""Imported before the fork where it is installed, as it is not in a control plane, and may be."""


@dataclass
class _Worker:
    pid: int
    line: int
    """The writing end of its input. Its last one: what ends this process ends the worker."""
    order: bytes = b""
    """What it has taken."""

    def take(self, order: bytes) -> bool:
        try:
            taken = os.write(self.line, order) == len(order)
        except BrokenPipeError:
            return False
        self.order = order if taken else b""
        return taken

    def end_input(self) -> None:
        """Have it see that, also where it was stopped."""
        os.close(self.line)
        os.kill(self.pid, signal.SIGCONT)


class _Nursery:
    """The process that forks; see the module."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = modules
        self._workers: list[_Worker] = []
        self._waiting: _Worker | None = None

    def serve(self, stdin: int) -> None:
        """Until the end of the input, or of the last run after an empty line."""
        left, more, settled = b"", True, True
        while more or self._workers:
            readable, _, _ = select.select([stdin], [], [], SETTLE_S if not settled else TURN_S)
            self._reap()
            if not readable:
                settled = True
            elif not (read := os.read(stdin, 1 << 16)):
                break
            else:
                *lines, left = (left + read).split(b"\n")
                for line in lines:
                    more, settled = more and bool(line), False
                    if more:
                        self._hand_over(line + b"\n")
            if more and settled and self._waiting is None:
                self._waiting = self._fork()
            if not more:
                self._let_go()
        self._let_go()
        for worker in self._workers:
            worker.end_input()
        for worker in self._workers:
            os.waitpid(worker.pid, 0)

    def _hand_over(self, order: bytes) -> None:
        worker = self._waiting or self._fork()
        while not worker.take(order):  # it was killed while it waited
            worker = self._fork()
        self._waiting = None

    def _fork(self) -> _Worker:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid:
            os.close(reading)
            self._workers.append(worker := _Worker(pid, writing))
            return worker
        os.close(writing)
        for other in self._workers:
            os.close(other.line)  # or it would not see this process' parent end
        os.dup2(reading, sys.stdin.fileno())
        os.close(reading)
        _execute(self._modules)
        sys.exit()  # as of any program: what is registered for its end is done

    def _let_go(self) -> None:
        """Of the one that waits."""
        if self._waiting is not None:
            self._waiting.end_input()
            os.waitpid(self._waiting.pid, 0)
            self._workers.remove(self._waiting)
            self._waiting = None

    def _reap(self) -> None:
        for worker in [*self._workers]:
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                os.close(worker.line)
                self._workers.remove(worker)
                if worker is self._waiting:
                    self._waiting = None
                if worker.order and os.WIFSIGNALED(status):
                    self._end_unstarted(worker, os.WTERMSIG(status))

    def _end_unstarted(self, worker: _Worker, number: int) -> None:
        """Its run, in a process of its own: nobody else knows whose worker was killed before it said that it starts."""
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)
            return
        for other in self._workers:
            os.close(other.line)
        with dg.DagsterInstance.get() as instance:
            order = deserialize_value(worker.order.decode(), ExecuteRunArgs)
            end_unstarted(instance, order.run_id, worker.pid, number)
        sys.exit()


def _execute(modules: Sequence[str]) -> None:
    """In the worker: wait for a run and execute it."""
    sent_at_parents_end(signal.SIGCONT)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with seldom_collected():
        for module in modules:
            importlib.import_module(module)
    with dg.DagsterInstance.get():
        pass
    stdin = sys.stdin.fileno()
    if order := _line(stdin):
        from dagster._cli.api import api_cli

        threading.Thread(target=_end_with_parent, args=(stdin,), daemon=True).start()
        api_cli(["execute_run", order], prog_name="dagster api")


def _line(stdin: int) -> str:
    """The next line, empty at the end of the input."""
    found = b""
    while not found.endswith(b"\n"):
        read = os.read(stdin, 1 << 16)
        if not read:
            return ""
        found += read
    return found.decode().strip()


def _end_with_parent(stdin: int) -> None:
    while os.read(stdin, 1 << 16):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(modules: Sequence[str]) -> None:
    """See the module.

    Args:
        modules: to import in every worker.
    """
    sent_at_parents_end(signal.SIGCONT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the end of the input counts
    with seldom_collected():
        for module in BEFORE:
            importlib.import_module(module)
        preload_migrations()
        if importlib.util.find_spec("torch") and can_fork_torch():
            importlib.import_module(TORCH)
    gc.freeze()  # a collection in a worker would copy every page that it shares
    _Nursery(modules).serve(sys.stdin.fileno())


if __name__ == "__main__":
    main(sys.argv[1:])
