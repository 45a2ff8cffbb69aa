from typing import Any

from hypothesis import given, note, settings
from hypothesis import strategies as st
from simulation_cases import START, experiment, traces, use_of, view_of, windows

from curtail_pipeline.scheduling.view import Job, View
from curtail_pipeline.simulation.walk import can_walk_events, event_walk, step_walk
from curtail_pipeline.times import to_us

values = st.sampled_from([0.0, 80.0, 450.0])


@st.composite
def cases(draw: st.DrawFn) -> View:
    count = draw(st.integers(1, 4))
    length = draw(st.integers(1, 40))
    names = "ABCD"[:count]
    tails = {"round_tail_s": draw(st.sampled_from([0, 6, 50])), "round_tail_single_s": draw(st.sampled_from([0, 4]))}

    def overheads() -> dict[str, float]:
        return {
            "provisioning_s": draw(st.sampled_from([0, 100, 400])),
            "connect_s": draw(st.sampled_from([0, 20])),
            "first_load_s": draw(st.sampled_from([0, 95])),
            "round_load_s": draw(st.sampled_from([0, 10])),
            "outer_step_s": 2,
            "stop_drain_s": draw(st.sampled_from([0, 60, 400])),
            "poll_s": draw(st.sampled_from([0, 7, 240])),
            **tails,
        }

    common = overheads()
    sites: list[dict[str, Any]] = [
        {
            "name": name,
            "region": name,
            "training_kw": 2.0,
            "idle_kw": 0.5,
            "steps_per_s": draw(st.sampled_from([0.5, 0.3665, 0.01, 1.7])),
            "overheads": overheads() if draw(st.booleans()) else None,
        }
        for name in names
    ]
    policy = draw(st.sampled_from([("paper", 600.0), ("threshold", 0.0), ("boundary", 0.0)]))
    run = experiment(
        sites=sites,
        overheads=common,
        rounds={"round_s": draw(st.sampled_from([600, 250, 1000])), "max_rounds": draw(st.integers(1, 5))},
        policy={"name": policy[0], "parameters": {"hold_s": 600} if policy[0] == "boundary" else {}},
        job={"steps": draw(st.sampled_from([1, 37, 1000, 2500, 10**9]))},
        clock={"start": START.isoformat()} if draw(st.booleans()) else {},
    )
    rows = traces({name: draw(st.lists(values, min_size=length, max_size=length)) for name in names})
    return View.build(run, rows, windows(rows, run, policy[1]))


@settings(max_examples=50, deadline=None)
@given(cases())
def test_walking_events_is_walking_by_decisions(view: View) -> None:
    if not can_walk_events(view):
        return
    note(view.experiment.model_dump_json(include={"sites", "overheads", "rounds", "policy", "job"}))
    note(str({name: list(signal.values) for name, signal in view.signals.items()}))
    job = Job(0, view.experiment.job.steps, START)
    fast = event_walk(view, view.experiment, job, to_us(START))
    slow = step_walk(view, view.experiment, job, to_us(START))
    assert (fast.steps, fast.rounds, fast.finished) == (slow.steps, slow.rounds, slow.finished)
    assert (fast.last_step, fast.end) == (slow.last_step, slow.end)
    assert use_of(fast) == use_of(slow)


def test_open_rounds_and_unequal_merges_are_walked_by_decisions() -> None:
    values = {"A": [50.0] * 3, "B": [50.0] * 3}
    assert can_walk_events(view_of(values))
    assert not can_walk_events(view_of(values, experiment("AB", rounds={"open_local": True})))
    sites = [
        {"name": n, "region": n, "training_kw": 2, "idle_kw": 1, "steps_per_s": 1, "overheads": {"outer_step_s": o}}
        for n, o in (("A", 1), ("B", 2))
    ]
    assert not can_walk_events(view_of(values, experiment(sites=sites)))
    slow_load = experiment("AB", overheads={"first_load_s": 599})
    assert not can_walk_events(view_of(values, slow_load))
