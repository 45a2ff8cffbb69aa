"""What the rules that find no measurements judge: one signal's values, and stretches of them."""

from dataclasses import dataclass

import numpy as np

from curtail_pipeline.settings.trace_settings import Kind, Reason
from curtail_pipeline.times import Floats, Micros


@dataclass(frozen=True)
class Values:
    """What is known of one signal of a region: ascending stamps [n] in microseconds, values [n] that are not null."""

    region: str
    kind: Kind
    times: Micros
    values: Floats
    cadence_s: float
    factor: float = 1.0
    """What the source's own values were multiplied by."""


@dataclass(frozen=True)
class Stretch:
    """Neighbouring values that were withheld for one reason."""

    reason: Reason
    first: int
    """Index of the first."""
    after: int
    """Index behind the last."""


def runs(values: Floats) -> tuple[Micros, Micros]:
    """Where runs of equal values begin, and behind which index they end."""
    if not len(values):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    first = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    return first, np.r_[first[1:], len(values)]


def stretches(reason: Reason, first: Micros, after: Micros, kept: Micros) -> list[Stretch]:
    """Runs among the kept values, as stretches of all of them."""
    return [Stretch(reason, int(kept[a]), int(kept[b - 1]) + 1) for a, b in zip(first, after, strict=True)]
