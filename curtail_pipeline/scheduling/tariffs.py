"""What the power of a site is expected to cost, as integrals over time."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from curtail_pipeline.scheduling.plan_walk import Rounds
from curtail_pipeline.scheduling.planner import or_dearest
from curtail_pipeline.scheduling.stays import Span, touching
from curtail_pipeline.times import HOUR, Floats, Micros


@dataclass(frozen=True)
class Tariff:
    """What one site's power is expected to cost: integrals over time, by power state."""

    knots: Micros
    training: Floats
    idle: Floats
    start_up: Floats
    unknown: tuple[Span, ...] = ()
    """Where no value is expected: no site trains there, whatever a plan says."""

    @classmethod
    def of(cls, knots: Micros, per_kwh: Floats, kw: tuple[float, float, float], own_kw: Floats) -> "Tariff":
        """From a price (or intensity) held from each knot to the next, NaN where unknown, and own free power.

        What is unknown counts as the dearest that is known, so that no site waits there as if that were free.
        """
        hours, missing = np.diff(knots) / HOUR, np.isnan(per_kwh)
        cost = or_dearest(per_kwh)
        train, idle, start_up = (
            np.concatenate(([0.0], np.cumsum(cost * np.maximum(power - own_kw, 0.0) * hours))) for power in kw
        )
        holes = zip(knots[:-1][missing].tolist(), knots[1:][missing].tolist(), strict=True)
        return cls(knots, train, idle, start_up, tuple(touching(list(holes))))

    @cached_property
    def _lists(self) -> tuple[list[int], list[float], list[float]]:
        """Knots, idle and start-up as lists, which single look-ups are faster in."""
        return self.knots.tolist(), self.idle.tolist(), self.start_up.tolist()

    def waiting(self, low: int, provisioned: int, high: int) -> float:
        """Cost of start-up from `low`, and of idle power from `provisioned` to `high`."""
        knots, idle, start_up = self._lists
        at = _at(knots, idle, high) - _at(knots, idle, provisioned)
        return at if low == provisioned else at + _at(knots, start_up, provisioned) - _at(knots, start_up, low)

    def instead_of_idle(self, training: Sequence[Rounds], step: int) -> float:
        """Cost of training, less that of the idle power which the site would have taken meanwhile."""
        begins: list[int] = []
        ends: list[int] = []
        offs: list[int] = []
        for rounds in training:
            begins += rounds.begins
            ends += [first + rounds.steps * step for first in rounds.begins]
            offs += [rounds.off] * rounds.rounds
        low, high, off = np.array([begins, ends, offs], dtype=np.int64)
        # The step in progress at a stop may end after the site's idle time has.
        covered = np.maximum(np.minimum(high, off), low)
        train = np.interp(np.concatenate((high, low)), self.knots, self.training)
        idle = np.interp(np.concatenate((covered, low)), self.knots, self.idle)
        n = len(low)
        paid = train[:n].sum() - train[n:].sum() - idle[:n].sum() + idle[n:].sum()
        return float(paid)


def _at(knots: list[int], integral: list[float], us: int) -> float:
    k = bisect_right(knots, us)
    if k == 0:
        return integral[0]
    if k == len(knots):
        return integral[-1]
    low = knots[k - 1]
    return integral[k - 1] + (integral[k] - integral[k - 1]) * ((us - low) / (knots[k] - low))
