"""Which site-hours to use before a deadline, and at which price per step, given what is expected of each site.

Time ahead is cut into slots. At a price per step, each site's best plan (train, hold, be off; starting costs time) is
a small dynamic programme of its own; the price is the one at which the plans together do the steps that are left (the
Lagrangian dual of the joint problem). Far ahead, where single slots are guesses, the price comes from their spread.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curtail_pipeline.times import Floats

TOP_PRICE = 4.0
"""At this multiple of the dearest slot's cost every plan trains wherever starting leaves any time for it."""
_CHEAP, _BETWEEN, _DEAR = 0, 1, 2
OFF, HELD, TRAINS = 0, 1, 2
"""States of a site in a plan."""
SLOT_FIELDS = ("steps", "cost", "hold", "start_cost", "start_steps", "resume_steps")


@dataclass(frozen=True)
class Slots:
    """What is expected of one site until the deadline, per slot; the first slot is the present.

    A slot in which the site can't train (nothing is known, or its signal has ended) has no steps.
    """

    steps: Floats
    """Steps the site does in the slot if it trains throughout."""
    cost: Floats
    """Cost of a step (grams, or money), overheads of rounds included."""
    hold: Floats
    """Cost of the slot at idle power."""
    start_cost: Floats
    """Cost at idle power of starting up in the slot."""
    start_steps: Floats
    """Steps lost by starting up in the slot."""
    resume_steps: Floats
    """Steps lost by going on to train after a hold: waiting for the others' round."""

    def first(self, count: int) -> "Slots":
        """The slots of the near future."""
        return Slots(
            self.steps[:count],
            self.cost[:count],
            self.hold[:count],
            self.start_cost[:count],
            self.start_steps[:count],
            self.resume_steps[:count],
        )


@dataclass(frozen=True)
class _Chain:
    """Slots with runs of them joined."""

    slots: Slots
    entry: Floats
    """Cost of a step in the first slot of each run: what starting there loses."""


@dataclass(frozen=True)
class Advice:
    """What one site should do in the first slot, by whether it is up."""

    start: bool
    """If it is off: start it."""
    train: bool
    """If it trains: go on."""
    resume: bool
    """If it is held: train."""
    hold: bool
    """If it is up and should not train: keep it up."""


def or_dearest(values: Floats) -> Floats:
    """Values with the highest one in place of those that are unknown; 0 when none is known."""
    unknown = np.isnan(values)
    return np.where(unknown, 0.0 if unknown.all() else np.nanmax(values), values) if unknown.any() else values


def capacity(sites: list[Slots], up: list[bool]) -> float:
    """Steps of all sites if they train in every slot; those that are not up start now."""
    total = 0.0
    for slots, is_up in zip(sites, up, strict=True):
        possible = float(slots.steps.sum())
        total += possible if is_up else max(0.0, possible - float(slots.start_steps[0]))
    return total


def prices_by_spread(sites: list[Slots], wanted: list[float]) -> list[float]:
    """The price at or below which there are enough steps, starts neglected: never above the plans' price."""
    cost = np.concatenate([slots.cost for slots in sites])
    fits = np.concatenate([slots.steps for slots in sites])
    order = np.argsort(cost, kind="stable")
    total = np.cumsum(fits[order])
    at = np.minimum(np.searchsorted(total, wanted), len(cost) - 1)
    return [float(price) for price in cost[order[at]]]


def expected_cost(sites: list[Slots], price: float | None, steps: float) -> float:
    """Cost of the steps when the sites, all off now, follow their best plans at that price, or all train (None).

    The plans' value is price x their steps - their cost; steps beyond those asked for are given back at the price.
    """
    if price is None:
        return float(sum((slots.steps * slots.cost).sum() for slots in sites))
    worth = sum(float(_values(_compressed(slots, price, price), np.array([price]))[0][0]) for slots in sites)
    return price * steps - worth


def advise(slots: Slots, price: float) -> Advice:
    """What to do now at that price, looking over all given slots."""
    chain = _compressed(slots, price, price)
    prices = np.array([price])
    off_later, held_later, train_later = (float(part[0]) for part in _values(chain, prices, since=1))
    margin = price - float(slots.cost[0])
    train = float(slots.steps[0]) * margin + train_later
    held = held_later - float(slots.hold[0])
    begin = train - float(chain.slots.start_steps[0]) * max(margin, 0.0) - float(slots.start_cost[0])
    resume = train - float(chain.slots.resume_steps[0]) * max(margin, 0.0)
    off = max(off_later, begin)
    can = bool(slots.steps[0] > 0)
    return Advice(
        start=can and begin > off_later,
        train=can and train >= max(off, held),
        resume=can and resume >= max(off, held),
        hold=held > off,
    )


def _compressed(slots: Slots, low: float, high: float) -> _Chain:
    """The same problem for prices from `low` to `high` in fewer slots.

    Runs of slots that are cheaper than any of the prices are used as a whole or not at all, runs that are too dear are
    never trained in: each becomes one slot. The first slot stays by itself.
    """
    kind = np.where(_too_dear(slots, high), _DEAR, np.where(slots.cost < low, _CHEAP, _BETWEEN))
    fresh = np.ones(len(kind), dtype=bool)
    fresh[2:] = (kind[2:] != kind[1:-1]) | (kind[2:] == _BETWEEN)
    at = np.flatnonzero(fresh)
    steps = np.add.reduceat(np.where(kind == _DEAR, 0.0, slots.steps), at)
    paid = np.add.reduceat(np.where(kind == _DEAR, 0.0, slots.steps * slots.cost), at)
    cost = np.divide(paid, steps, out=slots.cost[at].copy(), where=steps > 0)
    joined = Slots(
        steps,
        cost,
        np.add.reduceat(slots.hold, at),
        slots.start_cost[at],
        np.minimum(slots.start_steps[at], steps),
        np.minimum(slots.resume_steps[at], steps),
    )
    return _Chain(joined, slots.cost[at])


def _too_dear(slots: Slots, price: float) -> npt.NDArray[np.bool_]:
    """Slots in which no plan trains at that price or below it.

    A slot above the price may still be worth training in: on the way from one cheap slot to the next, where holding and
    going on there loses more, or to start in, just before a cheap one.
    """
    cheap = (slots.steps > 0) & (slots.cost <= price)
    excess = slots.steps * np.maximum(slots.cost - price, 0.0)
    gain = np.where(cheap, price - slots.cost, 0.0)
    start = np.where(cheap, slots.start_steps * gain + slots.start_cost, 0.0)
    resume = slots.resume_steps * gain
    # The way through a run of dear slots costs at least this, and saves a start at most.
    run = np.cumsum(cheap)
    way = np.bincount(run, weights=np.where(cheap, 0.0, np.minimum(slots.hold, excess)))[run]
    bridge = (way <= _greatest_later(start)) & (excess <= slots.hold + np.append(resume[1:], 0.0))
    beginning = np.maximum(np.append(start[1:], 0.0), _greatest_later(start - resume)) - slots.start_cost
    lost: npt.NDArray[np.bool_] = ~cheap & ((slots.steps <= 0) | ~(bridge | (excess <= beginning)))
    return lost


def _greatest_later(values: Floats) -> Floats:
    """Per slot, the greatest value of any later one; 0 without any."""
    following = np.append(values[1:], 0.0)
    return np.maximum.accumulate(following[::-1])[::-1]


def _values(chain: _Chain, prices: Floats, since: int = 0) -> tuple[Floats, Floats, Floats]:
    """Per price: what a site's future is worth from slot `since` on, being off, held or in training before it."""
    slots = chain.slots
    off = np.zeros(len(prices))
    held = np.zeros(len(prices))
    training = np.zeros(len(prices))
    for t in range(len(slots.steps) - 1, since - 1, -1):
        stays = held - slots.hold[t]
        if slots.steps[t] <= 0:
            held = training = np.maximum(off, stays)
            continue
        gain = np.maximum(prices - chain.entry[t], 0.0)
        train = slots.steps[t] * (prices - slots.cost[t]) + training
        off = np.maximum(off, train - slots.start_steps[t] * gain - slots.start_cost[t])
        stays = np.maximum(off, stays)
        held = np.maximum(stays, train - slots.resume_steps[t] * gain)
        training = np.maximum(stays, train)
    return off, held, training


def best_actions(sites: Sequence[Slots], prices: Floats, states: Sequence[int]) -> npt.NDArray[np.int8]:
    """What each site's best plan does in each slot, at each price: `OFF`, `HELD` or `TRAINS`.

    Args:
        sites: all with the same slots in time.
        states: per site, what it does before the first slot.

    Returns:
        By price, site and slot.
    """
    steps, cost, hold, start_cost, start_steps, resume_steps = (
        np.stack([getattr(slots, name) for slots in sites], axis=1)[:, :, None] for name in SLOT_FIELDS
    )
    margin = prices - cost
    gain = np.maximum(margin, 0.0)
    train = np.where(steps > 0, steps * margin, -np.inf)
    start_loss = np.minimum(start_steps, steps) * gain + start_cost
    resume_loss = np.minimum(resume_steps, steps) * gain
    count, shape = len(steps), margin.shape[1:]
    # What the future is worth from each slot on, by what the site did before it; the last row is beyond the end.
    off, held, training = (np.zeros((count + 1, *shape)) for _ in range(3))
    begin, stay = np.empty(shape), np.empty(shape)
    for t in range(count - 1, -1, -1):
        np.add(train[t], training[t + 1], out=begin)
        np.maximum(off[t + 1], np.subtract(begin, start_loss[t], out=off[t]), out=off[t])
        np.maximum(np.subtract(held[t + 1], hold[t], out=stay), off[t], out=stay)
        np.maximum(stay, np.subtract(begin, resume_loss[t], out=held[t]), out=held[t])
        np.maximum(stay, begin, out=training[t])
    begins = train + training[1:]
    stays = held[1:] - hold
    starts = begins - start_loss > off[1:]
    down = np.maximum(stays, off[:-1])
    waits = stays > off[:-1]
    # A stop and a start in one slot are a start.
    otherwise = np.where(waits, HELD, np.where(starts, TRAINS, OFF))
    following = np.stack(
        (
            np.where(starts, TRAINS, OFF),
            np.where(begins - resume_loss >= down, TRAINS, otherwise),
            np.where(begins >= down, TRAINS, otherwise),
        ),
        axis=1,
    ).astype(np.int8)
    return _followed(following, np.broadcast_to(np.array(states, dtype=np.int8)[:, None], shape))


def _followed(following: npt.NDArray[np.int8], state: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    """States per price, site and slot, from the state that follows each: by slot, state, site and price."""
    actions = np.empty((len(following), *state.shape), dtype=np.int8)
    table, each = following.reshape(len(following), -1), np.arange(state.size)
    now = state.ravel()
    for t in range(len(table)):
        now = table[t].take(now * np.int64(state.size) + each)
        actions[t] = now.reshape(state.shape)
    return actions.transpose(2, 1, 0)
