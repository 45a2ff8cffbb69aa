"""The cheapest plan that does the job in time, among many that are walked: prices, others' plans, and small changes.

Where the plans come from does not matter to the result, which is never worse than the best of them:

- what is handed in: plans of other policies, what was planned before or for an earlier deadline;
- per price of a step, each site's own best plan (`planner.best_actions`), refined where the job just finishes;
- per amount of steps, the best share of it among the sites (`plan_amounts`);
- any of these without what sites train while they keep others waiting for more than they add (`joint_rounds`);
- the best so far with one site planned anew given the others, with small changes (`plan_changes`), and with a few of
  them at random.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from random import Random

import numpy as np
import numpy.typing as npt

from curtail_pipeline.scheduling.outlook import Outlook
from curtail_pipeline.scheduling.plan_amounts import Amounts
from curtail_pipeline.scheduling.plan_changes import Changes
from curtail_pipeline.scheduling.planner import (
    HELD,
    OFF,
    SLOT_FIELDS,
    TOP_PRICE,
    TRAINS,
    Slots,
    best_actions,
    prices_by_spread,
)
from curtail_pipeline.scheduling.rollout import Course, Rollout
from curtail_pipeline.scheduling.stays import Plan, Stay, with_joins, without_cuts
from curtail_pipeline.times import FOREVER, SECOND, Floats

GRID, FINE = 20, 8
"""Prices of the first look, and between the two at which the job just does not and just does finish."""
SHARES = (0.85, 0.9, 0.95, 1.0, 1.03, 1.06, 1.1, 1.15, 1.2, 1.3)
"""Of the steps left, amounts that plans are made for."""
EARLIER_WALKS, EARLIER_WALKS_FEW, FEW_SLOTS = 100, 500, 200
"""Walks spent on each of them; more where there are few slots of all sites, whose plans cost little."""
KICKS = 30
"""Descents from a changed best plan."""
THOROUGH = 100
"""With fewer plans to walk, as where the forecast is a guess, plans come from prices and small changes alone."""
VAST = 5 * 10**9
"""Walks times the square of all sites' slots, at most: with more of them a walk costs more, and changes are more."""
HOPELESS = 200
"""Plans to walk at most where not even all hours do the job."""
PRICES = 4
"""Prices at which small changes are tried; the bracket is halved each time."""
BESTS = 3
"""Plans that small changes start from."""
WORTH = 0.15
"""Of the walks, what is spent on changes at a price: once with joins and once without."""
POLISH = 150
"""Walks for the edges of each of the best plans at the end."""
TOGETHER = 150
"""Walks for moving handovers of each of the best plans that differ."""
UNLIKE, APART_US, UNLIKE_SHARE = 8, 1_200 * SECOND, 0.6
"""Good plans that differ, how far apart their stays begin or end, and what of the walks left they are given together:
the best few are often one plan with an edge moved, and what grows out of another may end below them."""


def searched(
    rollout: Rollout, outlook: Outlook, earlier: Sequence[int], most: int, others: Sequence[Plan]
) -> tuple[Plan, Course]:
    """The best plan found for the rollout's deadline, by way of earlier ones.

    Args:
        most: plans to walk.
        others: plans to try beside its own.
    """
    starts, slots = list(others), outlook.size
    most = min(most, VAST // slots**2)
    earlier = earlier if most > THOROUGH else []
    walks = min(most, EARLIER_WALKS_FEW if slots <= FEW_SLOTS else EARLIER_WALKS)
    for by in earlier:
        search = Search(rollout.by(by), outlook, walks)
        if not search.hopeless:
            starts.append(search.best(starts)[0])
    return Search(rollout, outlook, most).best(starts)


class Search:
    """Keeps the best plans of those it walked; gives up looking further after so many."""

    def __init__(self, rollout: Rollout, outlook: Outlook, most: int) -> None:
        """From where the sites stand.

        Args:
            most: plans to walk after those of the price grid and of the amounts.
        """
        self.rollout, self.most, self.share = rollout, most, most
        self.slots, self.alone, self.edges, self.up = outlook.slots, outlook.alone, outlook.edges, outlook.up
        self.waits = outlook.waits
        self.seen: dict[Plan, Course] = {}
        self.joins = False
        """Whether plans are tried with `with_joins`."""
        self.worth: dict[Plan, tuple[int, float]] = {}
        self.bracket = (0.0, 0.0)
        self.changes = Changes(self.slots, self.edges, rollout.start_up_us, self.up, rollout.standing.us, rollout.end)

    def best(self, others: Sequence[Plan] = ()) -> tuple[Plan, Course]:
        """The best plan found.

        Args:
            others: plans to try beside its own.
        """
        for plan in others:
            self._try_both(plan)
            self._try(plan if self.waits is None else self.waits.held(plan))
        self._by_price()
        if self.hopeless:
            self.most = min(self.most, HOPELESS)
        thorough = self.most > THOROUGH and not self.hopeless
        if thorough:
            self.changes.shifts = True
            self._by_amount()
        self.most += len(self.seen)
        for plan, _ in self._leaders(BESTS):
            self._try(with_joins(plan))
        if thorough:
            for plan in self._unlike(BESTS):
                self._replanned(plan)
            whole, share = self.most, int(WORTH * (self.most - len(self.seen)))
            for self.joins in (True, False):
                self.most = self._walked + share
                self._by_worth()
            self.most = whole
            for plan, _ in self._leaders(BESTS):
                self._replanned(plan)
            each = int(UNLIKE_SHARE * (self.most - self._walked)) // UNLIKE
            for plan in self._unlike(UNLIKE):
                self._descend(plan, lambda other: self._try(other).rank, self._walked + each, self._moves()[1:])
        for plan, _ in self._leaders(BESTS):
            self._descend(plan, lambda other: self._try(other).rank, self.most, self._moves())
        if thorough:
            self._kicked()
            # The walks before went into other plans; what seconds at its edges are worth is not known of the best yet.
            for plan in self._unlike(UNLIKE):
                self._together(plan)
            for plan, _ in self._leaders(BESTS):
                self._descend(plan, lambda other: self._try(other).rank, self._walked + POLISH, self._moves()[-1:])
                self._descend(plan, lambda other: self._try(other).rank, self._walked + POLISH, [self._cadence // 60])
        return self._leaders(1)[0]

    @property
    def _walked(self) -> int:
        """Plans walked, in either way."""
        return len(self.seen) + len(self.worth)

    def _unlike(self, count: int) -> list[Plan]:
        """The best plans of those whose stays are alike."""
        found: dict[tuple[tuple[tuple[int, int], ...], ...], Plan] = {}
        for plan, _ in self._leaders(len(self.seen)):
            alike = tuple(tuple((stay.up // APART_US, stay.down // APART_US) for stay in stays) for stays in plan)
            found.setdefault(alike, plan)
            if len(found) == count:
                break
        return list(found.values())

    @cached_property
    def hopeless(self) -> bool:
        """Whether training all the time does not do the job."""
        always = np.full(len(self.edges) - 1, TRAINS, dtype=np.int8)
        plan: Plan = tuple(self._stays(i, always) for i in range(len(self.slots)))
        plans = [plan] if self.waits is None else [plan, self.waits.held(plan)]
        return max(self.rollout.capacity(each)[0] for each in plans) < self.rollout.total

    def _kicked(self) -> None:
        """Descents from the best plan after a few changes at random, to leave its neighbourhood."""
        rng, tries = Random(0), 0
        while self._walked < self.most and tries < KICKS:
            tries += 1
            plan = self._leaders(1)[0][0]
            for _ in range(rng.randint(1, 3)):
                changes = list(self.changes.of(plan, rng.choice(self._moves())))
                plan = rng.choice(changes) if changes else plan
            self._descend(plan, lambda other: self._try(other).rank, self.most, self._moves()[1:])

    def _try(self, plan: Plan) -> Course:
        course = self.seen.get(plan)
        if course is None:
            course = self.seen[plan] = self.rollout.course(plan)
        return course

    def _try_both(self, plan: Plan) -> Course:
        """The better of the plan and the one in which no site keeps others waiting for more than it adds."""
        course = self._try(plan)
        if self.waits is None:
            return course
        return min(course, self._try(self.waits.off(plan, self.rollout.standing.us)), key=lambda found: found.rank)

    def _leaders(self, count: int) -> list[tuple[Plan, Course]]:
        return sorted(self.seen.items(), key=lambda item: item[1].rank)[:count]

    def _by_price(self) -> None:
        """The sites' own best plans at each price of a grid, refined where the job just finishes."""
        costs = np.concatenate([part.cost[part.steps > 0] for part in self.slots])
        if not len(costs):
            costs = np.zeros(1)
        left = self.rollout.total - self.rollout.standing.done
        low = prices_by_spread(list(self.slots), [0.8 * left])[0]
        dearest = float(np.abs(costs).max())
        levels = np.quantile(costs[costs >= min(low, costs.max())], np.linspace(0.0, 1.0, GRID))
        top = TOP_PRICE * dearest + 1e-9
        prices = np.unique(np.append(levels * (1 + 1e-9), [1.5 * dearest, top]))
        finished = [self._try_both(tuple(plan)).finish < FOREVER for plan in self._plans(prices)]
        k = finished.index(True) if any(finished) else len(prices) - 1
        self.bracket = float(prices[max(k - 1, 0)]), float(prices[k])
        self.changes.price = self.bracket[1]
        if k:
            fine = np.linspace(prices[k - 1], prices[k], FINE + 2)[1:-1]
            for plan in self._plans(fine):
                self._try_both(tuple(plan))

    def _by_amount(self) -> None:
        """Plans for the steps that are left and somewhat more, for what rounds lose beyond the slots' measure."""
        wanted = self.rollout.total - self.rollout.standing.done
        states = [OFF if stay is None else TRAINS if stay.train else HELD for stay in self.up]
        for slots in [self.slots, *([self.alone] if self.alone else [])]:
            amounts = Amounts.of(slots, states, wanted)
            if amounts is not None:
                for actions in amounts.plans([factor * wanted for factor in SHARES]):
                    self._try_both(tuple(self._stays(i, row) for i, row in enumerate(actions)))

    def _replanned(self, plan: Plan) -> None:
        """One site after the other planned anew, given what the others do, as long as that helps."""
        course, since, most = self._try(plan), 0, self._walked + self.share
        while since < len(plan):
            for i in range(len(plan)):
                if self._walked >= most:
                    return
                since += 1
                for stays in self._answers(i, plan):
                    changed = (*plan[:i], stays, *plan[i + 1 :])
                    for other in (changed, with_joins(without_cuts(changed))):
                        found = self._try(other)
                        if found.rank < course.rank:
                            plan, course, since = other, found, 0

    def _answers(self, i: int, plan: Plan) -> list[tuple[Stay, ...]]:
        """What one site might do given the others: all amounts near what they leave to it, and the bracket's prices."""
        slots = self._beside(i, plan)
        rest, _ = self.rollout.capacity((*plan[:i], (), *plan[i + 1 :]))
        wanted = self.rollout.total - rest
        stay = self.up[i]
        state = OFF if stay is None else TRAINS if stay.train else HELD
        rows = list(best_actions([slots], np.linspace(*self.bracket, 4), [state])[:, 0])
        amounts = Amounts.of([slots], [state], wanted)
        if amounts is not None:
            rows += [actions[0] for actions in amounts.plans([factor * wanted for factor in SHARES])]
        return list(dict.fromkeys(self._stays(i, row) for row in rows))

    def _beside(self, i: int, plan: Plan) -> Slots:
        """A site's slots given when the others train: alone it loses nothing to rounds, and it may end another's."""
        fed, alone = self.slots[i], self.alone
        if alone is None:
            return fed
        others = [j for j in range(len(plan)) if j != i]
        trains = np.array([self._trains(plan[j]) for j in others]).reshape(len(others), len(fed.steps))
        count = trains.sum(axis=0)
        steps, paid = fed.steps.copy(), fed.steps * fed.cost
        for j, row in zip(others, trains, strict=True):
            one = row & (count == 1)
            lost = alone[j].steps - self.slots[j].steps
            saved = alone[j].steps * alone[j].cost - self.slots[j].steps * self.slots[j].cost
            steps, paid = np.where(one, steps - lost, steps), np.where(one, paid - saved, paid)
        steps = np.maximum(steps, 0.0)
        cost = np.divide(paid, steps, out=fed.cost * 0 + TOP_PRICE * np.abs(fed.cost).max(), where=steps > 0)
        by = {name: np.where(count == 0, getattr(alone[i], name), getattr(fed, name)) for name in SLOT_FIELDS}
        return Slots(
            **{
                **by,
                "steps": np.where(count == 0, alone[i].steps, steps),
                "cost": np.where(count == 0, alone[i].cost, cost),
            }
        )

    def _trains(self, stays: tuple[Stay, ...]) -> npt.NDArray[np.bool_]:
        """Slots in whose middle the site trains."""
        middle = (self.edges[1:] + self.edges[:-1]) // 2
        spans = np.array([span for stay in stays for span in stay.train], dtype=np.int64).reshape(-1, 2)
        k = np.searchsorted(spans[:, 0], middle, side="right") - 1
        ends = np.append(spans[:, 1], 0)
        found: npt.NDArray[np.bool_] = (k >= 0) & (middle < ends[k])
        return found

    def _plans(self, prices: Floats) -> list[list[tuple[Stay, ...]]]:
        """Per price, the sites' best plans."""
        slots = [replace(part, resume_steps=part.resume_steps * 0) if self.joins else part for part in self.slots]
        states = [OFF if stay is None else TRAINS if stay.train else HELD for stay in self.up]
        rows = best_actions(slots, prices, states)
        return [[self._stays(i, actions) for i, actions in enumerate(row)] for row in rows]

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

    def _by_worth(self) -> None:
        """Small changes to plans at a price of a step, which may do too few steps or too many on the way."""
        low, high = self.bracket
        rollout = self.rollout
        start = without_cuts(self._leaders(1)[0][0])
        for _ in range(PRICES):
            if self._walked >= self.most:
                return
            price = (low + high) / 2
            begin = min((*map(tuple, self._plans(np.array([price]))), start), key=lambda plan: self._loss(plan, price))
            found = self._at_price(begin, price)
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

    def _at_price(self, plan: Plan, price: float) -> Plan:
        return self._descend(plan, lambda other: (self._loss(other, price),), self.most, self._moves()[1:3])

    def _together(self, plan: Plan) -> None:
        """Handovers moved as a whole, by parts of a slot or a round: single edges lose by what both win by."""

        def changes(plan: Plan, by: int) -> Iterator[Plan]:
            for other in islice(self.changes.together(plan, by), TOGETHER):
                yield other
                yield with_joins(without_cuts(other))

        pace = self.rollout.pace
        rounds = {pace.round_us + pace.merge_us(members) for members in ((0,), range(len(plan)))}
        moves = [*sorted(rounds, reverse=True), *self._moves()]
        self._descend(plan, lambda other: self._try(other).rank, self._walked + TOGETHER, moves, changes)

    def _descend(
        self,
        plan: Plan,
        rank: Callable[[Plan], tuple[float, ...]],
        most: int,
        moves: Sequence[int],
        changes_of: Callable[[Plan, int], Iterable[Plan]] | None = None,
    ) -> Plan:
        """Small changes as long as one helps; after each, the look goes on where it was."""
        best = rank(plan)
        changes_of = changes_of or self.changes.of
        for by in moves:
            k = tried = 0
            changes = list(changes_of(plan, by))
            while tried < len(changes):
                if self._walked >= most:
                    return plan
                changed = changes[k % len(changes)]
                k, tried = k + 1, tried + 1
                found = rank(changed)
                if found < best:
                    plan, best, tried = changed, found, 0
                    changes = list(changes_of(plan, by))
        return plan

    @property
    def _cadence(self) -> int:
        return int(np.diff(self.edges).max())  # the first and the last slot may be shorter

    def _moves(self) -> list[int]:
        cadence = self._cadence
        return [by for by in (2 * cadence, cadence, cadence // 4, cadence // 12) if by > 0]
