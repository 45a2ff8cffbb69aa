"""What a trainer tells after every step."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class StepProgress:
    """Where a round is after a step."""

    step: int
    """Global number of the step."""
    steps: int
    """Done in this round."""
    loss: float
    tokens_per_s: float
    """Of the round so far."""
    step_tokens_per_s: float
    """Of this step alone."""
    lr: float
    """Muon's, in this step."""
    mfu: float | None
    """Of this step (`throughput`); None where the device's peak is not known."""


Progress = Callable[[StepProgress], None]
