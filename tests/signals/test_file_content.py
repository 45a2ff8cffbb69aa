"""Files as people have them: packed, from a spreadsheet, in UTF-16, with other marks; never a traceback."""

import bz2
import gzip
import io
import lzma
import sys
import zipfile
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from curtail_pipeline.cli.windows_of_file import windows_of_file
from curtail_pipeline.errors import CurtailError, TraceError
from curtail_pipeline.settings.trace_settings import FileTraces
from curtail_pipeline.signals.provider import make_provider

TEXT = "time,A\n2026-03-01T00:00Z,1.5\n2026-03-01T00:05Z,2\n2026-03-01T00:10Z,-3\n"
START = datetime(2026, 3, 1, tzinfo=UTC)
EXPECTED = {START: 1.5, START + timedelta(minutes=5): 2.0, START + timedelta(minutes=10): -3.0}


def read(path: Path, region: str = "A", **given: Any) -> dict[datetime, float]:
    provider = make_provider(FileTraces.model_validate({"path": str(path), "kind": "price", **given}))
    span = provider.span()
    assert span is not None
    return dict(provider.fetch(region, *span).drop_nulls("value").select("time", "value").iter_rows())


def zipped(**members: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return packed.getvalue()


def workbook(**sheets: list[list[str | float]]) -> bytes:
    """A minimal .xlsx."""

    def cell(value: str | float) -> str:
        if isinstance(value, str):
            return f'<c t="inlineStr"><is><t>{value}</t></is></c>'
        return f"<c><v>{value}</v></c>"

    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006"
    kind = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    names = list(sheets)
    files = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{kind}.sheet.main+xml"/>'
        + "".join(
            f'<Override PartName="/xl/worksheets/s{i}.xml" ContentType="{kind}.worksheet+xml"/>'
            for i in range(len(names))
        )
        + "</Types>",
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="r" '
        f'Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets>'
        + "".join(f'<sheet name="{name}" sheetId="{i + 1}" r:id="r{i}"/>' for i, name in enumerate(names))
        + "</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships">'
        + "".join(
            f'<Relationship Id="r{i}" Type="{office}/worksheet" Target="worksheets/s{i}.xml"/>'
            for i in range(len(names))
        )
        + "</Relationships>",
    }
    for i, rows in enumerate(sheets.values()):
        body = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
        files[f"xl/worksheets/s{i}.xml"] = f'<worksheet xmlns="{main}"><sheetData>{body}</sheetData></worksheet>'
    return zipped(**files)


ROWS: list[list[str | float]] = [
    ["time", " A "],
    ["2026-03-01 00:00", 1.5],
    ["2026-03-01 00:05", 2],
    ["2026-03-01 00:10", -3],
]


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("t.csv", TEXT.encode()),
        ("t.csv", b"\n\n" + TEXT.encode()),
        ("t.csv", b",,\r\n\r\n" + TEXT.replace("\n", "\r\n").encode()),
        ("t.csv", TEXT.replace("\n", "\r").encode()),
        ("t.csv", TEXT.replace(",", " , ").encode()),
        ("t.csv", TEXT.replace("time,A", '"time" ,"A"').encode()),
        ("t.csv", TEXT.replace("\n", "\n\n").encode()),
        ("t.csv", TEXT.encode("utf-16")),
        ("t.csv", b"\xfe\xff" + TEXT.encode("utf-16-be")),
        ("t.csv", b"\xef\xbb\xbf" + TEXT.encode()),
        ("t.csv.gz", gzip.compress(TEXT.encode())),
        ("t.csv", gzip.compress(TEXT.encode("utf-16"))),
        ("t.zip", zipped(**{"PUBLIC_PRICE.CSV": TEXT})),
        ("t.zip", zipped(**{"folder/a.csv": TEXT, "__MACOSX/a.csv": "x"})),
        ("t.xlsx", workbook(data=ROWS)),
        ("t.csv", workbook(data=ROWS)),
    ],
    ids=[
        "plain", "blank first lines", "empty cells first", "old line ends", "spaces", "quotes", "blank lines between",
        "utf-16", "utf-16-be", "byte order mark", "gzip", "gzip by content", "zip", "zip of a Mac", "workbook",
        "workbook by content",
    ],
)  # fmt: skip
def test_the_same_table_in_every_wrapping(tmp_path: Path, name: str, raw: bytes) -> None:
    (tmp_path / name).write_bytes(raw)
    assert read(tmp_path / name) == EXPECTED


def test_parquet_names_are_stripped_too(tmp_path: Path) -> None:
    pl.DataFrame({"time": list(EXPECTED), " A": list(EXPECTED.values())}).write_parquet(tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet") == EXPECTED


@pytest.mark.parametrize("day_ends", [False, True])
def test_times_of_day_of_a_spreadsheet(tmp_path: Path, day_ends: bool) -> None:
    """Cells of the format h:mm are times of the day 0, those of [h]:mm lengths of time, in which 24:00 is written."""
    column = pl.Series([timedelta(hours=n + day_ends) for n in range(24)])
    days = pl.Series([date(2026, 3, 1)] * 24)
    for texts in (column, pl.Series([datetime(1899, 12, 31)] * 24) + column):
        pl.DataFrame({"Date": days, "Time": texts, "A": range(24)}).write_parquet(tmp_path / "t.parquet")
        found = read(tmp_path / "t.parquet")
        assert [stamp.hour for stamp in found] == list(range(24)) and list(found.values()) == list(range(24))


def test_texts_as_bytes_and_lists_in_parquet(tmp_path: Path) -> None:
    """Impala writes texts without saying that they are some."""
    stamps = [f"2026-03-01T{hour:02}:00Z".encode() for hour in range(24)]
    table = pl.DataFrame({"time": stamps, "region": [b"A"] * 24, "value": range(24)})
    table.write_parquet(tmp_path / "t.parquet")
    assert len(read(tmp_path / "t.parquet")) == 24
    table.with_columns(region=pl.concat_list("region")).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(TraceError, match=r"column 'region' holds List\(Binary\), not numbers, texts or times"):
        read(tmp_path / "t.parquet")


def test_an_index_column_without_a_name_is_the_time(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(TEXT.replace("time,", ","))
    assert read(path) == EXPECTED


def test_semicolons_and_decimal_commas_by_setting(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("time;A;B\n2026-03-01 00:00;1,5;1.234,5\n2026-03-01 00:05;2;-1.234.567\n2026-03-01 00:10;-3;-\n")
    with pytest.raises(TraceError, match=r"traces.separator to ';' and.* traces.decimal to ','"):
        read(path)
    with pytest.raises(TraceError, match=r"'1,5' in column 'A', data row 1, is not a number.*traces.decimal to ','"):
        read(path, separator=";")
    assert read(path, separator=";", decimal=",") == EXPECTED
    assert list(read(path, "B", separator=";", decimal=",").values()) == [1234.5, -1234567.0]
    path.write_text("time;A\n2026-03-01 00:00;12.5\n")
    with pytest.raises(TraceError, match=r"'12.5' in column 'A'.*set traces.decimal to '.'"):
        read(path, separator=";", decimal=",")
    assert list(read(path, separator=";").values()) == [12.5]


def test_decimal_commas_in_quotes_between_commas(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(TEXT.replace("1.5", '"1,5"'))
    with pytest.raises(TraceError, match=r"'1,5' in column 'A', data row 1, is not a number.*traces.decimal to ','"):
        read(path)
    assert read(path, decimal=",") == EXPECTED


def test_a_long_file_with_other_names_says_how_to_read_it(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(TEXT.replace("time,A", "Time,Zone,Price").replace("Z,", "Z,A,"))
    with pytest.raises(TraceError, match=r"'A' in column 'Zone'.*traces.region_column.*traces.value_column"):
        read(path)
    assert read(path, region_column="Zone", value_column="Price", time_column="Time") == EXPECTED


def test_lines_before_the_header(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("Hourly prices\nall in EUR\n" + TEXT)
    with pytest.raises(TraceError, match=r"'Hourly prices', not a header; set traces.skip_lines to 2"):
        read(path)
    assert read(path, skip_lines=2) == EXPECTED


def test_sheets_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.xlsx"
    path.write_bytes(workbook(notes=[["nothing"]], data=ROWS))
    with pytest.raises(TraceError, match=r"has the sheets notes, data; set traces.sheet"):
        read(path)
    with pytest.raises(TraceError, match=r"has no sheet 'dat'; it has notes, data"):
        read(path, sheet="dat")
    assert read(path, sheet="data") == EXPECTED
    path.write_bytes(workbook(data=[["Prices", ""], ["all in EUR", ""], *ROWS]))
    with pytest.raises(TraceError, match=r"row 1 of the sheet is 'Prices', not a header; set traces.skip_lines"):
        read(path)
    assert read(path, skip_lines=2) == EXPECTED


def test_without_the_extra_the_error_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.xlsx").write_bytes(workbook(data=ROWS))
    monkeypatch.setitem(sys.modules, "fastexcel", None)
    with pytest.raises(TraceError, match=r"needs fastexcel: pip install 'curtail_pipeline\[xlsx\]', or save it as CSV"):
        read(tmp_path / "t.xlsx")


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("t.csv", b"time,A\n2026-03-01,1,2\n", r"data row 1 has 3 values, but the header names 2 columns \('2' is one"),
        ("t.csv", b"time,A\n2026-03-01,\xe9\n", r"line 2 holds the byte 0xe9, which is not UTF-8 text"),
        ("t.csv", b"<!DOCTYPE html><html>", r"holds a web page or XML, not a table"),
        ("t.csv", b'{"error": "no"}', r"holds JSON, not a table"),
        ("t.csv", b"\n\n\n", r"is empty"),
        ("t.csv", b"time,A\n2026-03-01,1,25\n", r"correct the row, or put numbers with decimal commas in quotes"),
        ("t.csv", b"a,a\n1,2\n", r"two columns 'a'; .* if the line 'a,a' is no header, set traces.skip_lines"),
        ("t.csv", b"Report,,\n2026-03-02,,\ntime,A,B\n", r"two columns without a name; .*skip_lines"),
        ("t.zip", zipped(**{"a.csv": TEXT, "b.csv": TEXT}), r"holds 2 files \(a.csv, b.csv\); unpack it"),
        ("t.zip", zipped(**{"a.csv": TEXT})[:-30], r"t.zip cannot be read as zip"),
        ("t.xlsx", workbook(data=ROWS)[:-400], r"cannot be read"),
        ("t.parquet", b"PAR1....", r"cannot be read as parquet"),
        ("t.csv", b"time,A\n2026-03-01T00:00Z,\n", r"has no value in any row"),
        ("t.csv", b"Date,Period,A\n", r"has no value in any row"),
        ("t.csv", b"time,A\n,5\n", r"data row 1 has no time in column 'time'"),
        ("t.csv", b"time,A\n\n\n2026-03-01T00:00Z,x\n", r"column 'A', data row 3, is not a number"),
    ],
)  # fmt: skip
def test_one_line_for_what_cannot_be_read(tmp_path: Path, name: str, raw: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(TraceError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_rows_are_chosen_by_the_values_of_a_column(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    lines = [
        f"2026-03-01T00:{5 * i:02}Z,{flag},{value}" for i, value in enumerate((1.5, 2, -3)) for flag in ("0", "1.0")
    ]
    path.write_text("time,INTERVENTION,A\n" + "\n".join(line.replace("1.0,", "1.0,9") for line in lines) + "\n")
    for value in ("0", 0, 0.0, "0.0", "00"):
        assert read(path, where={"INTERVENTION": value}) == EXPECTED
    with pytest.raises(TraceError, match=r"no row has '7' in column 'INTERVENTION'.*it holds '0', '1.0'"):
        read(path, where={"INTERVENTION": "7"})
    with pytest.raises(TraceError, match=r"no column 'NO', which traces.where names; it has time, INTERVENTION, A"):
        read(path, where={"NO": "7"})


def test_negative_power_from_rounding_is_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "time,A\n2026-03-01T00:00Z,-0.0001\n2026-03-01T00:05Z,40\n2026-03-01T00:10Z,-0.4\n2026-03-01T00:15Z,-7\n"
    )
    assert list(read(path, kind="curtailed_power").values()) == [0, 40, 0, -7]
    assert "2 values between -0.5 and 0 MW" in caplog.text
    assert list(read(path, kind="price").values()) == [-0.0001, 40, -0.4, -7]


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValidationError, match="does not divide a day"):
        FileTraces.model_validate({"path": "x", "period_s": 700})


# --- no traceback, whatever the file ---

MAGIC = [
    b"",
    b"\x1f\x8b",
    b"PK\x03\x04",
    b"PAR1",
    b"\xff\xfe",
    b"\xfe\xff",
    b"\xd0\xcf\x11\xe0",
    b"PK\x03\x04xl/workbook",
]
MAGIC += [b"time,R\n2024-04-01,", b"\xef\xbb\xbf", zipped(a=TEXT)[:60], gzip.compress(TEXT.encode())[:30]]
CELLS = ["2024-03-31 02:30", "2024-10-27 02:30", "2024-04-01T24:00", "24:00", "2024-04-01", "1711929600", "2024040100"]
CELLS += ["01/04/2024 00:00 - 01/04/2024 01:00", "2024-04-01 01:00 CET", "9999-12-31T24:00", "2024-04-01T00:00+99:99"]
CELLS += ["HE01", "25", "02X", "nan", "1e999", "1,5", "", "\x00", '"', ";", "Y", "-5"]
NAMES = [
    "estimated",
    "Interval",
    "time",
    "region",
    "value",
    "Hour",
    "HE",
    "Period",
    "Date",
    "Time",
    "kind",
    "unit",
    "updated",
    "R",
    " R ",
    "",
    "a=b",
]
GIVEN: dict[str, list[Any]] = {
    "timezone": ["Europe/Berlin", "America/Chicago", "+10:00", "Etc/GMT+5", "AEST"],
    "interval": ["end"],
    "ambiguous": ["drop", "earliest", "refuse"],
    "time_format": ["%d/%m/%Y %H:%M", "%Z", "%", "%s", "%H", "%d/%m/%Y %H:%M - %d/%m/%Y %H:%M"],
    "hour_column": NAMES,
    "fold_column": NAMES,
    "time_column": NAMES,
    "separator": [";", "\t"],
    "skip_lines": [1, 3],
    "cadence_s": [60, 3600],
    "period_s": [1800],
    "where": [{"R": 1.0}, {"time": "x"}],
    "kind": ["price", "curtailed_power"],
    "combine": ["sum", "first"],
    "snap_s": [100],
    "decimal": [","],
    "columns": [{"R": "A"}, {"R": "A", "Hour": "B"}],
    "measured": [["zero"]],
}


def read_or_refuse(path: Path, **given: Any) -> None:
    """Everything of a file; a refusal is one line."""
    try:
        provider = make_provider(FileTraces.model_validate({"path": str(path), **given}))
        span = provider.span()
        assert span is not None
        for region in provider.regions() or []:
            for kind in provider.kinds(region):
                provider.ingest(region, *span, kind)
        windows_of_file(path, **given)
    except CurtailError as error:
        assert "\n" not in str(error) and str(error)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    magic=st.sampled_from(MAGIC), rest=st.binary(max_size=120), name=st.sampled_from(["t.csv", "t.zip", "t.parquet"])
)
def test_any_bytes(tmp_path: Path, magic: bytes, rest: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(magic + rest)
    read_or_refuse(tmp_path / name)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.lists(st.sampled_from(NAMES), min_size=1, max_size=4),
    rows=st.lists(st.lists(st.sampled_from(CELLS) | st.text(max_size=6), min_size=1, max_size=4), max_size=6),
    given_=st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in GIVEN.items()}),
)
def test_any_table(tmp_path: Path, header: list[str], rows: list[list[str]], given_: dict[str, Any]) -> None:
    text = "\n".join(",".join(row) for row in [header, *rows])
    (tmp_path / "t.csv").write_bytes(text.encode("utf-8", "surrogatepass"))
    read_or_refuse(tmp_path / "t.csv", **given_)


def test_a_refusal_is_one_line_whatever_the_names(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('first\na,"b\nc",d\n1,2,3\n')
    with pytest.raises(TraceError, match=r"it has a, b c, d$") as refused:
        read(tmp_path / "t.csv", skip_lines=1, hour_column="hour")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["", " ", "nan", "NULL", "None"])
def test_a_row_without_a_region_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"time,region,value\n2026-03-01T00:00Z,R,400\n2026-03-01T00:05Z,{name},20\n")
    with pytest.raises(TraceError, match="data row 2 has no 'region'; name each row's region"):
        make_provider(FileTraces(path=str(path))).regions()


@pytest.mark.parametrize(
    ("pack", "what"),
    [
        (bz2.compress, "bzip2"),
        (lzma.compress, "xz"),
        (lambda raw: gzip.compress(gzip.compress(raw)), "gzip in another archive"),
        (lambda raw: gzip.compress(b"PAR1" + raw), "Parquet in an archive"),
    ],
)
def test_what_is_packed_otherwise_is_named(tmp_path: Path, pack: Callable[[bytes], bytes], what: str) -> None:
    path = tmp_path / "t.csv.packed"
    path.write_bytes(pack(b"time,R\n2026-01-01T00:00:00Z,400\n"))
    with pytest.raises(TraceError, match=rf"is packed \({what}\); unpack it"):
        read(path)
