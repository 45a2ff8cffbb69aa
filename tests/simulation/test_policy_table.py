"""Policies side by side: only what is the whole job is ranked, and what does not exist is null."""

import json
from dataclasses import replace
from datetime import timedelta

import polars as pl
import pytest
from simulation_cases import experiment, minutes, traces

from curtail_pipeline.cli import console
from curtail_pipeline.scheduling.policies import POLICIES
from curtail_pipeline.simulation.compare import compare, simulate, simulate_run
from curtail_pipeline.simulation.policy_table import COMPARED, as_json
from curtail_pipeline.simulation.summary import summary, twin_kg

pytestmark = pytest.mark.usefixtures("few_walks")

SPELLS = traces({"A": [50] * 12 + [500] * 12 + [20] * 12, "B": [400] * 20 + [90] * 16})
"""Three hours: A is clean in the first and third, B from 1:40 on."""


def unfinished_beside_finished() -> pl.DataFrame:
    """`forecast` does the job by the deadline, on dirty power; policies that follow windows cannot."""
    run = experiment(job={"steps": 5_000})
    table, _ = compare(run, SPELLS, policies=["threshold", "forecast", "budget"], deadline_h=2.0)
    return table


def test_what_did_not_finish_has_no_rank_however_little_it_emitted() -> None:
    table = unfinished_beside_finished()
    rows = {row["policy"]: row for row in table.to_dicts()}
    assert (rows["threshold"]["finished"], rows["threshold"]["rank"]) == (False, None)
    assert 0 < rows["threshold"]["job_share"] < 1
    assert rows["threshold"]["steps"] == round(5_000 * rows["threshold"]["job_share"])
    assert rows["threshold"]["co2_kg"] < rows["forecast"]["co2_kg"]
    assert (rows["forecast"]["finished"], rows["forecast"]["rank"], rows["forecast"]["job_share"]) == (True, 1, 1.0)
    for row in rows.values():
        assert row["regret_g_per_step"] == pytest.approx(1_000 * row["regret_total_kg"] / row["steps"])


def test_ranks_go_by_what_finished_policies_emit() -> None:
    table, _ = compare(experiment(job={"steps": 3_000}), SPELLS)
    finished = table.filter("finished").sort("rank")
    assert finished.height >= 3
    assert finished["co2_kg"].is_sorted()
    assert finished["rank"][0] == 1


def test_the_printed_rows_end_with_those_that_did_not_finish() -> None:
    with console.OUT.capture() as printed:
        console.print_comparison(unfinished_beside_finished(), None)
    lines = printed.get().splitlines()
    cells = [[cell.strip() for cell in line.split("│")] for line in lines if line.startswith("│")]
    named = [row for row in cells if row[2]]
    assert [row[2] for row in named[1:] if row[2] in POLICIES][-1] == "threshold"
    threshold = next(row for row in named if row[2] == "threshold")
    assert (threshold[1], threshold[3]) == ("-", "no")
    assert threshold[5].endswith("%")
    assert "g per 1,000 steps" in printed.get()


def test_a_policy_keeps_its_parameters_and_all_decide_on_the_same_signal() -> None:
    own = {"name": "boundary", "parameters": {"enter": 60.0, "exit_delay_s": 300.0, "hold_s": 120.0}}
    run = experiment(policy=own, job={"steps": 2_000})
    table, _ = compare(run, SPELLS)
    rows = {row["policy"]: row for row in as_json(table)}
    assert rows["boundary"]["parameters"] == own["parameters"]
    assert rows["boundary"]["co2_kg"] == simulate(run, SPELLS)["co2_kg"]
    for name in set(POLICIES) - {"boundary"}:
        assert rows[name]["parameters"] == {"enter": 60.0}
    assert rows["threshold"]["co2_kg"] == pytest.approx(rows["threshold"]["energy_kwh"] * 0.035, rel=0.5), "A only"


def test_figures_that_do_not_exist_are_null_and_keys_are_always_there() -> None:
    table, _ = compare(experiment(job={"steps": 10**6}), SPELLS)
    found = json.loads(json.dumps(as_json(table)))
    assert all(list(row) == list(COMPARED) for row in found)
    budget = next(row for row in found if row["policy"] == "budget")
    if budget["note"].startswith("perfect"):
        pytest.fail("a budget that cannot be kept should say so")
    figures = {key: value for key, value in budget.items() if key not in ("policy", "parameters", "finished", "note")}
    assert budget["finished"] is False
    assert set(figures.values()) == {None}


def test_regret_has_its_keys_without_an_oracle() -> None:
    holes = traces({"A": [50, None, None, None, None, 50] * 4})
    found = simulate(experiment("A", policy={"name": "paper"}), holes, start=minutes(0))
    assert set(found["regret"]) == {
        "total_kg", "exit_lag_kg", "start_up_and_idle_kg", "forecast_error_kg", "waiting_kg",
    }  # fmt: skip


def test_a_forecasts_error_is_per_step_where_the_perfect_one_did_other_steps() -> None:
    run = experiment("A", job={"steps": 3_000})
    values = traces({"A": [50] * 4 + [500] * 8 + [20] * 24})
    under = {"policy": "forecast", "start": minutes(60), "deadline_h": 1.5}
    done = simulate_run(run, values, forecast="persistence", **under)  # type: ignore[arg-type]
    ideal = simulate_run(run, values, forecast="perfect", **under)  # type: ignore[arg-type]
    twice = replace(ideal.walk, steps=2 * done.walk.steps)
    ideal = replace(ideal, walk=twice, account=replace(ideal.account, co2_kg=0.5))
    assert twin_kg(done, ideal) == pytest.approx(0.25)
    error = summary(done, twin_kg(done, ideal))["regret"]["forecast_error_kg"]
    assert error == pytest.approx(done.account.co2_kg - 0.25)
    assert summary(done, None)["regret"]["forecast_error_kg"] is None, "unknown is not 0"


def test_nothing_is_drawn_of_a_policy_that_did_not_finish() -> None:
    run = experiment(job={"steps": 5_000})
    table, draw = compare(run, SPELLS, policies=["threshold", "forecast"], deadline_h=2.0)
    assert table["policy"].to_list() == ["threshold", "forecast"], "in the order that was asked for"
    drawn = draw().to_dict()
    points = drawn["datasets"][drawn["layer"][1]["data"]["name"]]
    assert [point["policy"] for point in points] == ["forecast"]
    assert timedelta(hours=points[0]["hours"]) <= timedelta(hours=2)
