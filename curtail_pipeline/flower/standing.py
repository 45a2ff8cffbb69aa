"""A SuperLink that stands elsewhere: which federation a segment uses, and the roles that containers run.

With `CURTAIL_SUPERLINK` (`host:port`) set, segments are submitted to that SuperLink and sites join it with
`curtail site run`; without it the local federation of the home is used.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from curtail_pipeline.errors import FederationError
from curtail_pipeline.flower import control_api as control
from curtail_pipeline.flower import processes
from curtail_pipeline.flower.hangs import HANGS_S, Hangs
from curtail_pipeline.flower.local import Contact, Federation, LocalFederation
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.storage.store import Store

SUPERLINK_ENV = "CURTAIL_SUPERLINK"
BINARIES = Path(sys.executable).parent
STOP_S = 60.0
"""How long a trainer may take to finish its step when its agent is told to stop."""


@dataclass(frozen=True)
class StandingFederation(Federation):
    """A federation this machine did not start. Its nodes say who they are when the ServerApp asks."""

    address: str = ""

    def is_down(self) -> bool:
        """Not for this machine to know."""
        return False

    def wait_ready(self, sites: Sequence[str]) -> Contact:
        """The SuperLink's address; the ServerApp finds the sites' nodes, and fails when one is not online."""
        return Contact(self.address, dict.fromkeys(sites, 0))


@contextmanager
def connect(home: Path, experiment: Experiment) -> Iterator[Federation]:
    """The federation that segments of this home run on."""
    address = os.environ.get(SUPERLINK_ENV)
    if address:
        settings = experiment.federation
        yield StandingFederation(home / "federation", settings.start_timeout_s, settings.limits, address)
        return
    with LocalFederation(home, experiment).ensure() as federation:
        yield federation


def run_superlink(host: str, port: int, folder: Path) -> NoReturn:
    """Become a SuperLink that keeps its state in `folder`. No TLS: for a network that only sites and Dagster share."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        str(BINARIES / "flower-superlink"), "--insecure", "--host", host, "--port", str(port),
        "--database", str(folder / "superlink.db"), "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    os.execve(command[0], command, _environment(folder / "flwr"))


def _environment(flower_home: Path) -> dict[str, str]:
    """Flower's programs start each other by name, which has to be found without an activated environment too."""
    path = f"{BINARIES}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {**os.environ, **control.ENVIRONMENT, "FLWR_HOME": str(flower_home), "PATH": path}


def run_site(home: Path, experiment: Experiment, name: str, superlink: str) -> int:
    """A site's agent in the foreground: its resident trainer and a SuperNode that dials out to the SuperLink.

    Ends when either ends, hangs or is stopped for too long, or on SIGTERM and SIGINT; the other one is stopped, and
    killed after `STOP_S`. Whoever started it starts it again.

    Raises:
        SettingsError: the experiment has no such site.
    """
    experiment.site(name)
    folder = home / "federation"
    endpoint = folder / "trainers" / f"{name}.json"
    endpoint.parent.mkdir(parents=True, exist_ok=True)
    environment = _environment(folder / f"flwr-{name}")
    commands = [
        [
            sys.executable, "-m", "curtail_pipeline.training.serve", "--site", name, "--store", str(home / "store"),
            "--endpoint", str(endpoint), "--parent-pid", str(os.getpid()),
        ],
        [
            str(BINARIES / "flower-supernode"), "--insecure", "--superlink", superlink,
            "--host", "127.0.0.1", "--port", str(processes.free_port()),
            "--node-config", f'name="{name}" endpoint="{endpoint}"',
        ],
    ]  # fmt: skip

    def stop(*_: object) -> NoReturn:
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    parts = ("trainer", "SuperNode")
    children: list[subprocess.Popen[bytes]] = []
    try:
        children += [
            subprocess.Popen(command, env=environment, preexec_fn=processes.die_with_parent) for command in commands
        ]
        hangs = Hangs(Store(home / "store"), experiment.federation.limits)
        named = {child.pid: part for part, child in zip(parts, children, strict=True)}
        while all(child.poll() is None for child in children):
            for pid, reason in hangs.found(named, {name: children[0].pid}, None, time.monotonic()).items():
                print(f"site {name}: its {named[pid]} is killed: {reason}", file=sys.stderr, flush=True)
                os.kill(pid, signal.SIGKILL)
            time.sleep(HANGS_S)
        ended = next(child for child in children if child.poll() is not None)
        raise FederationError(
            f"site {name}: its {named[ended.pid]} ended with {ended.returncode}; see its output above"
        )
    finally:
        for child in children:
            if child.poll() is None:
                child.terminate()
        for child in children:
            try:
                child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
