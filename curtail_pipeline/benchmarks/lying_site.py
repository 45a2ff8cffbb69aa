"""A site that says what is not so: between its agent and its trainer, one answer to an order is changed."""

import hashlib
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
from safetensors.numpy import load, save

from curtail_pipeline.errors import MessageError
from curtail_pipeline.federation.orders import Result, WrittenWeights
from curtail_pipeline.federation.trainer_api import Endpoint
from curtail_pipeline.storage.atomic import write_whole
from curtail_pipeline.storage.store import Store

TOO_FAR = 1e4
"""By which forged weights are too large."""


def _weights(result: Result, store: Store) -> bytes:
    """Weights far away, whose hash is right."""
    tensors = {name: (value * TOO_FAR).astype(value.dtype) for name, value in _read(result, store).items()}
    data = save(tensors, {"format": "pt"})
    store.write_bytes(result.weights.key, data)
    told = WrittenWeights(key=result.weights.key, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    return result.model_copy(update={"weights": told}).model_dump_json().encode()


def _inner_state(result: Result, store: Store) -> bytes:
    """An inner state far from what gradients leave, whose hash is right; the truth where it is not to be merged."""
    folder, _, name = result.weights.key.rpartition("/")
    key = f"{folder}/inner/{name}"
    if not store.exists(key):
        return result.model_dump_json().encode()
    true = load(store.read_bytes(key))
    tensors = {name: value if name.endswith("/step") else value * np.float32(TOO_FAR) for name, value in true.items()}
    data = save(tensors, {"format": "pt"})
    store.write_bytes(key, data)
    told = result.inner_state.model_copy(update={"end": f"sha256:{hashlib.sha256(data).hexdigest()}"})
    return result.model_copy(update={"inner_state": told}).model_dump_json().encode()


def _read(result: Result, store: Store) -> Mapping[str, np.ndarray]:
    return load(store.read_bytes(result.weights.key))


def _saying(**changes: Callable[[Result], object]) -> Callable[[Result, Store], bytes]:
    def forge(result: Result, _: Store) -> bytes:
        told = {name: change(result) for name, change in changes.items()}
        return result.model_copy(update=told).model_dump_json().encode()

    return forge


LIES: Mapping[str, Callable[[Result, Store], bytes]] = {
    "tokens": _saying(tokens=lambda r: 10 * r.tokens),
    "steps": _saying(steps=lambda r: 2 * r.steps, tokens=lambda r: 2 * r.tokens),
    "ranges": _saying(consumed=lambda r: r.consumed[:-1] or ((9, 0, 1),)),
    "round": _saying(round=lambda r: r.round + 1),
    "loss": _saying(loss_mean=lambda r: 0.0),
    "weights": _weights,
    "inner state": _inner_state,
    "no result": lambda result, store: b'"all went well"',
}
"""What is claimed wrongly -> the answer, given the true one."""


class LyingSite:
    """Stands in for the trainer of an endpoint file until one result was forged; then all is as it was.

    Args:
        endpoint: of the trainer; rewritten, so that the agent's next order comes here.
    """

    def __init__(self, endpoint: Path, lie: str, store: Store) -> None:
        self._path, self._forge, self._store = endpoint, LIES[lie], store
        self._true = endpoint.read_bytes()
        self._trainer = Endpoint.read(self._true, str(endpoint))
        self.told = threading.Event()
        """Set once the forged answer is out."""
        site = self

        class Handler(BaseHTTPRequestHandler):
            def _pass(self) -> None:
                site._answer(self)

            do_GET = do_POST = _pass

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        mine = self._trainer.model_copy(update={"port": self._server.server_address[1]})
        self._mine = mine.model_dump_json().encode()
        write_whole(endpoint, self._mine, mode=0o600)

    def close(self) -> None:
        """Step aside; a request that is on its way is still answered."""
        if self._path.exists() and self._path.read_bytes() == self._mine:  # else another trainer has written its own
            write_whole(self._path, self._true, mode=0o600)
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        url = f"http://127.0.0.1:{self._trainer.port}{request.path}"
        try:
            with httpx.Client(trust_env=False, timeout=None) as client:  # a round takes as long as it takes
                found = client.request(request.command, url, content=body, headers={
                    name: value for name, value in request.headers.items() if name in ("Authorization", "Content-Type")
                })  # fmt: skip
        except httpx.HTTPError:
            request.close_connection = True
            return
        content = found.content
        if request.path == "/train" and found.status_code == 200 and not self.told.is_set():
            content = self._forged(content)
        request.send_response(found.status_code)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def _forged(self, content: bytes) -> bytes:
        try:
            result = Result.read(content, "the trainer's result")
        except MessageError:
            return content
        if result.steps:  # of nothing nothing can be claimed
            content = self._forge(result, self._store)
            self.told.set()
        return content
