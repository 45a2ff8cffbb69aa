"""What every store does, whatever its root: a folder and a bucket, by the same tests."""

import hashlib
import threading
from pathlib import Path

import pytest

from curtail_pipeline.benchmarks.s3_server import S3Server
from curtail_pipeline.errors import SettingsError, StoreError
from curtail_pipeline.storage.folder_store import FolderStore, is_uri
from curtail_pipeline.storage.records import Record
from curtail_pipeline.storage.s3_calls import Place
from curtail_pipeline.storage.s3_store import S3Store
from curtail_pipeline.storage.store import NotStored, Store
from curtail_pipeline.storage.stores import open_store


class Note(Record):
    text: str


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return FolderStore(tmp_path / "store")
    s3: S3Server = request.getfixturevalue("s3")
    return S3Store(Place(s3.bucket(), "a/prefix"), tmp_path / "machine", 1 << 20, s3.connect)


def test_small_objects(store: Store) -> None:
    assert not store.exists("a/b.json") and store.size("a/b.json") is None
    with pytest.raises(NotStored, match=r"a/b\.json is not in the store .*(store|prefix)$"):
        store.read_bytes("a/b.json")
    store.write_bytes("a/b.json", b"one")
    store.write_bytes("a/b.json", b"two")
    assert store.read_bytes("a/b.json") == b"two" and store.size("a/b.json") == 3
    store.write_record("note.json", Note(text="x"))
    assert store.read_record("note.json", Note) == Note(text="x")
    with pytest.raises(StoreError, match="not valid JSON"):
        store.read_json("a/b.json")


def test_one_of_many_creates(store: Store) -> None:
    won: list[int] = []
    gate = threading.Barrier(6)

    def create(n: int) -> None:
        gate.wait()
        if store.create_bytes("claims/x/00000000.json", b"%d" % n):
            won.append(n)

    threads = [threading.Thread(target=create, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and store.read_bytes("claims/x/00000000.json") == b"%d" % won[0]
    assert not store.create_bytes("claims/x/00000000.json", b"%d" % won[0]), "the same bytes are no proof of a win"


def test_lists_and_deletes_what_is_under_a_prefix_and_nothing_beside_it(store: Store) -> None:
    for key in ("s/a/1", "s/a/2", "s/ab/1", "s/a.txt"):
        store.write_bytes(key, b"x")
    assert store.list("s") == ["a", "a.txt", "ab"] and store.list("s/a") == ["1", "2"] and store.list("t") == []
    store.delete("s/a")
    store.delete("s/a.txt")
    store.delete("s/never")
    assert store.list("s") == ["ab"]


@pytest.mark.parametrize("key", ["../x", "/etc/passwd", "a/../../x"])
def test_no_key_leaves_the_root(store: Store, key: str) -> None:
    for call in (store.read_bytes, store.exists, store.here, lambda key: store.write_bytes(key, b"")):
        with pytest.raises(StoreError, match="leaves the store"):
            call(key)


def test_files(store: Store, tmp_path: Path) -> None:
    data = bytes(range(256)) * 64
    digest = hashlib.sha256(data).hexdigest()
    with store.new_file("w/new.bin") as path:
        path.write_bytes(data)
    source = tmp_path / "made.bin"
    source.write_bytes(data)
    store.put_file(source, "w/put.bin")
    store.copy("w/put.bin", "w/copy.bin")
    store.adopt(source, "w/adopted.bin")
    assert not source.exists()
    for name in ("new", "put", "copy", "adopted"):
        with store.local(f"w/{name}.bin") as path:
            assert path.read_bytes() == data
        assert store.stat(f"w/{name}.bin") == store.digest(f"w/{name}.bin") == (digest, len(data))
    with pytest.raises(ZeroDivisionError), store.new_file("w/failed.bin") as path:
        path.write_bytes(data)
        raise ZeroDivisionError
    assert store.list("w") == ["adopted.bin", "copy.bin", "new.bin", "put.bin"]
    for call in (store.stat, store.digest):
        with pytest.raises(NotStored):
            call("w/none.bin")
    with pytest.raises(NotStored), store.local("w/none.bin"):
        pass


def test_stamps_tell_changes(store: Store) -> None:
    keys = [f"c/{n}/manifest.json" for n in range(3)]
    for key in keys:
        store.write_bytes(key, b"1")
    before = [*store.stamps([*keys, "c/9/manifest.json"])]
    assert before[3] is None and None not in before[:3]
    store.write_bytes(keys[1], b"2")
    after = [*store.stamps(keys)]
    assert [a == b for a, b in zip(after, before, strict=False)] == [True, False, True]
    assert next(iter(store.stamps(keys))) == before[0]


def test_mirrors_and_publishes(store: Store) -> None:
    folder = store.mirror("corpus/tokenizer")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_bytes(b"{}")
    (folder / "extra.json").write_bytes(b"[]")
    store.publish("corpus/tokenizer", last="tokenizer.json")
    assert store.list("corpus/tokenizer") == ["extra.json", "tokenizer.json"]
    store.write_bytes("corpus/tokenizer/tokenizer.json", b"{1}")
    store.delete("corpus/tokenizer/extra.json")
    folder = store.mirror("corpus/tokenizer")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"tokenizer.json": b"{1}"}
    writing = folder / ".extra.json.0123.tmp"  # of another process, which mirrors too
    writing.write_bytes(b"[")
    assert store.mirror("corpus/tokenizer") == folder and writing.exists()
    writing.unlink()
    store.write_bytes("one.parquet", b"x")
    assert store.mirror("one.parquet").read_bytes() == b"x"


def test_a_store_under_a_prefix(store: Store) -> None:
    inner = store.under("branches/one")
    inner.write_bytes("x.json", b"1")
    assert store.read_bytes("branches/one/x.json") == b"1" and inner.uri == f"{store.uri}/branches/one"


@pytest.mark.parametrize("uri", ["s3://bucket/x", "s3:/bucket/x", "gs://bucket", "hf://a/b", "file:///tmp/x"])
def test_a_uri_is_never_a_folder(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_uri(uri) and is_uri(Path(uri))
    with pytest.raises(StoreError, match="is not a folder"):
        FolderStore(uri)
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("folder", ["a", "/tmp/a", "./s3/x", "C:/x", "a:b", "x/s3://y"])
def test_a_folder_is_no_uri(folder: str) -> None:
    assert not is_uri(folder)


@pytest.mark.parametrize(
    ("location", "match"),
    [
        ("gs://bucket/x", "give a folder, or s3://bucket/prefix"),
        ("s3:/bucket/x", "give a folder, or s3://bucket/prefix"),
        ("s3://", "write s3://bucket/prefix"),
        ("s3://bucket/a/../b", "write s3://bucket/prefix"),
    ],
)
def test_addresses_that_are_no_store(location: str, match: str) -> None:
    with pytest.raises(StoreError, match=match):
        open_store(location)


def test_opening_by_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURTAIL_CACHE", str(tmp_path / "cache"))
    assert isinstance(open_store(tmp_path), FolderStore)
    found = open_store("s3://bucket//a/b/")
    assert isinstance(found, S3Store) and found.uri == "s3://bucket/a/b"
    assert open_store("s3://bucket").uri == "s3://bucket"
    assert [*tmp_path.iterdir()] == [], "nothing is made before it is needed"
    for wrong in ("0", "-1", "much", "nan"):
        monkeypatch.setenv("CURTAIL_CACHE_GIB", wrong)
        with pytest.raises(SettingsError, match=f"CURTAIL_CACHE_GIB is '{wrong}'"):
            open_store("s3://bucket")
