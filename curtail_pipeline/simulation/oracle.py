"""The least CO2 that any schedule could have: a bound to measure policies against.

Training may be put on any instant of any site whose intensity is known, split at will: nobody can tell what time in a
hole of a trace costs. Without overheads the cheapest site-hours until the deadline are the optimum itself: a fractional
knapsack, in which taking items in order of cost per step is exact.

With overheads a bound follows from what every round costs (a relaxation: it ignores where rounds begin, that members
share them, and each site's first start). A member trains at most `a = round - load` before `o = load + min(tail +
merge, start-up)` without training, so that any stretch of time of length `a + o` holds at most `a` of its training.
Cutting time into such blocks and taking at most `a` of the cheapest time of each gives another knapsack. Its costs
include the overhead's energy at the lowest intensity nearby. With `open_local` rounds, at most one site per block is
free of that limit; the bound is then the best value of the Lagrangian dual, which never exceeds the optimum. Where no
site has a battery the bound of whole rounds (`round_bound`) is taken where it is higher.

On-site generation takes its part off what a step draws from the grid. A battery relaxes to this: at any time it may
give up to its discharge power, each kWh at the lowest intensity so far over its round-trip efficiency. What it holds at
the start and what generation can put into it costs nothing, but is limited to `F` kWh: charging it `p` g/kWh and giving
back `p F` is a bound for every `p`, and the best `p` is searched for.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from curtail_pipeline.emissions.battery import power_at, steps_of
from curtail_pipeline.scheduling.policies import start_up_us
from curtail_pipeline.scheduling.view import View
from curtail_pipeline.settings.sites import Site, power_kw
from curtail_pipeline.simulation.pieces import pieces_of
from curtail_pipeline.simulation.round_bound import merge_us, round_bound
from curtail_pipeline.times import HOUR, SECOND, Floats, duration_us

_DUAL_ITERATIONS = 80
_PRICES = 24
"""Steps of the search for a price; each narrows it by a third."""
_NO_LIMIT = float("inf")


@dataclass(frozen=True)
class Oracle:
    """The bound and the schedule that attains it."""

    co2_kg: float
    site_hours: dict[str, float]
    """Training time per site; empty where the bound is a dual value. With a battery, of the relaxation."""
    marginal_g_per_step: float
    """What the last step costs: the price of doing one more."""


@dataclass(frozen=True)
class _Cells:
    """Stretches of constant cost of one site, in any order."""

    site: str
    steps_per_hour: float
    steps: Floats
    """Steps that fit."""
    grams: Floats
    """CO2 of each step."""
    block: npt.NDArray[np.int64]


def least_co2(view: View, steps: int, start: int, end: int) -> Oracle | None:
    """The optimum without overheads, a bound where a site has a battery; None when the sites can't do that many steps
    in `[start, end)`. Of training alone: what a site could take off by idling at an intensity below 0 is not in it."""
    if not steps or end <= start:
        return _nothing(view) if not steps else None
    return _best(
        view,
        start,
        end,
        lambda price: _knapsack([_site_cells(view, site, start, end, price=price) for site in view.sites], steps),
    )


def least_co2_with_overheads(view: View, steps: int, start: int, end: int, near: float | None = None) -> Oracle | None:
    """A lower bound for every schedule that pays the experiment's overheads; None when even that can't do the steps.

    Args:
        near: the price found for an end a little earlier, which shortens the search.
    """
    if not steps or end <= start:
        return _nothing(view) if not steps else None
    found = _best(view, start, end, lambda price: _relaxed(view, steps, start, end, price))
    if found is None:
        return None
    if not any(site.battery for site in view.sites):
        by_rounds = round_bound(view, steps, start, end, near)
        if by_rounds is not None and by_rounds.co2_kg > found.co2_kg:
            found = Oracle(by_rounds.co2_kg, {}, by_rounds.g_per_step)
    return replace(found, co2_kg=found.co2_kg - _idling_kg(view, start))


def _idling_kg(view: View, start: int) -> float:
    """At most what idling takes off, where intensities are below 0."""
    kg = 0.0
    for site in view.sites:
        cut = pieces_of(view, site, start, view.end_us, None, _NO_LIMIT)
        most_kw = max(power_kw(site, "idle"), power_kw(site, "start_up"))
        kg += most_kw * float((np.maximum(-np.nan_to_num(cut.value), 0.0) * cut.length).sum()) / HOUR / 1_000
    return kg


def _relaxed(view: View, steps: int, start: int, end: int, price: float) -> Oracle | None:
    if not view.experiment.rounds.open_local:
        return _knapsack([_limited_cells(view, site, start, end, price=price) for site in view.sites], steps)
    block = max(sum(_block_us(view, site)) for site in view.sites)
    return _dual(
        [_limited_cells(view, site, start, end, block, price=price) for site in view.sites],
        [_site_cells(view, site, start, end, block, price=price) for site in view.sites],
        steps,
    )


def _best(view: View, start: int, end: int, bound: Callable[[float], Oracle | None]) -> Oracle | None:
    """The highest bound over the price of energy that is in a battery for nothing; concave in it."""
    free_kwh = sum(_free_kwh(view, site, start, end) for site in view.sites)
    if not free_kwh:
        return bound(_NO_LIMIT)

    def less(price: float) -> Oracle | None:
        found = bound(price)
        return None if found is None else replace(found, co2_kg=found.co2_kg - price * free_kwh / 1_000)

    known = [float(np.nanmax(view.signals[site.region].values, initial=0.0)) for site in view.sites]
    low, high, golden = 0.0, max(known), (5**0.5 - 1) / 2
    best = less(0.0)
    if best is None:
        return None
    for _ in range(_PRICES):
        a, b = high - golden * (high - low), low + golden * (high - low)
        left, right = less(a), less(b)
        assert left is not None and right is not None, "a price leaves what fits as it is"
        best = max(best, left, right, key=lambda found: found.co2_kg)
        if left.co2_kg < right.co2_kg:
            low = a
        else:
            high = b
    return best


def _free_kwh(view: View, site: Site, start: int, end: int) -> float:
    """What a battery can give that nothing was emitted for: what it begins with, and all that generation can store."""
    battery = site.battery
    if battery is None:
        return 0.0
    cuts = np.unique(np.concatenate(([start, end], steps_of(view.on_site.get(site.name), start, end))))
    made = np.minimum(power_at(view.on_site.get(site.name), cuts[:-1]), battery.charge_kw)
    stored = battery.charge_efficiency * float((made * np.diff(cuts)).sum()) / HOUR
    return battery.discharge_efficiency * (battery.initial_share * battery.capacity_kwh + stored)


def _nothing(view: View) -> Oracle:
    return Oracle(0.0, {site.name: 0.0 for site in view.sites}, 0.0)


def _block_us(view: View, site: Site) -> tuple[int, int]:
    """`a` and `o` of the module's text."""
    overheads = view.experiment.overheads_of(site)
    load = duration_us(overheads.round_load_s)
    trains = max(0, duration_us(view.experiment.rounds.length_s) - load)
    return trains, load + min(merge_us(overheads), start_up_us(overheads))


def _site_cells(
    view: View, site: Site, start: int, end: int, block: int | None = None, *, price: float = _NO_LIMIT
) -> _Cells:
    cut, kw = pieces_of(view, site, start, end, block, price), power_kw(site, "training")
    value = cut.g_per_kwh(kw)
    known = ~np.isnan(value)
    begin, length, value = cut.begin[known], cut.length[known], value[known]
    grams = value * kw / (site.steps_per_s * 3_600)
    number = np.zeros(len(begin), dtype=np.int64) if block is None else (begin - start) // block
    return _Cells(site.name, site.steps_per_s * 3_600, length / SECOND * site.steps_per_s, grams, number)


def _limited_cells(
    view: View, site: Site, start: int, end: int, block: int | None = None, *, price: float = _NO_LIMIT
) -> _Cells:
    """Per block at most `a` of the cheapest time, each step carrying its share of the round's overhead energy."""
    overheads = view.experiment.overheads_of(site)
    trains, pause = _block_us(view, site)
    size = trains + pause if block is None else block
    # A longer block than the site's own holds at most proportionally more, rounded up to whole rounds.
    allowed = trains if size == trains + pause else -(-size // (trains + pause)) * trains
    cut, kw = pieces_of(view, site, start, end, size, price), power_kw(site, "training")
    length, value = cut.length, cut.g_per_kwh(kw)
    number = (cut.begin - start) // size
    idle_kw, load = power_kw(site, "idle"), duration_us(overheads.round_load_s)
    connect = duration_us(overheads.connect_s)
    start_up = idle_kw * connect + power_kw(site, "start_up") * duration_us(overheads.provisioning_s)
    extra_kwh = (idle_kw * load + min(idle_kw * merge_us(overheads), start_up)) / HOUR
    steps_per_round = max(trains / SECOND * site.steps_per_s, 1e-9)
    known = ~np.isnan(value)
    # An overhead may fall into time that is not accounted, which the bound must not charge for. The less it draws, the
    # more of it comes from the site itself.
    overhead = np.nan_to_num(cut.g_per_kwh(least)) if (least := _least_kw(site)) else np.zeros(len(value))
    lowest = np.minimum.reduceat(overhead, np.flatnonzero(np.diff(number, prepend=-1)))
    padded = np.concatenate((lowest[:1], lowest, lowest[-1:]))
    nearby = np.minimum(np.minimum(padded[:-2], padded[1:-1]), padded[2:])
    grams = value * kw / (site.steps_per_s * 3_600)
    grams = grams + (extra_kwh / steps_per_round) * nearby[number]
    length, grams, number = length[known], grams[known], number[known]
    order = np.lexsort((grams, number))
    length, grams, number = length[order], grams[order], number[order]
    before = np.cumsum(length) - length
    first = np.searchsorted(number, number, side="left")
    fits = np.clip(allowed - (before - before[first]), 0, length)
    return _Cells(site.name, site.steps_per_s * 3_600, fits / SECOND * site.steps_per_s, grams, number)


def _least_kw(site: Site) -> float:
    """Of what is drawn beside training."""
    return min(power_kw(site, "idle"), power_kw(site, "start_up"))


def _knapsack(cells: list[_Cells], steps: int) -> Oracle | None:
    fits = np.concatenate([part.steps for part in cells])
    grams = np.concatenate([part.grams for part in cells])
    owner = np.repeat(np.arange(len(cells)), [len(part.steps) for part in cells])
    if fits.sum() < steps * (1 - 1e-12):
        return None
    order = np.argsort(grams, kind="stable")
    fits, grams, owner = fits[order], grams[order], owner[order]
    taken = np.clip(steps - (np.cumsum(fits) - fits), 0, fits)
    shares = np.bincount(owner, weights=taken, minlength=len(cells))
    last = int(np.flatnonzero(taken)[-1])
    return Oracle(
        float((taken * grams).sum()) / 1_000,
        {part.site: float(shares[i]) / part.steps_per_hour for i, part in enumerate(cells)},
        float(grams[last]),
    )


def _dual(limited: list[_Cells], free: list[_Cells], steps: int) -> Oracle | None:
    """Maximise over the price of a step: price x steps - what each block could earn at that price."""
    blocks = 1 + max(int(part.block.max(initial=0)) for part in free)
    if sum(part.steps.sum() for part in free) < steps:
        return None

    def value(price: float) -> float:
        earned = np.array([_earnings(part, price, blocks) for part in limited])
        alone = np.array([_earnings(part, price, blocks) for part in free])
        best = earned.sum(axis=0) + np.maximum((alone - earned).max(axis=0), 0.0)
        return price * steps - float(best.sum())

    low, high = 0.0, 4 * max(float(part.grams.max(initial=0.0)) for part in limited) + 1.0
    golden = (5**0.5 - 1) / 2
    for _ in range(_DUAL_ITERATIONS):
        a, b = high - golden * (high - low), low + golden * (high - low)
        if value(a) < value(b):
            low = a
        else:
            high = b
    price = (low + high) / 2
    return Oracle(value(price) / 1_000, {}, price)


def _earnings(part: _Cells, price: float, blocks: int) -> Floats:
    earned = part.steps * np.maximum(price - part.grams, 0.0)
    return np.bincount(part.block, weights=earned, minlength=blocks).astype(np.float64)
