"""What a plan is searched for: the sites as they stand, and what is expected of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from curtail_pipeline.scheduling.joint_rounds import WithoutWaiting
from curtail_pipeline.scheduling.planner import Slots
from curtail_pipeline.scheduling.stays import Stay
from curtail_pipeline.times import Micros


@dataclass(frozen=True)
class Outlook:
    """What is expected of the sites, per slot, and how they stand."""

    slots: Sequence[Slots]
    """In rounds with the others."""
    alone: Sequence[Slots] | None
    """In open-ended rounds of their own; None where there are none."""
    edges: Micros
    up: Sequence[Stay | None]
    """Per site, its stay in progress, with what it trains now as an open stretch; None while it is off."""
    waits: WithoutWaiting | None = None
    """Where sites wait for each other's loads and transfers."""

    @property
    def size(self) -> int:
        """Slots of all sites."""
        return sum(len(part.steps) for part in self.slots)
