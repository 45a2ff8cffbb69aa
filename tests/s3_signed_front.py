"""A front for pre-signed requests: it verifies signature and expiry as S3 does; moto behind it does not."""

import hashlib
import hmac
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from curtail_pipeline.benchmarks.s3_server import S3Server
from curtail_pipeline.flower.processes import free_port
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.s3_calls import Place
from curtail_pipeline.storage.s3_store import S3Store
from curtail_pipeline.storage.store import Method

SECRET = "a secret of the coordinator"
INSIDE = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
"""moto does not check it, but takes a request without one for an anonymous one."""


def signature(method: str, path: str, query: dict[str, str], host: str, secret: str) -> str:
    """AWS Signature Version 4 of a pre-signed request ("Authenticating Requests: Using Query Parameters")."""
    pairs = sorted((quote(k, safe="-_.~"), quote(v, safe="-_.~")) for k, v in query.items() if k != "X-Amz-Signature")
    canonical = "\n".join(
        [method, quote(path), "&".join(f"{k}={v}" for k, v in pairs), f"host:{host}\n", "host", "UNSIGNED-PAYLOAD"]
    )
    day, region, service, _ = query["X-Amz-Credential"].split("/")[1:]
    scope = f"{day}/{region}/{service}/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{query['X-Amz-Date']}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{secret}".encode()
    for part in (day, region, service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


class SignedFront:
    """Refuses with 403 what is not signed, or not any more."""

    def __init__(self, backend: str, secret: str) -> None:
        self.backend, self.secret = backend, secret
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.accepted: list[tuple[str, str]] = []
        self.refused: list[str] = []

    async def answer(self, request: Request) -> Response:
        query = dict(request.query_params)
        reason = self._wrong(request, query)
        if reason:
            self.refused.append(reason)
            return Response(f"<Error><Code>AccessDenied</Code><Message>{reason}</Message></Error>", 403)
        self.accepted.append((request.method, request.url.path))
        async with httpx.AsyncClient() as client:
            headers = {k: v for k, v in request.headers.items() if k in ("range", "content-type")}
            headers["authorization"] = INSIDE
            found = await client.request(
                request.method, self.backend + request.url.path, headers=headers, content=await request.body()
            )
        return Response(found.content, found.status_code, {k: v for k, v in found.headers.items() if k != "connection"})

    def _wrong(self, request: Request, query: dict[str, str]) -> str:
        if "X-Amz-Signature" not in query:
            return "not signed"
        signed = datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        if not signed - 300 < time.time() < signed + int(query["X-Amz-Expires"]):
            return "expired"
        good = signature(request.method, request.url.path, query, request.headers["host"], self.secret)
        return "" if hmac.compare_digest(good, query["X-Amz-Signature"]) else "SignatureDoesNotMatch"


@contextmanager
def signed_front(backend: str, secret: str) -> Iterator[SignedFront]:
    front = SignedFront(backend, secret)
    app = Starlette(routes=[Route("/{path:path}", front.answer, methods=["GET", "PUT", "HEAD", "DELETE"])])
    server = uvicorn.Server(uvicorn.Config(app, port=front.port, log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the front does not start"
        time.sleep(0.01)
    yield front
    server.should_exit = True
    thread.join()


class SigningFor(S3Store):
    """Signs for a front, as if the server stood there."""

    front: S3Store

    def sign(self, method: Method, key: str, seconds: int) -> str:
        return self.front.sign(method, key, seconds)


def bucket_of(s3: S3Server, filled: FolderStore, folder: Path, url: str | None = None) -> SigningFor:
    """A bucket with what the folder holds."""
    place = Place(s3.bucket(), "runs/small")
    store = SigningFor(place, folder, 1 << 26, s3.connect)
    store.front = S3Store(place, folder, 1 << 26, lambda: s3.connect(url, secret=SECRET))
    for path in sorted(filled.root.rglob("*")):
        if path.is_file() and path.suffix != ".lock":
            store.put_file(path, path.relative_to(filled.root).as_posix())
    return store
