"""Two sets of overheads to compare: the published prototype's, and this product's."""

from typing import Final, Literal

from curtail_pipeline.settings import Experiment
from curtail_pipeline.windows.config import Overheads

OverheadsName = Literal["paper", "product"]

PAPER: Final = Overheads(
    provisioning_s=240,
    connect_s=10,
    first_load_s=94.5,
    round_load_s=80,
    round_tail_s=50,
    round_tail_single_s=35,
    outer_step_s=2,
    stop_drain_s=60,
    poll_s=10,
)
"""Measured on the event log of the published run (arXiv:2602.22760); each of its rounds spawned and compiled anew."""


def product(round_s: float) -> Overheads:
    """Of this product's resident trainers: 20 s to join, and 2 % of a round for loading, sending and merging.

    An assumption until measured on GPUs: the model, its compiled graph and the optimiser stay in memory between rounds,
    so that what is left is moving weights, which takes as long as it takes whatever the round's length. All of it is at
    idle power.
    """
    lost = 0.02 * round_s
    return Overheads(
        connect_s=20, round_load_s=lost / 2, round_tail_s=lost / 4, round_tail_single_s=lost / 4, outer_step_s=lost / 4
    )


def with_overheads(experiment: Experiment, name: OverheadsName | None) -> Experiment:
    """The experiment with one of the sets in place of its own and its sites' overheads; unchanged without a name.

    The prototype's local rounds are open-ended; the product's are timed like all others.
    """
    if name is None:
        return experiment
    paper = name == "paper"
    rounds = experiment.rounds.model_copy(update={"open_local": paper})
    sites = [site.model_copy(update={"overheads": None}) for site in experiment.sites]
    overheads = PAPER if paper else product(rounds.round_s)
    return experiment.model_copy(update={"overheads": overheads, "rounds": rounds, "sites": sites})
