"""The federation of one experiment home on this machine: started, found, asked and stopped.

It is a thing of its own, found through `<home>/federation/federation.json`, so that the UI's button, the daemon and
`curtail run` use the same one.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from filelock import FileLock, Timeout

from curtail_pipeline.errors import FederationError, MessageError, SitesDown
from curtail_pipeline.flower import processes
from curtail_pipeline.flower.federation_state import DOWN, STATE_FILE, FederationState
from curtail_pipeline.flower.supervisor_watch import watched
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.settings.federation_settings import DEFAULT_LIMITS, LivenessLimits

_POLL_S = 0.05
_STOP_S = 15.0
_START_TRIES = 3


class _Gone(FederationError):
    """A supervisor that ended without a word while it started, or another command's that ended with that."""


@dataclass
class _Hold:
    """This process's use of a federation."""

    blocks: int = 0
    started: tuple[int, float] | None = None
    """The supervisor that it has started last: process id and creation time."""


_held: dict[Path, _Hold] = {}
"""By folder."""


@dataclass(frozen=True)
class Contact:
    """How a segment reaches a federation that is ready."""

    superlink: str
    """host:port of its Control API."""
    nodes: dict[str, int]
    """Site -> Flower node id; 0 where the ServerApp has to ask."""
    authority: Path | None = None
    """Who signed its certificate; None for plain HTTP."""


@dataclass(frozen=True)
class Federation:
    """A running federation, as far as a client needs to know it."""

    folder: Path
    start_timeout_s: float = 120.0
    limits: LivenessLimits = DEFAULT_LIMITS

    def state(self) -> FederationState:
        """What the supervisor last wrote; `down` when it does not run, `stopping` as soon as its owner has ended."""
        path = self.folder / STATE_FILE
        try:
            content = FederationState.read(path.read_bytes(), str(path))
        except (OSError, MessageError):
            return DOWN
        if content.state != "failed" and not processes.is_alive(content.pid, content.created):
            return DOWN
        owner = content.owner
        if content.state in ("starting", "ready") and owner and not processes.is_alive(owner, content.owner_created):
            return content.model_copy(update={"state": "stopping", "error": "the owner has ended"})
        return content

    def is_down(self) -> bool:
        """Whether nobody will start what is missing, so that waiting for it is in vain."""
        return self.state().state in ("down", "failed", "stopping")

    def wait_ready(self, sites: Sequence[str]) -> Contact:
        """The SuperLink's address and the sites' nodes once SuperLink, and SuperNode and trainer of these sites are
        ready.

        Raises:
            SitesDown: a site's is not, within the start timeout, or `delivery_s` where the federation was ready before.
            FederationError: the SuperLink is not; the message ends with its log.
        """
        began = time.monotonic()
        while True:
            state = self.state()
            if state.state in ("down", "failed", "stopping"):
                reason = state.error or processes.tail(self.folder / "logs" / "supervisor.log")
                raise FederationError(f"the federation in {self.folder} is {state.state}: {reason}")
            strange = [site for site in sites if site not in state.sites]
            if strange:
                raise FederationError(
                    f"the federation in {self.folder} has no site {strange[0]!r}, it was started with "
                    f"{', '.join(state.sites)}; run `curtail federation down` and start it again"
                )
            late = {
                site: part
                for site in sites
                for part, ready in (
                    (f"supernode-{site}", state.sites[site].supernode.ready),
                    (f"trainer-{site}", state.sites[site].trainer.ready),
                )
                if not ready
            }
            if state.superlink.ready and not late:
                return Contact(
                    state.superlink.address, {site: state.sites[site].supernode.node_id or 0 for site in sites}
                )
            again = state.state == "ready" and state.superlink.ready
            patience = min(self.limits.delivery_s, self.start_timeout_s) if again else self.start_timeout_s
            if time.monotonic() - began > patience:
                self._refuse(late, patience, state.superlink.ready)
            time.sleep(_POLL_S)

    def _refuse(self, late: Mapping[str, str], waited_s: float, superlink: bool) -> NoReturn:
        """Say what is not ready: the SuperLink before all, else parts of sites."""
        parts = [*late.values()] if superlink else ["superlink", *late.values()]
        log = self.folder / "logs" / f"{parts[0]}.log"
        message = f"{', '.join(parts)} not ready after {waited_s:.0f} s; {log} ends:\n" + processes.tail(log)
        if not superlink:
            raise FederationError(message)
        raise SitesDown(message, {site: f"{part} is not ready" for site, part in late.items()})

    def endpoint(self, site: str) -> Path:
        return self.folder / "trainers" / f"{site}.json"


class LocalFederation:
    """Starts, finds and stops the federation of a home.

    Args:
        home: the experiment's home folder.
        store: address of the store; `<home>/store` when not given.
        trainer: command of the resident trainer, the product's own when not given.
    """

    def __init__(
        self, home: Path, experiment: Experiment, *, store: str | None = None, trainer: Sequence[str] | None = None
    ) -> None:
        self.home = Path(home).resolve()
        self._store = store or str(self.home / "store")
        self.folder = self.home / "federation"
        self.sites = [site.name for site in experiment.sites]
        self._trainer = list(trainer) if trainer else None
        settings = experiment.federation
        self._federation = Federation(self.folder, experiment.start_timeout_s, settings.limits)

    def status(self) -> FederationState:
        """What runs: `state` (`down`, `starting`, `ready`, `failed`, `stopping`), addresses, processes, logs."""
        return self._federation.state()

    def up(self) -> FederationState:
        """Start it, unless it runs, to stay until `down`; its state once it is ready.

        Raises:
            FederationError: it does not become ready; the message ends with the log of what failed.
        """
        self._obtain(owner=None)
        return self.status()

    def down(self) -> bool:
        """Stop it with everything it started; whether there was something to stop."""
        state = self.status()
        if state.state in ("down", "failed"):
            return False
        self._stop(state.pid, state.created)
        return True

    @contextmanager
    def ensure(self) -> Iterator[Federation]:
        """A running federation: the one that is there, else one that ends with this block or with this process.

        Of blocks within each other the outermost counts: what replaces a federation that died stays until its end.

        Raises:
            FederationError: as `up`.
        """
        hold = _held.setdefault(self.folder, _Hold())
        hold.blocks += 1
        try:
            with watched(self.status, self._federation.limits.liveness_s):
                hold.started = self._obtain(owner=os.getpid()) or hold.started
                yield self._federation
        finally:
            hold.blocks -= 1
            if not hold.blocks:
                del _held[self.folder]
                if hold.started:
                    self._stop(*hold.started)

    def _obtain(self, owner: int | None) -> tuple[int, float] | None:
        """Have one that is ready; (process id, creation time) if this call started it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        lock = FileLock(self.folder / "start.lock")
        try:
            with lock.acquire(timeout=self._federation.start_timeout_s + _STOP_S):
                for _ in range(_START_TRIES - 1):
                    with contextlib.suppress(_Gone):
                        return self._started(owner)
                return self._started(owner)
        except Timeout as error:
            raise FederationError(
                f"another command has been starting the federation in {self.folder} for too long; end it and try again"
            ) from error

    def _started(self, owner: int | None) -> tuple[int, float] | None:
        """As `_obtain`, once."""
        mine = None if self._running() else self._start(owner)
        try:
            self._federation.wait_ready(self.sites)
        except BaseException as error:
            over = ("down",) if mine else ("down", "stopping")
            gone = isinstance(error, FederationError) and self.status().state in over
            if mine:
                self._stop(*mine)
            if gone:
                raise _Gone(str(error)) from error
            raise
        return mine

    def _running(self) -> bool:
        """Whether there is one to use. Waits for the end of one that is stopping."""
        deadline = time.monotonic() + _STOP_S
        while self.status().state == "stopping" and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return self.status().state in ("starting", "ready")

    def _start(self, owner: int | None) -> tuple[int, float]:
        (self.folder / STATE_FILE).unlink(missing_ok=True)
        (self.folder / "logs").mkdir(exist_ok=True)
        command = [
            sys.executable, "-m", "curtail_pipeline.flower.supervisor", "--folder", str(self.folder),
            "--store", self._store, "--sites", ",".join(self.sites),
        ]  # fmt: skip
        command += ["--limits", self._federation.limits.model_dump_json()]
        command += ["--owner", str(owner)] if owner else []
        command += ["--trainer", json.dumps(self._trainer)] if self._trainer else []
        log = self.folder / "logs" / "supervisor.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        deadline = time.monotonic() + self._federation.start_timeout_s
        while self.status().state == "down":
            code = process.poll()
            if code is not None or time.monotonic() > deadline:
                if code is None:
                    process.kill()
                raise (_Gone if code is not None and code < 0 else FederationError)(
                    f"the supervisor in {self.folder} did not start (exit code {code}); its log {log} ends:\n"
                    + processes.tail(log)
                )
            time.sleep(_POLL_S)
        # it is not this object's to wait for: it may outlive this process, and `_stop` watches its id
        process.returncode = 0
        state = self.status()
        return process.pid, state.created

    def _stop(self, pid: int, created: float) -> None:
        """End a supervisor; what it started ends with it, at the latest when it is killed."""
        with contextlib.suppress(ProcessLookupError):
            if processes.is_alive(pid, created):
                os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        while processes.is_alive(pid, created):
            if time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                deadline = float("inf")
            time.sleep(_POLL_S)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
