import random
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curtail_pipeline.emissions.baselines import always_on, always_on_baselines, compare_baselines
from curtail_pipeline.emissions.grams import (
    LEDGER_SCHEMA,
    PowerInterval,
    Totals,
    accounting_signals,
    count_grams,
    intervals_table,
    ledger,
    pieces,
    sum_ledger,
    totals,
    totals_by,
)
from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.sites import PowerState, Site
from curtail_pipeline.signals.held import Signal
from curtail_pipeline.times import micros_of

START = datetime(2026, 1, 11, 17, tzinfo=UTC)


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


def site(name: str = "A", region: str = "R", **more: Any) -> Site:
    return Site(**{"name": name, "region": region, "training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 0.5, **more})


def rows_of(
    values: list[float | None], region: str = "R", cadence: float = 300, kind: str = "marginal_intensity"
) -> pl.DataFrame:
    unit = {"price": "currency/MWh", "curtailed_power": "MW"}.get(kind, "g/kWh")
    rows = [(at(i * cadence), region, value, kind, unit) for i, value in enumerate(values)]
    schema = {
        "time": pl.Datetime("us", "UTC"),
        "region": pl.String,
        "value": pl.Float64,
        "kind": pl.String,
        "unit": pl.String,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


def trace(
    values: list[float | None],
    region: str = "R",
    cadence: float = 300,
    kind: str = "marginal_intensity",
    max_age_s: float | None = None,
) -> dict[str, Signal]:
    return accounting_signals(rows_of(values, region, cadence, kind), {region: max_age_s})


def windows(spans: list[tuple[float, float | None]], name: str = "A") -> pl.DataFrame:
    rows = [(name, at(a), None if b is None else at(b)) for a, b in spans]
    schema = {"site": pl.String, "start": pl.Datetime("us", "UTC"), "end": pl.Datetime("us", "UTC")}
    return pl.DataFrame(rows, schema=schema, orient="row")


def power(
    *rows: tuple[float, float, float], state: PowerState = "training", name: str = "A", key: str = "ckpt-000001"
) -> pl.DataFrame:
    return intervals_table([PowerInterval(name, state, at(a), at(b), kw) for a, b, kw in rows], key)


def test_by_hand() -> None:
    table = ledger(
        pl.concat([power((150, 750, 2.0)), power((750, 900, 0.5), state="idle")]),
        trace([100, 400, 0]),
        [site()],
        windows([(0, 450)]),
    )
    training, idle = table.rows(named=True)
    assert (training["start"], training["end"], idle["end"]) == (at(150), at(750), at(900))
    assert table.schema == pl.Schema(LEDGER_SCHEMA)
    assert training["kwh"] == pytest.approx(2 * 600 / 3600)
    assert training["co2_g"] == pytest.approx(2 / 3600 * (150 * 100 + 300 * 400 + 150 * 0))
    assert training["curtailed_kwh"] == pytest.approx(2 * 300 / 3600)
    assert training["hours"] == pytest.approx(1 / 6) and training["unaccounted_kwh"] == 0
    assert idle["co2_g"] == 0 and idle["unaccounted_kwh"] == 0, "0 g/kWh is a value"


SPANS = st.lists(
    st.tuples(st.integers(0, 3000), st.integers(0, 1500), st.sampled_from([0.0, 0.468, 2.024])), min_size=1, max_size=5
)
VALUES = st.lists(st.one_of(st.none(), st.integers(0, 900).map(float)), min_size=1, max_size=12)


@settings(deadline=None, max_examples=100)
@given(VALUES, SPANS, st.randoms(use_true_random=False))
def test_splitting_an_interval_changes_nothing(
    values: list[float | None], spans: list[tuple[int, int, float]], rng: random.Random
) -> None:
    whole, parts = [], []
    for a, length, kw in spans:
        cuts = [a, *sorted(rng.uniform(a, a + length) for _ in range(3)), a + length]
        whole.append((a, a + length, kw))
        parts += [(x, y, kw) for x, y in pairwise(cuts)]
    one, two = (totals(ledger(power(*rows), trace(values), [site()], windows([(100, 900)]))) for rows in (whole, parts))
    for name in ("hours", "kwh", "co2_g", "curtailed_kwh", "unaccounted_kwh"):
        if getattr(one, name) is None:
            assert getattr(two, name) is None
        else:
            assert getattr(two, name) == pytest.approx(getattr(one, name), rel=1e-9, abs=1e-9)


def test_a_missing_value_is_never_zero_grams() -> None:
    lost = ledger(power((0, 3600, 1.0)), trace([None, None]), [site()])
    assert lost["co2_g"].to_list() == [None] and lost["unaccounted_kwh"].to_list() == [1.0]
    assert lost["curtailed_kwh"].to_list() == [None]
    assert lost["co2_g_low"].to_list() == [None] and totals(lost).co2_g_high is None, "no value of the day bounds it"
    assert totals(lost).g_per_kwh is None and totals(lost).curtailed_share is None
    # One missing stamp is bridged, as in decisions; then the value is too old.
    partly = totals(ledger(power((0, 1200, 1.0)), trace([100, None, None, None]), [site()]))
    assert partly.unaccounted_kwh == pytest.approx(600 / 3600)
    assert partly.co2_g == pytest.approx(100 * 600 / 3600) and partly.g_per_kwh == pytest.approx(100)
    only_price = ledger(power((0, 3600, 1.0)), trace([-5.0], kind="price"), [site()])
    assert only_price["unaccounted_kwh"].to_list() == [1.0]
    elsewhere = ledger(power((0, 3600, 1.0)), trace([5.0], region="S"), [site()])
    assert elsewhere["co2_g"].to_list() == [None]
    assert totals(ledger(power((0, 3600, 0.0)), trace([None]), [site()])).co2_g == 0


def test_which_signal_accounts() -> None:
    marginal, average = rows_of([100.0] * 20), rows_of([300.0] * 20, kind="average_intensity")
    used = power((0, 3600, 1.0))
    for rows, grams in ((pl.concat([average, marginal]), 100), (average, 300)):
        assert totals(ledger(used, accounting_signals(rows), [site()])).co2_g == pytest.approx(grams)


def test_sites_keep_apart() -> None:
    intervals = pl.concat([power((0, 3600, 1.0)), power((0, 3600, 1.0), name="B", key="ckpt-000002")])
    traces = trace([100.0] * 20) | trace([50.0] * 20, region="S")
    table = ledger(intervals, traces, [site(), site("B", "S")], windows([(0, None)], name="B"))
    by_site = totals_by(table, "site")
    assert by_site["A"].co2_g == pytest.approx(100) and by_site["B"].co2_g == pytest.approx(50)
    assert by_site["A"].curtailed_kwh == 0 and by_site["B"].curtailed_kwh == pytest.approx(1)
    assert sum_ledger(table, ["checkpoint"])["checkpoint"].to_list() == ["ckpt-000001", "ckpt-000002"]
    assert ledger(intervals.clear(), traces, [site()]).is_empty()
    assert totals(ledger(intervals.clear(), traces, [site()])).kwh == 0
    with pytest.raises(TraceError, match="unknown site 'B'"):
        ledger(intervals, traces, [site()])
    for wrong in ((100, 50, 1.0), (0, 50, -1.0), (0, 50, float("nan"))):
        with pytest.raises(TraceError, match="not a power interval"):
            ledger(power(wrong), traces, [site()])


def test_pieces_tile_their_interval() -> None:
    cut = pieces(power((100, 1000, 2.0)), trace([1, 2, None, 4]), [site()], windows([(450, 500)]))
    assert cut["start"][0] == at(100) and cut["end"][-1] == at(1000)
    assert cut["end"].to_list()[:-1] == cut["start"].to_list()[1:]
    # A stamp without a value is no cut: the value before it holds on.
    assert cut["g_per_kwh"].to_list() == [1, 2, 2, 2, 4]
    assert [start - START for start in cut["start"]] == [timedelta(seconds=s) for s in (100, 300, 450, 500, 900)]
    assert cut["curtailed"].to_list() == [False, False, True, False, False]


def test_always_on() -> None:
    signals = trace([100, 200, 300], cadence=3600)
    hourly = signals["R"]
    full = always_on(4500, START, site(pue=1.5), "R", hourly)
    assert full.hours == 2.5 and full.kwh == 7.5 and full.reason is None
    assert full.co2_g == pytest.approx(3 * (100 + 200 + 150))
    too_long = always_on(6000, START, site(), "R", hourly)
    assert too_long.co2_g is None and too_long.reason == (
        "the trace ends at 2026-01-11T20:00:00Z, the baseline at 2026-01-11T20:20:00Z"
    )
    early = always_on(10, at(-5), site(), "R", hourly)
    assert early.co2_g is None and early.reason and "starts at" in early.reason
    holey = always_on(4500, START, site(), "R", trace([100, None, None, 300], cadence=3600)["R"])
    assert holey.co2_g == pytest.approx(400) and holey.unaccounted_kwh == 1.0 and "gaps" in str(holey.reason)
    everywhere = always_on_baselines(4500, START, [site()], signals | trace([50] * 40, "DE"), ["DE", "R", "X"])
    assert [b.region for b in everywhere] == ["R", "DE", "X"]
    assert everywhere[2].reason == "no gCO2/kWh trace for X"
    ratios = [row.ours_of_baseline for row in compare_baselines(everywhere, Totals(2.5, 7.5, 90.0, None, 0.0))]
    assert ratios == [pytest.approx(90 / 900), pytest.approx(90 / 250), None]
    unsure = compare_baselines(everywhere, Totals(2.5, 7.5, 90.0, None, 0.1))
    assert [row.ours_of_baseline for row in unsure] == [None, None, None]


# The published run, accounted from its own log


def published_intervals(folder: Path) -> pl.DataFrame:
    """A site trains while its log has a step at least every 20 s, and idles for the rest of its time provisioned."""
    events = pl.read_csv(folder / "events.csv")
    rows = []
    for name in ("client_0", "client_1", "client_2"):
        steps = pl.read_csv(folder / f"{name}.csv")["time"].cast(pl.Float64)
        starts = [steps[0], *steps.filter(steps.diff() > 20)]
        ends = [*steps.filter(steps.diff().shift(-1) > 20), steps[-1]]
        own = events.filter(pl.col("client") == name)
        gone = [*own.filter(pl.col("event_type") == "DEPROVISION")["elapsed_s"], events["elapsed_s"].max()]
        for up in own.filter(pl.col("event_type") == "PROVISION_COMPLETE")["elapsed_s"]:
            down = min(stamp for stamp in gone if stamp > up)
            cursor = up
            for start, end in [*((a, b) for a, b in zip(starts, ends, strict=True) if up < a < down), (down, down)]:
                rows.append(PowerInterval(name, "idle", at(cursor), at(start), 0.468))
                rows.append(PowerInterval(name, "training", at(start), at(end), 2.024))
                cursor = end
    return intervals_table(rows)


def published_trace(folder: Path) -> dict[str, Signal]:
    wide = pl.read_csv(folder / "mci.csv", try_parse_dates=True)
    rows = wide.unpivot(index="point_time", variable_name="region").select(
        pl.col("point_time").cast(pl.Datetime("us", "UTC")).alias("time"),
        "region",
        "value",
        kind=pl.lit("marginal_intensity"),
        unit=pl.lit("g/kWh"),
    )
    return accounting_signals(rows)


def test_the_published_run(test_data: Path) -> None:
    """arXiv:2602.22760 reports 37.7 kWh and 1.38 kg, with interpolated intensities; step-held it is 1.344 kg."""
    sites = [site(f"client_{i}", r) for i, r in enumerate(["CAISO_NORTH", "SPP_TX", "NEM_SA"])]
    intervals, traces = published_intervals(test_data / "paper"), published_trace(test_data / "paper")
    held = totals(ledger(intervals, traces, sites))
    assert held.kwh == pytest.approx(37.72, rel=0.01)
    assert held.co2_g == pytest.approx(1344, rel=0.01)
    linear = 0.0
    for place in sites:
        own = intervals.filter(pl.col("site") == place.name)
        spans = micros_of(own["start"]), micros_of(own["end"]), own["kw"].to_numpy()
        linear += float(count_grams(*spans, traces[place.region], interpolate=True).co2_g.sum())
    assert linear == pytest.approx(1379, rel=0.01)
    training = totals_by(ledger(intervals, traces, sites).filter(pl.col("state") == "training"), "site")
    assert [training[place.name].hours for place in sites] == pytest.approx([5.81, 3.52, 8.53], abs=0.01)


def test_the_published_baselines(test_data: Path) -> None:
    """17.78 h of training in each region, from the start of the trace: 11.41, 14.55, 12.33 and 27.07 kg."""
    cluster = site(training_kw=2.024, steps_per_s=23_613 / (17.78 * 3600), region="CAISO_NORTH")
    traces = published_trace(test_data / "paper")
    found = always_on_baselines(23_613, START, [cluster], traces, ["SPP_TX", "NEM_SA", "DE"])
    kg = [b.co2_g / 1000 for b in found if b.co2_g]
    assert kg == pytest.approx([11.41, 14.55, 12.33, 27.07], rel=0.002)
    assert found[0].kwh == pytest.approx(35.99, abs=0.01)
    slower = cluster.model_copy(update={"steps_per_s": 0.36})
    assert always_on(23_613, START, slower, "DE", traces["DE"]).co2_g is None
