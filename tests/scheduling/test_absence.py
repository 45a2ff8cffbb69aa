"""A lost site is scheduled like one whose window is closed, and comes back by itself."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation_cases import START, experiment, minutes, view_of

from curtail_pipeline.scheduling.absence import BACKOFF_S, Absences
from curtail_pipeline.scheduling.decide import decide
from curtail_pipeline.scheduling.timing import Pause, SegmentPlan, advance
from curtail_pipeline.scheduling.view import Job

WALL = datetime(2026, 5, 1, tzinfo=UTC)
JOB = Job(0, 1000, START)


def later(s: float) -> datetime:
    return WALL + timedelta(seconds=s)


def test_a_site_waits_longer_the_more_often_it_is_lost() -> None:
    known, at = Absences(), WALL
    for wait in (*BACKOFF_S, BACKOFF_S[-1]):
        known = known.after({"A": "no heartbeat for 10 s"}, (), at)
        assert known.sites["A"].due == at + timedelta(seconds=wait) and "A" not in known.away(known.sites["A"].due)
        if wait:
            assert "no heartbeat for 10 s), tried again at" in known.away(at)["A"]
        assert not known.away(at - timedelta(hours=1))  # the clock was set back: nobody waits for an hour
        at = known.sites["A"].due
    assert known.after({}, {"A"}, at) == Absences()


@given(st.lists(st.tuples(st.sets(st.sampled_from("ABC")), st.sets(st.sampled_from("ABC")))))
def test_who_delivers_is_back_and_nobody_else(history: list[tuple[set[str], set[str]]]) -> None:
    known, counts = Absences(), dict.fromkeys("ABC", 0)
    for n, (lost, delivered) in enumerate(history):
        known = known.after(dict.fromkeys(lost, "gone"), delivered - lost, later(n))
        for site in "ABC":
            counts[site] = counts[site] + 1 if site in lost else 0 if site in delivered else counts[site]
    assert {site: found.times for site, found in known.sites.items()} == {s: n for s, n in counts.items() if n}


@pytest.mark.parametrize(("name", "job"), [("paper", JOB), ("forecast", Job(0, 10, START, deadline=minutes(15)))])
def test_the_others_go_on_without_it(name: str, job: Job) -> None:
    view = view_of({"A": [50, 50, 50], "B": [500, 50, 50]}, experiment("AB", policy={"name": name}))
    decision = decide(view.without({"A": "lost 2 times"}), minutes(5), job)
    assert decision.sites["A"].state == "off" and decision.sites["A"].reason == "lost 2 times"
    assert view.away == {} and decide(view, minutes(5), job).sites["A"].reason != "lost 2 times"


def test_a_segment_is_planned_without_it_and_a_lone_site_that_is_away_is_a_pause() -> None:
    view = view_of({"A": [50, 50, 50], "B": [500, 50, 50]})
    away = view.without({"A": "lost"})
    pause = advance(away, away.experiment, minutes(0), JOB)
    assert isinstance(pause, Pause) and pause.end == minutes(5)
    both, one = (advance(v, v.experiment, minutes(5), JOB) for v in (view, away))
    assert isinstance(both, SegmentPlan) and isinstance(one, SegmentPlan)
    assert (both.members, one.members) == (("A", "B"), ("B",))
