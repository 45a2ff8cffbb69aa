"""Watches the UI's code server from outside: what the sensors cannot do while the code server they run in is dead.

There is one for webserver and daemon, behind a proxy (`dagster code-server`) that starts it once. When it is killed,
every sensor stands still, and so do runs that were its children. And keeps Dagster's databases open meanwhile, so that
the daemon's writes, every second, are cheap between runs too.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import httpx
import psutil

from curtail_pipeline.orchestration.open_databases import databases_open
from curtail_pipeline.orchestration.run_workers import end_dead

EVERY_S = 5.0
RELOAD = "mutation { reloadWorkspace { __typename } }"
RELOAD_S = 60.0
"""Within which a code server starts."""
_log = logging.getLogger(__name__)


@contextmanager
def watching(dagster_home: Path, pid: int, address: str) -> Iterator[None]:
    """While inside: a code server that is killed is started again, and runs whose worker is gone are ended.

    Args:
        pid: of the process that has started webserver, daemon and the proxy.
        address: of its web UI, e.g. http://127.0.0.1:3000.
    """
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(dagster_home, pid, address, over), name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(EVERY_S)


def _watch(dagster_home: Path, pid: int, address: str, over: threading.Event) -> None:
    seen: set[int] = set()
    if over.wait(EVERY_S):  # the first to open an instance makes its tables; that is not this one
        return
    with dg.DagsterInstance.from_config(str(dagster_home)) as instance, databases_open(instance):
        while not over.wait(EVERY_S):
            try:
                end_dead(instance, datetime.now(UTC))
                servers = code_servers(pid)
                if seen and not servers & seen:
                    _log.warning("the code server is gone: starting it again")
                    _reload(address)
                    servers = code_servers(pid)
                seen = servers or seen
            except (httpx.HTTPError, psutil.Error) as error:
                _log.warning("watching the code server: %s", error)  # and again in a moment


def _reload(address: str) -> None:
    """A proxy from the environment must not see requests to this machine."""
    with httpx.Client(trust_env=False, timeout=RELOAD_S) as client:
        client.post(f"{address}/graphql", json={"query": RELOAD}).raise_for_status()


def code_servers(pid: int) -> set[int]:
    """Process ids of the code servers behind their proxy."""
    proxies = [each for each in psutil.Process(pid).children(recursive=True) if "code-server" in _words(each)]
    return {child.pid for proxy in proxies for child in proxy.children() if "grpc" in _words(child)}


def _words(process: psutil.Process) -> list[str]:
    """The command line; empty once it has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []
