"""The same simulation with one setting varied: what the length of a round does to hours, kg and bytes."""

from collections.abc import Callable, Sequence
from typing import TypedDict

from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.simulation.summary import Simulated
from curtail_pipeline.times import HOUR

LENGTHS_S = (150.0, 300.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0)
SWEPT = ("round_s",)
"""Settings that can be varied."""


class RoundLength(TypedDict):
    """One row of a sweep."""

    round_s: float
    auto: bool
    """Whether `rounds.round_s: auto` chose it."""
    finished: bool
    steps: int
    runtime_h: float
    co2_kg: float | None
    """Of the accounted energy; None where that is nothing."""
    rounds: int
    transfers: int
    """Updates sent, one per site and round; as many models were received."""
    bytes: int
    """Both ways, by `rounds.update_mb`; what a site receives before its first step counts as in any round."""


def sweep_round_length(
    experiment: Experiment, simulated: Callable[[Experiment], Simulated], lengths_s: Sequence[float] = LENGTHS_S
) -> list[RoundLength]:
    """Ascending lengths, and the one that `auto` chooses; lengths in which some site makes no step are left out.

    Args:
        simulated: simulates an experiment.
    """
    slowest = min(site.steps_per_s for site in experiment.sites)
    rows = [_row(simulated(_with(experiment, "auto")), auto=True)]
    rows += [_row(simulated(_with(experiment, length)), auto=False) for length in lengths_s if slowest * length >= 1]
    return sorted(rows, key=lambda row: row["round_s"])


def _with(experiment: Experiment, length: float | str) -> Experiment:
    return experiment.model_copy(update={"rounds": experiment.rounds.model_copy(update={"round_s": length})})


def _row(done: Simulated, *, auto: bool) -> RoundLength:
    walk, rounds, size = done.walk, done.view.experiment.rounds, done.view.experiment.moved
    transfers = sum(len(use.training[0]) for use in walk.use.values())
    return {
        "round_s": rounds.length_s,
        "auto": auto,
        "finished": walk.finished,
        "steps": walk.steps,
        "runtime_h": (walk.last_step - walk.start) / HOUR,
        "co2_kg": done.account.co2_kg if done.account.known else None,
        "rounds": walk.rounds,
        "transfers": transfers,
        "bytes": round(1e6 * transfers * (size.received + size.sent)),
    }
