"""Several rows per stamp, listings, kinds and flags: the right reading, or one line with the fix."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from curtail_pipeline.cli.windows_of_file import windows_of_file
from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.trace_settings import FileTraces
from curtail_pipeline.signals.files import FileProvider
from curtail_pipeline.signals.kinds import is_part_of_times

STAMPS = [f"2024-04-01T{hour:02d}:00:00Z" for hour in range(24)]


def opened(tmp_path: Path, lines: list[str], **settings: object) -> FileProvider:
    path = tmp_path / "t.csv"
    path.write_text("\n".join(lines) + "\n")
    return FileProvider(FileTraces.model_validate({"path": str(path), **settings}))


def values(provider: FileProvider, region: str = "R") -> list[float | None]:
    span = provider.span()
    assert span is not None
    return provider.fetch(region, *span)["value"].to_list()


LMP = [
    "time,region,LMP_TYPE,GROUP,value",
    *(f"{stamp},R,{kind},{group},{base + hour}" for hour, stamp in enumerate(STAMPS)
      for group, (kind, base) in enumerate([("LMP", 40), ("MCC", -2), ("MCE", 50)])),
]  # fmt: skip


def test_rows_that_a_column_tells_apart_are_refused_with_the_setting_that_chooses(tmp_path: Path) -> None:
    with pytest.raises(TraceError) as refused:
        values(opened(tmp_path, LMP, kind="price"))
    assert "24 of 24 stamps" in str(refused.value) and "{LMP_TYPE: LMP}" in str(refused.value)
    # The advice, followed.
    chosen = values(opened(tmp_path, LMP, kind="price", where={"LMP_TYPE": "LMP"}))
    assert chosen == [40.0 + hour for hour in range(24)]
    assert values(opened(tmp_path, LMP, kind="price", where={"GROUP": 0})) == chosen
    summed = values(opened(tmp_path, LMP, kind="price", combine="sum"))
    assert summed == [88.0 + 3 * hour for hour in range(24)]
    assert values(opened(tmp_path, LMP, kind="price", combine="first")) == chosen
    assert values(opened(tmp_path, LMP, kind="price", combine="last")) == [50.0 + hour for hour in range(24)]


def test_rows_that_two_columns_tell_apart_together(tmp_path: Path) -> None:
    lines = ["time,market,zone,R"]
    lines += [f"{stamp},{m},{z},{i + 10 * m + z}" for i, stamp in enumerate(STAMPS) for m in (1, 2) for z in (3, 4)]
    with pytest.raises(TraceError, match=r"'market' and 'zone' together tell them apart.*\{market: 1, zone: 3\}"):
        values(opened(tmp_path, lines, kind="price", columns={"R": "R"}))
    chosen = values(opened(tmp_path, lines, kind="price", columns={"R": "R"}, where={"market": 1, "zone": 3}))
    assert chosen == [13.0 + i for i in range(24)]


def test_a_number_that_tells_rows_apart_is_no_region(tmp_path: Path) -> None:
    lines = ["time,Run,R", *(f"{stamp},{run},{i + run}" for i, stamp in enumerate(STAMPS) for run in (1, 2))]
    with pytest.raises(TraceError, match=r"the column 'Run' tells them apart \(1, 2\).*\{Run: 1\}"):
        opened(tmp_path, lines, kind="price").span()
    provider = opened(tmp_path, lines, kind="price", where={"Run": 1})
    assert provider.regions() == ["R"] and values(provider) == [1.0 + i for i in range(24)]


def test_where_names_a_column_and_a_value_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"no row has .ENE. in column .LMP_TYPE.*holds .LMP."):
        values(opened(tmp_path, LMP, kind="price", where={"LMP_TYPE": "ENE"}))
    with pytest.raises(TraceError, match=r"no column 'TYPE', which traces.where names"):
        values(opened(tmp_path, LMP, kind="price", where={"TYPE": "LMP"}))


def test_two_auctions_without_a_column_are_refused_and_one_correction_is_reported(tmp_path: Path) -> None:
    lines = ["time,R", *(f"{stamp},{value}" for stamp in STAMPS for value in (52, 50))]
    with pytest.raises(TraceError, match="no column tells them apart"):
        values(opened(tmp_path, lines, kind="price"))
    lines = ["time,R", *(f"{stamp},{400 + i}" for i, stamp in enumerate(STAMPS)), f"{STAMPS[5]},90"]
    provider = opened(tmp_path, lines)
    span = provider.span()
    assert span is not None
    report = provider.ingest("R", *span).report
    assert (report.conflicts, report.disagreeing, report.duplicates) == (1, 1, 0)


HITS = ["15:00", "15:05", "15:10", "15:15", "17:00", "18:00"]


def test_a_listing_of_curtailment_is_refused_until_it_is_declared(tmp_path: Path) -> None:
    lines = ["time,R", *(f"2024-04-01T{hit}Z,50" for hit in HITS)]
    with pytest.raises(TraceError, match=r"traces.missing: zero"):
        values(opened(tmp_path, lines, kind="curtailed_power"))
    found = values(opened(tmp_path, lines, kind="curtailed_power", missing="zero"))
    assert found == [50.0 if f"{15 + i // 12}:{i % 12 * 5:02d}" in HITS else 0.0 for i in range(37)]
    unknown = values(opened(tmp_path, lines, kind="curtailed_power", missing="null"))
    assert unknown.count(50.0) == 6 and unknown.count(None) == 31
    with pytest.raises(ValidationError, match="kind: curtailed_power"):
        FileTraces(path="x", missing="zero")


def test_two_values_a_day_apart_hold_for_an_hour(tmp_path: Path) -> None:
    provider = opened(tmp_path, ["time,R", f"{STAMPS[0]},50", f"{STAMPS[12]},400"])
    assert values(provider) == [50.0, *[None] * 11, 400.0]


@pytest.mark.parametrize(
    "name",
    ["RRP", "LMP", "SettlementPointPrice", "Price (EUR/MWh)", "day $", "spot_price", "Marktpreis", "LBMP", "PVPC"],
)
def test_a_price_without_kind_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    lines = [f"time,{name}", *(f"{stamp},{60 + i}" for i, stamp in enumerate(STAMPS))]
    with pytest.raises(TraceError, match="--kind price"):
        values(opened(tmp_path, lines), name)
    assert values(opened(tmp_path, lines, kind="price"), name)[0] == 60


@pytest.mark.parametrize(
    "name",
    ["avg", "average_ci", "CarbonIntensityAverage", "AOER", "Carbon Intensity gCO2eq/kWh (direct)",
     "Carbon intensity gCO2eq/kWh (Life cycle)"],
)  # fmt: skip
def test_an_average_intensity_without_kind_is_refused(tmp_path: Path, name: str) -> None:
    lines = [f"time,{name}", *(f"{stamp},{60 + i}" for i, stamp in enumerate(STAMPS))]
    with pytest.raises(TraceError, match="average intensity"):
        values(opened(tmp_path, lines), name)


def test_small_values_without_kind_are_refused_by_their_size(tmp_path: Path) -> None:
    lines = ["time,R", *(f"{stamp},{60 + i}" for i, stamp in enumerate(STAMPS))]
    with pytest.raises(TraceError, match="never exceeds 83"):
        values(opened(tmp_path, lines))
    assert values(opened(tmp_path, lines, kind="marginal_intensity"))[0] == 60


def test_small_values_beside_a_region_that_has_intensities_are_a_clean_grids(tmp_path: Path) -> None:
    lines = ["time,R,DIRTY", *(f"{stamp},{60 + i},{900 + i}" for i, stamp in enumerate(STAMPS))]
    assert values(opened(tmp_path, lines))[0] == 60
    lines = ["time,R,SPIKES", *(f"{stamp},{60 + i},{900 if i == 5 else 70}" for i, stamp in enumerate(STAMPS))]
    with pytest.raises(TraceError, match="never exceeds 83"):
        values(opened(tmp_path, lines))


def test_a_price_with_spikes_is_no_intensity(tmp_path: Path) -> None:
    lines = ["time,NP15", *(f"{day}T{h:02}:00Z,{1000 if h == 18 and d == 1 else 40 + h}" for d, day in
             enumerate(["2024-04-01", "2024-04-02"]) for h in range(24))]  # fmt: skip
    with pytest.raises(TraceError, match=r"'NP15' exceeds 62 in 1 of 20 values only.*--kind price"):
        values(opened(tmp_path, lines), "NP15")
    assert values(opened(tmp_path, lines, kind="price"), "NP15")[0] == 40


def test_what_tells_rows_apart_beside_their_hours_is_named(tmp_path: Path) -> None:
    halves = [(day, period) for day in (1, 2) for period in range(1, 49)]
    rows = [row for d, n in halves for row in (f"2024-04-0{d},{n},N2EX,0", f"2024-04-0{d},{n},APX,{50 + n}")]
    lines = ["settlementDate,settlementPeriod,dataProvider,price", *rows]
    given = {"kind": "price", "columns": {"price": "GB"}, "timezone": "Europe/London"}
    with pytest.raises(TraceError, match=r"column 'dataProvider' tells them apart \(APX, N2EX\).*{dataProvider: APX}"):
        values(opened(tmp_path, lines, **given), "GB")
    assert values(opened(tmp_path, lines, where={"dataProvider": "APX"}, **given), "GB")[:2] == [51, 52]
    quarters = ["Date,Hour,Minute,GB", *(f"2024-04-01,{h},{m},{h + m}" for h in range(24) for m in (0, 15, 30, 45))]
    with pytest.raises(TraceError, match="the column 'Minute' says when, which the stamps do not say in full"):
        values(opened(tmp_path, quarters, kind="price"), "GB")


@pytest.mark.parametrize("column", ["updated", "updatedAt", "last_updated", "LastModified"])
def test_the_later_revision_counts_wherever_it_stands(tmp_path: Path, column: str) -> None:
    lines = [f"time,region,value,{column}"]
    lines += [f"{stamp},R,{400 + i},2024-05-02T00:00:00Z" for i, stamp in enumerate(STAMPS)]
    lines += [f"{STAMPS[5]},R,40,2024-05-01T00:00:00Z"]
    assert values(opened(tmp_path, lines))[5] == 405
    if column != "updated":
        notes = [lines[0], *(line.rpartition(",")[0] + ",yes" for line in lines[1:])]
        assert values(opened(tmp_path, notes))[5] == 40


def test_hours_and_periods_are_no_regions(tmp_path: Path) -> None:
    names = ["Hour", "HE", "Period", "Interval", "HourEnding", "Hour Ending", "settlement_period", "OPR_HR"]
    assert [name for name in names if not is_part_of_times(name)] == []
    assert [name for name in ("DE", "SPP_TX", "SE3", "HEAD", "NEM_SA", "R") if is_part_of_times(name)] == []
    parts = [
        "Hour",
        "Year",
        "Month",
        "Day",
        "DayOfWeek",
        "Minute",
        "index",
        "Unnamed: 0",
        "is_dst",
        "HR",
        "ID",
        "zone_id",
    ]
    for name in parts:
        lines = [f"time,{name},R", *(f"{stamp},{i},{400 + i}" for i, stamp in enumerate(STAMPS))]
        assert opened(tmp_path, lines).regions() == ["R"], name


def test_countries_that_are_called_as_hours_are_regions(tmp_path: Path) -> None:
    lines = ["time,HR,ID,SP", *(f"{stamp},{400.5 + i},{600 + i},{500 - i}" for i, stamp in enumerate(STAMPS))]
    assert opened(tmp_path, lines).regions() == ["HR", "ID", "SP"]


def test_names_in_any_script_are_regions(tmp_path: Path) -> None:
    lines = ["time,東京,Ö,--,R", *(f"{stamp},{400 + i},{600 + i},{i},{500 - i}" for i, stamp in enumerate(STAMPS))]
    assert opened(tmp_path, lines).regions() == ["東京", "Ö", "R"]


def test_an_average_of_marginal_intensities_is_one(tmp_path: Path) -> None:
    lines = ["time,MOER average", *(f"{stamp},{400 + i}" for i, stamp in enumerate(STAMPS))]
    assert opened(tmp_path, lines).regions() == ["MOER average"]


@pytest.mark.parametrize(
    ("yes", "no"), [("Y", "N"), ("yes", "no"), ("1", "0"), ("1.0", "0.0"), ("T", "F"), ("TRUE", "")]
)
def test_flags_are_read_in_every_usual_way(tmp_path: Path, yes: str, no: str) -> None:
    flags = [yes if i % 3 else no for i in range(24)]
    rows = [f"{stamp},R,{400 + i},{flag}" for i, (stamp, flag) in enumerate(zip(STAMPS, flags, strict=True))]
    provider = opened(tmp_path, ["time,region,value,estimated", *rows])
    span = provider.span()
    assert span is not None
    assert provider.fetch("R", *span)["estimated"].to_list() == [bool(i % 3) for i in range(24)]


@pytest.mark.parametrize("name", ["isEstimated", "Estimated", "imputed_data_used"])
def test_the_flag_of_estimates_has_several_names(tmp_path: Path, name: str) -> None:
    rows = [f"{stamp},R,{400 + i},{i % 2}" for i, stamp in enumerate(STAMPS)]
    provider = opened(tmp_path, [f"time,region,value,{name}", *rows])
    span = provider.span()
    assert span is not None
    assert provider.fetch("R", *span)["estimated"].to_list() == [bool(i % 2) for i in range(24)]


def test_ends_of_intervals_and_marks_of_missing_values_are_no_values(tmp_path: Path) -> None:
    marks = ["n/e", "--", "#N/A", "n.a.", " NaN "]
    rows = [f"{stamp},{stamp},{marks[i] if i < 5 else 400 + i}" for i, stamp in enumerate(STAMPS)]
    provider = opened(tmp_path, ["Interval Start,Interval End,R", *rows])
    assert provider.regions() == ["R"] and values(provider) == [None] * 5 + [400.0 + i for i in range(5, 24)]


def test_a_flag_that_is_none_is_an_error_that_names_it(tmp_path: Path) -> None:
    lines = ["time,region,value,estimated", f"{STAMPS[0]},R,400,maybe"]
    with pytest.raises(TraceError, match=r"'maybe' in column 'estimated', data row 1"):
        opened(tmp_path, lines).regions()


def test_a_column_of_validity_is_no_region(tmp_path: Path) -> None:
    lines = [f"2024-04-01T{hour:02}:00Z,{400 + hour},{int(hour != 5)}" for hour in range(24)]
    for name in ("valid", "isValid", "QC flag", "bad_data"):
        path = tmp_path / "t.csv"
        path.write_text("\n".join([f"time,R,{name}", *lines]))
        with pytest.raises(TraceError, match=rf"{name!r} says by its name which values count.*traces.where"):
            windows_of_file(path)
        assert windows_of_file(path, where={name: "1"}).nulls == 1
        assert windows_of_file(path, columns={"R": "R"}).nulls == 0


def test_times_that_differ_within_a_stamp_are_the_ones_to_read(tmp_path: Path) -> None:
    """A forecast names when it was issued first, which is one time for all."""
    path = tmp_path / "t.csv"
    issued = [f"2024-04-01T00:00Z,2024-04-{1 + hour // 24:02}T{hour % 24:02}:00Z,{400 + hour}" for hour in range(72)]
    path.write_text("\n".join(["generated_at,point_time,R", *issued]))
    with pytest.raises(TraceError, match=r"'point_time' holds the times that differ: set traces.time_column to it"):
        windows_of_file(path)
    assert windows_of_file(path, time_column="point_time").nulls == 0
    again = [line.replace("2024-04-01T00:00Z", "2024-04-01T12:00Z", 1).replace(",4", ",5", 1) for line in issued]
    path.write_text("\n".join(["generated_at,point_time,R", *issued, *again]))
    with pytest.raises(TraceError, match=r"'generated_at' tells them apart .*choose with traces.where"):
        windows_of_file(path, time_column="point_time")


def test_one_stamp_with_many_rows_is_refused_only_where_there_is_no_other(tmp_path: Path) -> None:
    rows = [f"2024-04-01T00:00Z,{400 + k}" for k in range(24)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["time,R", *rows]))
    with pytest.raises(TraceError, match="1 of 1 stamps of region 'R' have rows that disagree"):
        windows_of_file(path)
    path.write_text("\n".join(["time,R", *rows, "2024-04-01T01:00Z,500", "2024-04-01T02:00Z,500"]))
    assert windows_of_file(path).disagreeing == 23
