"""The bytes of a trace file as a table: CSV (plain, gzip or zip; UTF-8 or UTF-16), Parquet, spreadsheets.

What a file is shows in its first bytes, not in its name.
"""

import csv
import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Iterable
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path

import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.section import tidy
from curtail_pipeline.signals.header_names import require_header, require_values_below

ROW = "\x00row"
"""Column of a read table: number of the data row in the file, from 1; no file's own column has such a name."""

_GZIP, _PARQUET, _ZIP, _OLD_EXCEL = b"\x1f\x8b", b"PAR1", b"PK\x03\x04", b"\xd0\xcf\x11\xe0"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_ODS = b"opendocument.spreadsheet"
_HEAD = 100_000
"""Bytes within which a header ends."""
_FIRST_LINES = 20
"""Within which values begin below a header."""
_PACKED = {
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7-Zip",
    b"Rar!": "RAR",
    _GZIP: "gzip in another archive",
    _ZIP: "zip in another archive",
    _PARQUET: "Parquet in an archive",
}
"""How tables begin that are packed in a way that is not read."""
_DAY_0 = datetime(1899, 12, 31)
"""Of spreadsheets."""
_UNNAMED = "__UNNAMED__"
"""How fastexcel calls columns without a name."""
_SEPARATORS = (";", "\t", "|", ",")
_EXCELS_SEPARATOR = re.compile(rb'\A"?sep=.?"?\r?\n', re.IGNORECASE)
# Archives: RuntimeError where they are encrypted, NotImplementedError where their compression is not known.
_DAMAGED = (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError)
_REFUSED = (pl.exceptions.PolarsError, pl.exceptions.PanicException)


def unreadable(path: Path, what: str, error: BaseException) -> TraceError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return TraceError(f"{path} cannot be read as {what}: {reason}; replace the file")


class FileContent:
    """An opened trace file: the names of its columns, and its rows."""

    def __init__(
        self, path: Path, separator: str = ",", skip_lines: int = 0, sheet: str | None = None, *, grows: bool = False
    ) -> None:
        """Open a file and read its header.

        Args:
            separator: of a CSV's columns.
            skip_lines: lines before the header.
            sheet: of a spreadsheet; needed where it has several.
            grows: somebody may be writing the last line of a CSV; it counts once it has its line end.

        Raises:
            TraceError: the file is no table.
        """
        self.path, self.separator, self._grows = path, separator, grows
        self._table: pl.DataFrame | None = None
        self._text = b""
        self._nested: dict[str, pl.DataType] = {}
        try:
            with path.open("rb") as stream:
                head = stream.read(8)
            if head.startswith(_PARQUET) or path.suffix == ".parquet":
                self.kind = "parquet"
                schema = pl.read_parquet_schema(path)
                self._own_names = list(schema)
                self.names = self._tidied(self._own_names)
                self._nested = {
                    name: dtype for name, dtype in zip(self.names, schema.values(), strict=True) if dtype.is_nested()
                }
                return
            raw = path.read_bytes()
        except (*_REFUSED, OSError) as error:
            raise unreadable(path, path.suffix.lstrip(".") or "CSV", error) from error
        self.kind = "CSV"
        if head.startswith(_OLD_EXCEL) or (head.startswith(_ZIP) and (b"xl/workbook" in raw or _ODS in raw[:200])):
            self.kind = "xlsx"
            self._table = _spreadsheet(path, raw, sheet, skip_lines)
            self._own_names = self._table.columns
        else:
            self._text = self._plain_text(raw)
            self._own_names = self._header(skip_lines)
        self.names = self._tidied(self._own_names)
        require_header(str(path), self.names)

    @property
    def plain_names(self) -> list[str]:
        """Of the columns that hold one value a row, not lists or records."""
        return [name for name in self.names if name not in self._nested]

    def read(self, columns: Iterable[str], first: int | None = None) -> pl.DataFrame:
        """Columns of the file, and ROW; rows in which all are empty are left out. A CSV's values are texts.

        Args:
            first: so many rows; all when not given.

        Raises:
            TraceError: the rows cannot be read.
        """
        wanted = list(dict.fromkeys(columns))
        if (nested := next((name for name in wanted if name in self._nested), None)) is not None:
            raise TraceError(
                f"{self.path}: column {nested!r} holds {self._nested[nested]}, not numbers, texts or times; name the "
                "columns to read in traces.columns"
            )
        places = [self.names.index(name) for name in wanted]
        own = [self._own_names[place] for place in places]
        try:
            if self.kind == "parquet":
                table = pl.read_parquet(self.path, columns=own, n_rows=first)
            elif self._table is not None:
                table = self._table if first is None else self._table.head(first)
            else:
                # By place: polars would call a second unnamed column something else.
                order = sorted(places)
                table = pl.read_csv(
                    self._text, columns=order, infer_schema=False, separator=self.separator, n_rows=first
                )
                table.columns = [self._own_names[place] for place in order]
        except _REFUSED as error:
            raise self._explained(error) from error
        table = table.select(pl.col(old).alias(new) for old, new in zip(own, wanted, strict=True))
        table = table.with_columns(map(_readable, table))
        rows = pl.int_range(1, pl.len() + 1).alias(ROW)
        kept = table.with_columns(rows)
        return kept.filter(~pl.all_horizontal(pl.exclude(ROW).is_null()))

    def _tidied(self, names: list[str]) -> list[str]:
        """Names as people read them.

        Raises:
            TraceError: two are equal.
        """
        clean = [tidy(name) for name in names]
        twice = next((name for name in clean if clean.count(name) > 1), None)
        if twice is not None:
            which = repr(twice) if twice else "without a name"
            raise TraceError(
                f"{self.path} has two columns {which}; give each column a name of its own, or, if the line "
                f"{','.join(clean)[:80]!r} is no header, set traces.skip_lines to the number of lines before it"
            )
        return clean

    def _plain_text(self, raw: bytes) -> bytes:
        """The UTF-8 text of a CSV, unpacked, with line ends `\\n`."""
        try:
            if raw.startswith(_ZIP):
                raw = self._member(raw)
            elif raw.startswith(_GZIP):
                raw = gzip.decompress(raw)
            elif self._grows and not raw.startswith(_UTF16):
                raw = raw[: max(raw.rfind(b"\n"), raw.rfind(b"\r")) + 1]
            inside = next((what for mark, what in _PACKED.items() if raw.startswith(mark)), None)
            inside = "tar" if raw[257:262] == b"ustar" else inside
            if inside is not None:
                raise TraceError(f"{self.path} is packed ({inside}); unpack it, or pack it by gzip or zip alone")
            if raw.startswith(_UTF16):
                return raw.decode("utf-16").encode()
            raw = raw.removeprefix(b"\xef\xbb\xbf")
            raw.decode()
        except UnicodeDecodeError as error:
            if error.encoding != "utf-8":
                raise unreadable(self.path, "CSV", error) from error
            line = raw[: error.start].count(b"\n") + 1
            raise TraceError(
                f"{self.path}: line {line} holds the byte 0x{raw[error.start]:02x}, which is not UTF-8 text; "
                "save the file "
                "as CSV in UTF-8, or replace it"
            ) from error
        except _DAMAGED as error:
            raise unreadable(self.path, self.path.suffix.lstrip(".") or "CSV", error) from error
        if b"\r" in raw and b"\n" not in raw:
            raw = raw.replace(b"\r", b"\n")
        return raw

    def _member(self, raw: bytes) -> bytes:
        with zipfile.ZipFile(io.BytesIO(raw)) as packed:
            names = [
                info.filename
                for info in packed.infolist()
                if not info.is_dir() and not info.filename.startswith(("__MACOSX", ".")) and info.file_size
            ]
            if len(names) != 1:
                held = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
                raise TraceError(
                    f"{self.path} holds {len(names)} files ({held}); unpack it and name one in traces.path"
                )
            return packed.read(names[0])

    def _header(self, skip_lines: int) -> list[str]:
        """The names of a CSV's columns; what stands before its header is cut off the text."""
        lines = self._text.split(b"\n", skip_lines)
        self._text = lines[-1] if len(lines) > skip_lines else b""
        before = self._text.count(b"\n")
        self._text = _EXCELS_SEPARATOR.sub(b"", self._text, 1)
        while (end := self._text.find(b"\n")) >= 0 and not self._text[:end].strip(b" \t\r,;|\x00\xef\xbb\xbf"):
            self._text = self._text[end + 1 :]
        start = self._text[:200].lstrip().lower()
        for mark, what in ((b"<", "a web page or XML"), (b"{", "JSON"), (b"[{", "JSON")):
            if start.startswith(mark):
                raise TraceError(f"{self.path} holds {what}, not a table; save the data as CSV or Parquet")
        if b"\x00" in self._text[:1000]:
            raise TraceError(f"{self.path} holds bytes that are no text; give CSV, Parquet or a spreadsheet")
        try:
            head = self._text[:_HEAD].decode(errors="replace")
            first = list(islice(csv.reader(io.StringIO(head, newline=""), delimiter=self.separator), _FIRST_LINES))
            names = first[0] if first else []
        except csv.Error as error:
            raise unreadable(self.path, "CSV", error) from error
        if not names or not any(name.strip() for name in names):
            raise TraceError(f"{self.path}: is empty; a trace needs a header line, a time column and a value column")
        if len(names) == 1:
            self._refuse_one_column(names[0], skip_lines)
        require_values_below(str(self.path), skip_lines + before - self._text.count(b"\n"), first)
        return names

    def _refuse_one_column(self, name: str, skip_lines: int) -> None:
        other = next((mark for mark in _SEPARATORS if mark != self.separator and mark in name), None)
        if other is not None:
            decimal = " and, if numbers are written 400,5, traces.decimal to ','" if other == ";" else ""
            raise TraceError(
                f"{self.path}: has only the column {name!r}; if {other!r} separates its columns, set "
                "traces.separator to "
                f"{other!r}{decimal}"
            )
        head = self._text[:_HEAD].decode(errors="replace").splitlines()[:50]
        later = next((n for n, line in enumerate(head) if line.count(self.separator)), None)
        if later is not None:
            raise TraceError(
                f"{self.path}: its first line is {name!r}, not a header; set traces.skip_lines to "
                f"{skip_lines + later} if "
                f"the header is {head[later][:80]!r}"
            )
        parted = "separate its columns by commas, and " if re.search(r"\S\s+\S", name) else ""
        raise TraceError(f"{self.path}: has only the column {name!r}; {parted}add a value column per region")

    def _explained(self, error: BaseException) -> TraceError:
        """The first line of a CSV that does not fit its header."""
        if self.kind == "CSV":
            reader = csv.reader(io.StringIO(self._text.decode(), newline=""), delimiter=self.separator)
            try:
                header = next(reader)
                for number, cells in enumerate(reader, 1):
                    if len(cells) > len(header):
                        commas = self.separator == "," and all(cell.strip("0123456789") == "" for cell in cells[2:])
                        fix = ", or put numbers with decimal commas in quotes" if commas else ""
                        return TraceError(
                            f"{self.path}: data row {number} has {len(cells)} values, but the header names "
                            f"{len(header)} columns ({cells[-1]!r} is one too many); correct the row{fix}"
                        )
            except csv.Error as wrong:
                return unreadable(self.path, self.kind, wrong)
        return unreadable(self.path, self.kind, error)


def _readable(column: pl.Series) -> pl.Series:
    """Times of day, which spreadsheets hold as times of the day 0 (or as lengths of time), as HH:MM:SS up to 24:00:00,
    and bytes, as which some programs write texts to Parquet, as texts; any other column as it is."""
    if column.dtype == pl.Binary:
        texts = [None if value is None else value.decode(errors="replace") for value in column]
        return pl.Series(column.name, texts, dtype=pl.String)
    if isinstance(column.dtype, pl.Datetime) and column.dtype.time_zone is None:
        if not len(column.drop_nulls()) or not column.is_between(_DAY_0, _DAY_0 + timedelta(days=2)).all():
            return column
        column = column - _DAY_0
    elif column.dtype != pl.Duration:
        return column
    seconds = (column.dt.total_milliseconds() / 1_000).round().cast(pl.Int64)
    parts = [part.cast(pl.String).str.zfill(2) for part in (seconds // 3600, seconds // 60 % 60, seconds % 60)]
    return (parts[0] + ":" + parts[1] + ":" + parts[2]).alias(column.name)


def _spreadsheet(path: Path, raw: bytes, sheet: str | None, skip_lines: int) -> pl.DataFrame:
    """A sheet of a workbook.

    Raises:
        TraceError: fastexcel is not installed, there is no such sheet, several and none is named, or no header.
    """
    try:
        import fastexcel
    except ModuleNotFoundError as error:
        raise TraceError(
            f"{path} is a spreadsheet, which needs fastexcel: pip install 'curtail_pipeline[xlsx]', or save it as CSV"
        ) from error
    try:
        workbook = fastexcel.read_excel(raw)
        names = list(workbook.sheet_names)
        if sheet is not None and sheet not in names:
            raise TraceError(
                f"{path} has no sheet {sheet!r}; it has {', '.join(names)}. Set traces.sheet to one of them"
            )
        if sheet is None and len(names) != 1:
            raise TraceError(f"{path} has the sheets {', '.join(names)}; set traces.sheet to the one to read")
        table = workbook.load_sheet(sheet or names[0], header_row=skip_lines, schema_sample_rows=None).to_polars()
    except (fastexcel.FastExcelError, *_REFUSED, *_DAMAGED) as error:
        raise unreadable(path, "a spreadsheet", error) from error
    named = [name for name in table.columns if name.strip() and not name.startswith(_UNNAMED)]
    if table.width > 1 and len(named) < 2:
        title = named[0] if named else ""
        raise TraceError(
            f"{path}: row {skip_lines + 1} of the sheet is {title!r}, not a header; set traces.skip_lines to the "
            "number of rows before it"
        )
    return table
