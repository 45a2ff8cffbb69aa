"""An S3 server on loopback: moto's, in a process of its own, and a front that fails on demand."""

import http.client
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import boto3

from curtail_pipeline.flower.processes import free_port
from curtail_pipeline.storage.s3_calls import client_config

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

SMALLEST_PART = 1 << 16
"""Of an upload in parts, in bytes."""
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass
class S3Server:
    """A running server."""

    url: str
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    _clients: "dict[tuple[str, str, str], S3Client]" = field(default_factory=dict)

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url}/moto-api/", timeout=2).close()
        except (urllib.error.URLError, OSError):
            return False
        return True

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            if self.process.stdin is not None:
                self.process.stdin.close()

    def connect(self, url: str | None = None, key: str = "test", secret: str = "test") -> "S3Client":
        """A client, made once: that costs more than most requests."""
        wanted = (url or self.url, key, secret)
        if wanted not in self._clients:
            self._clients[wanted] = self._connect(*wanted)
        return self._clients[wanted]

    def _connect(self, url: str, key: str, secret: str) -> "S3Client":
        return boto3.session.Session().client(
            "s3",
            endpoint_url=url,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            region_name="us-east-1",
            config=client_config(),
        )

    def enforce_policies(self) -> None:
        """From now on requests need credentials, and may do what their policies say."""
        headers = {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/moto-api/reset-auth", b"0", headers)).close()

    def bucket(self) -> str:
        """A new one."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        self.connect().create_bucket(Bucket=name)
        return name


def start() -> S3Server:
    """moto's server in a process of its own, which ends with this one."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "curtail_pipeline.benchmarks.moto_server", str(port), str(SMALLEST_PART)],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    server = S3Server(url, {**KEYS, "AWS_ENDPOINT_URL": url}, process)
    deadline = time.monotonic() + 60
    while not server.answers():
        assert server.alive() and time.monotonic() < deadline, "moto's server does not start"
        time.sleep(0.05)
    return server


@contextmanager
def serving() -> Iterator[S3Server]:
    """A server for this block alone."""
    server = start()
    try:
        yield server
    finally:
        server.stop()


ERRORS = {
    "500": (500, b"<Error><Code>InternalError</Code><Message>on demand</Message></Error>"),
    "full": (507, b"<Error><Code>XMinioStorageFull</Code><Message>on demand</Message></Error>"),
}


class Front:
    """Passes requests on to a server, but for those that `fault` picks.

    `fault` sees method and path and says what becomes of the request: `500`, `drop` (the connection is closed before an
    answer), `lose` (it reaches the server, the answer gets lost), `cut` (half of the answer's body), `slow` (it is
    passed on a second later), `full` (the disk is), `silent` (no answer until this is over); None passes it on.
    """

    def __init__(self, server: S3Server) -> None:
        self.fault: Callable[[str, str], str | None] = lambda method, path: None
        self.seen: list[tuple[str, str]] = []
        backend = urlsplit(server.url)
        front = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                front.seen.append((self.command, self.path))
                what = front.fault(self.command, self.path)
                if what == "drop":
                    self.connection.close()
                    self.close_connection = True
                    return
                if what in ERRORS:
                    self._send(ERRORS[what][0], [], ERRORS[what][1])
                    return
                if what == "slow":
                    time.sleep(1.0)
                while what == "silent":
                    time.sleep(0.1)
                    what = front.fault(self.command, self.path)
                connection = http.client.HTTPConnection(str(backend.hostname), backend.port or 80, timeout=30)
                connection.request(self.command, self.path, body, dict(self.headers.items()))
                answer = connection.getresponse()
                data = answer.read()
                connection.close()
                if what == "lose":
                    self.connection.close()
                    self.close_connection = True
                    return
                headers = [
                    (k, v) for k, v in answer.getheaders() if k.lower() not in ("transfer-encoding", "connection")
                ]
                self._send(answer.status, headers, data, cut=what == "cut")

            def _send(self, status: int, headers: list[tuple[str, str]], data: bytes, cut: bool = False) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    self.send_header(name, value)
                if not any(name.lower() == "content-length" for name, _ in headers):
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data[: len(data) // 2] if cut else data)
                if cut:
                    self.wfile.flush()
                    self.connection.close()
                    self.close_connection = True

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass

            def log_message(self, *_: object) -> None:
                return

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                return

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def once(self, what: str, method: str, part: str) -> None:
        """The next such request whose path has this part."""
        self.times(1, what, method, part)

    def times(self, n: int, what: str, method: str, part: str) -> None:
        left = [n]

        def fault(seen: str, path: str) -> str | None:
            if seen == method and part in path and left[0]:
                left[0] -= 1
                return what
            return None

        self.fault = fault
