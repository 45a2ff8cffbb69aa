"""A lower bound of CO2 that knows rounds: who trains together is in one, and none trains while it loads and merges.

At a price per step, time is worth what its steps earn beyond their grams. Rounds follow each other: a load, up to
`rounds.round_s` after its start in which several sites train, then (`open_local`) as long as it pays in which one does,
a merge. Which of them to have is a dynamic programme over time; whom to train in them is not asked, every site that
earns does. Price x steps less the most that can be earned is a bound at every price (weak duality), and the best of
many prices is taken.

Where it relaxes, it does so downwards: starts cost a site no time, durations are rounded to a grid in favour of
training, the load and merge are the shortest of any site, and of idle power only what every timed round takes is
charged, at the lowest intensity nearby. Given such durations the grid costs nothing: times differ by them and by cuts
of the traces alone in a best schedule, since differences of times are a totally unimodular system.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from curtail_pipeline.scheduling.policies import start_up_us
from curtail_pipeline.scheduling.timing import step_us
from curtail_pipeline.scheduling.view import View
from curtail_pipeline.settings.overheads import Overheads
from curtail_pipeline.settings.sites import Site, power_kw
from curtail_pipeline.simulation.pieces import pieces_of
from curtail_pipeline.times import HOUR, SECOND, Floats, Micros, duration_us

_SLOTS = 8_000
"""At most, of one site; fewer where there are many sites."""
_CELLS = 400_000
"""Slots x sites."""
_PRICES = 33
"""Looked at first over all there may be, then between the two around the best."""
_LOWER, _HIGHER = 1.4, 1.1
"""How many times below and above a price that is known nearby they are looked at once, as close to each other."""
_ROUND_SLOTS = 100
"""At most, in a round."""


class RoundBound(NamedTuple):
    """No schedule emits less."""

    co2_kg: float
    g_per_step: float
    """The price at which it was found."""


@dataclass(frozen=True)
class _Grid:
    """Slots of equal length from the start, and durations in slots."""

    size: int
    """Microseconds."""
    count: int
    load: int
    length: int
    """From a round's start to its last step."""
    merges: tuple[int, int]
    """Of one member, of more."""

    @classmethod
    def of(cls, view: View, start: int, end: int) -> "_Grid | None":
        """The grid that keeps the most of what rounds lose; None where none keeps any of it."""
        overheads = [view.experiment.overheads_of(site) for site in view.sites]
        load = min(duration_us(of.round_load_s) for of in overheads)
        outer = min(duration_us(of.outer_step_s) for of in overheads)
        merges = (
            outer + min(duration_us(of.round_tail_single_s) for of in overheads),
            outer + min(duration_us(of.round_tail_s) for of in overheads),
        )
        length = duration_us(view.experiment.rounds.length_s)
        cadence = min(view.signals[site.region].cadence_us for site in view.sites)
        most = min(_SLOTS, _CELLS // len(view.sites))
        best: _Grid | None = None
        for parts in range(1, cadence // SECOND + 1):
            size = cadence // parts
            if -(-(end - start) // size) > most or length > _ROUND_SLOTS * size:
                break
            one, several = (merge // size for merge in merges)
            grid = cls(size, -(-(end - start) // size), load // size, -(-length // size), (one, several))
            known = grid.load < grid.length and (grid.load or min(grid.merges))
            if known and (best is None or grid.lost > best.lost):
                best = grid
        return best

    @property
    def lost(self) -> float:
        """Share of a round of several sites in which none trains."""
        merge = self.merges[1]
        return (self.load + merge) / (self.length + merge)


def round_bound(view: View, steps: int, start: int, end: int, near: float | None = None) -> RoundBound | None:
    """The least that any schedule by the experiment's rounds emits for the steps in `[start, end)`, kg; None where
    nothing is known of rounds on any grid.

    What is free in a battery is not reckoned with: for sites without one.

    Args:
        near: the price found for an end a little earlier. Prices around it suffice where the best lies between them.
    """
    grid = _Grid.of(view, start, end)
    if grid is None:
        return None
    open_local = view.experiment.rounds.open_local
    sites = [_costs(view, site, grid, start, end, surcharged_alone=not open_local) for site in view.sites]
    dearest = max((float(part.timed[np.isfinite(part.timed)].max(initial=0.0)) for part in sites), default=0.0)

    def bounds(prices: Floats) -> tuple[int, Floats]:
        values = prices * steps - _earned(grid, sites, prices, open_local=open_local)
        k = int(values.argmax())
        found.append(RoundBound(float(values[k]) / 1_000, float(prices[k])))
        return k, prices

    found: list[RoundBound] = []
    if near:
        k, _ = bounds(np.geomspace(near / _LOWER, near * _HIGHER, _PRICES))
        if 0 < k < _PRICES - 1:
            return found[0]
    k, prices = bounds(np.geomspace(1e-3 * dearest, 4 * dearest, _PRICES) if dearest > 0 else np.zeros(1))
    bounds(np.linspace(prices[max(k - 1, 0)], prices[min(k + 1, len(prices) - 1)], _PRICES))
    return max(found)


@dataclass(frozen=True)
class _Costs:
    """Of one site, per slot: grams of a step at the least, infinite where it can't train."""

    alone: Floats
    timed: Floats
    """In a round whose time is up after `rounds.round_s`: with the step's share of the power that the round idles."""
    steps_per_slot: float
    slots_per_step: float


def _costs(view: View, site: Site, grid: _Grid, start: int, end: int, *, surcharged_alone: bool) -> _Costs:
    overheads, step = view.experiment.overheads_of(site), step_us(site)
    cut, kw = pieces_of(view, site, start, end, grid.size, np.inf), power_kw(site, "training")
    number = (cut.begin - start) // grid.size
    per_step = kw * step / HOUR
    alone = _least(np.where(np.isnan(value := cut.g_per_kwh(kw)), np.inf, value), number, grid.count) * per_step
    # What idles may fall into time that is not accounted, where it costs nothing.
    least_kw = min((kw for state in ("idle", "start_up") if (kw := power_kw(site, state))), default=0.0)
    idle = np.nan_to_num(cut.g_per_kwh(least_kw)) if least_kw else np.zeros(len(cut.begin))
    nearby = _least(idle, number, grid.count)
    nearby[np.isinf(nearby)] = 0.0
    share = _idle_kwh(site, overheads) / _most_steps(view, site, overheads, step)
    timed = alone + share * _lowest_before(nearby, _reach_us(view, overheads, step) // grid.size + 2)
    return _Costs(timed if surcharged_alone else alone, timed, grid.size / step, step / grid.size)


def merge_us(overheads: Overheads) -> int:
    """The shortest merge, of one member or of more."""
    return duration_us(min(overheads.round_tail_s, overheads.round_tail_single_s)) + duration_us(overheads.outer_step_s)


def _idle_kwh(site: Site, overheads: Overheads) -> float:
    """What a member draws for a round beside training: in its load, and before it in a merge or a start."""
    idle, connect = power_kw(site, "idle"), duration_us(overheads.connect_s)
    start = idle * connect + power_kw(site, "start_up") * duration_us(overheads.provisioning_s)
    return (idle * duration_us(overheads.round_load_s) + min(idle * merge_us(overheads), start)) / HOUR


def _most_steps(view: View, site: Site, overheads: Overheads, step: int) -> float:
    """Of one timed round; the one in progress at a stop is finished."""
    trains = duration_us(view.experiment.rounds.length_s) - duration_us(overheads.round_load_s)
    return max(trains, 0) / step + 1


def _reach_us(view: View, overheads: Overheads, step: int) -> int:
    """How long before a step of a timed round what it idles may begin."""
    return duration_us(view.experiment.rounds.length_s) + step + merge_us(overheads) + start_up_us(overheads)


def _least(values: Floats, number: Micros, count: int) -> Floats:
    """The least value of each slot; infinite without any."""
    found = np.full(count, np.inf)
    np.minimum.at(found, number, values)
    return found


def _lowest_before(values: Floats, slots: int) -> Floats:
    """Per slot, the lowest value of it and so many before."""
    padded = np.concatenate((np.full(slots, np.inf), values))
    return np.lib.stride_tricks.sliding_window_view(padded, slots + 1).min(axis=1)


def _earned(grid: _Grid, sites: list[_Costs], prices: Floats, *, open_local: bool) -> Floats:
    """Per price, at least the most that the steps of any schedule are worth beyond their grams."""
    count, beyond = grid.count, grid.length + grid.load + max(grid.merges) + 2
    one, several, late = (np.zeros((count + beyond, len(prices))) for _ in range(3))
    for part in sites:
        np.maximum(one[:count], part.steps_per_slot * (prices - part.alone[:, None]), out=one[:count])
        gain = part.steps_per_slot * np.maximum(prices - part.timed[:, None], 0.0)
        several[:count] += gain
        late[:count] += gain * part.slots_per_step
    # Steps in progress when all members leave at the end of a round's time: in the slots that follow.
    reach = int(np.ceil(max(part.slots_per_step for part in sites))) + 1
    padded = np.concatenate((np.zeros((1, len(prices))), late, np.zeros((reach, len(prices)))))
    late = np.max([padded[k : k + len(late)] for k in range(reach + 1)], axis=0)
    if len(sites) == 1:
        several[:] = 0.0
    return (_open_rounds if open_local else _timed_rounds)(grid, one, _summed(several), late)


def _summed(gain: Floats) -> Floats:
    """Gain before each slot."""
    return np.concatenate((np.zeros((1, gain.shape[1])), np.cumsum(gain[:-1], axis=0)))


def _open_rounds(grid: _Grid, one: Floats, several: Floats, late: Floats) -> Floats:
    """Where a member that is alone goes on as long as it likes.

    Args:
        one: most that one site earns in each slot.
        several: what all earn before it.
        late: what steps in progress at its begin earn.
    """
    load, length, (single, merge) = grid.load, grid.length, grid.merges
    free = np.zeros_like(one)
    """From each slot on, no round being in progress."""
    alone, left = free.copy(), free.copy()
    """A round of one member being in progress; or of several, all but one of which have left."""
    stopped = several.copy()
    """Several train until the slot; with what they earn before it."""

    def ends(t: int) -> None:
        np.maximum(one[t] + alone[t + 1], free[t + single], out=alone[t])
        np.maximum(one[t] + left[t + 1], free[t + merge], out=left[t])
        np.add(several[t], left[t], out=stopped[t])

    for t in range(grid.count - 1, -1, -1):
        if not load:
            ends(t)
        full, best = t + length, free[t]
        stopped[t + load : full + 1].max(axis=0, out=best)
        np.maximum(best, stopped[full] + late[full], out=best)
        best -= several[t + load]
        np.maximum(best, alone[t + load], out=best)
        np.maximum(best, free[t + 1], out=best)
        if load:
            ends(t)
    return free[0]


def _timed_rounds(grid: _Grid, one: Floats, several: Floats, late: Floats) -> Floats:
    """Where the time of every round is up; as `_open_rounds`."""
    load, length = grid.load, grid.length
    single = _summed(one)
    free = np.zeros_like(one)
    stopped = single.copy(), several.copy()

    def ends(t: int) -> None:
        for stop, before, merge in zip(stopped, (single, several), grid.merges, strict=True):
            np.add(before[t], free[t + merge], out=stop[t])

    for t in range(grid.count - 1, -1, -1):
        if not load:
            ends(t)
        full, best = t + length, free[t + 1]
        for stop, before in zip(stopped, (single, several), strict=True):
            found = stop[t + load : full + 1].max(axis=0)
            best = np.maximum(best, np.maximum(found, stop[full] + late[full]) - before[t + load])
        free[t] = best
        if load:
            ends(t)
    return free[0]
