"""What a plan comes to: the rounds of `timing` on a plan's stretches, in plain integers, and their expected cost.

The walk is that of `timing.advance` for a schedule that is known, so that a plan is judged by what executes it; a test
holds the two together. Busy times and sites that a plan shares with one walked before are not walked again: a changed
plan costs some 50 microseconds, which lets a planner try thousands.
"""

from bisect import bisect_right
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

from curtail_pipeline.scheduling.plan_walk import BusyWalk, Pace, Rounds, Stretch
from curtail_pipeline.scheduling.stays import Plan, Stay, known, touching
from curtail_pipeline.scheduling.tariffs import Tariff
from curtail_pipeline.scheduling.view import View
from curtail_pipeline.times import FOREVER, duration_us


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
class _Part:
    """A busy time as it was walked."""

    end: int
    steps: int
    last_step: int
    over: bool
    training: dict[int, list[Rounds]]
    cost: float
    """Of training instead of idling."""


@dataclass(frozen=True)
class _Line:
    """One site's stays: their stretches, and what each costs if nothing is trained."""

    stretches: tuple[Stretch, ...]
    up: tuple[int, ...]
    provisioned: tuple[int, ...]
    off: tuple[int, ...]
    paid: tuple[float, ...]
    """Cost of the first 0, 1, ... stays."""


@dataclass(frozen=True)
class Course:
    """What a plan comes to."""

    steps: int
    """Done by the deadline, of those wanted."""
    finish: int
    """End of the last step wanted; `FOREVER` when it is not done by the deadline."""
    cost: float
    """Expected, grams or money in thousandths, from where the plan goes on."""
    parts: tuple[_Part, ...] = field(repr=False)
    sites: int = 1

    @property
    def rank(self) -> tuple[int, float, int]:
        """Orders courses: those that finish by cost, of equal ones the earlier first; the others by steps."""
        if self.finish < FOREVER:
            return (0, round(self.cost, 6), self.finish)
        return (1, -self.steps, 0)

    @cached_property
    def training(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Per site: first step's begin and number of steps, per round."""
        return tuple(
            tuple(
                (first, some.steps) for part in self.parts for some in part.training.get(i, ()) for first in some.begins
            )
            for i in range(self.sites)
        )


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
        overheads = [view.experiment.overheads_of(site) for site in view.sites]
        self.tariffs, self.standing, self.total = tariffs, standing, total
        self.deadline, self.end = deadline, clock_end
        self.pace = Pace.of(view, clock_end)
        self.connect = [duration_us(of.connect_s) for of in overheads]
        self.drain = [duration_us(of.stop_drain_s) for of in overheads]
        self.start_up_us = [duration_us(of.provisioning_s) + duration_us(of.connect_s) for of in overheads]
        self._parts: dict[tuple[int, tuple[Stretch, ...]], _Part] = {}
        self._lines: dict[tuple[int, tuple[Stay, ...]], _Line] = {}

    def by(self, deadline: int) -> "Rollout":
        """The same for another deadline; what was walked is shared."""
        other = copy(self)
        other.deadline = deadline
        return other

    def course(self, plan: Plan) -> Course:
        """Walk a plan to the job's end or the clock's."""
        lines, parts, done, end = self._walked(plan, self.total)
        last_step = max((part.last_step for part in parts if part.steps), default=self.standing.us)
        steps, finish = done, last_step if done >= self.total else FOREVER
        if finish > self.deadline:
            finish = FOREVER
            steps = self._by_deadline(parts)
        return Course(min(steps, self.total), finish, self._costs(lines, parts, end), tuple(parts), len(plan))

    def capacity(self, plan: Plan) -> tuple[int, float]:
        """Steps by the deadline if the job had no end, and what all of the plan costs."""
        lines, parts, _, end = self._walked(plan, FOREVER)
        return self._by_deadline(parts), self._costs(lines, parts, end)

    def done_before(self, course: Course) -> int:
        """Steps done before those that the course counts, which include all of the round in progress."""
        us, step = self.standing.us, self.pace.step
        begun = (min(n, max(0, us - first) // step[i]) for i, rows in enumerate(course.training) for first, n in rows)
        return self.standing.done - sum(begun)

    def _walked(self, plan: Plan, total: int) -> tuple[list[_Line], list[_Part], int, int]:
        """Lines, busy times, steps done and where the walk ends."""
        lines = [self._line(i, stays) for i, stays in enumerate(plan)]
        stretches = sorted(chain.from_iterable(line.stretches for line in lines))
        parts: list[_Part] = []
        now, done, k, count = self.standing.us, self.standing.done, 0, len(stretches)
        while k < count:
            low, high = stretches[k].low, stretches[k].high
            begin, k = k, k + 1
            while k < count and stretches[k].low <= high:
                high = max(high, stretches[k].high)
                k += 1
            now = max(now, low)
            if now >= self.end:
                break
            if now >= high:
                continue
            part = self._part(tuple(stretches[begin:k]), now)
            if done + part.steps >= total:
                part = self._walk(stretches[begin:k], now, total - done)
            parts.append(part)
            done, now = done + part.steps, part.end
            if part.over:
                return lines, parts, done, now
        return lines, parts, done, self.end

    def _part(self, stretches: tuple[Stretch, ...], now: int) -> _Part:
        key = now, stretches
        part = self._parts.get(key)
        if part is None:
            part = self._parts[key] = self._walk(stretches, now, FOREVER)
        return part

    def _walk(self, stretches: Sequence[Stretch], now: int, left: int) -> _Part:
        walk, standing = BusyWalk(self.pace, stretches, now, left), self.standing
        if now == standing.us:
            walk.run(standing.round_started, [i for i in standing.members if i in walk.spans])
        else:
            walk.run()
        training = {i: rows for i, rows in walk.training.items() if rows}
        cost = sum(self.tariffs[i].instead_of_idle(rows, self.pace.step[i]) for i, rows in training.items())
        return _Part(walk.now, walk.steps, walk.last_step, walk.over, training, cost)

    def _line(self, i: int, stays: tuple[Stay, ...]) -> _Line:
        line = self._lines.get((i, stays))
        if line is None:
            line = self._lines[i, stays] = self._new_line(i, stays)
        return line

    def _new_line(self, i: int, stays: tuple[Stay, ...]) -> _Line:
        tariff, connect, drain, us = self.tariffs[i], self.connect[i], self.drain[i], self.standing.us
        offs, provisioned, paid, stretches = [], [], [0.0], []
        for k, stay in enumerate(stays):
            off = stay.down + drain
            if k + 1 < len(stays):
                off = min(off, stays[k + 1].up)
            since = max(stay.up, min(stay.ready - connect, stay.down))
            offs.append(off)
            provisioned.append(since)
            paid.append(paid[-1] + tariff.waiting(stay.up, since, off))
            stretches += [
                Stretch(low, high, i, stay.ready, off)
                for low, high in known(touching(stay.train), tariff.unknown)
                if high > us
            ]
        up = tuple(stay.up for stay in stays)
        return _Line(tuple(stretches), up, tuple(provisioned), tuple(offs), tuple(paid))

    def _costs(self, lines: Sequence[_Line], parts: Sequence[_Part], end: int) -> float:
        cost = sum(part.cost for part in parts)
        for tariff, line in zip(self.tariffs, lines, strict=True):
            k = bisect_right(line.off, end)
            cost += line.paid[k]
            if k < len(line.up) and line.up[k] < end:
                cost += tariff.waiting(line.up[k], min(line.provisioned[k], end), end)
        return cost

    def _by_deadline(self, parts: Sequence[_Part]) -> int:
        step, done = self.pace.step, self.standing.done
        for part in parts:
            if part.end <= self.deadline:
                done += part.steps
                continue
            done += sum(
                min(some.steps, max(0, self.deadline - first) // step[i])
                for i, training in part.training.items()
                for some in training
                for first in some.begins
            )
        return done
