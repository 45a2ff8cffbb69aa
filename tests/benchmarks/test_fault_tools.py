"""The tools that faults are made with, each against a real connection, process or clock."""

import hashlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from safetensors.numpy import load, save, save_file

from curtail_pipeline.benchmarks.lying_site import LIES, TOO_FAR, LyingSite
from curtail_pipeline.benchmarks.relay import Relay
from curtail_pipeline.benchmarks.shifted_clock import ShiftedClock, compiler
from curtail_pipeline.errors import MessageError
from curtail_pipeline.federation.admission import misfit
from curtail_pipeline.federation.inner_states import SiteInner, unusable
from curtail_pipeline.federation.orders import Order, Result, StepSize, StoredWeights, WrittenWeights
from curtail_pipeline.federation.trainer_api import Endpoint
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.manifest import InnerStates

ORDER = Order(
    key="ckpt-000001", attempt=1, round=0, site="CA", experiment_uri="experiment.json", store="/nowhere",
    parent=StoredWeights(key="w", sha256="0" * 64), config="c.json", inner_state="fresh", first_step=0, members=1,
    total_steps=10, max_steps=2, deadline_s=None, lease=((1, 0, 4),), seed=0, out="scratch/CA.safetensors",
)  # fmt: skip
WEIGHTS = save({"a": np.ones(3, dtype=np.float32)})
RESULT = Result(
    site="CA", round=0, parent_sha256="0" * 64, steps=2, tokens=128, consumed=((1, 0, 2),), loss_first=2.0,
    loss_last=1.0, loss_mean=1.5, seconds=1.0, tokens_per_s=128.0, stop="steps",
    weights=WrittenWeights(key=ORDER.out, sha256=hashlib.sha256(WEIGHTS).hexdigest(), bytes=len(WEIGHTS)),
    inner_state=InnerStates(begin="fresh", end="fresh"),
)  # fmt: skip
STEP = StepSize(sequences=1, tokens=64)


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Path]:
    """Of a trainer whose every order comes to the same result."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            content = RESULT.model_dump_json().encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        path = tmp_path / "CA.json"
        path.write_text(Endpoint(port=server.server_port, pid=1, token="t").model_dump_json())
        yield path
        server.shutdown()


def train(endpoint: Path) -> bytes:
    found = Endpoint.read(endpoint.read_bytes(), "the endpoint")
    with httpx.Client(trust_env=False) as client:
        return client.post(f"http://127.0.0.1:{found.port}/train", content=b"{}").content


@pytest.mark.parametrize("lie", LIES)
def test_a_site_lies_once_and_what_it_says_is_wrong(endpoint: Path, tmp_path: Path, lie: str) -> None:
    store, before = FolderStore(tmp_path / "store"), endpoint.read_bytes()
    store.write_bytes(ORDER.out, WEIGHTS)
    momentum = {"muon/a/momentum_buffer": np.full(3, 0.1, np.float32)}
    store.write_bytes("scratch/inner/CA.safetensors", save(momentum))
    liar = LyingSite(endpoint, lie, store)
    told = train(endpoint)
    assert liar.told.is_set()
    assert Result.read(train(endpoint), "the second result") == RESULT
    liar.close()
    assert endpoint.read_bytes() == before
    if lie == "no result":
        with pytest.raises(MessageError):
            Result.read(told, "the result")
        return
    result = Result.read(told, "the result")
    if lie == "weights":  # what its result says of them is right: only their norm gives them away
        data = store.read_bytes(ORDER.out)
        assert result.weights.sha256 == hashlib.sha256(data).hexdigest() and load(data)["a"][0] == TOO_FAR
    elif lie == "inner state":
        save_file({"a": np.ones(3, np.float32)}, tmp_path / "weights")
        inner = store.path("scratch/inner/CA.safetensors")
        state = SiteInner("CA", inner, result.inner_state.end.removeprefix("sha256:"))
        assert "the muon part" in unusable([state], tmp_path / "weights", grad_clip=1.0)["CA"]
    elif lie == "round":
        assert result.round == 1
    else:
        assert misfit(ORDER, RESULT, STEP) is None and misfit(ORDER, result, STEP) is not None


def test_a_line_is_cut_and_comes_back() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        relay = Relay(f"127.0.0.1:{server.getsockname()[1]}")
        host, port = relay.address.split(":")
        with socket.create_connection((host, int(port)), timeout=10) as near:
            far, _ = server.accept()
            far.settimeout(0.2)
            near.sendall(b"one")
            assert far.recv(10) == b"one"
            relay.set("silent")
            near.sendall(b"two")
            with pytest.raises(TimeoutError):
                far.recv(10)
            relay.cut(0.1)  # and whole again
            far.settimeout(10)
            assert far.recv(10) == b"two"
            relay.set("refused")
            assert near.recv(10) == b"" and far.recv(10) == b""
            far.close()
        relay.close()


@pytest.mark.skipif(compiler() is None, reason="no C compiler")
def test_only_the_wall_clock_of_the_process_jumps(tmp_path: Path) -> None:
    clock = ShiftedClock(tmp_path)
    code = "import sys, time\nfor _ in sys.stdin: print(time.time(), time.monotonic(), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", code],
        env=clock.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        seen = []
        for seconds in (0, 3600, -3600):
            clock.jump_to(seconds)
            print(file=process.stdin, flush=True)
            assert process.stdout is not None
            seen.append(tuple(map(float, process.stdout.readline().split())))
        process.communicate()
    (start, began), (ahead, _), (behind, ended) = seen
    assert ahead - start == pytest.approx(3600, abs=30) and behind - start == pytest.approx(-3600, abs=30)
    assert 0 <= ended - began < 30
