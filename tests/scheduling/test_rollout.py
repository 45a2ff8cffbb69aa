"""The planner's walk is the simulator's, and what it plans is never worse than not planning."""

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation_cases import START, experiment, minutes, tariffs, traces, windows

from curtail_pipeline.errors import PolicyError
from curtail_pipeline.scheduling import plan_search
from curtail_pipeline.scheduling.policies import TimelinePolicy, policy_of
from curtail_pipeline.scheduling.policy_forecast import ForecastPolicy
from curtail_pipeline.scheduling.rollout import Rollout, Standing
from curtail_pipeline.scheduling.stays import Plan, stays_of
from curtail_pipeline.scheduling.view import Job, View
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.settings.overheads import PAPER
from curtail_pipeline.simulation.accounts import account
from curtail_pipeline.simulation.compare import Simulated, simulate_run
from curtail_pipeline.simulation.walk import step_walk
from curtail_pipeline.times import to_us

OTHERS = ("paper", "threshold", "hysteresis", "boundary")
LEVELS = (0.0, 20.0, 80.0, 150.0, 450.0)


def times_paper(factor: float) -> dict[str, float]:
    return {name: factor * value for name, value in PAPER.model_dump().items()}


@st.composite
def cases(draw: st.DrawFn, most_sites: int = 4, slots: int = 36) -> tuple[Experiment, pl.DataFrame]:
    """Random traces in stretches, sites, overheads from none to twice the paper's, rounds open-ended or timed."""
    names = "ABCDEF"[: draw(st.integers(1, most_sites))]
    values: dict[str, list[float]] = {}
    for name in names:
        column: list[float] = []
        while len(column) < slots:
            column += [draw(st.sampled_from(LEVELS))] * draw(st.integers(1, 9))
        values[name] = column[:slots]
    run = experiment(
        names,
        overheads=times_paper(draw(st.sampled_from([0.0, 0.1, 1.0, 2.0]))),
        rounds={"round_s": 600, "open_local": draw(st.booleans()), "max_rounds": 12},
        job={"steps": draw(st.integers(100, 2500))},
    )
    return run, traces(values)


@settings(max_examples=20, deadline=None)
@given(cases(), st.sampled_from(OTHERS))
def test_a_known_schedule_is_walked_as_the_simulator_walks_it(
    case: tuple[Experiment, pl.DataFrame], policy: str
) -> None:
    run, rows = case
    run = run.model_copy(
        update={
            "policy": run.policy.model_copy(update={"name": policy}),
            "clock": run.clock.model_copy(update={"start": START, "end": minutes(170)}),
        }
    )
    view = View.build(run, rows, windows(rows, run))
    start, end = to_us(START), to_us(minutes(170))
    followed = policy_of(view)
    assert isinstance(followed, TimelinePolicy)
    plan: Plan = tuple(map(stays_of, followed.timelines))
    course = Rollout(view, tariffs(view, end), Standing(start, 0), run.job.steps, end, end).course(plan)
    walked = step_walk(view, run, Job(0, run.job.steps, START), start)
    assert course.steps == walked.steps
    for site, rounds in zip(view.sites, course.training, strict=True):
        assert [first for first, _ in rounds] == walked.use[site.name].training[0].tolist()
    assert course.cost == pytest.approx(1_000 * account(view, walked, {}).co2_kg, abs=1e-6)


def planned(run: Experiment, rows: pl.DataFrame, deadline_h: float, policy: str = "forecast") -> Simulated:
    return simulate_run(run, rows, policy=policy, forecast="perfect", deadline_h=deadline_h)


@pytest.mark.usefixtures("few_walks")
@settings(max_examples=6, deadline=None)
@given(cases(), st.floats(0.4, 1.0))
def test_planning_is_never_worse_than_not_planning(case: tuple[Experiment, pl.DataFrame], share: float) -> None:
    run, rows = case
    hours = 2.0 * share
    ours = planned(run, rows, hours)
    others = [simulate_run(run, rows, policy=name, deadline_h=hours) for name in OTHERS]
    finished = [other.account.co2_kg for other in others if other.walk.finished]
    if finished:
        assert ours.walk.finished
        assert ours.account.co2_kg <= 1.01 * min(finished) + 1e-9
    else:
        assert ours.walk.steps >= max(other.walk.steps for other in others)
    policy = policy_of(ours.view)
    assert isinstance(policy, ForecastPolicy)
    assert policy.committed is not None
    assert policy.committed.made == to_us(START), "the plan kept its word: it was never made again"
    if ours.walk.finished:
        assert policy.committed.course.cost == pytest.approx(1_000 * ours.account.co2_kg, abs=1e-6)


@settings(max_examples=3, deadline=None)
@given(cases(most_sites=3), st.floats(0.4, 1.0), st.sampled_from([1.05, 1.5, 3.0]))
def test_more_slack_costs_no_more_than_a_hundredth(
    case: tuple[Experiment, pl.DataFrame], share: float, more: float
) -> None:
    """What a search reaches, not a proof: the plan for one deadline is no start of the search for another's."""
    run, rows = case
    ours = planned(run, rows, share)
    if ours.walk.finished:
        slack = planned(run, rows, more * share)
        assert slack.walk.finished
        assert slack.account.co2_kg <= 1.01 * ours.account.co2_kg + 1e-9


@pytest.mark.usefixtures("few_walks")
@settings(max_examples=5, deadline=None)
@given(cases(most_sites=3), st.floats(0.3, 1.0))
def test_a_budget_starts_what_it_can_finish_and_nothing_else(
    case: tuple[Experiment, pl.DataFrame], share: float
) -> None:
    run, rows = case
    hours = 3 * share
    try:
        done = planned(run, rows, hours, "budget")
    except PolicyError as error:
        word = str(error)
        assert "is infeasible" in word
        short = int(word.split(" steps by then, ")[1].split(" short")[0])
        fewer = run.model_copy(update={"job": run.job.model_copy(update={"steps": run.job.steps - short})})
        if short < run.job.steps:
            assert planned(fewer, rows, hours, "budget").walk.finished
        return
    assert done.walk.finished


def test_a_record_too_vast_to_search_is_planned_by_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Walks get fewer with the slots of all sites, down to none beside the prices' plans and the other policies'."""
    run = experiment("ABC", overheads=times_paper(0.5), rounds={"round_s": 600}, job={"steps": 2000})
    rows = traces({"A": [150.0] * 9 + [20.0] * 27, "B": [80.0] * 20 + [0.0] * 16, "C": [450.0] * 18 + [90.0] * 18})
    thorough = planned(run, rows, 3.0)
    monkeypatch.setattr(plan_search, "VAST", 0)
    searches: list[int] = []
    begun = plan_search.Search.__init__

    def counted(*args: Any) -> None:
        searches.append(args[3])
        begun(*args)

    monkeypatch.setattr(plan_search.Search, "__init__", counted)
    ours = planned(run, rows, 3.0)
    assert searches == [0], "once, and no earlier deadline"
    assert ours.walk.finished
    threshold = simulate_run(run, rows, policy="threshold", deadline_h=3.0)
    assert thorough.account.co2_kg <= ours.account.co2_kg <= threshold.account.co2_kg


@pytest.mark.usefixtures("few_walks")
def test_deadlines_beyond_the_record_are_one() -> None:
    """Three hours are known: what is planned by six or by nine is the same plan."""
    run = experiment("AB", overheads=times_paper(1.0), rounds={"round_s": 600}, job={"steps": 2500})
    rows = traces({"A": [150.0] * 9 + [20.0] * 12 + [450.0] * 15, "B": [80.0] * 20 + [0.0] * 9 + [80.0] * 7})
    three, six, nine = (planned(run, rows, hours) for hours in (3.0, 6.0, 9.0))
    assert three.walk.finished
    assert three.account.co2_kg == six.account.co2_kg == nine.account.co2_kg
