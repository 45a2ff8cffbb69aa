"""Text sources: where documents come from, in one deterministic order, in slices that can be read apart.

A source is a list of files in the order of their names. A slice is a piece of that list small enough to be one unit
of parallel, restartable work; reading a slice streams, so that neither a large file nor a large corpus is ever held.
"""

import glob
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from curtail_pipeline.corpus.config import CorpusSettings
from curtail_pipeline.corpus.stdlib_text import stdlib_documents
from curtail_pipeline.errors import CorpusError
from curtail_pipeline.storage.store import Store

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
SNAPSHOT = "corpus/embedded.parquet"
SLICE_ROWS = 8192
BATCH_ROWS = 512


@dataclass(frozen=True)
class SourceFile:
    name: str
    """Relative to the source, so that a dealing means the same on another machine."""
    uri: str
    bytes: int
    rows: int | None = None


@dataclass(frozen=True)
class Slice:
    """Files `first <= i < last`; of a single file possibly only the rows `start <= row < stop`."""

    first: int
    last: int
    start: int = 0
    stop: int | None = None

    def to_json(self) -> list[int | None]:
        return [self.first, self.last, self.start, self.stop]


@dataclass
class Counts:
    """What was met while reading."""

    documents: int = 0
    empty: int = 0
    """Left out: null, or white space alone."""
    invalid: int = 0
    """Left out: a line that is not a JSON object with the text column."""
    replaced: int = 0
    """Kept with U+FFFD in place of bytes that are not UTF-8."""
    cut: int = 0
    """Longer than `max_document_mib`, and therefore kept in pieces."""

    def add(self, other: "Counts | dict[str, int]") -> None:
        for name, value in (other if isinstance(other, dict) else asdict(other)).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class Source:
    """A corpus: its files and how to read them."""

    text: str
    """As given in the settings."""
    column: str
    separator: str | None
    files: tuple[SourceFile, ...]
    slices: tuple[Slice, ...] = field(default=())

    def read(self, part: Slice, counts: Counts) -> Iterator[list[str]]:
        """Documents of a slice in order, in batches; what is left out is counted."""
        for index in range(part.first, part.last):
            file = self.files[index]
            for batch in _read_file(file, part, self.column, self.separator, counts):
                kept = [_clean(text, counts) for text in batch if text is not None and not text.isspace() and text]
                counts.empty += len(batch) - len(kept)
                counts.documents += len(kept)
                if kept:
                    yield kept

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.text,
            "text_column": self.column,
            "text_separator": self.separator,
            "files": [[f.name, f.bytes, f.rows] for f in self.files],
            "slices": [part.to_json() for part in self.slices],
        }


def _clean(text: str, counts: Counts) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate, which JSON can write and UTF-8 cannot
        counts.replaced += 1
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def open_source(settings: CorpusSettings, store: Store) -> Source:
    """List the files of the source and cut them into slices. The embedded text is snapshot into the store first.

    Raises:
        CorpusError: nothing there, an unknown kind of file, or no such column.
    """
    if settings.source == "embedded":
        if not store.exists(SNAPSHOT):
            write_snapshot(store)
        path = store.path(SNAPSHOT)
        files = [SourceFile(path.name, str(path), path.stat().st_size, _rows(str(path), "text", settings.source))]
        column = "text"
    else:
        column = settings.text_column
        files = [
            SourceFile(name, str(path), path.stat().st_size, _rows(str(path), column, settings.source))
            for name, path in _list_files(settings.source)
        ]
    return Source(settings.source, column, settings.text_separator, tuple(files), tuple(_slices(files)))


def write_snapshot(store: Store) -> None:
    """Write the embedded text as `corpus/embedded.parquet` (columns name, text)."""
    names, texts = zip(*stdlib_documents(), strict=True)
    path = store.path(SNAPSHOT)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".tmp")
    pl.DataFrame({"name": names, "text": texts}).write_parquet(scratch)
    scratch.replace(path)


def _list_files(source: str) -> list[tuple[str, Path]]:
    path = Path(source).expanduser()
    if path.is_dir():
        found, root = [p for p in path.rglob("*") if p.is_file() and p.name.endswith(SUFFIXES)], path
    elif path.is_file():
        found, root = [path], path.parent
    else:
        names = glob.glob(str(path), recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
        found, root = [Path(name) for name in names if Path(name).is_file()], Path()
    wrong = sorted(p for p in found if not p.name.endswith(SUFFIXES))
    if wrong:
        raise CorpusError(f"{wrong[0]} is no text source; corpus.source takes {', '.join(SUFFIXES)} files")
    if not found:
        raise CorpusError(
            f"corpus.source {source!r} names no {', '.join(SUFFIXES)} file; give a file, folder or glob that exists"
        )
    return sorted((p.relative_to(root).as_posix(), p) for p in found)


def _rows(uri: str, column: str, source: str) -> int | None:
    if not uri.endswith(".parquet"):
        return None
    try:
        frame = pl.scan_parquet(uri, glob=False)
        columns = frame.collect_schema().names()
        if column not in columns:
            raise CorpusError(f"{uri} has no column {column!r}; set corpus.text_column to one of {', '.join(columns)}")
        return int(frame.select(pl.len()).collect().item())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise CorpusError(f"cannot read {uri} of corpus.source {source!r}: {error}") from error


def _slices(files: list[SourceFile]) -> Iterator[Slice]:
    for index, file in enumerate(files):
        if file.rows is None:
            yield Slice(index, index + 1)
        else:
            for start in range(0, file.rows, SLICE_ROWS):
                yield Slice(index, index + 1, start, min(start + SLICE_ROWS, file.rows))


def _read_file(
    file: SourceFile, part: Slice, column: str, separator: str | None, counts: Counts
) -> Iterator[list[str | None]]:
    if file.name.endswith(".parquet"):
        stop = file.rows if part.stop is None else part.stop
        assert stop is not None
        frame = pl.scan_parquet(file.uri, glob=False).select(column)
        for start in range(part.start, stop, BATCH_ROWS):
            yield frame.slice(start, min(BATCH_ROWS, stop - start)).collect().to_series().to_list()
    elif file.name.endswith(".txt"):
        data = Path(file.uri).read_bytes()
        text = data.decode("utf-8", "replace")
        counts.replaced += text.encode() != data
        yield list(text.split(separator)) if separator else [text]
    else:
        for lines in pl.scan_lines(file.uri, glob=False).collect_batches(chunk_size=BATCH_ROWS):
            yield [text for line in lines.to_series() if line.strip() for text in _json_text(line, column, counts)]


def _json_text(line: str, column: str, counts: Counts) -> list[str | None]:
    try:
        text = json.loads(line)[column]
        if text is None or isinstance(text, str):
            return [text]
    except (ValueError, KeyError, TypeError):
        pass
    counts.invalid += 1
    return []
