"""The cheapest plan that does the job in time, among many that are walked: prices, others' plans, and small changes.

Where the plans come from does not matter to the result, which is never worse than the best of them:

- per price of a step, each site's own best plan (`planner.best_actions`), on a grid of prices refined where the job
  just finishes, then with another price per site;
- what is handed in: plans of other policies, and what was planned before;
- the best so far with an edge moved, a stay left out, a hold trained through, two stays joined.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from curtail_pipeline.scheduling.planner import OFF, TOP_PRICE, TRAINS, Slots, best_actions, prices_by_spread
from curtail_pipeline.scheduling.rollout import Course, Rollout
from curtail_pipeline.scheduling.stays import Plan, Stay, with_joins, without, without_cuts
from curtail_pipeline.times import FOREVER, Floats, Micros

GRID, FINE = 20, 8
"""Prices of the first look, and between the two at which the job just does not and just does finish."""
PRICES = 4
"""Prices at which small changes are tried; the bracket is halved each time."""
BESTS = 3
"""Plans that small changes start from."""


class Search:
    """Keeps the best plans of those it walked; gives up looking further after so many."""

    def __init__(self, rollout: Rollout, slots: Sequence[Slots], edges: Micros, up: Sequence[Stay | None], most: int):
        """From where the sites stand.

        Args:
            up: per site, its stay in progress, with what it trains now as an open stretch; None while it is off.
            most: plans to walk after those of the price grid.
        """
        self.rollout, self.slots, self.edges, self.up, self.most = rollout, slots, edges, up, most
        self.seen: dict[Plan, Course] = {}
        self.joins = False
        """Whether plans are tried with `with_joins`."""
        self.worth: dict[Plan, tuple[int, float]] = {}
        self.bracket = (0.0, 0.0)

    def best(self, others: Sequence[Plan] = ()) -> tuple[Plan, Course]:
        """The best plan found.

        Args:
            others: plans to try beside its own.
        """
        for plan in others:
            self._try(plan)
        table = self._by_price()
        self.most += len(self.seen)
        for plan, _ in self._leaders(BESTS):
            self._try(with_joins(plan))
        self._by_site(table)
        later = self.most
        for joins, most in ((True, later - (later - len(self.seen)) // 2), (False, later)):
            self.joins, self.most = joins, most
            self._by_worth()
        for plan, _ in self._leaders(BESTS):
            self._descend(plan, lambda other: self._try(other).rank, self.most, self._moves())
        return self._leaders(1)[0]

    def _try(self, plan: Plan) -> Course:
        course = self.seen.get(plan)
        if course is None:
            course = self.seen[plan] = self.rollout.course(plan)
        return course

    def _leaders(self, count: int) -> list[tuple[Plan, Course]]:
        return sorted(self.seen.items(), key=lambda item: item[1].rank)[:count]

    def _by_price(self) -> list[tuple[tuple[Stay, ...], ...]]:
        """Per site, its plans by ascending price."""
        costs = np.concatenate([part.cost[part.steps > 0] for part in self.slots])
        if not len(costs):
            costs = np.zeros(1)
        left = self.rollout.total - self.rollout.standing.done
        low = prices_by_spread(list(self.slots), [0.8 * left])[0]
        dearest = float(np.abs(costs).max())
        levels = np.quantile(costs[costs >= min(low, costs.max())], np.linspace(0.0, 1.0, GRID))
        top = TOP_PRICE * dearest + 1e-9
        prices = np.unique(np.append(levels * (1 + 1e-9), [1.5 * dearest, top]))
        rows = self._plans(prices)
        finished = [self._try(tuple(plan)).finish < FOREVER for plan in rows]
        k = finished.index(True) if any(finished) else len(prices) - 1
        self.bracket = float(prices[max(k - 1, 0)]), float(prices[k])
        if k:
            fine = np.linspace(prices[k - 1], prices[k], FINE + 2)[1:-1]
            between = self._plans(fine)
            for plan in between:
                self._try(tuple(plan))
            rows = rows[:k] + between + rows[k:]
        return [tuple(dict.fromkeys(row[i] for row in rows)) for i in range(len(self.slots))]

    def _plans(self, prices: Floats) -> list[list[tuple[Stay, ...]]]:
        """Per price, the sites' best plans."""
        by_site = []
        for i, part in enumerate(self.slots):
            stay = self.up[i]
            state = OFF if stay is None else TRAINS if stay.train else 1
            part = replace(part, resume_steps=part.resume_steps * 0) if self.joins else part
            by_site.append([self._stays(i, row) for row in best_actions(part, prices, state)])
        return [list(row) for row in zip(*by_site, strict=True)]

    def _stays(self, i: int, actions: npt.NDArray[np.int8]) -> tuple[Stay, ...]:
        edges, found = self.edges, []
        up = np.concatenate(([False], actions != OFF, [False]))
        begins, ends = np.flatnonzero(up[1:] & ~up[:-1]), np.flatnonzero(~up[1:] & up[:-1])
        for low, high in zip(begins.tolist(), ends.tolist(), strict=True):
            start, ready = int(edges[low]), int(edges[low]) + self.rollout.start_up_us[i]
            held = self.up[i]
            if low == 0 and held is not None:
                start, ready = held.up, held.ready
            trains = np.concatenate(([False], actions[low:high] == TRAINS, [False]))
            spans = []
            for a, b in zip(
                np.flatnonzero(trains[1:] & ~trains[:-1]).tolist(),
                np.flatnonzero(~trains[1:] & trains[:-1]).tolist(),
                strict=True,
            ):
                begin, end = max(int(edges[low + a]), ready), int(edges[low + b])
                if begin < end:
                    spans.append((begin, end))
            found.append(Stay(start, ready, int(edges[high]), tuple(spans)))
        return tuple(found)

    def _by_site(self, table: list[tuple[tuple[Stay, ...], ...]]) -> None:
        """Other prices for single sites, and sites left out, as long as that helps."""
        plan, course = self._leaders(1)[0]
        improved = True
        while improved:
            improved = False
            for i, own in enumerate(table):
                choices = [*own, ()] if self.up[i] is None else list(own)
                for stays in choices:
                    if len(self.seen) >= self.most:
                        return
                    changed = (*plan[:i], stays, *plan[i + 1 :])
                    found = self._try(changed)
                    if found.rank < course.rank:
                        plan, course, improved = changed, found, True

    def _by_worth(self) -> None:
        """Small changes to plans at a price of a step, which may do too few steps or too many on the way."""
        low, high = self.bracket
        rollout = self.rollout
        start = without_cuts(self._leaders(1)[0][0])
        most = self.most - (self.most - len(self.seen)) // 4
        for _ in range(PRICES):
            if len(self.seen) + len(self.worth) >= most:
                return
            price = (low + high) / 2
            begin = min((*map(tuple, self._plans(np.array([price]))), start), key=lambda plan: self._loss(plan, price))
            found = self._at_price(begin, price, most)
            if self._steps(found) >= rollout.total:
                high, start = price, found
            else:
                low = price

    def _loss(self, plan: Plan, price: float) -> float:
        """Cost less what the steps are worth."""
        plan = with_joins(plan) if self.joins else plan
        found = self.worth.get(plan)
        if found is None:
            found = self.worth[plan] = self.rollout.capacity(plan)
            if found[0] >= self.rollout.total:
                self._try(plan)
        return found[1] - price * found[0]

    def _steps(self, plan: Plan) -> int:
        return self.worth[with_joins(plan) if self.joins else plan][0]

    def _at_price(self, plan: Plan, price: float, most: int) -> Plan:
        return self._descend(plan, lambda other: (self._loss(other, price),), most, self._moves()[1:3])

    def _descend(self, plan: Plan, rank: Callable[[Plan], tuple[float, ...]], most: int, moves: Sequence[int]) -> Plan:
        """Small changes as long as one helps; after each, the look goes on where it was."""
        best = rank(plan)
        for by in moves:
            k = tried = 0
            changes = list(self._changes(plan, by))
            while tried < len(changes):
                if len(self.seen) + len(self.worth) >= most:
                    return plan
                changed = changes[k % len(changes)]
                k, tried = k + 1, tried + 1
                found = rank(changed)
                if found < best:
                    plan, best, tried = changed, found, 0
                    changes = list(self._changes(plan, by))
        return plan

    def _moves(self) -> list[int]:
        edges = self.edges
        cadence = int(np.diff(edges[1:]).min()) if len(edges) > 2 else int(edges[-1] - edges[0])
        return [by for by in (2 * cadence, cadence, cadence // 4, cadence // 12) if by > 0]

    def _changes(self, plan: Plan, by: int) -> Iterator[Plan]:
        for i, stays in enumerate(plan):
            for k, stay in enumerate(stays):
                for other in self._changed_stays(i, stays, k, stay, by):
                    yield (*plan[:i], other, *plan[i + 1 :])
            for other in self._holes_and_fills(i, stays):
                yield (*plan[:i], other, *plan[i + 1 :])
        yield with_joins(plan)

    def _holes_and_fills(self, i: int, stays: tuple[Stay, ...]) -> Iterator[tuple[Stay, ...]]:
        """A dear stretch left out, held or off, and a cheap one added, by costs around the price."""
        cost, edges = self.slots[i].cost, self.edges
        start_up, now = self.rollout.start_up_us[i], self.rollout.standing.us
        for factor in (0.8, 1.0, 1.25):
            dear = np.concatenate(([False], (cost > factor * self.bracket[1]) | (self.slots[i].steps <= 0), [False]))
            rises, falls = np.flatnonzero(dear[1:] & ~dear[:-1]), np.flatnonzero(~dear[1:] & dear[:-1])
            for low, high in zip(edges[rises].tolist(), edges[falls].tolist(), strict=True):
                for k, stay in enumerate(stays):
                    if not any(begin < low and high < end for begin, end in stay.train):
                        continue
                    held = tuple(part for span in stay.train for part in without(span, low, high))
                    yield (*stays[:k], replace(stay, train=held), *stays[k + 1 :])
                    ready = high + start_up
                    if low > now and ready < stay.down:
                        first = replace(stay, down=low, train=tuple(part for part in held if part[1] <= low))
                        rest = tuple((max(a, ready), b) for a, b in held if b > ready)
                        yield (*stays[:k], first, Stay(high, ready, stay.down, rest), *stays[k + 1 :])
            bounds = [int(edges[0]), *edges[rises].tolist()], [*edges[falls].tolist(), int(edges[-1])]
            for high, low in zip([*bounds[0][1:], int(edges[-1])], [bounds[0][0], *bounds[1][:-1]], strict=True):
                ready = low + start_up
                if ready < high and not any(stay.up <= high and low <= stay.down for stay in stays):
                    added = Stay(low, ready, high, ((ready, high),))
                    yield tuple(sorted((*stays, added), key=lambda stay: stay.up))

    def _changed_stays(
        self, i: int, stays: tuple[Stay, ...], k: int, stay: Stay, by: int
    ) -> Iterator[tuple[Stay, ...]]:
        before, after = stays[:k], stays[k + 1 :]
        now, end = self.rollout.standing.us, self.rollout.end
        fixed = stay.up <= now and self.up[i] is not None
        if not fixed:
            yield before + after
            earliest = max(now, before[-1].down + 1 if before else now)
            for up in {max(stay.up - by, earliest), stay.up + by} - {stay.up}:
                ready = up + self.rollout.start_up_us[i]
                if ready < stay.down:
                    moved = [(max(low, ready), high) for low, high in stay.train if high > ready]
                    if moved and stay.train[0][0] == stay.ready:
                        moved[0] = (ready, moved[0][1])
                    yield (*before, Stay(up, ready, stay.down, tuple(moved)), *after)
        latest = after[0].up - 1 if after else end
        for down in {stay.down - by, min(stay.down + by, latest)} - {stay.down}:
            if down > max(stay.ready, now):
                kept = [(low, min(high, down)) for low, high in stay.train if low < down]
                if kept and stay.train[-1][1] == stay.down:
                    kept[-1] = (kept[-1][0], down)
                yield (*before, replace(stay, down=down, train=tuple(kept)), *after)
        for j in range(len(stay.train)):
            yield from ((*before, other, *after) for other in _changed_spans(stay, j, by, now))
        for j in range(len(stay.train) - 1):
            gap = stay.train[j][1], stay.train[j + 1][0]
            through = (*stay.train[:j], (stay.train[j][0], stay.train[j + 1][1]), *stay.train[j + 2 :])
            yield (*before, replace(stay, train=through), *after)
            ready = gap[1] + self.rollout.start_up_us[i]
            if now < gap[0] < gap[1] and ready < stay.down:
                first = replace(stay, down=gap[0], train=stay.train[: j + 1])
                rest = tuple((max(low, ready), high) for low, high in stay.train[j + 1 :] if high > ready)
                yield (*before, first, Stay(gap[1], ready, stay.down, rest), *after)
        if after:
            gap_train = ((stay.down, after[0].up),) if stay.train and stay.train[-1][1] == stay.down else ()
            for train in {(*stay.train, *after[0].train), _joined((*stay.train, *gap_train, *after[0].train))}:
                yield (*before, replace(stay, down=after[0].down, train=train), *after[1:])


def _changed_spans(stay: Stay, j: int, by: int, now: int) -> Iterator[Stay]:
    """Stretch `j` left out, or an inner edge of it moved."""
    low, high = stay.train[j]
    rest = stay.train[:j], stay.train[j + 1 :]
    if len(stay.train) > 1:
        yield replace(stay, train=(*rest[0], *rest[1]))
    if low > max(stay.ready, now):
        floor = max(stay.ready, now, rest[0][-1][1] if rest[0] else 0)
        for begin in {max(low - by, floor), low + by} - {low}:
            if begin < high:
                yield replace(stay, train=(*rest[0], (begin, high), *rest[1]))
    if high < stay.down:
        ceiling = min(stay.down, rest[1][0][0] if rest[1] else stay.down)
        for end in {high - by, min(high + by, ceiling)} - {high}:
            if end > low:
                yield replace(stay, train=(*rest[0], (low, end), *rest[1]))


def _joined(spans: tuple[tuple[int, int], ...]) -> tuple[tuple[int, int], ...]:
    """A hold from the end of the last stretch to the next stay's first step is trained through."""
    found: list[tuple[int, int]] = []
    for low, high in spans:
        if found and low <= found[-1][1]:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return tuple(found)
