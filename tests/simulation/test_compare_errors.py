from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import polars as pl
import pytest
from simulation_cases import START, experiment, minutes, traces

from curtail_pipeline.errors import CurtailError, PolicyError, SettingsError, TraceError
from curtail_pipeline.scheduling.curtailed import windows_of_record
from curtail_pipeline.scheduling.policies import POLICIES
from curtail_pipeline.scheduling.view import View
from curtail_pipeline.settings.experiment import parse_experiment
from curtail_pipeline.simulation.compare import compare, simulate, simulate_run
from curtail_pipeline.simulation.sweep import sweep_round_length
from curtail_pipeline.times import to_us

ROWS = traces({"A": [50] * 24})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"policy": "greedy"}, PolicyError, "unknown policy 'greedy': choose one of boundary, budget"),
        ({"policy": "forecast"}, PolicyError, "the job has none: set job.deadline, or give --deadline"),
        ({"policy": "forecast", "deadline_h": 1.0, "forecast": "psychic"}, PolicyError, "unknown forecast 'psychic'"),
        ({"deadline_h": float("nan")}, SettingsError, "a deadline of nan hours is none; give hours"),
        ({"deadline_h": 1e12}, SettingsError, r"a deadline of 1e\+12 hours is none"),
        ({"policy": "paper", "forecast": "perfect"}, PolicyError, "policy 'paper' reads no forecast; leave"),
        ({"deadline_h": -1.0}, SettingsError, "is not after the start 2026-01-11T17:00:00Z"),
        ({"start": minutes(120)}, TraceError, "the trace ends at 2026-01-11T19:00:00Z"),
        ({"start": minutes(-5)}, TraceError, "before the trace, which starts at 2026-01-11T17:00:00Z"),
    ],
)
def test_bad_input_is_named(options: dict[str, Any], error: type[CurtailError], message: str) -> None:
    with pytest.raises(error, match=message):
        simulate(experiment("A"), ROWS, **options)


def test_a_region_without_trace_is_named() -> None:
    with pytest.raises(TraceError, match="no signal for region 'B'"):
        simulate(experiment("AB"), ROWS)
    with pytest.raises(TraceError, match="no values of Z"):
        simulate(experiment("Z"), ROWS)


def test_negative_power_is_refused() -> None:
    content = experiment("A").model_dump(mode="json")
    content["sites"][0]["idle_kw"] = -1
    with pytest.raises(SettingsError, match=r"sites\.0\.idle_kw.*greater than or equal to 0.*-1"):
        parse_experiment(content, "case")


def test_a_job_that_does_not_fit_says_so_and_nothing_is_extrapolated() -> None:
    found = simulate(experiment("A"), ROWS)
    assert not found["finished"]
    assert found["steps"] == 3600
    assert found["runtime_h"] == 2.0
    assert found["baselines_co2_kg"] == {"A": None}


@pytest.mark.parametrize("deadline_h", [None, 1.0])
def test_a_trace_without_a_window_trains_nothing_and_says_so(deadline_h: float | None) -> None:
    never = traces({"A": [500] * 24})
    found = simulate(experiment("A"), never, deadline_h=deadline_h)
    assert (found["finished"], found["steps"], found["rounds"], found["runtime_h"]) == (False, 0, 0, 0.0)
    assert found["energy_kwh"] == found["co2_kg"] == found["oracle_co2_kg"] == 0.0
    table, draw = compare(experiment("A"), never, deadline_h=deadline_h)
    assert set(table["policy"]) == set(POLICIES)
    draw().to_dict()


def test_nothing_runs_after_the_deadline() -> None:
    found = simulate(experiment("A"), ROWS, deadline_h=1.0)
    assert (found["finished"], found["steps"], found["runtime_h"]) == (False, 1800, 1.0)


def test_a_start_inside_a_window_pays_for_its_start_up() -> None:
    run = experiment("A", overheads={"provisioning_s": 600})
    found = simulate(run, ROWS, start=START + timedelta(minutes=30))
    assert found["steps"] == 80 * 60 * 0.5
    assert found["energy_kwh"] == pytest.approx(2.0 * 80 / 60 + 0.5 * 10 / 60)


def test_the_result_has_the_documented_keys_and_is_json() -> None:
    import json

    found = simulate(experiment("A", job={"steps": 100}), ROWS)
    assert list(json.loads(json.dumps(found))) == [
        "policy", "finished", "runtime_h", "steps", "rounds", "site_hours", "energy_kwh", "unaccounted_kwh", "co2_kg",
        "co2_kg_interpolated", "curtailed_energy_share", "window_energy_share", "idle_h", "overhead_share",
        "baselines_co2_kg", "oracle_co2_kg", "bound_co2_kg", "regret", "job_share", "co2_kg_low", "co2_kg_high",
        "baselines",
    ]  # fmt: skip


def priced(values: Mapping[str, Sequence[float]]) -> pl.DataFrame:
    return traces(values).with_columns(kind=pl.lit("price"))


def test_a_price_never_becomes_grams() -> None:
    """Nor does it in a baseline, the oracle or a comparison; the energy is listed as without an accounting signal."""
    run = experiment(policy={"name": "paper", "parameters": {"kind": "price"}}, job={"steps": 3_000})
    values = {"A": [-20.0] * 12 + [80.0] * 12, "B": [-5.0] * 24}
    found = simulate(run, priced(values))
    assert found["finished"]
    assert found["unaccounted_kwh"] == found["energy_kwh"] > 0
    none = ("co2_kg", "co2_kg_low", "co2_kg_high", "co2_kg_interpolated", "oracle_co2_kg")
    assert [found[key] for key in none] == [None] * 5
    assert found["baselines_co2_kg"] == {"A": None, "B": None}
    assert set(found["regret"].values()) == {None}
    swept = sweep_round_length(run, lambda one: simulate_run(one, priced(values)), (600.0,))
    assert {row["co2_kg"] for row in swept} == {None}
    table, draw = compare(run, priced(values))
    assert table["rank"].null_count() == table["co2_kg"].null_count() == len(POLICIES)
    draw().to_dict()
    with pytest.raises(PolicyError, match="policy 'forecast' weighs CO2, and region 'A' has no intensity"):
        simulate(run, priced(values), policy="forecast", deadline_h=2.0)


def test_a_region_without_an_intensity_leaves_the_others_accounted() -> None:
    run = experiment(rules={"B": {"kind": "price"}}, policy={"name": "threshold"}, job={"steps": 2_000})
    mixed = pl.concat([traces({"A": [50] * 24}), priced({"B": [-5.0] * 24})])
    found = simulate(run, mixed)
    assert found["co2_kg"] == pytest.approx(0.05 * 2.0 * found["site_hours"]["A"])
    assert found["unaccounted_kwh"] == pytest.approx(2.0 * found["site_hours"]["B"])
    assert (found["co2_kg_low"], found["oracle_co2_kg"]) == (None, None), "nobody knows what B emitted"


def test_the_order_of_a_regions_signals_does_not_matter() -> None:
    run = experiment(
        rules={"B": {"kind": "price", "exit_delay_s": 0}}, policy={"name": "threshold"}, job={"steps": 4_000}
    )
    parts = [
        traces({"A": [50] * 24}),
        priced({"B": [-5.0] * 12 + [90.0] * 12}),
        traces({"B": [200.0] * 24}).with_columns(kind=pl.lit("average_intensity")),
    ]
    one, other = (simulate(run, pl.concat(order)) for order in (parts, parts[::-1]))
    assert one == other
    assert one["site_hours"]["B"] == 1.0
    assert one["co2_kg"] == pytest.approx(2.0 * (0.05 * one["site_hours"]["A"] + 0.2))


def test_a_baseline_says_what_falls_into_a_hole() -> None:
    run = experiment("A", policy={"name": "threshold"}, job={"steps": 1_800})
    found = simulate(run, traces({"A": [900] * 6 + [None] * 5 + [100] * 13}))
    base = found["baselines"]["A"]
    # Known for 35 minutes and from 55 on: 20 of its 60 minutes are in the hole.
    assert base["unaccounted_kwh"] == pytest.approx(2.0 * 20 / 60)
    assert base["co2_kg"] == found["baselines_co2_kg"]["A"] == pytest.approx(2.0 * (0.9 * 35 + 0.1 * 5) / 60)
    assert base["co2_kg_low"] == pytest.approx(base["co2_kg"] + 2.0 * 20 / 60 * 0.1)
    assert base["co2_kg_high"] == pytest.approx(base["co2_kg"] + 2.0 * 20 / 60 * 0.9)
    assert base["reason"] is not None and "0.667 kWh fall into gaps" in base["reason"]


def test_the_note_of_a_policy_that_plans_has_the_experiments_own_deadline() -> None:
    run = experiment("A", job={"steps": 600, "deadline": (START + timedelta(minutes=90)).isoformat()})
    table, _ = compare(run, traces({"A": [50] * 24}), policies=["forecast"])
    assert table["note"].to_list() == ["perfect forecast, by 1.50 h"]


def test_prices_decide_on_after_the_last_intensity() -> None:
    """What is drawn then is unaccounted: neither is time cut off, nor is a value held."""
    run = experiment(["A"], policy={"name": "threshold", "parameters": {"kind": "price"}}, job={"steps": 1_800})
    both = pl.concat([traces({"A": [300.0] * 6}), priced({"A": [80.0] * 12 + [-20.0] * 12})])
    found = simulate(run, both)
    assert found["finished"] and found["runtime_h"] == pytest.approx(2.0)
    assert found["energy_kwh"] == pytest.approx(2.0) == found["unaccounted_kwh"]
    assert found["co2_kg"] is None


def test_a_live_site_that_prices_decide_waits_for_no_intensity() -> None:
    run = experiment(["A"], policy={"name": "threshold", "parameters": {"kind": "price"}})
    both = pl.concat([traces({"A": [300.0] * 2}), priced({"A": [-20.0] * 12})])
    view = View.build(run, both, windows_of_record(run, both, run.policy), as_of=minutes(57))
    assert view.stale_reason(run.sites[0], to_us(minutes(57))) is None
    assert "last value of A at 2026-01-11T17:55:00Z" in str(view.stale_reason(run.sites[0], to_us(minutes(70))))


def test_sites_of_one_region_that_differ_have_a_baseline_each_and_are_named() -> None:
    power = {"region": "A", "idle_kw": 0.0, "steps_per_s": 0.5}
    kw = {"big": 8.0, "small": 2.0, "alike": 8.0}
    sites = [{"name": name, "training_kw": value, **power} for name, value in kw.items()]
    job = {"steps": 1_800}
    run = experiment(sites=sites, policy={"name": "threshold"}, job=job, baseline_regions=["B"])
    found = simulate(run, traces({"A": [100.0] * 24, "B": [900.0] * 24}))
    assert found["baselines_co2_kg"] == pytest.approx({"A (big)": 0.8, "A (small)": 0.2, "B (big)": 7.2})
    assert [(base["region"], base["site"]) for base in found["baselines"].values()] == [
        ("A", "big"), ("A", "small"), ("B", "big"),
    ]  # fmt: skip
    alike = run.model_copy(update={"sites": [run.sites[0], run.sites[2]]})
    assert list(simulate(alike, traces({"A": [100.0] * 24, "B": [900.0] * 24}))["baselines"]) == ["A", "B"]
