from dataclasses import replace
from datetime import timedelta

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation_cases import START, experiment, minutes, next_event, traces, view_of, windows

from curtail_pipeline.errors import CurtailError, PolicyError, TraceError
from curtail_pipeline.scheduling.decide import decide
from curtail_pipeline.scheduling.view import Job, View

JOB = Job(0, 1000, START)
START_UP = {"provisioning_s": 240, "connect_s": 10}


def states(view: View, minute: float) -> str:
    """One letter per site."""
    return "".join(site.state[0] for site in decide(view, minutes(minute), JOB).sites.values())


def test_a_site_starts_up_trains_and_stops_with_its_window() -> None:
    view = view_of({"A": [500, 50, 50, 500]}, experiment("A", overheads=START_UP))
    assert [states(view, m) for m in (0, 4.99, 5, 9.1, 9.17, 14.9, 15)] == ["o", "o", "w", "w", "t", "t", "o"]
    warm = decide(view, minutes(5), JOB)
    assert warm.next_change == minutes(5) + timedelta(seconds=250)
    assert warm.sites["A"].since == minutes(5)
    assert decide(view, minutes(12), JOB).sites["A"].since == warm.next_change


def test_the_number_that_train_is_the_mode() -> None:
    view = view_of({"A": [50, 50, 500], "B": [500, 50, 500]})
    decisions = [decide(view, minutes(m), JOB) for m in (0, 5, 10)]
    assert [d.mode for d in decisions] == ["local", "federated", "pause"]
    assert [d.members for d in decisions] == [("A",), ("A", "B"), ()]


def test_a_window_shorter_than_the_start_up_never_trains() -> None:
    view = view_of({"A": [500, 50, 500, 500]}, experiment("A", overheads={"provisioning_s": 400}))
    assert [states(view, m) for m in (4, 5, 9, 10, 14)] == ["o", "w", "w", "o", "o"]


def test_nothing_is_extrapolated() -> None:
    view = view_of({"A": [50, 50]})
    assert view.end == minutes(10)
    decide(view, minutes(9.99), JOB)
    with pytest.raises(TraceError, match="ends at 2026-01-11T17:10:00Z"):
        decide(view, minutes(10), JOB)


def test_a_live_view_fails_closed_when_the_signal_is_old() -> None:
    run = experiment("AB")
    rows = traces({"A": [50, 50], "B": [50, 50, 50, 50]})
    derived = windows(rows, run)
    at = minutes(16)
    decision = decide(View.build(run, rows, derived, as_of=at), at, JOB)
    assert decision.sites["A"].state == "off"
    assert decision.sites["A"].reason == "signal older than 600 s: last value of A at 2026-01-11T17:05:00Z"
    assert decision.sites["B"].state == "train"
    nothing = decide(View.build(run, rows.clear(), derived, as_of=at), at, JOB)
    assert {site.reason for site in nothing.sites.values()} == {"no signal for region A", "no signal for region B"}


def test_a_live_view_hides_what_comes_later() -> None:
    run = experiment("A")
    rows = traces({"A": [50, 500, 500]})
    view = View.build(run, rows, windows(rows, run, exit_delay_s=300), as_of=minutes(7))
    assert decide(view, minutes(7), JOB).mode == "local"
    assert next_event(view, minutes(7)) == minutes(15), "only the age of the last value it knows"


def test_a_finished_job_needs_no_site() -> None:
    decision = decide(view_of({"A": [50, 50]}), START, replace(JOB, steps_done=1000))
    assert decision.finished
    assert decision.mode == "pause"


def test_the_controller_notices_at_its_next_poll() -> None:
    view = view_of({"A": [500, 50, 50, 500, 500]}, experiment("A", overheads={"poll_s": 240}))
    assert [states(view, m) for m in (5, 7.9, 8, 15.9, 16)] == ["o", "o", "t", "t", "o"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": {"name": "greedy"}}, "unknown policy 'greedy'"),
        ({"rounds": {"round_s": 1}}, "raise rounds.round_s above 2 s"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CurtailError, match=message):
        decide(view_of({"A": [50]}, experiment("A", **changes)), START, JOB)


def test_a_region_without_a_trace_is_named() -> None:
    rows = traces({"A": [50]})
    run = experiment("AZ")
    with pytest.raises(TraceError, match=r"no signal for region 'Z': the traces have A"):
        View.build(run, rows, windows(rows, run).clear())


def test_a_live_view_has_no_end() -> None:
    rows = traces({"A": [50]})
    run = experiment("A")
    with pytest.raises(PolicyError, match="no end"):
        _ = View.build(run, rows, windows(rows, run), as_of=START).end


def test_average_intensity_is_used_only_where_there_is_no_marginal() -> None:
    marginal = traces({"A": [50, 60]})
    average = traces({"A": [900, 900], "B": [300, 300]}).with_columns(kind=pl.lit("average_intensity"))
    run = experiment("AB")
    view = View.build(run, pl.concat([average, marginal]), windows(traces({"A": [500], "B": [500]}), run))
    assert list(view.signals["A"].values) == [50, 60]
    assert list(view.signals["B"].values) == [300, 300]


column = st.lists(st.sampled_from([0.0, 80.0, 450.0]), min_size=24, max_size=24)


@settings(max_examples=40, deadline=None)
@given(column, column, st.sampled_from([0.0, 600.0]), st.sampled_from([0, 240, 700]), st.integers(0, 1439))
def test_a_decision_depends_on_the_past_alone(
    a: list[float], b: list[float], delay: float, start_up: int, at: int
) -> None:
    run = experiment("AB", overheads={"provisioning_s": start_up})
    rows = traces({"A": a, "B": b})
    now = START + timedelta(seconds=5 * at)
    known = rows.filter(pl.col("time") <= now)
    whole = decide(View.build(run, rows, windows(rows, run, delay)), now, JOB)
    cut = decide(View.build(run, known, windows(known, run, delay)), now, JOB)
    live = decide(View.build(run, rows, windows(rows, run, delay), as_of=now), now, JOB)
    assert whole == cut == live


@settings(max_examples=40, deadline=None)
@given(column, column, st.sampled_from([0, 240]))
def test_between_two_events_the_decision_stands(a: list[float], b: list[float], start_up: int) -> None:
    view = view_of({"A": a, "B": b}, experiment("AB", overheads={"provisioning_s": start_up}), delay_s=600)
    now = START
    while (following := next_event(view, now)) is not None:
        before = decide(view, now, JOB)
        assert decide(view, following - timedelta(microseconds=1), JOB).sites == before.sites
        assert decide(view, following, JOB).sites != before.sites
        now = following
