"""Files to documents, streaming. What cannot be read as text is counted, never crashed on.

A document is a row of .parquet, a line of .jsonl, or a .txt file (or what a separator divides it into). One longer
than `document_chars` comes in pieces, cut after a line's end where there is one in the second half.
"""

import codecs
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import polars as pl

from curtail_pipeline.corpus.remote import is_remote, open_remote, storage_options
from curtail_pipeline.errors import CorpusError
from curtail_pipeline.storage.records import Json, Record

BATCH_ROWS = 512
CHUNK_BYTES = 1 << 20
Piece = tuple[str, bool]
"""Text, and whether it goes on the document of the piece before."""


@dataclass(frozen=True)
class SourceFile:
    name: str
    """Relative to the source, so that a dealing means the same on another machine."""
    uri: str
    bytes: int
    rows: int | None = None
    """Of a .parquet file."""


@dataclass(frozen=True)
class TextFormat:
    """Where a file's documents are."""

    column: str
    """Of .parquet and .jsonl."""
    separator: str | None
    """Between documents of a .txt file."""
    document_chars: int
    """Longest piece of a document."""


class ReadCounts(Record):
    """What was met in text that has been read."""

    documents: int = 0
    empty: int = 0
    """Left out: null, or white space alone."""
    invalid: int = 0
    """Left out: a line that is not a JSON object with text in the text column."""
    replaced: int = 0
    """Kept, with U+FFFD in place of (or already standing for) what is not UTF-8."""
    cut: int = 0
    """Kept in pieces, being longer than `max_document_mib`."""

    def plus(self, other: "ReadCounts") -> "ReadCounts":
        return ReadCounts(
            documents=self.documents + other.documents,
            empty=self.empty + other.empty,
            invalid=self.invalid + other.invalid,
            replaced=self.replaced + other.replaced,
            cut=self.cut + other.cut,
        )


@dataclass
class Counts:
    """`ReadCounts` in the making."""

    documents: int = 0
    empty: int = 0
    invalid: int = 0
    replaced: int = 0
    cut: int = 0

    def record(self) -> ReadCounts:
        return ReadCounts(**asdict(self))


def read_documents(
    file: SourceFile, start: int, stop: int | None, form: TextFormat, counts: Counts
) -> Iterator[list[Piece]]:
    """Batches of the pieces of one file's documents.

    Raises:
        CorpusError: the file is gone or is not what its name says.
    """
    with readable(file):
        if file.name.endswith(".txt"):
            yield from _text_file(file, form, counts)
        else:
            for texts in _table(file, start, stop, form.column, counts):
                yield _pieces(texts, form.document_chars, counts)


@contextmanager
def readable(file: SourceFile) -> Iterator[None]:
    """Turn whatever a reader raises into a CorpusError that names the file."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError, EOFError) as error:
        line = " ".join(str(error).split())[:300]
        raise CorpusError(
            f"cannot read {file.uri} ({line}); restore the file, or leave it out of the corpus"
        ) from error


def _table(file: SourceFile, start: int, stop: int | None, column: str, counts: Counts) -> Iterator[list[str | None]]:
    if file.name.endswith(".parquet"):
        frame = pl.scan_parquet(file.uri, glob=False, storage_options=storage_options(file.uri)).select(column)
        frame = frame.slice(start, None if stop is None else stop - start)
        for batch in frame.collect_batches(chunk_size=BATCH_ROWS, lazy=True):
            yield batch.to_series().to_list()
    else:
        for lines in _lines(file, start, stop):
            yield [text for line in lines for text in _json_text(line, column, counts)]


def _lines(file: SourceFile, start: int, stop: int | None) -> Iterator[list[str]]:
    if file.name.endswith(".jsonl") and not is_remote(file.uri):
        yield from _local_lines(Path(file.uri), start, stop)
        return
    # polars' line reader stops at invalid UTF-8, its CSV reader replaces it; a JSON line has no raw \x01
    frame = pl.scan_csv(
        file.uri,
        has_header=False,
        schema={"line": pl.String},
        separator="\x01",
        quote_char=None,
        encoding="utf8-lossy",
        extra_columns="ignore",
        empty_string_is_null=False,
        raise_if_empty=False,
        glob=False,
        storage_options=storage_options(file.uri),
    )
    for batch in frame.collect_batches(chunk_size=BATCH_ROWS, lazy=True):
        yield batch.to_series().to_list()


def _local_lines(path: Path, start: int, stop: int | None) -> Iterator[list[str]]:
    """The lines that begin at bytes `start <= b < stop`."""
    with path.open("rb") as stream:
        at = 0
        if start:
            at = stream.seek(start - 1)
            at += len(stream.readline())
        while stop is None or at < stop:
            batch, size = [], 0
            while size < CHUNK_BYTES and (stop is None or at < stop) and (line := stream.readline()):
                at, size = at + len(line), size + len(line)
                batch.append(line.decode("utf-8", "replace"))
            if not batch:
                return
            yield batch


def _json_text(line: str, column: str, counts: Counts) -> list[str | None]:
    if not line or line.isspace():
        return []
    text = _parsed(line, column)
    if text is not None and not isinstance(text, str):
        counts.invalid += 1
        return []
    if text is not None and "\\u" in line:
        text = _without_surrogates(text, counts)
    counts.replaced += "\ufffd" in line
    return [text]


def _parsed(line: str, column: str) -> Json:
    """What the text column holds; an integer where there is no such thing."""
    try:
        found: Json = json.loads(line.removeprefix("\ufeff"))[column]
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0
    return found


def check_column(file: SourceFile, column: str) -> None:
    """Look for the text column in the first lines of a .jsonl file.

    Raises:
        CorpusError: they are JSON objects without that key.
    """
    keys: dict[str, None] = {}
    with readable(file):
        for line in next(_lines(file, 0, None), []):
            try:
                record = json.loads(line.removeprefix("\ufeff"))
            except ValueError:
                continue
            if isinstance(record, dict):
                keys |= dict.fromkeys(record)
    if keys and column not in keys:
        raise CorpusError(f"{file.name} has no key {column!r}; set corpus.text_column to one of {', '.join(keys)}")


def _pieces(texts: Iterable[str | None], limit: int, counts: Counts) -> list[Piece]:
    out: list[Piece] = []
    for text in texts:
        if not text or text.isspace():
            counts.empty += 1
            continue
        counts.documents += 1
        counts.cut += len(text) > limit
        out += _divided(text, limit)
    return out


def _divided(text: str, limit: int, goes_on: bool = False) -> list[Piece]:
    out: list[Piece] = []
    at = 0
    while at < len(text):
        end = _cut(text, at, limit)
        out.append((text[at:end], goes_on or at > 0))
        at = end
    return out


def _cut(text: str, at: int, limit: int) -> int:
    """Where the piece that begins at `at` ends."""
    if len(text) - at <= limit:
        return len(text)
    newline = text.rfind("\n", at + limit // 2, at + limit)
    return newline + 1 if newline >= 0 else at + limit


def _without_surrogates(text: str, counts: Counts) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can write a lone surrogate, UTF-8 cannot
        counts.replaced += 1
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _text_file(file: SourceFile, form: TextFormat, counts: Counts) -> Iterator[list[Piece]]:
    """A .txt file in memory proportional to `document_chars`, however long it is."""
    limit, separator = form.document_chars, form.separator
    kept, goes_on, replaced = "", False, False
    with _open(file.uri) as stream:
        for text, lossy in _decoded(stream):
            replaced |= lossy
            kept += text
            batch: list[Piece] = []
            if separator:
                *documents, kept = kept.split(separator)
                for document in documents:
                    batch += _rest(document, goes_on, limit, counts)
                    goes_on = False
            while len(kept) > limit + len(separator or ""):
                end = _cut(kept, 0, limit)
                counts.cut += not goes_on
                counts.documents += not goes_on
                batch.append((kept[:end], goes_on))
                kept, goes_on = kept[end:], True
            if batch:
                yield batch
    batch = _rest(kept, goes_on, limit, counts) if kept or not separator else []
    if batch:
        yield batch
    counts.replaced += replaced


def _rest(text: str, goes_on: bool, limit: int, counts: Counts) -> list[Piece]:
    return _divided(text, limit, goes_on=True) if goes_on else _pieces([text], limit, counts)


def _open(uri: str) -> IO[bytes]:
    return open_remote(uri) if is_remote(uri) else Path(uri).open("rb")


def _decoded(stream: IO[bytes]) -> Iterator[tuple[str, bool]]:
    """(text, whether bytes were replaced), a chunk at a time."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")("replace")
    tail = b""
    while data := stream.read(CHUNK_BYTES):
        text = decoder.decode(data)
        yield text, text.count("\ufffd") > (tail + data).count("\ufffd".encode())
        tail = data[-2:]
    text = decoder.decode(b"", final=True)
    if text:
        yield text, True
