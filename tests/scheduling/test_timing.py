from collections import defaultdict
from datetime import timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation_cases import START, experiment, minutes, view_of, walk

from curtail_pipeline.errors import PolicyError
from curtail_pipeline.scheduling.decide import decide
from curtail_pipeline.scheduling.policies import policy_of
from curtail_pipeline.scheduling.timing import Finished, Pause, SegmentPlan, advance, idle_intervals, plan_segment
from curtail_pipeline.scheduling.view import Job, View

OVERHEADS = {
    "provisioning_s": 100, "connect_s": 20, "first_load_s": 30, "round_load_s": 10,
    "round_tail_s": 6, "round_tail_single_s": 4, "outer_step_s": 2, "stop_drain_s": 60,
}  # fmt: skip


def segments(view: View) -> list[SegmentPlan]:
    return [part for part in walk(view) if isinstance(part, SegmentPlan)]


def test_step_counts_of_the_laptop_experiment() -> None:
    sites = [{"name": "A", "region": "A", "training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 0.01}]
    run = experiment(
        sites=sites, rounds={"round_s": 2700, "max_rounds": 2}, overheads={"round_load_s": 2, "round_tail_single_s": 4}
    )
    first, second, *_ = segments(view_of({"A": [50] * 60}, run))
    assert [part.steps for part in (*first.rounds, *second.rounds)] == [{"A": 26}] * 4
    assert first.stop_reason == "length cap"
    assert first.end - START == timedelta(seconds=2 * 2704)


def test_a_leaving_site_finishes_its_step_and_the_others_their_round() -> None:
    run = experiment("AB", overheads={"stop_drain_s": 60})
    view = view_of({"A": [50] * 13, "B": [50, 50, 50] + [500] * 10}, run)
    first, second, *_ = segments(view)
    # Rounds of 600 s at 2 s a step. B leaves at 900 s, half of its second round.
    assert [part.steps for part in first.rounds] == [{"A": 300, "B": 300}, {"A": 300, "B": 150}]
    assert first.rounds[1].stops == {"B": "above 100"}
    assert first.stop_reason == "B leaves: above 100"
    assert first.end == second.start == minutes(20)
    assert second.mode == "local"
    ends = {i.state: i.end for i in first.intervals if i.site == "B"}
    assert ends == {"training": minutes(15), "idle": minutes(16)}, "it drains for 60 s"


def test_a_step_under_way_is_finished_after_the_window() -> None:
    sites = [{"name": "A", "region": "A", "training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 0.003}]
    run = experiment(sites=sites, rounds={"round_s": 6000})
    (only,) = segments(view_of({"A": [50, 50, 500, 500, 500, 500]}, run))
    assert only.rounds[0].steps == {"A": 2}
    assert only.intervals[0].end == START + timedelta(microseconds=2 * 333_333_333)
    assert only.end == only.last_step == only.intervals[0].end


def test_a_joining_site_waits_for_the_end_of_the_round() -> None:
    view = view_of({"A": [50] * 12, "B": [500] + [50] * 11}, experiment("AB", overheads=OVERHEADS))
    first, second, *_ = segments(view)
    assert first.stop_reason == "B joins"
    assert [len(first.rounds), len(second.rounds) > 1] == [1, True]
    # A is ready 120 s after the start and trains from 150 s (first load) to 720 s; then tail and merge.
    assert first.rounds[0].start == START + timedelta(seconds=120)
    assert first.rounds[0].steps == {"A": 285}
    assert first.end == START + timedelta(seconds=720 + 4 + 2)
    assert second.members == ("A", "B")
    assert second.rounds[0].steps == {"A": 295, "B": 295}
    idle = [i for i in first.intervals if i.site == "B"]
    assert [i.state for i in idle] == ["start_up", "idle"]
    assert idle[-1].end == first.end


def test_an_open_local_round_lasts_until_somebody_joins() -> None:
    run = experiment("AB", overheads=OVERHEADS, rounds={"round_s": 600, "open_local": True, "max_rounds": 9})
    first, *_ = segments(view_of({"A": [50] * 30, "B": [500] * 20 + [50] * 10}, run))
    assert len(first.rounds) == 1
    assert first.end == minutes(100) + timedelta(seconds=120 + 6), "interrupted when B is ready"


def test_an_open_local_round_takes_over_when_all_others_left() -> None:
    run = experiment("AB", rounds={"round_s": 600, "open_local": True, "max_rounds": 9})
    first, *_ = segments(view_of({"A": [50] * 30, "B": [50] + [500] * 28 + [50]}, run))
    assert len(first.rounds) == 1
    assert first.rounds[0].steps == {"A": 145 * 30, "B": 150}


def test_the_job_ends_at_exactly_its_last_step() -> None:
    run = experiment("AB", job={"steps": 1001})
    plans = segments(view_of({"A": [50] * 20, "B": [50] * 20}, run))
    assert sum(plan.steps for plan in plans) == 1001
    assert plans[-1].stop_reason == "job finished"
    assert plans[-1].rounds[-1].steps == {"A": 201, "B": 200}, "the odd step is the first site's"
    assert plans[-1].last_step == START + timedelta(seconds=2 * 501)
    assert isinstance(walk(view_of({"A": [50] * 20, "B": [50] * 20}, run))[-1], Finished)


def test_the_clock_ends_before_the_trace_does_not_reach() -> None:
    view = view_of({"A": [50] * 3}, experiment("A", overheads={"round_tail_single_s": 30}))
    (only,) = segments(view)
    assert only.stop_reason == "clock end"
    assert only.end == view.end
    assert only.rounds[-1].end == view.end
    assert walk(view)[-1] == Finished(view.end, "clock end")
    early = view_of({"A": [50] * 30}, experiment("A", clock={"end": minutes(20).isoformat()}))
    assert walk(early)[-1] == Finished(minutes(20), "clock end")


def test_no_step_no_segment() -> None:
    """Ready just before the window closes: power is drawn, no checkpoint is asked for."""
    run = experiment("A", overheads={"provisioning_s": 299, "first_load_s": 30})
    parts = walk(view_of({"A": [500, 50, 500, 500]}, run))
    assert [type(part).__name__ for part in parts] == ["Pause", "Pause", "Pause", "Finished"]
    assert parts[1].reason == "no step completed: A leaves: above 100"
    assert [i.state for i in parts[0].intervals] == ["start_up"]
    assert [i.state for i in parts[1].intervals] == ["idle"]


def test_a_member_without_a_step_is_not_a_member() -> None:
    run = experiment("AB", overheads={"first_load_s": 200, "round_load_s": 200})
    values = {"A": [50] * 20, "B": [500, 50] + [500] * 18}
    plans = segments(view_of(values, run))
    assert all(plan.members == ("A",) and plan.mode == "local" for plan in plans)


def test_a_plan_needs_the_decision_of_its_start() -> None:
    view = view_of({"A": [50] * 9})
    job = Job(0, 10, START)
    with pytest.raises(PolicyError, match="needs a decision of that time"):
        plan_segment(view, view.experiment, minutes(5), job, decide(view, START, job))


def test_power_includes_the_building() -> None:
    site = {"name": "A", "region": "A", "training_kw": 2.0, "idle_kw": 0.5, "start_up_kw": 0.1, "pue": 1.5}
    run = experiment(sites=[{**site, "steps_per_s": 0.5}], overheads=OVERHEADS)
    parts = walk(view_of({"A": [50] * 12}, run))
    kw = {i.state: i.kw for part in parts if not isinstance(part, Finished) for i in part.intervals}
    assert kw == {"start_up": pytest.approx(0.15), "idle": 0.75, "training": 3.0}


column = st.lists(st.sampled_from([50.0, 450.0]), min_size=30, max_size=30)


@settings(max_examples=40, deadline=None)
@given(column, column, column, st.sampled_from([0.0, 600.0]), st.booleans(), st.integers(500, 5000))
def test_time_power_and_steps_add_up(
    a: list[float], b: list[float], c: list[float], delay: float, open_local: bool, total: int
) -> None:
    rounds = {"round_s": 600, "max_rounds": 4, "open_local": open_local}
    run = experiment("ABC", overheads=OVERHEADS, rounds=rounds, job={"steps": total})
    view = view_of({"A": a, "B": b, "C": c}, run, delay)
    parts = walk(view)
    *body, finish = parts
    assert isinstance(finish, Finished)
    now, steps = START, 0
    intervals = defaultdict(list)
    for part in body:
        assert isinstance(part, SegmentPlan | Pause)
        assert part.start == now
        now = part.end
        for interval in part.intervals:
            assert part.start <= interval.start < interval.end <= part.end
            intervals[interval.site].append(interval)
        if isinstance(part, SegmentPlan):
            assert set(part.members) == {name for plan in part.rounds for name in plan.steps}
            assert all(count > 0 for plan in part.rounds for count in plan.steps.values())
            steps += part.steps
    assert finish.at == now
    assert steps == total if finish.reason == "job finished" else steps < total
    trained = 0.0
    for site, found in intervals.items():
        assert all(x.end <= y.start for x, y in pairwise(found)), site
        for interval in found:
            if interval.state == "training":
                trained += (interval.end - interval.start).total_seconds()
                train = policy_of(view).timelines["ABC".index(site)]  # type: ignore[attr-defined]
                first, last = ((t - START).total_seconds() for t in (interval.start, interval.end))
                stretches = [
                    ((s / 1e6) - START.timestamp(), (e / 1e6) - START.timestamp())
                    for s, e in zip(train.train, train.until, strict=True)
                ]
                assert any(s + 10 <= first and last <= e + 2 for s, e in stretches)
    assert trained == pytest.approx(2.0 * steps)


@settings(max_examples=40, deadline=None)
@given(column, column)
def test_a_pause_costs_what_the_idle_intervals_say(a: list[float], b: list[float]) -> None:
    run = experiment("AB", overheads={**OVERHEADS, "provisioning_s": 400})
    view = view_of({"A": a, "B": b}, run)
    job = Job(0, 10**9, START)
    part = advance(view, run, START, job)
    if isinstance(part, Pause):
        assert part.intervals == idle_intervals(view, run, part.start, part.end, job)
        before = decide(view, part.end - timedelta(microseconds=1), job)
        assert not before.members
