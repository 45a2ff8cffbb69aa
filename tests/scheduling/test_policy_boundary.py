from hypothesis import given, settings
from hypothesis import strategies as st
from simulation_cases import START, experiment, minutes, traces, view_of, windows

from curtail_pipeline.errors import PolicyError
from curtail_pipeline.scheduling.decide import decide
from curtail_pipeline.scheduling.view import Job, View
from curtail_pipeline.settings.experiment import Experiment

JOB = Job(0, 10**9, START)
START_UP = {"provisioning_s": 240, "connect_s": 10, "first_load_s": 90}


def boundary(**parameters: float) -> Experiment:
    return experiment("A", policy={"name": "boundary", "parameters": parameters}, overheads=START_UP)


def states(view: View, *at: float) -> str:
    return "".join(decide(view, minutes(m), JOB).sites["A"].state[0] for m in at)


def test_it_stops_training_at_the_edge_and_holds_for_as_long_as_a_start_takes() -> None:
    view = view_of({"A": [50] * 4 + [450] * 6}, boundary())
    assert states(view, 0, 4.1, 4.2, 19.9, 20, 25.6, 25.7) == "wwttwwo"
    held = decide(view, minutes(20), JOB).sites["A"]
    assert held.reason == "signal above the threshold: holding at idle power"
    gone = decide(view, minutes(26), JOB).sites["A"]
    assert gone.reason == "above 100; not back within 340 s"


def test_a_short_spike_is_waited_out_and_costs_no_start() -> None:
    view = view_of({"A": [50] * 4 + [450] + [50] * 4}, boundary())
    assert states(view, 19.9, 20, 24.9, 25, 30) == "twwtt"
    assert decide(view, minutes(25), JOB).sites["A"].ready == minutes(250 / 60)


def test_a_long_spike_ends_in_a_new_start() -> None:
    view = view_of({"A": [50] * 4 + [450] * 2 + [50] * 4}, boundary())
    assert states(view, 19.9, 25, 26, 30, 34.1, 34.2) == "twowwt"


def test_holding_is_a_parameter_and_none_below_the_cadence() -> None:
    values = {"A": [50] * 4 + [450] * 4 + [50] * 4}
    assert states(view_of(values, boundary(hold_s=1200.5)), 21, 39, 40) == "wwt"
    assert states(view_of(values, boundary(hold_s=0)), 21, 39, 40, 45) == "oowt"
    quick = experiment("A", policy={"name": "boundary"}, overheads={"connect_s": 20})
    assert states(view_of(values, quick), 20) == "o", "20 s outlast no spike of a 5-minute signal"


def test_windows_that_history_calls_too_short_are_not_opened_at_first() -> None:
    short, long = [50, 450, 450, 450], [50] * 12 + [450] * 3
    values = short * 8 + long
    view = view_of({"A": values}, boundary(hold_s=0))
    first_long = 5.0 * 4 * 8
    assert states(view, 0.1) == "w", "nothing is known yet"
    assert states(view, first_long - 20 + 0.1) == "o", "the last ones all took 5 minutes, a start takes 5.7"
    assert states(view, first_long + 1, first_long + 5, first_long + 10) == "owt", "it outlived the short ones"
    assert states(view_of({"A": values}, boundary(hold_s=0, pay_factor=0)), first_long - 20 + 0.1) == "w"


def test_unknown_parameters_are_named() -> None:
    view = view_of({"A": [50]}, boundary(patience=3))
    try:
        decide(view, START, JOB)
    except PolicyError as error:
        assert str(error).startswith("policy 'boundary', parameter patience:")
        assert "hold_s, pay_factor" in str(error)
    else:
        raise AssertionError("accepted")


column = st.lists(st.sampled_from([50.0, 450.0]), min_size=60, max_size=60)


@settings(max_examples=40, deadline=None)
@given(column, st.sampled_from([None, 0.0, 400.0, 1500.0]), st.sampled_from([0.0, 2.0]), st.integers(0, 3599))
def test_it_never_trains_above_the_threshold_nor_knows_the_future(
    values: list[float], hold: float | None, factor: float, at: int
) -> None:
    given_hold = {} if hold is None else {"hold_s": hold}
    run = experiment("A", policy={"name": "boundary", "parameters": {"pay_factor": factor, **given_hold}})
    run = run.model_copy(update={"overheads": boundary().overheads})
    rows = traces({"A": values})
    now = minutes(at / 12)
    whole = View.build(run, rows, windows(rows, run))
    if decide(whole, now, JOB).mode != "pause":
        assert values[at // 60] < 100
    assert decide(whole, now, JOB) == decide(View.build(run, rows, windows(rows, run), as_of=now), now, JOB)
