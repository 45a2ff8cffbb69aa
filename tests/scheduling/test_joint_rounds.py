"""Sites behind slow links: what a round with them costs, and when they hold."""

from collections.abc import Sequence
from datetime import timedelta
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation_cases import START, experiment, traces, windows

from curtail_pipeline.scheduling.decide import decide
from curtail_pipeline.scheduling.joint_rounds import paying
from curtail_pipeline.scheduling.view import Job, View
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.settings.sites import Site
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
    again = decide(view, START + timedelta(minutes=10), job)  # nothing has changed meanwhile
    assert again.sites["S2"].since == together.sites["S2"].since
    assert together.sites["S2"].reason.startswith("its link would keep S0, S1 waiting")
    assert later.members == ("S2",)


SECONDS = st.sampled_from([0.0, 10.0, 150.0, 700.0])


@given(st.lists(st.tuples(SECONDS, SECONDS, SECONDS, SECONDS, st.sampled_from([0.1, 1.0])), min_size=1, max_size=4))
def test_no_other_sites_do_more_steps_together(drawn: list[tuple[float, float, float, float, float]]) -> None:
    names = ("round_load_s", "round_tail_s", "round_tail_single_s", "outer_step_s")
    power = {"training_kw": 2.0, "idle_kw": 0.5}
    sites = [
        {
            "name": f"S{k}",
            "region": "R",
            **power,
            "steps_per_s": speed,
            "overheads": dict(zip(names, lost, strict=True)),
        }
        for k, (*lost, speed) in enumerate(drawn)
    ]
    run = experiment("", sites=sites, rounds={"round_s": 600, "sync": "paying"})

    def rate(members: Sequence[Site]) -> float:
        of = [run.overheads_of(site) for site in members]
        steps = sum(max(0.0, 600 - o.round_load_s) * s.steps_per_s for s, o in zip(members, of, strict=True))
        tail = max(o.round_tail_s if len(of) > 1 else o.round_tail_single_s for o in of)
        return steps / (600 + tail + max(o.outer_step_s for o in of))

    every = [some for count in range(1, len(sites) + 1) for some in combinations(run.sites, count)]
    assert rate(paying(run, run.sites)) == pytest.approx(max(map(rate, every)))
