from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from micro import EXPERIMENT

from curtail_pipeline.cli.windows_of_file import windows_of_file
from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.check_settings import CheckLimits
from curtail_pipeline.settings.experiment import parse_experiment
from curtail_pipeline.settings.trace_settings import FileTraces, Kind, Unit
from curtail_pipeline.signals.checks import CHECKS, CheckOutcome, run_checks
from curtail_pipeline.signals.provider import make_provider
from curtail_pipeline.signals.revisions import Revisions, compare
from curtail_pipeline.signals.trace import Report, normalise
from curtail_pipeline.signals.whole_file import read_all

START = datetime(2026, 3, 21, tzinfo=UTC)
DAY, STEP = timedelta(days=1), timedelta(minutes=5)


def day_of(values: list[float | None], kind: Kind = "marginal_intensity", unit: Unit | None = None) -> pl.DataFrame:
    table = pl.DataFrame(
        {"time": [START + i * STEP for i in range(len(values))], "value": values},
        schema_overrides={"value": pl.Float64},
    )
    units: dict[Kind, Unit] = {"price": "currency/MWh", "curtailed_power": "MW"}
    return normalise(
        table,
        region="SPP_TX",
        kind=kind,
        unit=unit or units.get(kind, "g/kWh"),
        source="test",
        start=START,
        end=START + len(values) * STEP,
        retrieved_at=START,
        cadence_s=300,
    ).trace


def ordinary(n: int = 288) -> list[float | None]:
    return [12.0 + i % 7 if (i // 24) % 3 == 0 else 600.0 + i % 50 for i in range(n)]


def outcomes(trace: pl.DataFrame, **options: Any) -> dict[str, CheckOutcome]:
    options = {"now": START + DAY, "expected": (START, START + DAY), **options}
    return {check.name: check for check in run_checks(trace, **options)}


def failed(trace: pl.DataFrame, **options: Any) -> set[str]:
    return {name for name, check in outcomes(trace, **options).items() if not check.passed}


def test_an_ordinary_day_passes_every_check() -> None:
    found = outcomes(day_of(ordinary()))
    assert list(found) == list(CHECKS)
    assert all(check.passed and check.description for check in found.values())


@pytest.mark.parametrize(
    ("folder", "settings"),
    [
        ("paper/mci.csv", {}),
        ("watttime_caiso_north_2023/watttime_example.csv", {}),
        ("sgip_moer_pge/*_2020-1[0-2].csv.gz", {"columns": {"moer": "PGE"}, "unit": "kg/kWh"}),
        (
            "caiso_np15_weeks/vector_high_curtailment_week_v2.csv",
            {
                "columns": {"marginal_co2_lbs_per_mwh": "NP15"},
                "unit": "lb/MWh",
                "time_format": "%m/%d/%y %H:%M",
            },
        ),
    ],
)
def test_real_traces_pass_and_fail_in_any_other_unit(test_data: Path, folder: str, settings: dict[str, Any]) -> None:
    provider = make_provider(FileTraces.model_validate({"path": str(test_data / folder), **settings}))
    span, regions = provider.span(), provider.regions()
    assert span is not None and regions
    right = {"g/kWh": 1.0, "kg/kWh": 1000.0, "lb/MWh": 0.45359237}
    for region in regions:
        found = provider.ingest(region, *span)
        assert [
            c for c in run_checks(found.trace, now=span[1], expected=span, reports=[found.report]) if not c.passed
        ] == []
        # What the trace would be, had it been in one of the other units and been declared as g/kWh.
        for unit in ("kg/kWh", "lb/MWh"):
            wrong = found.trace.with_columns(pl.col("value") / right[unit])
            checks = {c.name: c for c in run_checks(wrong, now=span[1])}
            assert not checks["unit"].passed, f"{region} in {unit}"
            assert f"declare unit: {unit}" in checks["unit"].description


def test_a_day_of_zeros_is_legal_but_a_day_of_any_other_value_is_a_frozen_feed() -> None:
    assert failed(day_of([0.0] * 288)) == set()
    frozen = outcomes(day_of([663.75] * 288))["frozen_feed"]
    assert not frozen.passed and frozen.blocking
    assert "stands at 663.75 for 24.0 h from 2026-03-21T00:00:00Z" in frozen.description
    assert failed(day_of([663.75] * 58 + ordinary(230))) == set()


def test_an_hourly_feed_may_repeat_itself() -> None:
    trace = day_of([400.0] * 20 + ordinary(4)).with_columns(time=START + (pl.col("time") - START) * 12)
    assert trace["time"].diff().drop_nulls().unique().to_list() == [timedelta(hours=1)]
    assert "frozen_feed" not in failed(trace)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("marginal_intensity", -1.0), ("marginal_intensity", 2500.0), ("price", 90_000.0), ("curtailed_power", -5.0)],
)
def test_impossible_values_fail_the_range(kind: Kind, value: float) -> None:
    values = ordinary()
    values[100] = value
    check = outcomes(day_of(values, kind))["range"]
    assert not check.passed
    assert f"{value:g} at 2026-03-21T08:20:00Z" in check.description
    assert check.metadata["outside"] == 1


def test_a_price_per_kwh_is_warned_of_and_a_cheap_day_is_not() -> None:
    values = [0.25 + 0.01 * (i % 9) - (0.3 if 120 <= i < 168 else 0.0) for i in range(288)]
    check = outcomes(day_of(list(values), "price"))["unit"]
    assert not check.passed and not check.blocking and "which looks like a price per kWh" in check.description
    assert "unit" not in failed(day_of([1_000 * value for value in values], "price"))
    assert "unit" not in failed(day_of([*values[:287], 8.5], "price"))
    assert "unit" not in failed(day_of([0.0] * 200 + list(values[200:]), "price"))
    assert "unit" not in failed(day_of(list(values[:144]), "price"))


def test_curtailment_below_zero_is_told_to_turn_its_sign() -> None:
    check = outcomes(day_of([-900.0 if 120 <= i < 168 else 0.0 for i in range(288)], "curtailed_power"))["range"]
    assert check.blocking and "(curtailed power counts from 0 up: turn the sign)" in check.description
    check = outcomes(day_of([-900.0, *[900.0] * 287], "curtailed_power"))["range"]
    assert "(declare kind: price if it is one)" in check.description


def test_negative_prices_are_possible() -> None:
    assert failed(day_of([-60.0 + i % 90 for i in range(288)], "price")) == set()


def test_gaps_count_nulls_and_rows_that_are_not_there() -> None:
    values = ordinary()
    values[10:40] = [None] * 30
    gaps = outcomes(day_of(values))["gaps"]
    assert not gaps.passed and gaps.metadata["missing"] == 30 and gaps.metadata["longest_gap_s"] == 30 * 300
    assert failed(day_of(values), limits=CheckLimits(gap_share=0.2)) == set()
    assert "gaps" in failed(day_of(ordinary(200)))
    assert failed(day_of(ordinary(200)), now=START + 200 * STEP) == set()


def test_a_stale_feed_is_told_from_a_day_that_is_not_over() -> None:
    trace = day_of(ordinary(144))
    assert "staleness" not in failed(trace, now=START + 144 * STEP)
    stale = outcomes(trace, now=START + 170 * STEP)["staleness"]
    assert not stale.passed and "newest value is of 2026-03-21T11:55:00Z" in stale.description
    # Years later the day is as complete as it was.
    assert failed(day_of(ordinary()), now=START + 900 * DAY) == set()


def test_nothing_but_nulls_or_nothing_at_all_fails() -> None:
    assert failed(day_of([None] * 288)) == {"gaps", "staleness"}
    assert failed(day_of([])) == {"gaps", "staleness"}


def test_disagreeing_duplicates_warn_and_doubled_rows_block() -> None:
    times = [START, START, START + STEP, START + 2 * STEP]
    raw = pl.DataFrame({"time": times, "value": [1.0, 2.0, 3.0, 4.0]})
    found = normalise(
        raw,
        region="DE",
        kind="price",
        unit="currency/MWh",
        source="test",
        start=START,
        end=START + 3 * STEP,
        retrieved_at=START,
    )
    check = outcomes(found.trace, reports=[found.report])["duplicates"]
    assert not check.passed and not check.blocking
    assert "1 and 2 at 2026-03-21T00:00:00Z; the latest revision was kept" in check.description
    doubled = outcomes(pl.concat([found.trace, found.trace]), reports=[Report(300)])["duplicates"]
    assert not doubled.passed and doubled.blocking


def test_kinds_of_one_region_are_checked_apart() -> None:
    good, bad = day_of(ordinary()), day_of([None] * 200 + [5.0] * 88, "curtailed_power")
    gaps = outcomes(pl.concat([good, bad]))["gaps"]
    assert not gaps.passed
    assert gaps.description.startswith("SPP_TX curtailed_power:") and "marginal" not in gaps.description
    assert gaps.metadata["marginal_intensity/missing"] == 0 and gaps.metadata["curtailed_power/missing"] == 200


def test_revisions_count_what_changed_and_by_how_much() -> None:
    old = day_of([1.0, 2.0, 3.0, None, 5.0])
    new = day_of([1.0, 2.5, 3.0 + 1e-12, 4.0, None, 6.0])
    found = compare(old, new)
    assert found == Revisions(revised=1, filled=1, withdrawn=1, added=1, largest_change=0.5, largest_at=START + STEP)
    assert found.metadata()["largest_change_at"] == "2026-03-21T00:05:00Z"
    assert not compare(old, old).changed and not compare(None, new).changed


def test_the_limits_of_an_experiment_reach_every_command(tmp_path: Path) -> None:
    """What a check advises to raise can be raised: lignite at the margin all day, and a feed that is read thinly."""
    values = [1000.0 + i % 50 for i in range(288)]
    (tmp_path / "t.csv").write_text(
        "time,R\n" + "".join(f"{START + i * STEP:%Y-%m-%dT%H:%M}Z,{v if i % 4 else ''}\n" for i, v in enumerate(values))
    )
    content = {**EXPERIMENT, "traces": {"provider": "file", "path": str(tmp_path / "t.csv")}}
    content["sites"] = [{"name": "s", "region": "R", "training_kw": 1, "idle_kw": 0, "steps_per_s": 1}]
    with pytest.raises(TraceError, match=r"raise checks.intensity_p95_g_per_kwh"):
        read_all(tmp_path / "t.csv", parse_experiment(content, "x"))
    content["checks"] = {"intensity_p95_g_per_kwh": 1100}
    found = windows_of_file(tmp_path / "t.csv", parse_experiment(content, "x"))
    assert [check.name for check in found.checks if not check.passed] == ["gaps"]
    content["checks"]["gap_share"] = 0.3
    found = windows_of_file(tmp_path / "t.csv", parse_experiment(content, "x"))
    assert all(check.passed for check in found.checks)
    assert parse_experiment(content, "x").sha256() == parse_experiment(content | {"checks": {}}, "x").sha256()


@pytest.mark.parametrize(("regions", "more"), [(3, 0), (4, 0), (60, 57)])
def test_what_many_regions_have_in_common_is_said_once(tmp_path: Path, regions: int, more: int) -> None:
    names = [f"R{number}" for number in range(regions)]
    low = 700.0 * 3
    table = pl.DataFrame({"time": [START + i * STEP for i in range(288)], **dict.fromkeys(names, [low] * 288)})
    table.write_parquet(tmp_path / "t.parquet")
    with pytest.raises(TraceError, match="R0 marginal_intensity: 95 % of the intensities reach up to 2100") as caught:
        windows_of_file(tmp_path / "t.parquet")
    said = str(caught.value)
    assert ("R3 " in said) == (regions == 4) and (f"and {more} more regions alike" in said) == bool(more)
