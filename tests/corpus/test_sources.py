"""Text from every kind of file, here and over the network, with whatever is wrong in it."""

import gzip
import io
import itertools
import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from xml.sax.saxutils import escape

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curtail_pipeline.corpus import sources
from curtail_pipeline.corpus.documents import Counts
from curtail_pipeline.corpus.sources import Source, open_source
from curtail_pipeline.corpus.stdlib_text import stdlib_documents
from curtail_pipeline.errors import CorpusError
from curtail_pipeline.settings.corpus_settings import CorpusSettings
from curtail_pipeline.storage.folder_store import FolderStore

DOCUMENTS = ["one\nline", "  grüß dich 漢字 🙂 ", "three" * 50, '"quoted", with\ttabs\\ and \u2028']


def opened(tmp_path: Path, source: object, **values: object) -> Source:
    return open_source(
        CorpusSettings.model_validate({"source": str(source), **values}), FolderStore(tmp_path / "store")
    )


def documents(source: Source) -> tuple[list[str], Counts]:
    counts = Counts()
    whole: list[str] = []
    for part in source.slices:
        for batch in source.read(part, counts):
            for text, goes_on in batch:
                if goes_on:
                    whole[-1] += text
                else:
                    whole.append(text)
    return whole, counts


def lines(texts: list, ensure_ascii: bool = False) -> bytes:
    return b"".join(
        json.dumps({"id": i, "text": t}, ensure_ascii=ensure_ascii).encode() + b"\n" for i, t in enumerate(texts)
    )


def write(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pl.DataFrame({"id": range(len(texts)), "text": texts}).write_parquet(path)
    elif path.suffix == ".zst":
        pl.DataFrame({"text": texts}).lazy().sink_ndjson(path, compression="zstd")
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines(texts)))
    elif path.suffix == ".jsonl":
        path.write_bytes(lines(texts, ensure_ascii=True))
    else:
        path.write_text("<sep>".join(texts), encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt"])
def test_every_kind_of_file_gives_its_documents(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "text" / name, DOCUMENTS)
    found, counts = documents(opened(tmp_path, path, text_separator="<sep>"))
    assert found == DOCUMENTS
    assert counts == Counts(documents=4)


def test_folders_and_globs_are_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "a.parquet", "b/1.txt", "c.jsonl.gz"):
        write(tmp_path / "text" / name, [f"in {name}"])
    (tmp_path / "text" / "README.md").write_text("not text of the corpus")
    assert documents(opened(tmp_path, tmp_path / "text"))[0] == [
        "in a.parquet", "in b/1.txt", "in b/2.jsonl", "in c.jsonl.gz",
    ]  # fmt: skip
    assert documents(opened(tmp_path, f"{tmp_path}/text/**/*.jsonl"))[0] == ["in b/2.jsonl"]


def test_what_is_no_document_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "kept"}\n\n{"text": null}\nnot json\n{"other": 1}\n{"text": 5}\n[1]\n"text"\n{"text": " \\n"}\n'
        b'{"text": "\xff\xfe bytes"}\n{"text": "lone \\ud800 surrogate"}\r\n{"text": "last"}'
    )
    expected = ["kept", "\ufffd\ufffd bytes", "lone \ufffd surrogate", "last"]
    counted = Counts(documents=4, empty=2, invalid=5, replaced=2)
    assert documents(opened(tmp_path, path)) == (expected, counted)
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert documents(opened(tmp_path, packed)) == (expected, counted)
    frame = tmp_path / "c.parquet"
    pl.DataFrame({"text": ["kept", None, "", "\t "]}).write_parquet(frame)
    assert documents(opened(tmp_path, frame)) == (["kept"], Counts(documents=1, empty=3))


def test_bytes_that_are_no_text_are_replaced_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"caf\xe9, \xef\xbf\xbd and \xe6\xbc")
    assert documents(opened(tmp_path, path)) == (["caf\ufffd, \ufffd and \ufffd"], Counts(documents=1, replaced=1))
    path.write_text("fine: \ufffd", encoding="utf-8")
    assert documents(opened(tmp_path, path))[1].replaced == 0


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    for name, data in (("a.txt", b"text"), ("b.jsonl", b'{"text": "text"}'), ("c.jsonl.gz", b'{"text": "text"}')):
        data = b"\xef\xbb\xbf" + data
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        assert documents(opened(tmp_path, tmp_path / name)) == (["text"], Counts(documents=1))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_a_very_long_document_comes_in_pieces(tmp_path: Path, name: str) -> None:
    long = "".join(f"line {i} of a long document\n" for i in range(100_000)) + "x" * 3_000_000
    path = write(tmp_path / name, ["short", long, "end"])
    source = opened(tmp_path, path, text_separator="<sep>", max_document_mib=0.5)
    found, counts = documents(source)
    assert found == ["short", long, "end"]
    assert counts == Counts(documents=3, cut=1)
    pieces = [text for part in source.slices for batch in source.read(part, Counts()) for text, _ in batch]
    assert max(map(len, pieces)) <= 2**19 and len(pieces) < 20
    assert pieces[1].endswith("document\n")


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30), min_size=1, max_size=20
    ),
    size=st.integers(1, 200),
)
def test_slices_of_lines_are_a_partition(tmp_path_factory: pytest.TempPathFactory, texts: list[str], size: int) -> None:
    folder = tmp_path_factory.mktemp("slices")
    path = folder / "a.jsonl"
    path.write_bytes(lines(texts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "SLICE_BYTES", size)
        source = opened(folder, path)
    assert len(source.slices) == -(-path.stat().st_size // size)
    assert documents(source)[0] == [text for text in texts if text.strip()]


def test_rows_of_a_large_file_are_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"document {i}" for i in range(3000)]
    monkeypatch.setattr(sources, "SLICE_BYTES", 1)
    source = opened(tmp_path, write(tmp_path / "a.parquet", texts))
    assert [(part.start, part.stop) for part in source.slices] == [
        (0, 512), (512, 1024), (1024, 1536), (1536, 2048), (2048, 2560), (2560, 3000),
    ]  # fmt: skip
    assert documents(source)[0] == texts


def test_small_text_files_share_a_slice(tmp_path: Path) -> None:
    for i in range(50):
        write(tmp_path / "text" / f"{i:03d}.txt", [f"file {i}"])
    source = opened(tmp_path, tmp_path / "text")
    assert len(source.slices) == 1
    assert documents(source)[0] == [f"file {i}" for i in range(50)]


@pytest.mark.parametrize("limit", [1, 3, 4, 5, 8, 100])
def test_a_corpus_can_be_cut_off(tmp_path: Path, limit: int) -> None:
    for name in ("a.jsonl", "b.parquet"):
        write(tmp_path / "text" / name, DOCUMENTS)
    found, counts = documents(opened(tmp_path, tmp_path / "text", max_documents=limit))
    assert found == (DOCUMENTS * 2)[:limit]
    assert counts.documents == min(limit, 8)


def test_unknown_columns_are_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"a.parquet has no text column 'body'; .* one of text"):
        opened(tmp_path, write(tmp_path / "a.parquet", ["x"]), text_column="body")
    with pytest.raises(CorpusError, match=r"a.parquet has no text column 'id'"):
        opened(tmp_path, tmp_path / "a.parquet", text_column="id")
    with pytest.raises(CorpusError, match=r"a.jsonl has no key 'body'; .* one of id, text"):
        opened(tmp_path, write(tmp_path / "a.jsonl", ["x"]), text_column="body")


def test_missing_and_unreadable_sources_are_named(tmp_path: Path) -> None:
    for source in (tmp_path / "nothing", f"{tmp_path}/*.jsonl"):
        with pytest.raises(CorpusError, match=r"names no .txt, .jsonl"):
            opened(tmp_path, source)
    (tmp_path / "a.csv").write_text("text\nx\n")
    with pytest.raises(CorpusError, match=r"a.csv' names no .txt"):
        opened(tmp_path, tmp_path / "a.csv")
    (tmp_path / "b.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(CorpusError, match=r"cannot read .*b.parquet"):
        opened(tmp_path, tmp_path / "b.parquet")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n' * 1000)[:-30])
    with pytest.raises(CorpusError, match=r"cannot read .*c.jsonl.gz"):
        documents(opened(tmp_path, tmp_path / "c.jsonl.gz"))


def test_the_embedded_text_is_english_and_always_the_same(tmp_path: Path) -> None:
    source = opened(tmp_path, "embedded")
    found, counts = documents(source)
    assert counts.documents == len(found) > 2000
    assert sum(map(len, found)) > 1_500_000
    assert any(
        "Return a string containing a printable representation" in text or "regular expression" in text
        for text in found
    )
    assert [text for _, text in itertools.islice(stdlib_documents(), 100)] == found[:100]


# ---- over the network ------------------------------------------------------------------------------------------------


class Objects(BaseHTTPRequestHandler):
    """Just enough of S3 (list, get, ranges) and of the Hugging Face hub (tree, resolve) over `files`."""

    files: dict[str, bytes]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_POST(self) -> None:
        paths = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode()).get("paths", [])
        self.reply(
            json.dumps([entry for entry in self.tree("", True) if entry["path"] in paths]).encode(), "application/json"
        )

    def do_GET(self, body: bool = True) -> None:
        url = urllib.parse.urlsplit(self.path)
        path, query = urllib.parse.unquote(url.path), urllib.parse.parse_qs(url.query)
        if "list-type" in query:
            prefix = query.get("prefix", [""])[0]
            items = "".join(
                f"<Contents><Key>{escape(k)}</Key><Size>{len(v)}</Size></Contents>"
                for k, v in sorted(self.files.items())
                if k.startswith(prefix)
            )
            self.reply(
                f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>".encode(), "text/xml"
            )
        elif "/api/" in path and "/tree/" in path:
            folder = path.partition("/tree/main")[2].strip("/")
            entries = self.tree(folder, query.get("recursive", [""])[0].lower() == "true")
            if entries or not folder:
                self.reply(json.dumps(entries).encode(), "application/json")
            else:
                self.reply(b"{}", "application/json", 404, {"X-Error-Code": "EntryNotFound"})
        elif path.startswith("/api/"):
            info = {"id": "owner/name", "sha": "0" * 40, "siblings": []}
            self.reply(json.dumps(info).encode(), "application/json")
        else:
            name = path.removeprefix("/bucket/").removeprefix("/datasets/owner/name/resolve/main/")
            if name in self.files:
                self.object(self.files[name], body)
            else:
                self.reply(b"<Error><Code>NoSuchKey</Code></Error>", "text/xml", 404)

    def tree(self, folder: str, recursive: bool) -> list[dict[str, object]]:
        """Files and folders below a folder, or only its own."""
        root = folder + "/" if folder else ""
        inside = [name for name in sorted(self.files) if name.startswith(root)]
        folders = {parent.as_posix() for name in inside for parent in PurePosixPath(name).parents}
        entries: list[dict[str, object]] = [
            {"type": "directory", "path": name, "oid": "0" * 40}
            for name in sorted(folders)
            if name != "." and name.startswith(root)
        ]
        entries += [{"type": "file", "path": name, "size": len(self.files[name]), "oid": "0" * 40} for name in inside]
        return [entry for entry in entries if recursive or "/" not in str(entry["path"]).removeprefix(root)]

    def object(self, data: bytes, body: bool) -> None:
        wanted = self.headers.get("Range", "")
        low, high = 0, len(data)
        if wanted.startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            low = int(first) if first else max(len(data) - int(last), 0)
            high = min(int(last) + 1, high) if last and first else high
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {low}-{high - 1}/{len(data)}")
        self.send_header("Content-Length", str(high - low))
        self.send_header("ETag", '"1"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Last-Modified", "Mon, 05 Jan 2026 00:00:00 GMT")
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if body:
            self.wfile.write(data[low:high])

    def reply(self, data: bytes, kind: str, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@pytest.fixture
def files() -> dict[str, bytes]:
    frame = io.BytesIO()
    pl.DataFrame({"text": DOCUMENTS}).write_parquet(frame)
    return {
        "text/a.parquet": frame.getvalue(),
        "text/b/c.jsonl.gz": gzip.compress(lines(DOCUMENTS)),
        "text/b/d.jsonl": lines(DOCUMENTS),
        "text/e.txt": "<sep>".join(DOCUMENTS).encode(),
        "text/README.md": b"no text of the corpus",
        "textual.txt": b"another prefix",
    }


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Objects,), {"files": files}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("HF_ENDPOINT", url)
    yield url
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("root", ["s3://bucket", "hf://datasets/owner/name"])
def test_objects_are_listed_and_read_in_place(tmp_path: Path, objects: str, root: str) -> None:
    source = opened(tmp_path, f"{root}/text", text_separator="<sep>")
    assert [(file.name.rpartition("/")[2], file.rows) for file in source.files] == [
        ("a.parquet", 4), ("c.jsonl.gz", None), ("d.jsonl", None), ("e.txt", None),
    ]  # fmt: skip
    assert documents(source) == (DOCUMENTS * 4, Counts(documents=16))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("text/*.parquet", ["a.parquet"]),
        ("text/**/*.jsonl*", ["c.jsonl.gz", "d.jsonl"]),
        ("text/[ab].parquet", ["a.parquet"]),
        ("text/e.txt", ["e.txt"]),
        ("text/?.txt", ["e.txt"]),
        ("text/[!e]*", ["a.parquet"]),
        ("**/*.txt", ["e.txt", "textual.txt"]),
        ("text/b/**", ["c.jsonl.gz", "d.jsonl"]),
        ("text/", ["a.parquet", "c.jsonl.gz", "d.jsonl", "e.txt"]),
        ("", ["a.parquet", "c.jsonl.gz", "d.jsonl", "e.txt", "textual.txt"]),
    ],
)
@pytest.mark.parametrize("root", ["s3://bucket", "hf://datasets/owner/name"])
def test_objects_are_chosen_by_pattern(tmp_path: Path, objects: str, root: str, pattern: str, names: list[str]) -> None:
    source = opened(tmp_path, f"{root}/{pattern}", text_separator="<sep>")
    assert [file.name.rpartition("/")[2] for file in source.files] == names


@pytest.mark.parametrize("root", ["s3://bucket", "hf://datasets/owner/name"])
def test_each_listing_sees_what_is_there_then(tmp_path: Path, objects: str, files: dict[str, bytes], root: str) -> None:
    before = [file.name for file in opened(tmp_path, f"{root}/text").files]
    files["text/b/new.txt"] = b"added"
    assert [file.name for file in opened(tmp_path, f"{root}/text").files] == sorted([*before, "b/new.txt"])


def test_unreachable_objects_are_named(tmp_path: Path, objects: str) -> None:
    for root in ("s3://bucket", "hf://datasets/owner/name"):
        for name in ("none", "none/*.txt", "text/none.txt"):
            with pytest.raises(CorpusError, match=r"names no \.txt"):
                opened(tmp_path, f"{root}/{name}")
    with pytest.raises(CorpusError, match=r"write hf://datasets/OWNER/NAME/PATH"):
        opened(tmp_path, "hf://owner")
    with pytest.raises(CorpusError, match=r"cannot list corpus.source 's3://no bucket/x'"):
        opened(tmp_path, "s3://no bucket/x")
