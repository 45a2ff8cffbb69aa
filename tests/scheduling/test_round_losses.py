"""A site that trains nothing in rounds with others is told of."""

from typing import Any

import pytest
from simulation_cases import experiment

from curtail_pipeline.scheduling.round_losses import sites_without_steps
from curtail_pipeline.settings.experiment import Experiment, parse_experiment


def linked(*sites: str, mbit_s: float = 20.0, **rounds: Any) -> Experiment:
    """The last site has a link of that speed; 2,244 MB come by it before its first step."""
    content = experiment(sites).model_dump(mode="json", exclude_unset=True)
    content["sites"][-1]["link"] = {"up_mbit_s": mbit_s, "down_mbit_s": mbit_s, "rtt_ms": 50}
    return parse_experiment({**content, "rounds": {"round_s": 600, "update_mb": 2244, **rounds}}, "test")


def test_it_is_named_with_what_it_takes_and_what_helps() -> None:
    (said,) = sites_without_steps(linked("A", "B"))
    assert said.startswith("B makes no step in a round with others, which wait for it: loading")
    assert "takes 898 s of rounds.round_s 600; give longer rounds (round_s: auto)" in said


@pytest.mark.parametrize(
    "run",
    [
        linked("B"),
        linked("A", "B", mbit_s=40.0),
        linked("A", "B", round_s=910),
        linked("A", "B", sync="paying"),
        linked("A", "B", update_mb=1000),
    ],
    ids=["alone", "a faster link", "longer rounds", "not waited for", "less to move"],
)
def test_who_makes_a_step_or_keeps_nobody_waiting_is_not(run: Experiment) -> None:
    assert sites_without_steps(run) == []
