"""Sites behind slow links: what a round with them costs, and when they hold."""

from collections.abc import Sequence
from datetime import timedelta
from itertools import combinations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation_cases import START, experiment, tariffs, traces, windows

from curtail_pipeline.scheduling.decide import decide
from curtail_pipeline.scheduling.joint_rounds import WithoutWaiting, paying
from curtail_pipeline.scheduling.policies import TimelinePolicy, policy_of
from curtail_pipeline.scheduling.rollout import Rollout, Standing
from curtail_pipeline.scheduling.stays import stays_of
from curtail_pipeline.scheduling.view import Job, View
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.simulation.accounts import account
from curtail_pipeline.simulation.compare import simulate_run
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


LEVELS = st.sampled_from([10.0, 50.0, 450.0])


@st.composite
def linked(draw: st.DrawFn) -> tuple[Experiment, pl.DataFrame]:
    """Three hours, up to four sites with links of their own; some take longer to receive weights than a round lasts."""
    names = "ABCD"[: draw(st.integers(2, 4))]
    speeds = [draw(st.sampled_from([4.0, 10.0, 100.0, 1000.0])) for _ in names]
    power = {"training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 0.5}
    sites = [
        {"name": name, "region": name, **power, "link": {"up_mbit_s": mbit_s, "down_mbit_s": mbit_s}}
        for name, mbit_s in zip(names, speeds, strict=True)
    ]
    values = {name: [v for v in draw(st.lists(LEVELS, min_size=12, max_size=12)) for _ in range(3)] for name in names}
    run = experiment(
        "",
        sites=sites,
        overheads={"provisioning_s": 60, "connect_s": 20, "round_load_s": 4, "outer_step_s": 2, "stop_drain_s": 30},
        rounds={"round_s": 600, "open_local": draw(st.booleans()), "update_mb": 400},
        job={"steps": draw(st.integers(50, 3000))},
    )
    return run, traces(values)


def syncing(run: Experiment, sync: str, policy: str) -> Experiment:
    rounds = run.rounds.model_copy(update={"sync": sync})
    return run.model_copy(update={"rounds": rounds, "policy": run.policy.model_copy(update={"name": policy})})


@settings(max_examples=10, deadline=None)
@given(linked(), st.sampled_from(["threshold", "boundary"]))
def test_a_plan_without_waiting_is_what_the_decisions_come_to(case: tuple[Experiment, pl.DataFrame], name: str) -> None:
    run, rows = case
    run = syncing(run, "paying", name)
    view = View.build(run, rows, windows(rows, run))
    policy = policy_of(view)
    assert isinstance(policy, TimelinePolicy)
    plan = WithoutWaiting(run).held(tuple(map(stays_of, policy.timelines)))
    start, end = to_us(START), view.end_us
    course = Rollout(view, tariffs(view, end), Standing(start, 0), run.job.steps, end, end).course(plan)
    walked = step_walk(view, run, Job(0, run.job.steps, START), start)
    assert course.steps == walked.steps
    assert course.cost == pytest.approx(1_000 * account(view, walked, {}).co2_kg, abs=1e-6)


@pytest.mark.usefixtures("few_walks")
@settings(max_examples=4, deadline=None)
@given(linked(), st.floats(0.5, 1.0))
def test_planning_beats_every_policy_however_sites_share_rounds(
    case: tuple[Experiment, pl.DataFrame], share: float
) -> None:
    run, rows = case
    hours = 3 * share
    ours = simulate_run(run, rows, policy="forecast", forecast="perfect", deadline_h=hours)
    others = [
        simulate_run(syncing(run, sync, name), rows, deadline_h=hours)
        for sync in ("all", "paying")
        for name in ("threshold", "boundary")
    ]
    finished = [other.account.co2_kg for other in others if other.walk.finished]
    if finished:
        assert ours.walk.finished
        assert ours.account.co2_kg <= 1.01 * min(finished) + 1e-9
    else:
        assert ours.walk.steps >= max(other.walk.steps for other in others)


@pytest.mark.usefixtures("few_walks")
def test_a_plan_does_without_a_site_whose_weights_take_longer_than_a_round() -> None:
    """A site that no round could ever train on took the others' steps away in the planner's eyes."""
    run = run_of(3, "all", slow_mbit_s=5.0)
    run = run.model_copy(update={"job": run.job.model_copy(update={"steps": 6_000})})
    rows = traces({"S0": [50.0] * 24, "S1": [50.0] * 24, "S2": [10.0] * 24})
    done = simulate_run(run, rows, policy="forecast", forecast="perfect", deadline_h=2.0)
    assert done.walk.finished
    assert done.walk.use["S2"].hours("training") == 0


@pytest.mark.parametrize(("sync", "members"), [("all", ("S0", "S1", "S2")), ("paying", ("S0", "S1"))])
def test_before_a_plan_sites_are_held_back_as_for_any_policy(sync: str, members: tuple[str, ...]) -> None:
    run = syncing(run_of(3, sync), sync, "forecast")
    run = run.model_copy(update={"job": run.job.model_copy(update={"deadline": START + timedelta(days=3)})})
    rows = traces({site.region: [10.0] * 24 for site in run.sites})
    view = View.build(run, rows, windows(rows, run))
    assert decide(view, START, Job(0, 10**6, START, run.job.deadline)).members == members


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
