"""The cheapest plan that does at least so many steps, per amount: a knapsack over slots, sites and starts.

A price of a step reaches only the amounts on the convex hull of what plans cost; where a start is a large part of the
job, the cheapest plan lies between them. Steps are counted in portions, and what is left to do when a slot begins is
the state of a dynamic programme per site; sites then share the job's portions. What starting or going on after a hold
loses is added to what is left to do, so that it may take longer than a slot.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curtail_pipeline.scheduling.planner import HELD, OFF, TRAINS, Slots
from curtail_pipeline.times import Floats

SPARE = 1.4
"""Amounts are known up to this many times what is wanted."""
_CELLS = 400_000
"""No table has more cells: slots x portions x sites."""


@dataclass(frozen=True)
class Amounts:
    """What every site's cheapest plans cost, and what they do in each slot."""

    portion: float
    """Steps."""
    cost: Floats
    """By site and portions to do."""
    choice: npt.NDArray[np.int8]
    """By slot, state before it, site and portions left: the state in the slot."""
    done: npt.NDArray[np.int64]
    """Portions by slot and site, in training."""
    lost: npt.NDArray[np.int64]
    """Portions by slot, site, and whether by a start or by going on after a hold."""
    states: tuple[int, ...]
    """Per site, what it does before the first slot."""

    @classmethod
    def of(cls, sites: Sequence[Slots], states: Sequence[int], steps: float) -> "Amounts | None":
        """All amounts up to `SPARE` times the steps; None where the table would be too large or nothing can train."""
        largest = max(float(slots.steps.max()) for slots in sites)
        if largest <= 0 or steps <= 0:
            return None
        count = len(sites[0].steps)
        halves = [half for half in (4, 3, 2, 1) if SPARE * steps / largest * half * count * len(sites) <= _CELLS]
        if not halves:
            return None
        return cls._solved(sites, states, largest / halves[0], steps)

    @classmethod
    def _solved(cls, sites: Sequence[Slots], states: Sequence[int], portion: float, steps: float) -> "Amounts":
        count = len(sites[0].steps)
        done = np.stack([np.rint(slots.steps / portion) for slots in sites], axis=1).astype(np.int64)
        lost = np.stack(
            [np.rint(np.stack((s.start_steps, s.resume_steps), axis=1) / portion) for s in sites], axis=1
        ).astype(np.int64)
        width = int(SPARE * steps / portion) + 3 * int(lost.max()) + 2
        shape = (len(sites), width)
        paid = np.stack([slots.steps * slots.cost for slots in sites], axis=1)
        hold = np.stack([slots.hold for slots in sites], axis=1)[:, :, None]
        start = np.stack([slots.start_cost for slots in sites], axis=1)[:, :, None]
        choice = np.empty((count, 3, *shape), dtype=np.int8)
        off = np.full(shape, np.inf)
        off[:, 0] = 0.0
        held, training = off.copy(), off.copy()
        left = np.arange(width)
        for t in range(count - 1, -1, -1):
            train = np.full(shape, np.inf)
            begun, resumed = train.copy(), train.copy()
            for i in range(len(sites)):
                if done[t, i]:
                    n = int(done[t, i])
                    share = np.minimum(left / n, 1.0)
                    train[i] = share * paid[t, i]
                    train[i, n:] += training[i, : width - n]
                    for into, loss in zip((begun, resumed), lost[t, i].tolist(), strict=True):
                        into[i, : width - loss] = train[i, loss:]
            begun += start[t]
            stay = held + hold[t]
            choice[t, OFF] = np.where(begun < off, TRAINS, OFF)
            off = np.minimum(off, begun)
            down = np.minimum(stay, off)
            otherwise = np.where(stay < off, HELD, choice[t, OFF])
            choice[t, HELD] = np.where(resumed <= down, TRAINS, otherwise)
            choice[t, TRAINS] = np.where(train <= down, TRAINS, otherwise)
            held, training = np.minimum(down, resumed), np.minimum(down, train)
            for table in (off, held, training):
                table[:, 0] = 0.0
        by_state = np.stack((off, held, training))
        cost = np.stack([by_state[state, i] for i, state in enumerate(states)])
        return cls(portion, cost, choice, done, lost, tuple(states))

    def plans(self, wanted: Sequence[float]) -> list[list[npt.NDArray[np.int8]]]:
        """Per amount of steps: what each site does in each slot; amounts that can't be reached are left out."""
        width = self.cost.shape[1]
        total = self.cost[0]
        shares = []
        for row in self.cost[1:]:
            table = np.full((width, width), np.inf)
            for mine in range(width):
                table[mine:, mine] = total[: width - mine] + row[mine]
            shares.append(table.argmin(axis=1))
            total = table.min(axis=1)
        found = []
        for portions in sorted({min(int(np.ceil(steps / self.portion)), width - 1) for steps in wanted}):
            if np.isfinite(total[portions]):
                left, parts = portions, []
                for share in reversed(shares):
                    parts.append(int(share[left]))
                    left -= parts[-1]
                parts.append(left)
                found.append([self._actions(i, part) for i, part in enumerate(reversed(parts))])
        return found

    def _actions(self, i: int, left: int) -> npt.NDArray[np.int8]:
        actions = np.zeros(len(self.done), dtype=np.int8)
        state = self.states[i]
        for t in range(len(actions)):
            if left <= 0:
                break
            before, state = state, int(self.choice[t, state, i, min(left, self.choice.shape[3] - 1)])
            if state == TRAINS:
                if before == OFF:
                    left += int(self.lost[t, i, 0])
                elif before == HELD:
                    left += int(self.lost[t, i, 1])
                left -= int(self.done[t, i])
            actions[t] = state
        return actions
