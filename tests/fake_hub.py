"""A hub on loopback that takes what is uploaded, as far as `huggingface_hub` asks it, in its plain way (no xet)."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"


@dataclass
class Hub:
    """What it was asked, and what it holds."""

    refuse: bool = False
    """Every token is refused with 403."""
    full: bool = False
    """No file is taken."""
    address: str = ""
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    """Of the repository that was written to, by path."""
    uploads: dict[str, bytes] = field(default_factory=dict)
    """Large files by sha256."""
    asked: list[str] = field(default_factory=list)


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _answer(self, status: int, content: Any = None) -> None:
            body = b"" if content is None else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _body(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _allowed(self) -> bool:
            hub.asked.append(f"{self.command} {self.path}")
            if hub.refuse:
                self._answer(403, {"error": "You don't have the rights to write to this namespace"})
            elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self._answer(401, {"error": "Invalid username or password."})
            else:
                return True
            return False

        def do_GET(self) -> None:
            if self._allowed():
                self._answer(404, {"error": "not found"})

        def do_PUT(self) -> None:
            hub.asked.append(f"{self.command} {self.path}")
            hub.uploads[self.path.rsplit("/", 1)[1]] = self._body()
            self._answer(413 if hub.full else 200)

        def do_POST(self) -> None:
            body = self._body()
            if not self._allowed():
                return
            if self.path == "/api/repos/create":
                wanted = json.loads(body)
                name = f"{wanted['organization']}/{wanted['name']}"
                hub.repositories[name] = wanted
                self._answer(200, {"url": f"{hub.address}/{name}"})
            elif self.path == "/api/validate-yaml":
                self._answer(200, {"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                files = [
                    {"path": each["path"], "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                     "shouldIgnore": False}
                    for each in json.loads(body)["files"]
                ]  # fmt: skip
                self._answer(200, {"files": files})
            elif self.path.endswith("/info/lfs/objects/batch"):
                objects = [
                    {**each, "actions": {"upload": {"href": f"{hub.address}/upload/{each['oid']}"}}}
                    for each in json.loads(body)["objects"]
                ]
                self._answer(200, {"transfer": "basic", "objects": objects})
            elif "/commit/" in self.path:
                self._commit([json.loads(line) for line in body.splitlines() if line.strip()])
            else:
                self._answer(404, {"error": f"{self.path} is not known here"})

        def _commit(self, lines: list[dict[str, Any]]) -> None:
            for line in lines:
                value = line["value"]
                if line["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.uploads[value["oid"]]
            repo = self.path.split("/api/models/")[1].split("/commit/")[0]
            self._answer(200, {"commitUrl": f"{hub.address}/{repo}/commit/1", "commitOid": "1" * 40, "success": True})

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def fake_hub() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
