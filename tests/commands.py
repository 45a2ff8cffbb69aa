"""Commands without what their start costs: forks of one process that has imported what takes long, or calls in here.

Torch, transformers and Dagster cost a command 8 s of processor time. A fork is a process of its own, with its own
environment, folder, output and end. What a start itself does is for tests that start one.
"""

import gc
import importlib
import importlib.util
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path

from curtail_pipeline.parent_death import sent_at_parents_end

TORCH = "transformers.models.nanochat.modeling_nanochat"
DAGSTER = ("dagster._cli.api", "dagster._core.storage.sqlite_storage", "altair", "curtail_pipeline.settings.experiment")
"""Importing these starts no thread, as a process that forks must not; Polars does, and is imported after the fork."""


class Forks:
    """The process that forks, and what is asked of it."""

    def __init__(self) -> None:
        variables = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # or importing numpy starts threads
        self._process = subprocess.Popen(
            [sys.executable, __file__], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables
        )

    def alive(self) -> bool:
        return self._process.poll() is None

    def run(
        self, words: Sequence[str], env: Mapping[str, str], timeout: float, torch: bool
    ) -> subprocess.CompletedProcess[str]:
        """As of `subprocess.run`, of Python's words: `-m MODULE ...` or `FILE ...`."""
        assert self._process.stdin is not None
        with tempfile.TemporaryDirectory() as folder:
            order, out, err = (Path(folder, name) for name in ("order", "out", "err"))
            content = {"words": words, "env": dict(env), "cwd": str(Path.cwd()), "out": str(out), "err": str(err)}
            order.write_text(json.dumps({"torch": torch, "fork": content}))
            self._process.stdin.write(f"{order}\n".encode())
            pid = self._answer(None)
            try:
                code = self._answer(timeout)
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                self._answer(None)
                raise subprocess.TimeoutExpired(list(words), timeout, out.read_bytes(), err.read_bytes()) from None
            return subprocess.CompletedProcess(list(words), code, out.read_text(), err.read_text())

    def _answer(self, timeout: float | None) -> int:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            raise TimeoutError
        line = self._process.stdout.readline()
        assert line, "the process that forks has ended"
        return int(line)


_forks: list[Forks] = []


def run_python(*words: str, env: Mapping[str, str], timeout: float, torch: bool) -> subprocess.CompletedProcess[str]:
    """Run Python as a fork of this session's process, which tests that end all their descendants end too.

    Args:
        torch: whether what runs will import it, so that it is imported before the fork.
    """
    if not _forks or not _forks[-1].alive():
        _forks.append(Forks())
    return _forks[-1].run(words, env, timeout, torch)


def run_here(words: Sequence[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """The command line called in this process, whose environment and signals are as before afterwards."""
    out, err, code, before = StringIO(), StringIO(), 0, dict(os.environ)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings(action="ignore", category=DeprecationWarning))  # typer's, of click
        from curtail_pipeline.cli.main import main

        stack.callback(os.environ.update, before)
        stack.callback(os.environ.clear)
        os.environ.clear()
        os.environ.update(env)
        stack.callback(setattr, sys, "argv", sys.argv)
        sys.argv = ["curtail", *words]
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.getsignal(number))
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(list(words), code, out.getvalue(), err.getvalue())


def _orders(stdin: int) -> Iterator[str]:
    left = b""
    while read := os.read(stdin, 1 << 16):
        *lines, left = (left + read).split(b"\n")
        yield from (line.decode() for line in lines)


def _execute(words: list[str], env: dict[str, str], cwd: str, out: str, err: str) -> None:
    """In the fork: what `python WORDS` does."""
    sent_at_parents_end(signal.SIGTERM)
    for number, (name, flags) in enumerate(((os.devnull, os.O_RDONLY), (out, os.O_WRONLY), (err, os.O_WRONLY))):
        os.dup2(os.open(name, flags | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], cwd
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
        runpy.run_path(words[0], run_name="__main__")


def _import(torch: bool) -> None:
    """What an order needs and is not there yet."""
    from curtail_pipeline.flower.processes import can_fork_torch
    from curtail_pipeline.garbage import seldom_collected
    from curtail_pipeline.orchestration.migrations import preload_migrations

    with seldom_collected():
        for module in DAGSTER:
            importlib.import_module(module)
        preload_migrations()
        if torch and can_fork_torch():
            importlib.import_module(TORCH)
    gc.freeze()  # a collection in a fork would copy every page that it shares


def _serve() -> None:
    """Fork for every order; the fork returns from here and ends as any program does."""
    sent_at_parents_end(signal.SIGTERM)
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for path in _orders(sys.stdin.fileno()):
        order = json.loads(Path(path).read_text())
        _import(order["torch"])
        pid = os.fork()
        if not pid:
            os.close(answers)
            _execute(**order["fork"])
            break
        os.write(answers, f"{pid}\n".encode())
        _, status = os.waitpid(pid, 0)
        os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        _serve()
