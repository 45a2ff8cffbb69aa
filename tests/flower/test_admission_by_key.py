"""Who may join a SuperLink that has keys, through the front of `deploy/nginx`, with real processes."""

import shutil
import socket
import sqlite3
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import httpx
import pytest
from waiting import wait_until

from curtail_pipeline.errors import FederationError
from curtail_pipeline.flower.control_api import Control
from curtail_pipeline.flower.fleet_client import Fleet
from curtail_pipeline.flower.keys import KeyFolder, make_keys, public_key_of
from curtail_pipeline.flower.processes import free_port
from curtail_pipeline.flower.standing import BINARIES, Credentials, _environment, check_clock

CONFIG = Path(__file__).parents[2] / "deploy" / "nginx" / "superlink.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


@dataclass
class Secured:
    folder: Path
    keys: KeyFolder
    superlink: str
    front: str
    """The address that sites know: nginx, where it is installed; else the SuperLink itself."""

    def control(self) -> Control:
        return Control(self.superlink, self.keys.authority)

    def key(self, site: str) -> Path:
        return self.folder / "sites" / site

    def register(self, site: str) -> int:
        with self.control() as asked:
            return asked.register(site, public_key_of(self.key(site)))

    def status(self, site: str) -> str:
        with self.control() as asked:
            return next((node.status for node in asked.nodes() if node.name == site), "unknown")

    @contextmanager
    def node(self, site: str, *secured: str) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
        """A SuperNode of a site and its log."""
        secured = secured or tuple(Credentials(self.keys.authority, self.key(site)).arguments())
        command = [
            str(BINARIES / "flower-supernode"), *secured, "--superlink", self.front, "--host", "127.0.0.1",
            "--port", str(free_port()), "--node-config", f'name="{site}"',
        ]  # fmt: skip
        log = self.folder / f"{site}.log"
        environment = _environment(self.folder / f"flwr-{site}")
        with log.open("wb") as stream:
            process = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        try:
            yield process, log
        finally:
            process.terminate()
            process.wait(120)


def answers(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    keys = make_keys(folder / "keys", ["superlink.example"])
    port, outer = free_port(), free_port()
    words = ["superlink", "--keys", str(keys.folder), "--port", str(port), "--folder", str(folder / "link")]
    children = [subprocess.Popen([sys.executable, "-m", "curtail_pipeline.cli", *words])]
    try:
        if NGINX:
            text = CONFIG.read_text().replace("/keys/", f"{keys.folder}/").replace("/run/", f"{folder}/")
            text = text.replace("127.0.0.1:8000", f"127.0.0.1:{port}").replace("listen 8443", f"listen {outer}")
            (folder / "nginx.conf").write_text(text)
            words = ["-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
            children.append(subprocess.Popen([NGINX, *words]))
        found = Secured(folder, keys, f"127.0.0.1:{port}", f"127.0.0.1:{outer if NGINX else port}")
        wait_until(lambda: answers(found.superlink) and answers(found.front), 600, "a SuperLink that listens")
        yield found
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait(120)


@pytest.mark.long
def test_a_registered_site_joins_and_a_revoked_one_is_out(secured: Secured) -> None:
    node_id = secured.register("north")
    with pytest.raises(FederationError, match=r"'north' is registered .* already; `curtail site revoke north`"):
        secured.register("north")
    with secured.node("north") as (process, log):
        wait_until(lambda: secured.status("north") == "online", 600, log.name)
        with secured.control() as asked:
            assert [node.node_id for node in asked.nodes() if node.name == "north"] == [node_id]
            asked.revoke("north")
        assert secured.status("north") == "unregistered"
        with secured.control() as asked, pytest.raises(FederationError, match="no site 'north' is registered"):
            asked.revoke("north")
    with secured.node("north") as (process, log):
        assert wait_until(lambda: process.poll() is not None and str(process.poll()), 600, "its refusal") != "0"
        assert "Failed to activate SuperNode" in log.read_text()


def test_sites_of_a_folder_are_admitted_once_and_who_was_put_out_stays_out(secured: Secured) -> None:
    def admitted(site: str) -> str:
        with secured.control() as asked:
            return asked.admit(site, public_key_of(secured.key(site)))

    assert admitted("east").startswith("may join as node ") and admitted("east") == "is admitted"
    with secured.control() as asked:
        with pytest.raises(FederationError, match=r"'east' is registered .* already"):
            asked.admit("east", public_key_of(secured.key("of-another-east")))
        asked.revoke("east")
    assert admitted("east") == "was put out, and stays so"


def test_an_unregistered_key_is_refused(secured: Secured) -> None:
    public_key_of(secured.key("stranger"))
    with secured.node("stranger") as (process, log):
        assert wait_until(lambda: process.poll() is not None and str(process.poll()), 600, "its refusal") != "0"
        assert "Failed to activate SuperNode" in log.read_text()
    assert secured.status("stranger") == "unknown"


def test_plain_text_and_another_authority_are_refused(secured: Secured, tmp_path: Path) -> None:
    with Control(secured.superlink) as asked, pytest.raises(FederationError, match="no SuperLink answers"):
        asked.nodes()
    other = make_keys(tmp_path, ["superlink.example"])
    with (
        Control(secured.superlink, other.authority) as asked,
        pytest.raises(FederationError, match="certificate verify failed"),
    ):
        asked.nodes()
    with httpx.Client(trust_env=False) as plain:
        try:
            status = plain.post(f"http://{secured.front}/v1/fleet/pull-messages").status_code
        except httpx.RemoteProtocolError:  # the SuperLink itself says nothing at all
            status = 400
    assert status == 400


def test_one_site_cannot_speak_for_another(secured: Secured) -> None:
    """A site's registered key, with the node of another site in what it says."""
    victim, liar = secured.register("victim"), secured.register("liar")
    with Fleet(secured.front, secured.keys.authority, secured.key("liar")) as fleet:
        fleet.activate()
        assert (fleet.beat(liar), fleet.beat(victim)) == (200, 401)


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed; Debian's package is nginx-light")
@pytest.mark.parametrize("path", ["control/list-nodes", "control/start-run", "runtime/pull-task", "", "../health"])
def test_sites_reach_the_fleet_api_alone(secured: Secured, path: str) -> None:
    trusting = ssl.create_default_context(cafile=str(secured.keys.authority))
    with httpx.Client(verify=trusting, trust_env=False) as client:
        assert client.post(f"https://{secured.front}/v1/{path}").status_code == 403


@pytest.mark.long
def test_a_superlink_restored_from_a_copy_knows_the_sites_of_then(tmp_path: Path) -> None:
    """With their node ids; who was put out since is in again, and who came since is not."""
    keys, folder, port = make_keys(tmp_path / "keys", ["superlink.example"]), tmp_path / "link", free_port()
    found = Secured(tmp_path, keys, f"127.0.0.1:{port}", f"127.0.0.1:{port}")

    @contextmanager
    def running() -> Iterator[None]:
        words = ["superlink", "--keys", str(keys.folder), "--port", str(port), "--folder", str(folder)]
        with subprocess.Popen([sys.executable, "-m", "curtail_pipeline.cli", *words]) as process:
            try:
                wait_until(lambda: answers(found.superlink), 600, "a SuperLink that listens")
                yield
            finally:
                process.terminate()

    with running():
        node_id = found.register("kept")
        with (
            closing(sqlite3.connect(folder / "superlink.db")) as live,
            closing(sqlite3.connect(tmp_path / "c")) as copy,
        ):
            live.backup(copy)
        with found.control() as asked:
            asked.revoke("kept")
        found.register("later")
    for file in folder.glob("superlink.db*"):
        file.unlink()
    shutil.copy(tmp_path / "c", folder / "superlink.db")
    with running():
        with found.control() as asked:
            assert [(node.name, node.node_id) for node in asked.nodes()] == [("kept", node_id)]
        assert found.status("kept") == "registered" and found.status("later") == "unknown"


class Clock(BaseHTTPRequestHandler):
    now: ClassVar[datetime]

    def do_GET(self) -> None:
        self.send_response_only(404)
        self.send_header("Date", format_datetime(self.now, usegmt=True))
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.mark.parametrize(
    ("off", "said"),
    [
        (timedelta(hours=1), r"3[56]\d\d s behind"),
        (timedelta(seconds=-30), r"3\d s ahead of"),
        (timedelta(minutes=4), ""),
    ],
)
def test_a_site_whose_clock_is_off_is_told_so_by_name(off: timedelta, said: str) -> None:
    Clock.now = datetime.now(UTC) + off
    with HTTPServer(("127.0.0.1", 0), Clock) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        if not said:
            check_clock("fresno", address, None)
            return
        with pytest.raises(
            FederationError, match=f"site fresno: its clock is {said} that of the SuperLink at {address}"
        ):
            check_clock("fresno", address, None)


def test_a_superlink_that_does_not_answer_says_nothing_of_clocks() -> None:
    check_clock("fresno", f"127.0.0.1:{free_port()}", None)


def test_keys_are_private_and_the_authority_stays(tmp_path: Path) -> None:
    made = make_keys(tmp_path / "keys", ["10.0.0.1", "superlink.example"])
    authority, certificate = made.authority.read_bytes(), made.certificate.read_bytes()
    for private in (made.authority_key, made.certificate_key):
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    again = make_keys(tmp_path / "keys", ["other.example"])
    assert again.authority.read_bytes() == authority and again.certificate.read_bytes() != certificate
    with pytest.raises(FederationError, match="'https://a' is no name or address; give it without scheme"):
        make_keys(tmp_path / "keys", ["https://a"])
    made.authority_key.unlink()
    with pytest.raises(FederationError, match=r"only one of ca.crt and ca.key"):
        make_keys(tmp_path / "keys", ["a"])
    with pytest.raises(
        FederationError, match=r"ca.crt does not exist; make it with `curtail deploy keys .* --host NAME`"
    ):
        KeyFolder(tmp_path).require()


def test_a_key_of_the_site_is_used_and_never_overwritten(tmp_path: Path) -> None:
    key = tmp_path / "fresno"
    made = public_key_of(key)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert public_key_of(key) == made
    key.unlink()
    assert public_key_of(key) == made, "the public half is enough"
    (tmp_path / "fresno.pub").unlink()
    key.write_text("private")
    with pytest.raises(FederationError, match=r"without fresno.pub"):
        public_key_of(key)
    (tmp_path / "rsa.pub").write_text(f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAII{'Ii' * 20}Ii x")
    with pytest.raises(FederationError, match="no elliptic-curve key; make one with"):
        public_key_of(tmp_path / "rsa")
