"""A run worker that is ready: it imports what runs need, then executes the one that it is told of on standard input.

    python -m curtail_pipeline.orchestration.run_worker MODULE...

One line, the arguments of `dagster api execute_run`. The end of the input, before or after it, is that of the launcher,
and this process ends as well: at once while it waits, else as by a SIGTERM.
"""

import importlib
import os
import select
import signal
import sys
import threading
from collections.abc import Sequence

import dagster as dg

SETTLE_S = 5.0
"""It begins to import so long after its start, when what took the last run has started up; earlier when asked."""


def main(modules: Sequence[str]) -> None:
    """See above.

    Args:
        modules: to import.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    stdin = sys.stdin.fileno()
    select.select([stdin], [], [], SETTLE_S)
    from dagster._cli.api import api_cli

    for module in modules:
        importlib.import_module(module)
    with dg.DagsterInstance.get():
        pass
    order = _line(stdin)
    if order:
        threading.Thread(target=_end_with_launcher, args=(stdin,), daemon=True).start()
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


def _end_with_launcher(stdin: int) -> None:
    while os.read(stdin, 1 << 16):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv[1:])
