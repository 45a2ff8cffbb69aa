"""Seconds that a site loses, and two sets of them to compare: the published prototype's, and this product's."""

from typing import Final, Literal

from pydantic import Field

from curtail_pipeline.settings.section import Section

OverheadsName = Literal["paper", "product"]


class Overheads(Section):
    """Seconds a site spends provisioned but not training.

    Defaults are zero; experiments/paper.yaml has the prototype's.
    """

    provisioning_s: float = Field(default=0.0, ge=0)
    """From the decision to start a site until it is provisioned (240 in the paper)."""
    connect_s: float = Field(default=0.0, ge=0)
    """From provisioned until the agent is connected."""
    first_load_s: float = Field(default=0.0, ge=0)
    """From connected to the site's first step after a start, at the earliest."""
    round_load_s: float = Field(default=0.0, ge=0)
    """From a round's start to its first step, in later rounds."""
    round_tail_s: float = Field(default=0.0, ge=0)
    """From the end of training to the round's end, with two or more members."""
    round_tail_single_s: float = Field(default=0.0, ge=0)
    """The same with one member."""
    outer_step_s: float = Field(default=0.0, ge=0)
    """Merge after a round."""
    stop_drain_s: float = Field(default=0.0, ge=0)
    """From the decision to stop a site until it is off."""
    poll_s: float = Field(default=0.0, ge=0)
    """Interval at which the controller looks at the signal (10 in the paper)."""


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
