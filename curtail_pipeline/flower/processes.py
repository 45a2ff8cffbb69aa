"""Processes: an identity that survives reused ids, who dies with whom, forking, and ending a whole tree."""

import atexit
import ctypes
import os
import signal
import socket
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import psutil

from curtail_pipeline.parent_death import sent_at_parents_end

SUPERVISOR_VARIABLE = "CURTAIL_SUPERVISOR_PID"
"""Set for every process of a local federation: the one that it must not outlive."""

LOOPBACK = "127.0.0.1,localhost"

PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
NAME_LENGTH = 15
"""Characters of a process's name that Linux keeps."""


GPU_FILES = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))
"""Of NVIDIA's, AMD's and WSL's drivers."""


def can_fork_torch() -> bool:
    """Whether a process that has imported torch may be forked on this machine: not where there is a GPU.

    Torch refuses CUDA to whoever was forked after its devices were counted, which importing transformers may do.
    """
    return not any(file.exists() for file in GPU_FILES)


def started_at(pid: int) -> float | None:
    """When the process was created, or None when there is none or it is a zombie.

    Seconds since the machine's start on Linux, since the epoch elsewhere: a clock that is set moves the latter, and
    with it every process would seem to be another one.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        if sys.platform == "linux":
            after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return int(after_name[19]) / os.sysconf("SC_CLK_TCK")
        return process.create_time()
    except (psutil.Error, OSError):
        return None


def is_alive(pid: int, created: float | None = None) -> bool:
    """Whether the process runs; with `created`, whether it is that very process and not a later one with its id."""
    now = started_at(pid)
    return now is not None and (created is None or abs(now - created) < 0.05)


def _prctl(option: int, value: int | bytes) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def die_with_parent() -> None:
    """Have this process killed (Linux) when the thread that started it ends."""
    sent_at_parents_end(signal.SIGKILL)


def become_subreaper() -> None:
    """Have orphaned descendants become children of this process (Linux), so that it can reap and end them."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def be_called(name: str) -> None:
    """The name by which `top` and `ps` know this process (Linux): a forked one has its parent's command line."""
    _prctl(PR_SET_NAME, name.encode()[:NAME_LENGTH])


def exit_with(pid: int, interval_s: float = 0.25) -> None:
    """End this process at once when another ends. For processes whose parent is not the one they belong to."""
    created = started_at(pid)

    def watch() -> None:
        while created is not None and is_alive(pid, created):
            time.sleep(interval_s)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name=f"exit-with-{pid}").start()


def fork_into(
    body: Callable[[], object], *, stdout: int, stderr: int, close: Iterable[int] = (), argv: list[str] | None = None
) -> int:
    """Run `body` in a forked child and return its process id. The caller must have one thread only.

    The child dies with the caller, writes to the given file descriptors, and has neither the caller's signal handlers
    nor the descriptors in `close`, nor does it do what the caller has put off to its end. What it inherits is
    everything already imported: that is the point.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(body, parent, stdout, stderr, close, argv)
    return pid


def _become(
    body: Callable[[], object], parent: int, stdout: int, stderr: int, close: Iterable[int], argv: list[str] | None
) -> NoReturn:
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    if sys.platform != "linux":
        exit_with(parent)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for descriptor in close:
        os.close(descriptor)
    _forget_ends()
    if argv:
        sys.argv = argv
        be_called(argv[0])
    _run_and_exit(body)


def _forget_ends() -> None:
    """Leave to the parent what is registered for its end: its locks and temporary folders are not this process's.

    Torch's alone, a summary of compilations and the undoing of its operators, cost every process 60 ms of CPU.
    """
    atexit._clear()
    finalizers: Any = weakref.finalize
    for known in finalizers._registry.values():
        known.atexit = False
    atexit.register(finalizers._exitfunc)  # for those that this process makes


def _run_and_exit(body: Callable[[], object]) -> NoReturn:
    """Run the body as a program: the interpreter's own end of a process, without the frames of the parent."""
    code = 0
    try:
        body()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join(timeout=5)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end_tree(roots: Iterable[int], grace_s: float) -> None:
    """Ask processes to end (SIGTERM), wait for at most `grace_s`, then kill them with all their descendants."""
    family: dict[int, psutil.Process] = {}
    for pid in roots:
        try:
            process = psutil.Process(pid)
            family[pid] = process
            family.update({child.pid: child for child in process.children(recursive=True)})
            process.terminate()
        except psutil.NoSuchProcess:
            continue
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and any(_running(process) for process in family.values()):
        reap()
        time.sleep(0.05)
    for process in family.values():
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(list(family.values()), timeout=2)


def descendants() -> list[int]:
    """Every living process below this one."""
    return [child.pid for child in psutil.Process().children(recursive=True)]


def _running(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def reap() -> list[tuple[int, int]]:
    """(process id, exit code) of every child that has ended; a negative code is a signal, as in `subprocess`."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append((pid, os.waitstatus_to_exitcode(status)))


def tail(path: Path, lines: int = 25) -> str:
    """The last lines of a log; empty when there is none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables by which no proxy is asked for this machine itself; what they except already stays excepted."""
    given = {name: environment.get(name, "") for name in ("NO_PROXY", "no_proxy")}
    either = given["no_proxy"] or given["NO_PROXY"]
    if either.strip() == "*":  # of all; in a list it would be none
        return dict.fromkeys(given, "*")
    return {name: ",".join(filter(None, (value or either, LOOPBACK))) for name, value in given.items()}


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
