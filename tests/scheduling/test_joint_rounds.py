"""Sites behind slow links: what a round with them costs, and when they hold."""

from datetime import timedelta

import pytest
from simulation_cases import START, experiment, traces, windows

from curtail_pipeline.scheduling.decide import decide
from curtail_pipeline.scheduling.joint_rounds import paying
from curtail_pipeline.scheduling.view import Job, View
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.simulation.walk import step_walk
from curtail_pipeline.times import to_us


def run_of(count: int, sync: str, slow_mbit_s: float = 10.0) -> Experiment:
    """Every third site has a slow link."""
    sites = [
        {
            "name": f"S{k}", "region": f"S{k}", "training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 0.5,
            "link": {"up_mbit_s": mbit_s, "down_mbit_s": mbit_s},
        }
        for k in range(count)
        for mbit_s in [slow_mbit_s if k % 3 == 2 else 1000.0]
    ]  # fmt: skip
    rounds = {"round_s": 600, "max_rounds": 1000, "sync": sync, "update_mb": 500}
    return experiment("", sites=sites, rounds=rounds, policy={"name": "threshold"}, job={"steps": 10**9})


@pytest.mark.parametrize("count", [3, 10, 100])
def test_rounds_without_slow_links_do_more_of_the_job(count: int) -> None:
    steps = {}
    for sync in ("all", "paying"):
        run = run_of(count, sync)
        rows = traces({site.region: [10.0] * 24 for site in run.sites})
        view = View.build(run, rows, windows(rows, run))
        steps[sync] = step_walk(view, run, Job(0, 10**9, START), to_us(START)).steps
    assert steps["paying"] > 1.1 * steps["all"]


def test_a_link_that_costs_little_is_waited_for() -> None:
    assert len(paying(run_of(3, "paying", slow_mbit_s=900.0), run_of(3, "paying", slow_mbit_s=900.0).sites)) == 3
    assert [site.name for site in paying(run_of(3, "paying"), run_of(3, "paying").sites)] == ["S0", "S1"]


def test_a_site_that_is_held_back_trains_when_it_is_alone() -> None:
    run = run_of(3, "paying")
    rows = traces({"S0": [10.0] * 6 + [450.0] * 6, "S1": [10.0] * 6 + [450.0] * 6, "S2": [10.0] * 12})
    view = View.build(run, rows, windows(rows, run))
    job = Job(0, 10**9, START)
    together, later = decide(view, START, job), decide(view, START + timedelta(minutes=30), job)
    assert together.members == ("S0", "S1")
    assert together.sites["S2"].state == "warm"
    assert together.sites["S2"].reason.startswith("its link would keep S0, S1 waiting")
    assert later.members == ("S2",)
