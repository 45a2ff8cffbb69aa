"""Which sites should be up: told from decisions, the windows of the day before, and how long a start takes."""

from dataclasses import replace
from datetime import timedelta

import pytest
from simulation_cases import START, experiment, minutes, traces, windows

from curtail_pipeline.scheduling.absence import Absence
from curtail_pipeline.scheduling.decide import Decision, decide, holding
from curtail_pipeline.scheduling.provision import LATE_S, Provisioned, Want, Wants, held, not_up, wanted
from curtail_pipeline.scheduling.view import Job, View

DAY = timedelta(days=1)
JOB = Job(0, 1000, START)
LOW, HIGH = 50.0, 500.0
UP = Provisioned(phase="up", since=START, start_s=(60.0, 90.0, 240.0))


def decided(after_min: float, **changes: object) -> tuple[View, Decision]:
    """A day after a day with A's window from 10 to 20 minutes, so long after its start."""
    run = experiment("AB", overheads={"provisioning_s": 300}, **changes)
    column = [HIGH, HIGH, LOW, LOW, *[HIGH] * 284] * 2
    rows = traces({"A": column, "B": [HIGH] * len(column)})
    now = START + DAY + timedelta(minutes=after_min)
    view = View.build(run, rows, windows(rows, run), as_of=now)
    return view, decide(view, now, replace(JOB, deadline=run.job.deadline))


@pytest.mark.parametrize(
    ("after_min", "known", "up"),
    [
        (8.4, UP, False),
        (8.6, UP, True),  # a start takes 90 s, the median of the last ones
        (4.9, Provisioned(), False),
        (5.1, Provisioned(), True),  # before the first one: 300 s, as the settings say
        (10.1, UP, True),
        (20.1, UP, False),
    ],
)
def test_a_site_is_started_ahead_by_what_its_starts_took(after_min: float, known: Provisioned, up: bool) -> None:
    view, decision = decided(after_min)
    found = wanted(view, decision, {"A": known}, ())
    assert found.sites["A"].up is up and found.sites.keys() == {"A"}
    if up and after_min < 10:
        assert "is expected to open at 2026-01-12T17:10" in found.sites["A"].reason


def test_a_window_that_does_not_come_lets_the_site_go() -> None:
    run = experiment("A")
    rows = traces({"A": [HIGH, HIGH, LOW, LOW, *[HIGH] * 320]})
    for late_s, up in ((LATE_S - 1, True), (LATE_S + 1, False)):
        now = START + DAY + timedelta(seconds=600 + late_s)
        view = View.build(run, rows, windows(rows, run), as_of=now)
        assert wanted(view, decide(view, now, JOB), {"A": UP}, ()).sites["A"].up is up


def test_a_replayed_clock_runs_on_while_a_site_starts() -> None:
    view, decision = decided(7.1)
    assert not wanted(view, decision, {"A": UP}, ()).sites["A"].up
    assert wanted(view, decision, {"A": UP}, (), speed=2.0).sites["A"].up


def test_a_site_stays_up_until_its_segment_has_ended() -> None:
    view, decision = decided(60)
    assert wanted(view, decision, {"A": UP}, ("A",)).sites["A"] == Want(up=True, reason="its segment is ending")
    assert not wanted(view, decision, {"A": UP}, ("B",)).sites["A"].up


def test_policies_that_plan_say_themselves_when_a_site_is_up() -> None:
    view, decision = decided(8.6, policy={"name": "budget"}, job={"steps": 1000, "deadline": "2026-01-20T00:00:00Z"})
    assert decision.sites["A"].state == "off" and not wanted(view, decision, {"A": UP}, ()).sites["A"].up


def test_who_is_not_up_takes_no_part_and_says_why() -> None:
    wish = Wants(sites={"A": Want(up=True, reason="curtailed"), "B": Want(up=False)})
    starting = Provisioned(phase="starting", start_s=(90.0,))
    assert not_up(wish, {"A": starting, "B": Provisioned()}, START) == {"A": "it is being started, which takes 90 s"}
    assert not_up(wish, {"A": UP, "B": UP}, START) == {}
    failed = Provisioned(phase="starting", failed=Absence(times=2, last=START, reason="no quota"))
    assert "its start failed 2 times in a row (no quota), tried again at" in not_up(wish, {"A": failed}, START)["A"]
    for wall in (minutes(1), minutes(-60)):  # the latter by a clock that was set back
        assert not_up(wish, {"A": failed}, wall) == {"A": "it is being started"}


def test_a_site_that_is_up_without_an_order_is_warm() -> None:
    view, decision = decided(8.6)
    wish = wanted(view, decision, {"A": UP}, ())
    found = holding(decision, held(wish, {"A": UP}, decision))
    assert (found.sites["A"].state, found.sites["B"].state, found.mode) == ("warm", "off", "pause")
    assert found.reason.startswith("no site trains; A warm: its window is expected")
    assert holding(decision, held(wish, {"A": Provisioned(phase="starting")}, decision)) == decision
