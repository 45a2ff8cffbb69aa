"""A SuperLink that stands elsewhere: which federation a segment uses, and the roles that containers run.

With `CURTAIL_SUPERLINK` (`host:port`) set, segments are submitted to that SuperLink and sites join it with
`curtail site run`; without it the local federation of the home is used. `CURTAIL_CA` names the certificate of the
authority that vouches for the SuperLink; with it all that is said to the SuperLink goes over TLS.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NoReturn

from curtail_pipeline.errors import FederationError, SettingsError
from curtail_pipeline.flower import control_api as control
from curtail_pipeline.flower import ended_app, processes, supernode
from curtail_pipeline.flower.fork_server import ForkServer
from curtail_pipeline.flower.hangs import HANGS_S, Hangs
from curtail_pipeline.flower.keys import KeyFolder
from curtail_pipeline.flower.local import Contact, Federation, LocalFederation
from curtail_pipeline.settings.experiment import Experiment, parse_experiment
from curtail_pipeline.settings.federation_settings import DEFAULT_LIMITS, LivenessLimits
from curtail_pipeline.storage.home import EXPERIMENT_KEY, Home, homes_root
from curtail_pipeline.storage.links import BROUGHT
from curtail_pipeline.storage.stores import open_store

SUPERLINK_ENV, AUTHORITY_ENV = "CURTAIL_SUPERLINK", "CURTAIL_CA"
BINARIES = Path(sys.executable).parent
BEHIND_S, AHEAD_S = 300.0, 5.0
"""How far a site's clock may be from the SuperLink's for Flower to take what it signs (flwr.common.constant 1.41)."""
STOP_S = 60.0
"""How long a trainer may take to finish its step when its agent is told to stop."""


@dataclass(frozen=True)
class StandingFederation(Federation):
    """A federation this machine did not start. Its nodes say who they are when the ServerApp asks."""

    address: str = ""
    authority: Path | None = None

    def is_down(self) -> bool:
        """Not for this machine to know."""
        return False

    def wait_ready(self, sites: Sequence[str]) -> Contact:
        """The SuperLink's address; the ServerApp finds the sites' nodes, and fails when one is not online."""
        return Contact(self.address, dict.fromkeys(sites, 0), self.authority)


def local_federation(home: Home, experiment: Experiment) -> LocalFederation:
    """That of this home on this machine."""
    return LocalFederation(home.root, experiment, store=home.store)


@contextmanager
def connect(home: Home, experiment: Experiment) -> Iterator[Federation]:
    """The federation that segments of this home run on."""
    address = os.environ.get(SUPERLINK_ENV)
    if address:
        settings = experiment.federation
        authority = Path(os.environ[AUTHORITY_ENV]) if os.environ.get(AUTHORITY_ENV) else None
        yield StandingFederation(home.federation, experiment.start_timeout_s, settings.limits, address, authority)
        return
    with local_federation(home, experiment).ensure() as federation:
        yield federation


def run_superlink(host: str, port: int, folder: Path, keys: KeyFolder | None = None) -> NoReturn:
    """A SuperLink in the foreground that keeps its state in `folder`.

    Ends when it ends or is stopped for too long, or on SIGTERM and SIGINT. Whoever started it starts it again. Its
    SuperExec is started again here.

    Args:
        keys: its certificate; only sites whose key is registered may join then, and everything goes over TLS. Without
            it there is neither, for a network that only sites and Dagster share. With or without, who reaches the port
            may start runs, which are code: let sites reach `/v1/fleet/` alone (`deploy/nginx/superlink.conf`).

    Raises:
        FederationError: a file of the keys is not there, or the SuperLink ended by itself, or its SuperExec time and
            again.
    """
    secured = ["--insecure"]
    if keys is not None:
        keys.require()
        secured = [
            "--ssl-ca-certfile", str(keys.authority), "--ssl-certfile", str(keys.certificate),
            "--ssl-keyfile", str(keys.certificate_key), "--enable-supernode-auth",
        ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    database = folder / "superlink.db"
    command = [
        sys.executable, "-c", f"import {control.__name__} as control; control.entry_point('flower-superlink')()",
        *secured, "--host", host, "--port", str(port),
        "--database", str(database), "--disable-runtime-dependency-installation",
    ]  # fmt: skip
    told = _end_on_signals()
    os.environ |= _environment(folder / "flwr")
    link: subprocess.Popen[bytes] | None = None
    ended_app.speak_for_all(database)
    try:
        with ForkServer(folder / "forks") as forks:
            link = subprocess.Popen(command, preexec_fn=processes.die_with_parent)
            hangs = Hangs(open_store(folder), DEFAULT_LIMITS)
            while link.poll() is None and not told.is_set():
                _end_hung(hangs, {}, "the SuperLink", {link.pid: "SuperLink"})
                if forks.serve(HANGS_S, link.pid):
                    print("the SuperLink's SuperExec has ended and was started again", file=sys.stderr, flush=True)
            if told.is_set():
                raise SystemExit(0)
            raise FederationError(f"the SuperLink ended with {link.returncode}; see its output above")
    finally:
        _end_all([link] if link else [])


def _end_on_signals() -> threading.Event:
    """Have SIGTERM and SIGINT end this process.

    The event is set as well: what a handler raises is dropped where it comes in a finaliser or a weak reference's
    callback, of which imports have many.
    """
    told = threading.Event()

    def stop(*_: object) -> NoReturn:
        told.set()
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    return told


def _end_hung(hangs: Hangs, trainers: Mapping[str, int], whose: str, named: Mapping[int, str]) -> None:
    """Kill what lives below this process and does nothing."""
    found = hangs.found(processes.descendants(), trainers, None, time.monotonic())
    for pid, reason in found.items():
        print(f"{whose}: its {named.get(pid, f'process {pid}')} is killed: {reason}", file=sys.stderr, flush=True)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _end_all(children: Sequence["subprocess.Popen[bytes]"]) -> None:
    for child in children:
        if child.poll() is None:
            child.terminate()
            child.send_signal(signal.SIGCONT)  # one that was stopped would not see it
    for child in children:
        try:
            child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _environment(flower_home: Path) -> dict[str, str]:
    """Flower's programs start each other by name, which has to be found without an activated environment too, and speak
    to each other on this machine."""
    path = f"{BINARIES}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    own = {"FLWR_HOME": str(flower_home), "PATH": path}
    return {**os.environ, **control.ENVIRONMENT, **processes.without_proxy(os.environ), **own}


@dataclass(frozen=True)
class Credentials:
    """What a site shows and whom it trusts."""

    authority: Path
    """Certificate of who vouches for the SuperLink."""
    key: Path
    """The site's private key; its public half is registered."""

    def arguments(self) -> list[str]:
        """Of `flower-supernode`.

        Raises:
            FederationError: a file is not there.
        """
        for path, made in ((self.authority, "curtail deploy keys"), (self.key, "curtail site register")):
            if not path.is_file():
                raise FederationError(f"{path} does not exist; `{made}` makes it, bring it to this site")
        return ["--root-certificates", str(self.authority), "--auth-supernode-private-key", str(self.key)]


def check_clock(name: str, superlink: str, authority: Path | None) -> None:
    """Compare this machine's clock with the SuperLink's. A SuperLink that does not answer says nothing about it.

    Raises:
        FederationError: they are too far apart for the site's signatures to be taken.
    """
    import httpx

    verify = control.trusting(authority) if authority else False
    try:
        with httpx.Client(trust_env=False, verify=verify, timeout=10.0) as client:
            said = client.get(f"{'https' if authority else 'http'}://{superlink}/v1/fleet/").headers.get("date")
    except httpx.TransportError:
        return
    if said is None:
        return
    ahead = (datetime.now(UTC) - parsedate_to_datetime(said)).total_seconds()
    if not -BEHIND_S <= ahead <= AHEAD_S + 1:  # the header has whole seconds
        raise FederationError(
            f"site {name}: its clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} that of the "
            f"SuperLink at {superlink}, which allows {AHEAD_S:.0f} s ahead and {BEHIND_S:.0f} s behind; set it, e.g. "
            "with NTP"
        )


def run_site_of_store(store: str, name: str, superlink: str, credentials: Credentials | None = None) -> int:
    """As `run_site`, with the experiment that is in the store: the site needs no file of it.

    Raises:
        StoreError: the store cannot be read, or no experiment was ever run on it.
        SettingsError: the experiment has no such site.
    """
    opened = open_store(store)
    experiment = parse_experiment(opened.read_json(EXPERIMENT_KEY), f"{opened.uri}/{EXPERIMENT_KEY}")
    experiment.site(name)
    folder = homes_root() / "sites" / name
    return run_site(folder, opened.uri, name, superlink, credentials, experiment.federation.limits)


class _Brought:
    """The experiment that the orders of a linked site have brought, for the limits that it is held to.

    Args:
        own: the site's own store.
    """

    def __init__(self, own: Path) -> None:
        self._file = own / BROUGHT / EXPERIMENT_KEY
        self._seen: int | None = None

    def newer(self) -> LivenessLimits | None:
        """Where it is another one than before, or there was none."""
        try:
            stamp = self._file.stat().st_mtime_ns
        except FileNotFoundError:  # no order has come yet
            return None
        if stamp == self._seen:
            return None
        self._seen = stamp
        try:
            return parse_experiment(json.loads(self._file.read_bytes()), str(self._file)).federation.limits
        except SettingsError:  # of another version: the trainer has refused the order for that, and said so
            return None


def run_linked_site(name: str, superlink: str, credentials: Credentials | None = None) -> int:
    """As `run_site`, for a site that `federation.linked` names: it needs neither the store nor the experiment."""
    folder = homes_root() / "sites" / name
    return run_site(folder, str(folder / "own"), name, superlink, credentials, linked=True)


def run_site(
    folder: Path,
    store: str,
    name: str,
    superlink: str,
    credentials: Credentials | None = None,
    limits: LivenessLimits = DEFAULT_LIMITS,
    *,
    linked: bool = False,
) -> int:
    """A site's agent in the foreground: its resident trainer and a SuperNode that dials out to the SuperLink.

    Ends when either ends, hangs or is stopped for too long, or on SIGTERM and SIGINT; the other is stopped, and killed
    after `STOP_S`. Whoever started it starts it again. The SuperExec is started again here.

    Args:
        folder: for what is the site's own.
        store: address of the store; with `linked` a folder of the site's own.
        credentials: for a SuperLink that has keys; plain HTTP without.
        limits: how long a part may show no progress; with `linked` until an order has brought the experiment.
        linked: orders bring addresses of what they need.

    Raises:
        FederationError: a part ended by itself, a credential is not there, or the machine's clock is off.
    """
    secured = credentials.arguments() if credentials else ["--insecure"]
    if credentials:
        check_clock(name, superlink, credentials.authority)
    endpoint = folder / "trainers" / f"{name}.json"
    endpoint.parent.mkdir(parents=True, exist_ok=True)
    os.environ |= _environment(folder / f"flwr-{name}")
    trainer = [
        sys.executable, "-m", "curtail_pipeline.training.serve", "--site", name, "--store", store,
        "--endpoint", str(endpoint), "--parent-pid", str(os.getpid()), *(["--linked"] if linked else []),
    ]  # fmt: skip
    node = [
        sys.executable, "-c", f"import {supernode.__name__} as node; node.supernode({str(endpoint)!r})", *secured,
        "--superlink", superlink, "--host", "127.0.0.1", "--port", str(processes.free_port()),
        "--node-config", f'name="{name}" endpoint="{endpoint}"',
    ]  # fmt: skip

    endpoint.unlink(missing_ok=True)  # of one that was killed
    told = _end_on_signals()
    children = [subprocess.Popen(trainer, preexec_fn=processes.die_with_parent)]
    try:
        with ForkServer(folder / f"forks-{name}") as forks:
            children.append(subprocess.Popen(node, preexec_fn=processes.die_with_parent))
            hangs, brought = Hangs(open_store(store, patience_s=HANGS_S), limits), _Brought(Path(store))
            named = {child.pid: part for part, child in zip(("trainer", "SuperNode"), children, strict=True)}
            while all(child.poll() is None for child in children) and not told.is_set():
                if linked and (changed := brought.newer()):
                    hangs.hold_to(changed)
                _end_hung(hangs, {name: children[0].pid}, f"site {name}", named)
                if forks.serve(HANGS_S, children[1].pid):
                    print(f"site {name}: its SuperExec has ended and was started again", file=sys.stderr, flush=True)
        if told.is_set():
            raise SystemExit(0)
        ended = next(child for child in children if child.poll() is not None)
        raise FederationError(
            f"site {name}: its {named[ended.pid]} ended with {ended.returncode}; see its output above"
        )
    finally:
        _end_all(children)
