"""The length of a round that `rounds.round_s: auto` chooses."""

from math import sqrt

import numpy as np
import pytest
from simulation_cases import experiment, minutes, traces, view_of, windows

from curtail_pipeline.errors import SettingsError
from curtail_pipeline.scheduling.round_length import overhead_s, with_round_length
from curtail_pipeline.scheduling.view import View
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.settings.overheads import PAPER
from curtail_pipeline.times import SECOND, Micros


def auto(**changes: float) -> Experiment:
    return experiment("AB", overheads=PAPER.model_dump(), rounds={"round_s": "auto", **changes})


def chosen(run: Experiment, lengths_s: list[int], start_s: int) -> float:
    starts = np.cumsum([0, *(length + 60 for length in lengths_s[:-1])]).astype(np.int64) * SECOND
    ends: Micros = starts + np.array(lengths_s, dtype=np.int64) * SECOND
    return with_round_length(run, {"A": (starts, ends)}, start_s * SECOND).rounds.length_s


def test_the_length_balances_what_rounds_cost_and_what_joiners_wait_for() -> None:
    run = auto()
    assert overhead_s(run, run.sites) == 132
    assert chosen(run, [3600] * 5, 10**6) == np.ceil(sqrt(2 * 132 * 3600))
    assert chosen(run, [3600] * 4, 10**6) == np.ceil(sqrt(2 * 132 * 7200)), "too few windows to go by"
    assert chosen(auto(staleness_s=900), [3600] * 5, 10**6) == 900
    assert chosen(auto(staleness_s=10), [3600] * 5, 10**6) == 264, "half of a round trains"


def test_windows_that_end_after_the_start_are_not_known() -> None:
    short, long = [600] * 5, [36_000] * 5
    assert chosen(auto(), [*short, *long], 4_000) == chosen(auto(), short, 4_000)


def test_a_slow_link_makes_rounds_longer() -> None:
    link = {"up_mbit_s": 100, "down_mbit_s": 400, "rtt_ms": 100}
    sites = [{"name": name, "region": name, "training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 0.5} for name in "AB"]
    run = experiment(
        "AB",
        sites=[sites[0], {**sites[1], "link": link}],
        overheads=PAPER.model_dump(),
        rounds={"round_s": "auto", "update_mb": 1000},
    )
    assert run.overheads_of(run.site("A")) == PAPER
    assert run.overheads_of(run.site("B")).round_load_s == pytest.approx(80 + 20.1)
    assert run.overheads_of(run.site("B")).round_tail_s == pytest.approx(50 + 80.1)
    assert overhead_s(run, run.sites) == pytest.approx(132 + 20.1 + 80.1)
    assert chosen(run, [3600] * 5, 10**6) > chosen(auto(), [3600] * 5, 10**6)


def test_a_site_that_others_would_not_wait_for_does_not_make_their_rounds_longer() -> None:
    link = {"up_mbit_s": 1, "down_mbit_s": 10, "rtt_ms": 100}
    site = {"training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 0.5}
    sites = [{"name": name, "region": name, **site} for name in "ABC"]
    linked = [*sites[:2], {**sites[2], "link": link}]
    rounds = {"round_s": "auto", "update_mb": 1000, "sync": "paying"}
    run = experiment("ABC", sites=linked, overheads=PAPER.model_dump(), rounds=rounds)
    near = experiment("AB", sites=sites[:2], overheads=PAPER.model_dump(), rounds=rounds)
    assert chosen(run, [3600] * 5, 10**6) == chosen(near, [3600] * 5, 10**6) < 1000
    waiting = experiment("ABC", sites=linked, overheads=PAPER.model_dump(), rounds={**rounds, "sync": "all"})
    assert chosen(waiting, [3600] * 5, 10**6) > 3600


def test_a_view_knows_the_length_and_the_record_to_come_does_not_change_it() -> None:
    values = [10.0, 450.0, 10.0, 450.0] * 12
    run = auto().model_copy(update={"clock": auto().clock.model_copy(update={"start": minutes(120)})})
    lengths = []
    for column in (values, [*values[:25], *[10.0] * 23]):
        rows = traces({"A": column, "B": column})
        lengths.append(View.build(run, rows, windows(rows, run)).experiment.rounds.length_s)
    assert lengths == [np.ceil(sqrt(2 * 132 * 300))] * 2
    assert view_of({"A": values, "B": values}).experiment.rounds.length_s == 600


def test_no_length_that_is_none() -> None:
    with pytest.raises(SettingsError, match="round_s"):
        experiment("A", rounds={"round_s": "long"})
