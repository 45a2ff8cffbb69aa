"""What a plan comes to: the rounds of `timing` on a plan's stretches, in plain integers, and their expected cost.

The walk is that of `timing.advance` for a schedule that is known, so that a plan is judged by what executes it; a test
holds the two together. It costs about a millisecond per day of rounds, which lets a planner try hundreds of plans.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from curtail_pipeline.scheduling.planner import or_dearest
from curtail_pipeline.scheduling.stays import Plan, Span, Stay, known, touching
from curtail_pipeline.scheduling.timing import step_us
from curtail_pipeline.scheduling.view import View
from curtail_pipeline.settings.sites import power_kw
from curtail_pipeline.times import FOREVER, HOUR, Floats, Micros, duration_us


@dataclass(frozen=True)
class Standing:
    """From where a plan goes on."""

    us: int
    done: int
    """Steps done, those of the round in progress included."""
    round_started: int | None = None
    members: tuple[int, ...] = ()
    """The sites of the round in progress that still train."""


@dataclass(frozen=True)
class Course:
    """What a plan comes to."""

    steps: int
    """Done by the deadline, of those wanted."""
    finish: int
    """End of the last step wanted; `FOREVER` when it is not done by the deadline."""
    cost: float
    """Expected, grams or money in thousandths, from where the plan goes on."""
    training: tuple[tuple[tuple[int, int], ...], ...] = field(repr=False)
    """Per site: first step's begin and number of steps, per round."""

    @property
    def rank(self) -> tuple[int, float, int]:
        """Orders courses: those that finish by cost, the others by steps."""
        if self.finish < FOREVER:
            return (0, self.cost, self.finish)
        return (1, -self.steps, 0)


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


class Rollout:
    """Walks plans of one job from one standing."""

    def __init__(
        self, view: View, tariffs: Sequence[Tariff], standing: Standing, total: int, deadline: int, clock_end: int
    ) -> None:
        """Of a view's sites and rounds.

        Args:
            tariffs: per site.
            total: steps of the whole job.
            deadline: steps that end later do not count.
            clock_end: nothing runs after it.
        """
        rounds, overheads = view.experiment.rounds, [view.experiment.overheads_of(site) for site in view.sites]
        self.tariffs, self.standing, self.total = tariffs, standing, total
        self.deadline, self.end = deadline, clock_end
        self.round_us, self.open_local = duration_us(rounds.round_s), rounds.open_local
        self.step = [step_us(site) for site in view.sites]
        self.first_load = [duration_us(of.first_load_s) for of in overheads]
        self.load = [duration_us(of.round_load_s) for of in overheads]
        self.tails = [(duration_us(of.round_tail_single_s), duration_us(of.round_tail_s)) for of in overheads]
        self.outer = [duration_us(of.outer_step_s) for of in overheads]
        self.connect = [duration_us(of.connect_s) for of in overheads]
        self.drain = [duration_us(of.stop_drain_s) for of in overheads]
        self.start_up_us = [duration_us(of.provisioning_s) + duration_us(of.connect_s) for of in overheads]
        self.kw = [(power_kw(s, "training"), power_kw(s, "idle"), power_kw(s, "start_up")) for s in view.sites]

    def course(self, plan: Plan) -> Course:
        """Walk a plan to the job's end or the clock's."""
        walk = _PlanWalk(self, plan)
        walk.run()
        steps, finish = walk.done, walk.last_step if walk.done >= self.total else FOREVER
        if finish > self.deadline:
            finish = FOREVER
            steps = self._by_deadline(walk)
        cost = self._costs(plan, walk)
        return Course(min(steps, self.total), finish, cost, tuple(map(tuple, walk.training)))

    def capacity(self, plan: Plan) -> tuple[int, float]:
        """Steps by the deadline if the job had no end, and what all of the plan costs."""
        walk = _PlanWalk(self, plan, endless=True)
        walk.run()
        return self._by_deadline(walk), self._costs(plan, walk)

    def _by_deadline(self, walk: "_PlanWalk") -> int:
        return self.standing.done + sum(
            min(count, max(0, (self.deadline - first) // self.step[i]))
            for i, rows in enumerate(walk.training)
            for first, count in rows
        )

    def _costs(self, plan: Plan, walk: "_PlanWalk") -> float:
        return sum(self._cost(i, plan[i], walk.training[i], walk.now) for i in range(len(plan)))

    def done_before(self, course: Course) -> int:
        """Steps done before those that the course counts, which include all of the round in progress."""
        us = self.standing.us
        begun = (
            min(n, max(0, us - first) // self.step[i]) for i, rows in enumerate(course.training) for first, n in rows
        )
        return self.standing.done - sum(begun)

    def _cost(self, i: int, stays: Sequence[Stay], training: Sequence[tuple[int, int]], end: int) -> float:
        """Cost of a site's power: start-up and idle as the stays say, less the time in training, and training."""
        tariff, connect, drain = self.tariffs[i], self.connect[i], self.drain[i]
        idle: list[int] = []
        start: list[int] = []
        ends: list[int] = []
        for k, stay in enumerate(stays):
            if stay.up >= end:
                break
            provisioned = max(stay.up, min(stay.ready - connect, stay.down))
            off = stay.down + drain
            if k + 1 < len(stays):
                off = min(off, stays[k + 1].up)
            start += (stay.up, min(provisioned, end))
            idle += (min(provisioned, end), min(off, end))
            ends.append(min(off, end))
        low = np.array([first for first, _ in training], dtype=np.int64)
        high = low + np.array([count for _, count in training], dtype=np.int64) * self.step[i]
        covered = high
        if len(high) and ends:
            # The step in progress at a stop may end after the site's idle time has.
            up = np.searchsorted([stay.up for stay in stays[: len(ends)]], low, side="right") - 1
            covered = np.minimum(high, np.array(ends)[np.maximum(up, 0)])
        return (
            _between(tariff.knots, tariff.training, low, high)
            + _between(tariff.knots, tariff.idle, np.array(idle[::2]), np.array(idle[1::2]))
            - _between(tariff.knots, tariff.idle, low, np.maximum(covered, low))
            + _between(tariff.knots, tariff.start_up, np.array(start[::2]), np.array(start[1::2]))
        )


def _between(knots: Micros, integral: Floats, low: Micros, high: Micros) -> float:
    if not len(low):
        return 0.0
    return float((np.interp(high, knots, integral) - np.interp(low, knots, integral)).sum())


class _PlanWalk:
    """The state of one walk."""

    def __init__(self, of: Rollout, plan: Plan, *, endless: bool = False) -> None:
        self.of = of
        self.total = FOREVER if endless else of.total
        self.spans = [
            [(low, high, stay.ready) for stay in stays for low, high in known(touching(stay.train), tariff.unknown)]
            for stays, tariff in zip(plan, of.tariffs, strict=True)
        ]
        self.at = [0] * len(plan)
        self.now = of.standing.us
        self.done = of.standing.done
        self.last_step = of.standing.us
        self.training: list[list[tuple[int, int]]] = [[] for _ in plan]

    def run(self) -> None:
        of, standing = self.of, self.of.standing
        if standing.round_started is not None and standing.members:
            members = [i for i in standing.members if self._training_at(i, standing.us)]
            if members and not self._round(members, standing.round_started, standing.us):
                return
        while self.now < of.end:
            members = [i for i in range(len(self.spans)) if self._training_at(i, self.now)]
            if members:
                if not self._full_rounds(members) and not self._round(members, self.now, self.now):
                    return
                continue
            starts = [spans[k][0] for spans, k in zip(self.spans, self.at, strict=True) if k < len(spans)]
            self.now = min(starts, default=of.end)
        self.now = of.end

    def _full_rounds(self, members: list[int]) -> bool:
        """Several rounds at once, as long as the members stay the same and train their rounds' whole time."""
        of, now = self.of, self.now
        if len(members) == 1 and of.open_local:
            return False
        first = [now + of.load[i] for i in members]
        spans = [self.spans[i][self.at[i]] for i in members]
        counts = [max(0, of.round_us - of.load[i]) // of.step[i] for i in members]
        late = any(span[2] + of.first_load[i] > at for span, i, at in zip(spans, members, first, strict=True))
        if late or not any(counts):
            return False
        many = len(members) > 1
        merge = max(of.tails[i][many] for i in members) + max(of.outer[i] for i in members)
        period = of.round_us + merge
        until = min(min(span[1] for span in spans), of.end - merge)
        rounds = min(
            (until - of.round_us - now) // period + 1,
            (self._next_join(members, now) - now - 1) // period + 1,
            (self.total - self.done - 1) // sum(counts),
        )
        if rounds < 1:
            return False
        for i, begin, n in zip(members, first, counts, strict=True):
            if n:
                self.training[i] += [(begin + k * period, n) for k in range(rounds)]
                self.last_step = max(self.last_step, begin + (rounds - 1) * period + n * of.step[i])
        self.done += rounds * sum(counts)
        self.now = now + rounds * period
        return True

    def _training_at(self, i: int, us: int) -> bool:
        spans, k = self.spans[i], self.at[i]
        while k < len(spans) and spans[k][1] <= us:
            k += 1
        self.at[i] = k
        return k < len(spans) and spans[k][0] <= us

    def _next_join(self, active: list[int], after: int) -> int:
        """When a site that is not in the round wants to train next: `after` itself where one does already."""
        found = FOREVER
        for i, spans in enumerate(self.spans):
            if i not in active:
                k = self.at[i]
                while k < len(spans) and spans[k][1] <= after:
                    k += 1
                if k < len(spans):
                    found = min(found, max(spans[k][0], after))
        return found

    def _round(self, members: list[int], start: int, since: int) -> bool:
        """One round; False when the walk is over with it."""
        of = self.of
        many = len(members) > 1
        merge = max(of.tails[i][many] for i in members) + max(of.outer[i] for i in members)
        first = {i: max(start + of.load[i], self.spans[i][self.at[i]][2] + of.first_load[i]) for i in members}
        leave = dict.fromkeys(members, FOREVER)
        cap = max(start, of.end - merge)
        counted = sum(max(0, since - first[i]) // of.step[i] for i in members) if since > start else 0
        left = self.total - self.done + counted

        def counts(stop: int) -> list[int]:
            stop = min(stop, cap)
            found = []
            for i in members:
                begin, step = first[i], of.step[i]
                whole = max(stop - begin, 0) // step
                found.append(min(whole, -(-max(leave[i] - begin, 0) // step)))
            return found

        active, at_clock_end, now = list(members), False, since
        while True:
            alone = len(active) == 1 and of.open_local
            limit = FOREVER if alone else start + of.round_us
            event = min(self.spans[i][self.at[i]][1] for i in active)
            if alone:
                event = min(event, self._next_join(active, now))
            stop = min(limit, cap, event)
            steps = counts(stop)
            if sum(steps) >= left:
                break
            if stop < event or event >= min(limit, cap):
                at_clock_end = stop == cap and cap < limit
                break
            now = event
            for i in list(active):
                if self.spans[i][self.at[i]][1] <= event:
                    leave[i] = event
                    active.remove(i)
            if not active:
                steps = counts(FOREVER)
                lasts = [
                    max(first[i] + n * of.step[i], leave[i]) if n else leave[i]
                    for i, n in zip(members, steps, strict=True)
                ]
                stop = max(lasts)
                break
            if len(active) == 1 and of.open_local and self._next_join(active, event) <= event:
                steps, stop = counts(event), event
                break
        if sum(steps) >= left:
            steps, stop = self._last_steps(members, first, steps, left)
        self._book(members, first, steps)
        self.done += sum(steps) - counted
        self.now = stop + (merge if any(steps) else 0)
        if self.done >= self.total:
            return False
        if at_clock_end:
            self.now = of.end
            return False
        return True

    def _book(self, members: list[int], first: dict[int, int], counts: list[int]) -> None:
        for i, n in zip(members, counts, strict=True):
            if n:
                self.training[i].append((first[i], n))
                self.last_step = max(self.last_step, first[i] + n * self.of.step[i])

    def _last_steps(
        self, members: list[int], first: dict[int, int], counts: list[int], wanted: int
    ) -> tuple[list[int], int]:
        """As `timing.split_last_steps`, on the few numbers of one round."""
        step = self.of.step
        low = min(first.values())
        high = max(first[i] + n * step[i] for i, n in zip(members, counts, strict=True))

        def by(us: int) -> list[int]:
            return [min(n, max(0, us - first[i]) // step[i]) for i, n in zip(members, counts, strict=True)]

        while low < high:
            middle = (low + high) // 2
            if sum(by(middle)) >= wanted:
                high = middle
            else:
                low = middle + 1
        done = by(low)
        surplus = sum(done) - wanted
        for k in reversed(range(len(done))):
            i = members[k]
            if surplus and done[k] and first[i] + done[k] * step[i] == low:
                done[k] -= 1
                surplus -= 1
        return done, low
