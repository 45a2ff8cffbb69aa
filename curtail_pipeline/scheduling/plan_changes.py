"""Small changes to a plan: an edge or a stay moved, one left out or added, a hold trained through, two stays joined."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from random import Random

import numpy as np

from curtail_pipeline.scheduling.planner import Slots
from curtail_pipeline.scheduling.stays import Plan, Stay, touching, with_joins, without
from curtail_pipeline.times import SECOND, Micros

NEAR_US = 2_400 * SECOND
"""Edges so near each other are moved together."""


@dataclass
class Changes:
    """What changes of a plan must keep to."""

    slots: Sequence[Slots]
    edges: Micros
    start_up_us: Sequence[int]
    up: Sequence[Stay | None]
    """Per site, its stay in progress."""
    now: int
    end: int
    price: float = 0.0
    """Of a step: slots above it are dear."""
    shifts: bool = False
    """Whether stays are moved as a whole: for plans that are kept, not made anew at the next value of a forecast."""

    def of(self, plan: Plan, by: int) -> Iterator[Plan]:
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
        start_up, now = self.start_up_us[i], self.now
        for factor in (0.8, 1.0, 1.25):
            dear = np.concatenate(([False], (cost > factor * self.price) | (self.slots[i].steps <= 0), [False]))
            rises, falls = np.flatnonzero(dear[1:] & ~dear[:-1]), np.flatnonzero(~dear[1:] & dear[:-1])
            for low, high in zip(edges[rises].tolist(), edges[falls].tolist(), strict=True):
                for k, stay in enumerate(stays):
                    if not any(begin < low and high < end for begin, end in stay.train):
                        continue
                    held = tuple(part for span in stay.train for part in without(span, low, high))
                    yield (*stays[:k], stay._replace(train=held), *stays[k + 1 :])
                    ready = high + start_up
                    if low > now and ready < stay.down:
                        first = stay._replace(down=low, train=tuple(part for part in held if part[1] <= low))
                        rest = tuple((max(a, ready), b) for a, b in held if b > ready)
                        yield (*stays[:k], first, Stay(high, ready, stay.down, rest), *stays[k + 1 :])
            begins, ends = [int(edges[0]), *edges[falls].tolist()], [*edges[rises].tolist(), int(edges[-1])]
            for low, high in zip(begins, ends, strict=True):
                ready = low + start_up
                if ready < high and not any(stay.up <= high and low <= stay.down for stay in stays):
                    added = Stay(low, ready, high, ((ready, high),))
                    yield tuple(sorted((*stays, added), key=lambda stay: stay.up))

    def _changed_stays(
        self, i: int, stays: tuple[Stay, ...], k: int, stay: Stay, by: int
    ) -> Iterator[tuple[Stay, ...]]:
        before, after = stays[:k], stays[k + 1 :]
        now, end = self.now, self.end
        fixed = stay.up <= now and self.up[i] is not None
        if not fixed:
            yield before + after
            earliest = max(now, before[-1].down + 1 if before else now)
            for up in {max(stay.up - by, earliest), stay.up + by} - {stay.up}:
                if (other := self._begun(i, stay, up)) is not None:
                    yield (*before, other, *after)
        latest = after[0].up - 1 if after else end
        if self.shifts and not fixed:
            for shift in (max(-by, earliest - stay.up), min(by, max(latest - stay.down, 0))):
                if shift:
                    spans = tuple((low + shift, high + shift) for low, high in stay.train)
                    yield (*before, Stay(stay.up + shift, stay.ready + shift, stay.down + shift, spans), *after)
        for down in {stay.down - by, min(stay.down + by, latest)} - {stay.down}:
            if (other := self._ended(stay, down)) is not None:
                yield (*before, other, *after)
        for j in range(len(stay.train)):
            yield from ((*before, other, *after) for other in _changed_spans(stay, j, by, now))
        for j in range(len(stay.train) - 1):
            gap = stay.train[j][1], stay.train[j + 1][0]
            through = (*stay.train[:j], (stay.train[j][0], stay.train[j + 1][1]), *stay.train[j + 2 :])
            yield (*before, stay._replace(train=through), *after)
            ready = gap[1] + self.start_up_us[i]
            if now < gap[0] < gap[1] and ready < stay.down:
                first = stay._replace(down=gap[0], train=stay.train[: j + 1])
                rest = tuple((max(low, ready), high) for low, high in stay.train[j + 1 :] if high > ready)
                yield (*before, first, Stay(gap[1], ready, stay.down, rest), *after)
        if after:
            # A hold from the end of the last stretch to the next stay's first step is trained through.
            gap_train = ((stay.down, after[0].up),) if stay.train and stay.train[-1][1] == stay.down else ()
            for train in {(*stay.train, *after[0].train), tuple(touching((*stay.train, *gap_train, *after[0].train)))}:
                yield (*before, stay._replace(down=after[0].down, train=train), *after[1:])

    def _begun(self, i: int, stay: Stay, up: int) -> Stay | None:
        """The stay from another time on; None where nothing is left of it."""
        ready = up + self.start_up_us[i]
        if ready >= stay.down:
            return None
        moved = [(max(low, ready), high) for low, high in stay.train if high > ready]
        if moved and stay.train[0][0] == stay.ready:
            moved[0] = (ready, moved[0][1])
        return Stay(up, ready, stay.down, tuple(moved))

    def _ended(self, stay: Stay, down: int) -> Stay | None:
        """The stay until another time; None where nothing is left of it, or it ended already."""
        if down <= max(stay.ready, self.now):
            return None
        kept = [(low, min(high, down)) for low, high in stay.train if low < down]
        if kept and stay.train[-1][1] == stay.down:
            kept[-1] = (kept[-1][0], down)
        return stay._replace(down=down, train=tuple(kept))

    def together(self, plan: Plan, by: int) -> Iterator[Plan]:
        """Two edges of different sites, one near the other, moved by the same: a handover, or a start of both.

        In no order: who tries only some tries some of everywhere.
        """
        at = sorted(
            (stay.down if ends else stay.up, i, k, ends)
            for i, stays in enumerate(plan)
            for k, stay in enumerate(stays)
            for ends in (False, True)
        )
        times = [us for us, *_ in at]
        near = [
            (one, other)
            for n, one in enumerate(at)
            for other in at[n + 1 : bisect_right(times, one[0] + NEAR_US)]
            if one[1] != other[1]
        ]
        Random(0).shuffle(near)
        for ((_, i, k, ends), (_, j, m, also_ends)), shift in product(near, (-by, by)):
            mine, theirs = self._moved(i, plan[i], k, ends, shift), self._moved(j, plan[j], m, also_ends, shift)
            if mine is not None and theirs is not None:
                yield tuple(mine if n == i else theirs if n == j else row for n, row in enumerate(plan))

    def _moved(self, i: int, stays: tuple[Stay, ...], k: int, ends: bool, by: int) -> tuple[Stay, ...] | None:
        """A site's stays with the begin or the end of one moved; None where that cannot be."""
        stay = stays[k]
        if ends:
            latest = stays[k + 1].up - 1 if k + 1 < len(stays) else self.end
            other = self._ended(stay, stay.down + by) if stay.down + by <= latest else None
        else:
            earliest = stays[k - 1].down + 1 if k else self.now
            fixed = stay.up <= self.now and self.up[i] is not None
            other = self._begun(i, stay, stay.up + by) if not fixed and stay.up + by >= earliest else None
        return None if other is None else (*stays[:k], other, *stays[k + 1 :])


def _changed_spans(stay: Stay, j: int, by: int, now: int) -> Iterator[Stay]:
    """Stretch `j` left out, or an inner edge of it moved."""
    low, high = stay.train[j]
    rest = stay.train[:j], stay.train[j + 1 :]
    if len(stay.train) > 1:
        yield stay._replace(train=(*rest[0], *rest[1]))
    if low >= max(stay.ready, now):
        floor = max(stay.ready, now, rest[0][-1][1] if rest[0] else 0)
        for begin in {max(low - by, floor), low + by} - {low}:
            if begin < high:
                yield stay._replace(train=(*rest[0], (begin, high), *rest[1]))
    if high < stay.down:
        ceiling = min(stay.down, rest[1][0][0] if rest[1] else stay.down)
        for end in {high - by, min(high + by, ceiling)} - {high}:
            if end > low:
                yield stay._replace(train=(*rest[0], (low, end), *rest[1]))
