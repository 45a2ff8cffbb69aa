"""What the settings name has to be in the file: nothing that somebody declared is passed over."""

import io
import zipfile
from pathlib import Path

import pytest
from file_instants import read

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.trace_settings import FileTraces, LiveFileTraces
from curtail_pipeline.signals.files import FileProvider

STAMPS = [f"2024-04-01T{hour:02}:00Z" for hour in range(24)]


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    path = tmp_path / "wide.csv"
    path.write_text("\n".join(["time,A,B", *(f"{stamp},{400 + k},{500 + k}" for k, stamp in enumerate(STAMPS))]))
    return path


@pytest.fixture
def long(tmp_path: Path) -> Path:
    path = tmp_path / "long.csv"
    path.write_text("\n".join(["time,zone,moer", *(f"{stamp},A,{400 + k}" for k, stamp in enumerate(STAMPS))]))
    return path


@pytest.mark.parametrize("given", [{"region_column": "zone"}, {"value_column": "A"}, {"layout": "long"}])
def test_columns_of_a_long_file_that_are_not_there_are_named(wide: Path, given: dict[str, str]) -> None:
    """The file was read as a wide one."""
    with pytest.raises(
        TraceError, match=r"a long file needs the columns .*; it has time, A, B.* traces.layout to wide"
    ):
        read(wide, **given)
    assert len(read(wide, **{**given, "layout": "wide"})) == 24


def test_a_region_that_is_mapped_is_in_a_long_file(long: Path) -> None:
    given = {"region_column": "zone", "value_column": "moer"}
    assert len(read(long, "X", **given, columns={"A": "X"})) == 24
    with pytest.raises(TraceError, match=r"has no region 'Q', which traces.columns names; it has A"):
        read(long, "X", **given, columns={"A": "X", "Q": "Y"})
    settings = {"path": str(long), **given, "columns": {"A": "X", "Q": "Y"}}
    live = FileProvider(LiveFileTraces.model_validate(settings))  # the other region may come later
    assert live.regions() == ["X"]


def test_a_kind_that_is_not_there_is_told_from_what_windows_can_be_decided_by(wide: Path) -> None:
    priced = FileProvider(FileTraces(path=str(wide), kind="price"))
    with pytest.raises(TraceError, match=r"it has price\. .* or decide windows by another kind .*kind: price"):
        priced.ingest("A", *priced.span(), "marginal_intensity")
    average = FileProvider(FileTraces(path=str(wide), kind="average_intensity"))
    with pytest.raises(TraceError, match=r"it has average_intensity\. .* traces.columns$"):
        average.ingest("A", *average.span(), "marginal_intensity")


def test_a_spreadsheet_of_open_documents(tmp_path: Path) -> None:
    pytest.importorskip("fastexcel")
    office = "urn:oasis:names:tc:opendocument:xmlns"
    cells = [["time", "A"], *([stamp, str(400 + k)] for k, stamp in enumerate(STAMPS))]
    rows = "".join(
        "<table:table-row>"
        + "".join(f'<table:table-cell office:value-type="string"><text:p>{c}</text:p></table:table-cell>' for c in row)
        + "</table:table-row>"
        for row in cells
    )
    spaces = " ".join(f'xmlns:{name}="{office}:{name}:1.0"' for name in ("office", "table", "text"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("mimetype", "application/vnd.oasis.opendocument.spreadsheet")
        archive.writestr(
            "META-INF/manifest.xml", f'<manifest:manifest xmlns:manifest="{office}:manifest:1.0"></manifest:manifest>'
        )
        archive.writestr(
            "content.xml",
            f"<office:document-content {spaces}><office:body><office:spreadsheet><table:table table:name='S'>{rows}"
            "</table:table></office:spreadsheet></office:body></office:document-content>",
        )
    (tmp_path / "t.ods").write_bytes(packed.getvalue())
    assert list(read(tmp_path / "t.ods").values()) == [400.0 + k for k in range(24)]
