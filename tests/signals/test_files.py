import gzip
import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from pydantic import ValidationError

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.trace_settings import CombinedTraces, FileTraces
from curtail_pipeline.signals.combined import CombinedProvider
from curtail_pipeline.signals.files import FileProvider
from curtail_pipeline.signals.provider import make_provider
from curtail_pipeline.signals.trace import TRACE_SCHEMA

LB = 0.45359237


def opened(path: Path | list[Path] | str, **settings: Any) -> FileProvider:
    paths = [str(p) for p in path] if isinstance(path, list) else str(path)
    provider = make_provider(FileTraces.model_validate({"path": paths, **settings}))
    assert isinstance(provider, FileProvider)
    return provider


def everything(provider: FileProvider, region: str, kind: Any = None) -> pl.DataFrame:
    span = provider.span()
    assert span is not None
    return provider.fetch(region, *span, kind)


def hours_below_100(trace: pl.DataFrame) -> float:
    step = trace["time"].diff().drop_nulls().dt.total_seconds().min()
    return float((trace["value"] < 100).sum() * step / 3600)


@pytest.fixture
def csv(tmp_path: Path) -> Any:
    def write(text: str, name: str = "trace.csv") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


# --- the four folders of real data, by settings alone ---


def test_the_papers_signal_as_it_is(test_data: Path) -> None:
    provider = opened(test_data / "paper" / "mci.csv")
    assert provider.regions() == ["CAISO_NORTH", "SPP_TX", "NEM_SA", "DE"]
    assert provider.span() == (datetime(2026, 1, 11, 17, tzinfo=UTC), datetime(2026, 1, 12, 11, 5, tzinfo=UTC))
    hours = {region: hours_below_100(everything(provider, region)) for region in provider.regions()}
    assert hours == pytest.approx({"CAISO_NORTH": 6.08, "SPP_TX": 6.83, "NEM_SA": 10.5, "DE": 0}, abs=0.01)
    assert provider.fingerprint() == hashlib.sha256((test_data / "paper" / "mci.csv").read_bytes()).hexdigest()


def test_watttimes_month_with_naive_utc_stamps(test_data: Path) -> None:
    path = test_data / "watttime_caiso_north_2023" / "watttime_example.csv"
    trace = everything(opened(path, columns={"Caiso_North": "CAISO_NORTH"}), "CAISO_NORTH")
    assert len(trace) == 31 * 288 and trace["value"].null_count() == 0
    assert hours_below_100(trace) == pytest.approx(123.9, abs=0.05)


def test_sgip_in_kg_with_overlapping_months_and_its_forecasts(test_data: Path) -> None:
    provider = opened(
        test_data / "sgip_moer_pge" / "*_2020-0[67].csv.gz",
        columns={"moer": "CAISO_PGE"},
        unit="kg/kWh",
        forecast={"pattern": "f{step}"},
    )
    span = provider.span()
    assert span is not None
    found = provider.ingest("CAISO_PGE", *span)
    assert found.report.duplicates == 2 * 288 and found.report.conflicts == 0 and found.report.nulls == 0
    assert found.trace["value"].max() == pytest.approx(663.75)
    issue = datetime(2020, 6, 10, 3, tzinfo=UTC)
    table = provider.forecasts("CAISO_PGE", issue, issue + timedelta(minutes=10))
    assert len(table) == 2 * 36
    assert table["target"].to_list()[:36] == [issue + timedelta(minutes=5 * k) for k in range(1, 37)]
    # Five minutes ahead the forecasts are good, so a mistaken offset or unit would show.
    near = provider.forecasts("CAISO_PGE", *span).filter(pl.col("target") - pl.col("issued_at") == timedelta(minutes=5))
    both = near.join(found.trace, left_on="target", right_on="time", suffix="_real")
    assert (both["value"] - both["value_real"]).abs().median() < 20


def test_np15_with_three_kinds_in_one_file_and_american_dates(test_data: Path) -> None:
    path = test_data / "caiso_np15_weeks" / "vector_high_curtailment_week_v2.csv"
    provider = opened(
        path,
        time_format="%m/%d/%y %H:%M",
        columns={
            "LMP_NP15": {"region": "NP15", "kind": "price"},
            "Total_Curtailment_NP15_MW": {"region": "NP15", "kind": "curtailed_power"},
            "marginal_co2_lbs_per_mwh": {"region": "NP15", "unit": "lb/MWh"},
        },
    )
    assert set(provider.kinds("NP15")) == {"marginal_intensity", "price", "curtailed_power"}
    assert provider.kinds("NP15")[0] == "marginal_intensity"
    moer = everything(provider, "NP15")
    assert moer["value"][0] == pytest.approx(687.3333333 * LB)
    power = everything(provider, "NP15", "curtailed_power")
    low, curtailed = moer["value"] < 100, power["value"] >= 10
    assert (low & curtailed).sum() / curtailed.sum() == pytest.approx(0.605, abs=0.001)
    assert set(everything(provider, "NP15", "price")["unit"]) == {"currency/MWh"}
    older = opened(path.with_name("vector_high_curtailment_week.csv"), columns={"LMP_NP15": "NP15"}, kind="price")
    week = everything(older, "NP15")
    joined = week.join(everything(provider, "NP15", "price"), on="time", suffix="_v2")
    assert (joined["value"] - joined["value_v2"]).abs().max() < 1e-4


# --- layouts and formats ---


def test_long_wide_gz_and_parquet_give_the_same(csv: Any, tmp_path: Path) -> None:
    wide = csv("time,A,B\n2026-03-01T00:00:00Z,1,5\n2026-03-01T00:05:00Z,2,\n2026-03-01T00:10:00Z,3,7\n")
    rows = [
        (s, r, v) for r, vs in {"A": (1, 2, 3), "B": (5, None, 7)}.items() for s, v in zip((0, 5, 10), vs, strict=True)
    ]
    long = csv(
        "time,region,value\n" + "".join(f"2026-03-01 00:{s:02},{r},{'' if v is None else v}\n" for s, r, v in rows),
        "long.csv",
    )
    packed = tmp_path / "wide.csv.gz"
    packed.write_bytes(gzip.compress(wide.read_bytes()))
    parquet = tmp_path / "wide.parquet"
    pl.read_csv(wide, try_parse_dates=True).write_parquet(parquet)
    tables = [
        pl.concat([everything(opened(path), region) for region in "AB"]).drop("source", "retrieved_at")
        for path in (wide, long, packed, parquet)
    ]
    assert tables[0]["value"].to_list() == [1, 2, 3, 5, None, 7]
    assert all(table.equals(tables[0]) for table in tables[1:])


def test_a_stored_trace_table_is_a_long_file(tmp_path: Path, csv: Any) -> None:
    source = opened(csv("time,A\n2026-03-01T00:00Z,0.5\n2026-03-01T00:05Z,\n2026-03-01T00:10Z,0.7\n"), unit="kg/kWh")
    stored = everything(source, "A")
    stored.write_parquet(tmp_path / "A.parquet")
    again = everything(opened(tmp_path / "A.parquet"), "A")
    assert again.schema == pl.Schema(TRACE_SCHEMA)
    assert again.drop("source", "retrieved_at").equals(stored.drop("source", "retrieved_at"))


def test_long_with_other_names_and_mapped_regions(csv: Any) -> None:
    path = csv("zone,stamp,moer\nPGE,2026-03-01 00:00,100\nPGE,2026-03-01 00:05,200\nSCE,2026-03-01 00:00,300\n")
    provider = opened(
        path, region_column="zone", time_column="stamp", value_column="moer", columns={"PGE": "CAISO_NORTH"}
    )
    assert provider.regions() == ["CAISO_NORTH", "SCE"]
    assert everything(provider, "CAISO_NORTH")["value"].to_list() == [100, 200]


def test_blank_lines_are_no_rows(csv: Any) -> None:
    provider = opened(csv("time,A\n\n2026-03-01T00:00Z,1\n\n2026-03-01T00:05Z,2\n\n"))
    assert everything(provider, "A")["value"].to_list() == [1, 2]


def test_a_byte_order_mark_and_markers_of_missing_values(csv: Any) -> None:
    path = csv(
        "\ufefftime,A\n2026-03-01T00:00Z,1\n2026-03-01T00:05Z,NaN\n2026-03-01T00:10Z, n/a \n2026-03-01T00:15Z,0\n"
    )
    provider = opened(path)
    assert provider.regions() == ["A"]
    assert everything(provider, "A")["value"].to_list() == [1, None, None, 0]


def test_later_files_revise_earlier_ones(csv: Any, tmp_path: Path) -> None:
    csv("time,A\n2026-03-01T00:00Z,1\n2026-03-01T00:05Z,2\n2026-03-01T00:10Z,3\n", "a.csv")
    csv("time,A\n2026-03-01T00:10Z,4\n2026-03-01T00:15Z,5\n", "b.csv")
    provider = opened(tmp_path / "*.csv")
    span = provider.span()
    assert span is not None
    found = provider.ingest("A", *span)
    assert found.trace["value"].to_list() == [1, 2, 4, 5]
    assert found.report.conflicts == 1
    assert provider.fingerprint() != opened([tmp_path / "a.csv"]).fingerprint()


# --- time zones ---


def local_file(csv: Any, zone: str, start: datetime, hours: int, step: int = 15) -> tuple[Path, list[datetime]]:
    """A file in local time without offsets, as an operator's export has it, and its true stamps."""
    stamps = [start + timedelta(minutes=step * i) for i in range(hours * 60 // step)]
    rows = [f"{s.astimezone(ZoneInfo(zone)):%Y-%m-%d %H:%M},{i}" for i, s in enumerate(stamps)]
    return csv("time,A\n" + "\n".join(rows) + "\n"), stamps


@pytest.mark.parametrize(
    ("zone", "start"),
    [
        ("America/Los_Angeles", datetime(2026, 3, 8, 7, tzinfo=UTC)),  # clocks go forward at 10:00 UTC
        ("America/Los_Angeles", datetime(2026, 11, 1, 6, tzinfo=UTC)),  # and back at 9:00 UTC
        ("Australia/Adelaide", datetime(2026, 4, 4, 12, tzinfo=UTC)),
        ("Europe/Berlin", datetime(2026, 10, 24, 21, tzinfo=UTC)),
    ],
)
def test_local_stamps_over_a_clock_change_come_out_in_true_order(csv: Any, zone: str, start: datetime) -> None:
    path, stamps = local_file(csv, zone, start, 12)
    trace = everything(opened(path, timezone=zone), "A")
    assert trace["time"].to_list() == stamps
    assert trace["value"].to_list() == [float(i) for i in range(len(stamps))]


def test_repeated_hours_of_two_regions_in_a_long_file(csv: Any) -> None:
    lines = [f"2026-11-01 {t},{r},{v}" for t, v in (("00:30", 1), ("01:00", 2), ("01:30", 3)) for r in "AB"]
    lines += [f"2026-11-01 {t},{r},{v}" for t, v in (("01:00", 4), ("01:30", 5), ("02:00", 6)) for r in "AB"]
    provider = opened(csv("time,region,value\n" + "\n".join(lines) + "\n"), timezone="America/Los_Angeles")
    for region in "AB":
        trace = everything(provider, region)
        assert trace["time"][0] == datetime(2026, 11, 1, 7, 30, tzinfo=UTC)
        assert trace["value"].to_list() == [1, 2, 3, 4, 5, 6]


def test_a_skipped_hour_is_refused_and_a_lone_repeated_one_needs_a_setting(csv: Any) -> None:
    spring = csv("time,A\n2026-03-08 01:30,1\n2026-03-08 02:30,2\n", "spring.csv")
    with pytest.raises(TraceError, match=r"2026-03-08 02:30:00 does not exist in America/Los_Angeles"):
        opened(spring, timezone="America/Los_Angeles").regions()
    autumn = csv("time,A\n2026-11-01 00:30,1\n2026-11-01 01:30,2\n2026-11-01 02:30,3\n", "autumn.csv")
    with pytest.raises(TraceError, match=r"2026-11-01 01:30:00 occurs twice.*set traces.ambiguous"):
        opened(autumn, timezone="America/Los_Angeles").regions()
    late = opened(autumn, timezone="America/Los_Angeles", ambiguous="latest")
    assert everything(late, "A").filter(pl.col("value") == 2)["time"][0] == datetime(2026, 11, 1, 9, 30, tzinfo=UTC)


def test_offsets_in_the_file_win_over_the_timezone_setting(csv: Any) -> None:
    path = csv(
        "time,A\n2026-03-01T00:00+10:00,1\n2026-03-01T00:05+1000,2\n2026-02-28T14:10Z,3\n"
        "2026-02-28 09:15-05,4\n2026-02-28T10:50-03:30,5\n2026-02-28 09:25,6\n"
    )
    trace = everything(opened(path, timezone="America/New_York"), "A")
    assert trace["time"][0] == datetime(2026, 2, 28, 14, tzinfo=UTC)
    assert trace["value"].to_list() == [1, 2, 3, 4, 5, 6]


def test_interval_ends_of_a_market_without_daylight_saving(csv: Any) -> None:
    # AEMO: the end of the interval in UTC+10 all year.
    path = csv("SETTLEMENTDATE,RRP\n2026/03/01 00:05:00,-10\n2026/03/01 00:10:00,20\n2026/03/01 00:15:00,30\n")
    provider = opened(
        path,
        time_format="%Y/%m/%d %H:%M:%S",
        timezone="Etc/GMT-10",
        interval="end",
        kind="price",
        columns={"RRP": "NEM_SA"},
    )
    trace = everything(provider, "NEM_SA")
    assert trace["time"][0] == datetime(2026, 2, 28, 14, 0, tzinfo=UTC)
    assert trace["value"].to_list() == [-10, 20, 30]


# --- refusals ---


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("time,A\n2026-03-01T00:00Z,1\nyesterday,2\n", {}, r"'yesterday' in column 'time', data row 2, is not a time"),
        ("time,A\n03/01/26,1\n", {}, r"'03/01/26' in column 'time', data row 1.*traces\.time_format"),
        ("time,A\n2026-03-01T00:00Z,1\n2026-03-01T00:05Z,x1\n", {}, r"'x1' in column 'A', data row 2, is not a number"),
        ("time,A\n2026-03-01T00:00Z,1\n", {"timezone": "Mars/Olympus"}, r"unknown timezone 'Mars/Olympus'"),
        ("time,A\n2026-03-01T00:00Z,1\n", {"columns": {"B": "R"}}, r"has no column 'B'.*it has time, A"),
        ("time,A\n2026-03-01T00:00Z,1\n", {"time_column": "when"}, r"no time column 'when'; it has time, A"),
        ("time\n2026-03-01T00:00Z\n", {}, r"only the column 'time'"),
        ("time;A\n2026-03-01T00:00Z;1\n", {}, r"only the column 'time;A'.*set traces.separator to ';'"),
        ("time,region,value\n2026-03-01T00:00Z,A,1\n2026-03-01T00:05Z,,1\n", {}, r"data row 2 has no 'region'"),
        ("", {}, r"is empty"),
        ("time,A\n2026-03-01T00:00Z,1\n", {"layout": "long"}, r"needs the columns region and value; it has time, A"),
        ("time,region,value,kind\n2026-03-01T00:00Z,A,1,heat\n", {}, r"unknown kind 'heat'"),
        (
            "time,region,value,unit\n2026-03-01T00:00Z,A,1,g/kWh\n2026-03-01T00:05Z,A,1,lb/MWh\n",
            {},
            r"region 'A' is given in .*one of g/kWh",
        ),
    ],
)  # fmt: skip
def test_unusable_files_are_refused_with_the_value_and_the_fix(
    csv: Any, text: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(TraceError, match=message):
        opened(csv(text), **settings).span()


def test_missing_files_regions_and_kinds_list_what_there_is(csv: Any, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"no trace file '.*gone.csv'"):
        opened(tmp_path / "gone.csv")
    with pytest.raises(TraceError, match=r"no trace file '.*\*.parquet'"):
        opened(tmp_path / "*.parquet")
    with pytest.raises(TraceError, match=r"is a folder; name its files"):
        opened(tmp_path)
    with pytest.raises(TraceError, match=r"'s3://bucket/moer.csv' is a URL; .* provider: live_file"):
        opened("s3://bucket/moer.csv")
    provider = opened(csv("time,A,B\n2026-03-01T00:00Z,1,2\n"))
    start = datetime(2026, 3, 1, tzinfo=UTC)
    with pytest.raises(TraceError, match=r"no region 'C'; it has A, B"):
        provider.fetch("C", start, start)
    with pytest.raises(TraceError, match=r"no price of region 'A'; it has marginal_intensity"):
        provider.fetch("A", start, start, "price")


def test_not_a_table_at_all(tmp_path: Path) -> None:
    parquet = tmp_path / "x.parquet"
    parquet.write_bytes(b"not parquet")
    with pytest.raises(TraceError, match=r"x.parquet cannot be read as parquet"):
        opened(parquet).regions()
    packed = tmp_path / "x.csv.gz"
    packed.write_bytes(gzip.compress(b"time,A\n2026-03-01T00:00Z,1\n")[:-12])
    with pytest.raises(TraceError, match=r"x.csv.gz cannot be read"):
        opened(packed).regions()


def test_settings_that_contradict_themselves() -> None:
    with pytest.raises(ValidationError, match=r"'MW' cannot measure marginal_intensity; use g/kWh or kg/kWh or lb/MWh"):
        FileTraces(path="x", unit="MW")
    with pytest.raises(ValidationError, match=r"columns 'a' and 'b' both map to price of R"):
        FileTraces(path="x", kind="price", columns={"a": "R", "b": "R"})
    with pytest.raises(ValidationError, match=r"needs \{step\} once"):
        FileTraces(path="x", forecast={"pattern": "f"})


def test_forecasts_of_one_of_several_regions_need_to_say_whose(csv: Any) -> None:
    path = csv("time,A,B,f1,f2\n2026-03-01T00:00Z,1,2,10,20\n2026-03-01T00:05Z,1,2,11,\n")
    start = datetime(2026, 3, 1, tzinfo=UTC)
    with pytest.raises(TraceError, match=r"has the regions A, B; say whose.*traces.forecast.region"):
        opened(path, forecast={}).forecasts("A", start, start + timedelta(hours=1))
    provider = opened(path, forecast={"region": "B", "step_s": 600})
    assert provider.regions() == ["A", "B"]
    table = provider.forecasts("B", start, start + timedelta(hours=1))
    assert table.select("target", "value").rows() == [
        (start + timedelta(minutes=10), 10),
        (start + timedelta(minutes=20), 20),
        (start + timedelta(minutes=15), 11),
    ]
    assert provider.forecasts("A", start, start + timedelta(hours=1)).is_empty()


# --- several sources ---


def test_each_kind_comes_from_the_first_source_that_has_it(csv: Any) -> None:
    moer = csv("time,A,B\n" + "".join(f"2026-03-01T00:{m:02}Z,{m},{m}\n" for m in range(0, 60, 5)), "moer.csv")
    power = csv("time,A\n" + "".join(f"2026-03-01T00:{m:02}Z,{m * 10}\n" for m in range(0, 30, 5)), "power.csv")
    settings = CombinedTraces(sources=[FileTraces(path=str(moer)), FileTraces(path=str(power), kind="curtailed_power")])
    provider = make_provider(settings)
    assert isinstance(provider, CombinedProvider)
    assert provider.regions() == ["A", "B"]
    assert provider.kinds("A") == ["marginal_intensity", "curtailed_power"]
    start = datetime(2026, 3, 1, tzinfo=UTC)
    assert provider.span() == (start, start + timedelta(minutes=30))
    assert provider.fetch("A", start, start + timedelta(minutes=10), "curtailed_power")["value"].to_list() == [0, 50]
    assert provider.fetch("A", start, start + timedelta(minutes=10))["value"].to_list() == [0, 5]
    assert len(provider.fingerprint()) == 64
    with pytest.raises(TraceError, match=r"has price of region 'A'; they have curtailed_power, marginal_intensity"):
        provider.fetch("A", start, start, "price")
    with pytest.raises(TraceError, match=r"has region 'C'; they have A, B"):
        provider.fetch("C", start, start)
