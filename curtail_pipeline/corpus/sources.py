"""Text sources: where documents come from, in one deterministic order, in slices that can be read apart.

A source is a list of files in the order of their names. A slice is a piece of that list small enough to be one unit
of parallel, restartable work; reading a slice streams, so that neither a large file nor a large corpus is ever held.
"""

import glob
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from curtail_pipeline.corpus.documents import (
    Counts,
    Piece,
    SourceFile,
    TextFormat,
    check_column,
    read_documents,
    readable,
)
from curtail_pipeline.corpus.remote import glob_prefix, is_remote, list_remote, storage_options
from curtail_pipeline.corpus.stdlib_text import stdlib_documents
from curtail_pipeline.errors import CorpusError
from curtail_pipeline.settings.corpus_settings import CorpusSettings
from curtail_pipeline.storage.records import Record
from curtail_pipeline.storage.store import Store

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
SNAPSHOT = "corpus/embedded.parquet"
SLICE_BYTES = 1 << 26
"""About the bytes on disk of a slice of .parquet, .jsonl or many small .txt; compressed .jsonl is read whole."""
SLICE_ROWS = 65_536


class Slice(Record):
    """Files `first <= i < last`; of a single file possibly only a part."""

    first: int
    last: int
    start: int = 0
    stop: int | None = None
    """Rows of .parquet, bytes of .jsonl; to the end when not given."""
    limit: int | None = None
    """Documents to stop after (`max_documents`)."""


@dataclass(frozen=True)
class Source:
    """A corpus: its files and how to read them."""

    text: str
    """As given in the settings."""
    form: TextFormat
    files: tuple[SourceFile, ...]
    slices: tuple[Slice, ...] = ()

    def read(self, part: Slice, counts: Counts) -> Iterator[list[Piece]]:
        """Batches of (text, goes on the document before it) of a slice, in order; what is left out is counted.

        Raises:
            CorpusError: a file that is gone or unreadable.
        """
        batches = itertools.chain.from_iterable(
            read_documents(self.files[i], part.start, part.stop, self.form, counts)
            for i in range(part.first, part.last)
        )
        return batches if part.limit is None else _limited(batches, part.limit, counts)


def _limited(batches: Iterable[list[Piece]], limit: int, counts: Counts) -> Iterator[list[Piece]]:
    seen = 0
    for batch in batches:
        for at, (_, goes_on) in enumerate(batch):
            seen += not goes_on
            if seen > limit:
                counts.documents -= sum(not more for _, more in batch[at:])
                yield batch[:at]
                return
        yield batch


def text_form(settings: CorpusSettings) -> TextFormat:
    column = "text" if settings.source == "embedded" else settings.text_column
    return TextFormat(column, settings.text_separator, int(settings.max_document_mib * 2**20))


def open_source(settings: CorpusSettings, store: Store) -> Source:
    """List the files of the source and cut them into slices. The embedded text is snapshot into the store first.

    Raises:
        CorpusError: nothing there, an unknown kind of file, or no such column.
    """
    form = text_form(settings)
    listed = list_files(settings, store)
    for file in listed:
        if ".jsonl" in Path(file.name).name:
            check_column(file, form.column)
            break
    with ThreadPoolExecutor(16) as threads:
        files = tuple(threads.map(lambda file: _with_rows(file, form.column), listed))
    source = Source(settings.source, form, files, tuple(_slices(files)))
    return source if settings.max_documents is None else _first_documents(source, settings.max_documents)


def _first_documents(source: Source, limit: int) -> Source:
    """The source cut off after so many documents; reads them to count them."""
    kept: list[Slice] = []
    for part in source.slices:
        counts = Counts()
        part = part.model_copy(update={"limit": limit})
        for _ in source.read(part, counts):
            pass
        kept.append(part if counts.documents >= limit else part.model_copy(update={"limit": None}))
        limit -= counts.documents
        if limit <= 0:
            break
    return replace(source, slices=tuple(kept))


def list_files(settings: CorpusSettings, store: Store) -> list[SourceFile]:
    """The files of the source by name, without opening any.

    Raises:
        CorpusError: nothing there, or an unknown kind of file.
    """
    source = settings.source
    if source == "embedded":
        if not store.exists(SNAPSHOT):
            write_snapshot(store)
        path = store.mirror(SNAPSHOT)
        return [SourceFile(path.name, str(path), path.stat().st_size)]
    found = list_remote(source) if is_remote(source) else list(_list_local(source))
    files = sorted((SourceFile(*entry) for entry in found if entry[0].endswith(SUFFIXES)), key=lambda file: file.name)
    if not files:
        raise CorpusError(
            f"corpus.source {source!r} names no {', '.join(SUFFIXES)} file; give a file, folder or glob that exists"
        )
    return files


def write_snapshot(store: Store) -> None:
    """Write the embedded text as `corpus/embedded.parquet` (columns name, text)."""
    names, texts = zip(*stdlib_documents(), strict=True)
    with store.new_file(SNAPSHOT) as scratch:
        pl.DataFrame({"name": names, "text": texts}).write_parquet(scratch)


def _list_local(source: str) -> Iterator[tuple[str, str, int]]:
    path = Path(source).expanduser()
    if path.is_dir():
        found, root = list(path.rglob("*")), path
    elif path.is_file():
        found, root = [path], path.parent
    else:
        names = glob.glob(str(path), recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
        found, root = [Path(name) for name in names], Path(glob_prefix(str(path)).rpartition("/")[0])
    for file in found:
        if file.is_file():
            yield file.relative_to(root).as_posix(), str(file), file.stat().st_size


def _with_rows(file: SourceFile, column: str) -> SourceFile:
    if not file.name.endswith(".parquet"):
        return file
    with readable(file):
        frame = pl.scan_parquet(file.uri, glob=False, storage_options=storage_options(file.uri))
        schema = frame.collect_schema()
        if schema.get(column) != pl.String:
            texts = [name for name, kind in schema.items() if kind == pl.String]
            raise CorpusError(
                f"{file.name} has no text column {column!r}; set corpus.text_column to one of "
                f"{', '.join(texts) or '(it has no text columns)'}"
            )
        return replace(file, rows=int(frame.select(pl.len()).collect().item()))


def _slices(files: tuple[SourceFile, ...]) -> Iterator[Slice]:
    """In the order of the files; neighbouring .txt files share a slice."""
    at = 0
    while at < len(files):
        file, last = files[at], at + 1
        if file.rows is not None:
            step = max(512, min(SLICE_ROWS, SLICE_BYTES * file.rows // max(file.bytes, 1)))
            for start in range(0, file.rows, step):
                yield Slice(first=at, last=last, start=start, stop=min(start + step, file.rows))
        elif file.name.endswith(".jsonl") and not is_remote(file.uri):
            for start in range(0, file.bytes, SLICE_BYTES):
                yield Slice(first=at, last=last, start=start, stop=min(start + SLICE_BYTES, file.bytes))
        else:
            size = file.bytes
            while file.name.endswith(".txt") and last < len(files) and files[last].name.endswith(".txt"):
                size += files[last].bytes
                if size > SLICE_BYTES:
                    break
                last += 1
            yield Slice(first=at, last=last)
        at = last
