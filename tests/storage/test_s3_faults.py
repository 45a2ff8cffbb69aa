"""A bucket over a line that fails: each fault recovers, or is one clear line."""

import hashlib
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from curtail_pipeline.benchmarks.s3_server import Front, S3Server
from curtail_pipeline.errors import StoreError
from curtail_pipeline.federation.liveness import last_beat
from curtail_pipeline.federation.orders import agent_key
from curtail_pipeline.flower.processes import free_port
from curtail_pipeline.storage import s3_transfer
from curtail_pipeline.storage.s3_calls import Place
from curtail_pipeline.storage.s3_store import S3Store
from curtail_pipeline.storage.s3_transfer import Parts
from curtail_pipeline.storage.store import CorruptObject, NotStored, StoreUnavailable

PART = 1 << 16
SIZE = 2 * PART + 12345


@pytest.fixture
def front(s3: S3Server) -> Iterator[Front]:
    found = Front(s3)
    yield found
    found.close()


class Machine:
    """A machine whose requests go through the front."""

    def __init__(self, s3: S3Server, front: Front, folder: Path) -> None:
        self.s3, self.front, self.folder = s3, front, folder
        self.place = Place(s3.bucket(), "p")

    def store(self, patience_s: float = 20.0, url: str | None = None) -> S3Store:
        url = url or self.front.url
        parts = Parts(bytes=PART, threads=2)
        return S3Store(
            self.place, self.folder, 1 << 30, lambda: self.s3.connect(url), patience_s=patience_s, parts=parts
        )


@pytest.fixture
def machine(s3: S3Server, front: Front, tmp_path: Path) -> Machine:
    return Machine(s3, front, tmp_path / "machine")


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big.bin"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text and len(text) < 500, text
    return text


@pytest.mark.parametrize("what", ["500", "drop", "lose"])
def test_small_requests_are_tried_again(machine: Machine, what: str) -> None:
    store = machine.store()
    machine.front.times(2, what, "PUT", "/p/a.json")
    store.write_bytes("a.json", b"1")
    machine.front.times(2, what, "GET", "/p/a.json")
    assert store.read_bytes("a.json") == b"1"
    machine.front.once(what, "HEAD", "/p/a.json")
    assert store.exists("a.json")
    machine.front.once(what, "GET", "list-type=2")
    assert store.list("x") == []


def test_a_won_create_whose_answer_is_lost_is_won(machine: Machine) -> None:
    store = machine.store()
    machine.front.once("lose", "PUT", "/p/claim.json")
    assert store.create_bytes("claim.json", b"mine")
    machine.front.once("lose", "PUT", "/p/claim.json")
    assert not store.create_bytes("claim.json", b"mine")


def test_an_answer_that_ends_early_is_asked_for_again(machine: Machine, big: Path) -> None:
    store = machine.store()
    store.put_file(big, "big.bin")
    store.write_bytes("small.json", b"0123456789")
    machine.front.once("cut", "GET", "/p/small.json")
    assert store.read_bytes("small.json") == b"0123456789"
    machine.front.once("cut", "GET", "/p/big.bin")
    with store.local("big.bin") as path:
        assert path.read_bytes() == big.read_bytes()


@pytest.mark.parametrize(
    ("what", "step"), [("500", "uploads"), ("drop", "partNumber=2"), ("lose", "partNumber=2"), ("lose", "uploadId")]
)
def test_uploads_in_parts_survive(machine: Machine, big: Path, what: str, step: str) -> None:
    store = machine.store()
    method = "PUT" if step == "partNumber=2" else "POST"
    machine.front.once(what, method, step)
    store.put_file(big, "big.bin")
    assert store.digest("big.bin") == (hashlib.sha256(big.read_bytes()).hexdigest(), SIZE)
    assert [*store.here(".uploads").glob("*")] == []


def test_an_upload_goes_on_where_it_was(machine: Machine, big: Path) -> None:
    """Its process dies after the first part; another one sends the others only."""
    machine.front.fault = lambda method, path: "500" if "partNumber=3" in path else None
    with pytest.raises(StoreUnavailable):
        machine.store(patience_s=0.5).put_file(big, "big.bin")
    machine.front.fault, machine.front.seen = (lambda method, path: None), []
    machine.store().put_file(big, "big.bin")
    sent = [path for method, path in machine.front.seen if "partNumber" in path]
    assert len(sent) == 1 and "partNumber=3" in sent[0]
    assert machine.store().digest("big.bin").bytes == SIZE


def test_an_upload_that_the_server_has_cleaned_away_begins_anew(machine: Machine, big: Path) -> None:
    machine.front.fault = lambda method, path: "500" if "partNumber=3" in path else None
    with pytest.raises(StoreUnavailable):
        machine.store(patience_s=0.5).put_file(big, "big.bin")
    s3, bucket = machine.s3.connect(), machine.place.bucket
    for upload in s3.list_multipart_uploads(Bucket=bucket)["Uploads"]:
        s3.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    machine.front.fault = lambda method, path: None
    machine.store().put_file(big, "big.bin")
    assert machine.store().digest("big.bin").bytes == SIZE


def test_a_download_goes_on_where_it_was(machine: Machine, big: Path) -> None:
    machine.store().put_file(big, "big.bin")
    left = [2]

    def fault(method: str, path: str) -> str | None:
        if method != "GET" or "big.bin" not in path:
            return None
        left[0] -= 1
        return None if left[0] >= 0 else "500"

    machine.front.fault = fault
    with pytest.raises(StoreUnavailable), machine.store(patience_s=0.5).local("big.bin"):
        pass
    machine.front.fault, machine.front.seen = (lambda method, path: None), []
    with machine.store().local("big.bin") as path:
        assert path.read_bytes() == big.read_bytes()
    assert len([path for method, path in machine.front.seen if method == "GET"]) <= 2
    machine.front.seen = []
    with machine.store().local("big.bin"):
        pass
    assert [method for method, _ in machine.front.seen] == ["HEAD"], "what is in the cache is not fetched again"


def test_an_object_that_is_replaced_meanwhile_is_never_mixed(machine: Machine, big: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.bin"
    other.write_bytes(random.Random(2).randbytes(SIZE))
    machine.store().put_file(big, "big.bin")
    direct = machine.store(url=machine.s3.url)
    got = threading.Event()

    def fault(method: str, path: str) -> str | None:
        if method == "GET" and not got.is_set():
            got.set()
            direct.put_file(other, "big.bin")
        return None

    machine.front.fault = fault
    with pytest.raises(NotStored, match="was replaced while it was fetched"), machine.store().local("big.bin"):
        pass
    with machine.store().local("big.bin") as path:
        assert path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_object_is_one_line(machine: Machine, big: Path, damage: str) -> None:
    store, s3 = machine.store(), machine.s3.connect()
    store.put_file(big, "big.bin")
    store.write_bytes("small.json", b"0123456789")
    for key in ("p/big.bin", "p/small.json"):
        found = s3.get_object(Bucket=machine.place.bucket, Key=key)
        data, metadata = found["Body"].read(), found["Metadata"]
        data = data[: len(data) // 2] if damage == "cut" else bytes([data[0] ^ 1]) + data[1:]
        s3.put_object(Bucket=machine.place.bucket, Key=key, Body=data, Metadata=metadata)
    for call in (lambda: store.read_bytes("small.json"), lambda: store.local("big.bin").__enter__()):
        with pytest.raises(
            CorruptObject, match=r"is corrupt: expected sha256 .*, found .* restore it from a copy"
        ) as e:
            call()
        one_line(e.value)


def test_what_no_store_has_written_is_taken_as_it_is(machine: Machine) -> None:
    machine.s3.connect().put_object(Bucket=machine.place.bucket, Key="p/foreign.txt", Body=b"text")
    store = machine.store()
    digest = hashlib.sha256(b"text").hexdigest()
    assert store.read_bytes("foreign.txt") == b"text" and store.stat("foreign.txt") == (digest, 4)
    with store.local("foreign.txt") as path:
        assert path.read_bytes() == b"text"
    store.copy("foreign.txt", "copied.txt")
    assert store.stat("copied.txt").sha256 == digest


def test_a_server_that_stays_away_is_one_line_after_the_patience(machine: Machine) -> None:
    store = machine.store(patience_s=0.6)
    machine.front.fault = lambda method, path: "500"
    begun = time.monotonic()
    with pytest.raises(StoreUnavailable, match=r"x in s3://.* answered 500 InternalError for 1 s; try again") as error:
        store.write_bytes("x", b"")
    one_line(error.value)
    gone = machine.store(patience_s=0.6, url=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StoreUnavailable, match=r"did not answer for 1 s .*AWS_ENDPOINT_URL") as error:
        gone.read_bytes("x")
    one_line(error.value)
    assert time.monotonic() - begun < 10


def test_no_bucket_and_no_credentials_are_one_line_at_once(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place("no-such-bucket", "p")
    store = S3Store(place, machine.folder, 1 << 20, machine.s3.connect)
    for call in (lambda: store.write_bytes("x", b""), lambda: store.list("x"), lambda: store.read_bytes("x")):
        with pytest.raises(StoreError, match="there is no bucket 'no-such-bucket' at http://127") as error:
            call()
        one_line(error.value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_ENDPOINT_URL", machine.s3.url)
    store = S3Store(machine.place, machine.folder, 1 << 20)
    with pytest.raises(StoreError, match=r"no credentials .* set AWS_ACCESS_KEY_ID") as error:
        store.write_bytes("x", b"")
    one_line(error.value)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StoreError, match="nobody"):
        S3Store(machine.place, machine.folder, 1 << 20).write_bytes("x", b"")


def test_what_is_too_large_for_a_record_is_not_read_into_memory(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_transfer, "LARGEST_WHOLE", 100)
    store, key = machine.store(), agent_key("A")
    store.write_bytes(key, b"x" * 100)
    assert len(store.read_bytes(key)) == 100
    store.write_bytes(key, b"x" * 101)
    with pytest.raises(CorruptObject, match=r"A\.json in s3://.* has 101 bytes, and 100 at most are read"):
        store.read_bytes(key)
    assert last_beat(store, "A") is None


_FETCH = """
import sys
from pathlib import Path
from curtail_pipeline.benchmarks.s3_server import S3Server
from curtail_pipeline.storage.s3_calls import Place
from curtail_pipeline.storage.s3_store import S3Store
url, bucket, folder = sys.argv[1:]
store = S3Store(Place(bucket, "p"), Path(folder), 1 << 30, S3Server(url).connect)
with store.local("big.bin") as path:
    print(len(path.read_bytes()))
"""


def test_two_processes_fetch_one_object_once(machine: Machine, big: Path) -> None:
    machine.store().put_file(big, "big.bin")
    machine.front.seen = []
    command = [sys.executable, "-c", _FETCH, machine.front.url, machine.place.bucket, str(machine.folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    assert [process.communicate(timeout=300)[0] for process in both] == [f"{SIZE}\n"] * 2
    assert len([path for method, path in machine.front.seen if method == "GET"]) == 1
