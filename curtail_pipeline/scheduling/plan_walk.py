"""The rounds of one busy time of a plan: from when some site trains until none does, in plain integers.

What happens in it depends on the stretches it holds and on when it begins, on nothing before or after: a search that
changes a plan in one place walks that place alone (`rollout.Rollout` keeps the others).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from curtail_pipeline.scheduling.timing import step_us
from curtail_pipeline.scheduling.view import View
from curtail_pipeline.times import FOREVER, duration_us


class Stretch(NamedTuple):
    """One site is told to train in `[low, high)`, microseconds."""

    low: int
    high: int
    site: int
    """In the experiment's order."""
    ready: int
    """When its start-up was complete."""
    off: int
    """Until when it is provisioned."""


@dataclass(frozen=True)
class Pace:
    """Durations of rounds in microseconds, per site where they differ, and when the clock ends."""

    end: int
    round_us: int
    open_local: bool
    step: tuple[int, ...]
    first_load: tuple[int, ...]
    load: tuple[int, ...]
    tails: tuple[tuple[int, int], ...]
    """With one member, with more."""
    outer: tuple[int, ...]

    @classmethod
    def of(cls, view: View, end: int) -> "Pace":
        """Of a view's sites and rounds."""
        rounds, overheads = view.experiment.rounds, [view.experiment.overheads_of(site) for site in view.sites]
        return cls(
            end,
            duration_us(rounds.length_s),
            rounds.open_local,
            tuple(step_us(site) for site in view.sites),
            tuple(duration_us(of.first_load_s) for of in overheads),
            tuple(duration_us(of.round_load_s) for of in overheads),
            tuple((duration_us(of.round_tail_single_s), duration_us(of.round_tail_s)) for of in overheads),
            tuple(duration_us(of.outer_step_s) for of in overheads),
        )

    def merge_us(self, members: Sequence[int]) -> int:
        """From the end of training to the end of a round."""
        many = len(members) > 1
        return max(self.tails[i][many] for i in members) + max(self.outer[i] for i in members)


class Rounds(NamedTuple):
    """Steps of one site in equal rounds that follow each other."""

    first: int
    """When its first step begins."""
    steps: int
    """Of each round."""
    off: int
    """Until when the site is provisioned."""
    rounds: int = 1
    period: int = 1
    """From one round's first step to the next one's."""

    @property
    def begins(self) -> range:
        """When the first step of each round begins."""
        return range(self.first, self.first + self.rounds * self.period, self.period)


class BusyWalk:
    """Walks rounds from `now` until no stretch is left, the clock ends, or so many steps are done."""

    def __init__(self, pace: Pace, stretches: Sequence[Stretch], now: int, left: int = FOREVER) -> None:
        """From where no round is in progress.

        Args:
            stretches: ascending; those of one site do not overlap.
            left: the walk is over with that many steps.
        """
        self.pace, self.now, self.left = pace, now, left
        self.steps = 0
        self.last_step = now
        self.over = False
        """Whether nothing follows: the steps are done, or the clock has ended."""
        self.spans: dict[int, list[Stretch]] = {i: [] for i in sorted({stretch.site for stretch in stretches})}
        for stretch in stretches:
            self.spans[stretch.site].append(stretch)
        self.at = dict.fromkeys(self.spans, 0)
        self.training: dict[int, list[Rounds]] = {i: [] for i in self.spans}

    def run(self, round_started: int | None = None, members: Sequence[int] = ()) -> None:
        """To the end, from inside a round where one is in progress."""
        self.over = not self._rounds(round_started, members)

    def _rounds(self, round_started: int | None, members: Sequence[int]) -> bool:
        if round_started is not None:
            going_on = [i for i in members if self._training_at(i, self.now)]
            if going_on and not self._round(going_on, round_started, self.now):
                return False
        while self.now < self.pace.end:
            active = [i for i in self.spans if self._training_at(i, self.now)]
            if active:
                if not self._full_rounds(active) and not self._round(active, self.now, self.now):
                    return False
                continue
            starts = [spans[k].low for i, spans in self.spans.items() if (k := self.at[i]) < len(spans)]
            if not starts:
                return True
            self.now = min(starts)
        self.now = self.pace.end
        return False

    def _full_rounds(self, members: list[int]) -> bool:
        """Several rounds at once, as long as the members stay the same and train their rounds' whole time."""
        of, now = self.pace, self.now
        if len(members) == 1 and of.open_local:
            return False
        spans = [self.spans[i][self.at[i]] for i in members]
        counts = [max(0, of.round_us - of.load[i]) // of.step[i] for i in members]
        together = sum(counts)
        late = any(span.ready + of.first_load[i] > now + of.load[i] for span, i in zip(spans, members, strict=True))
        if late or not together:
            return False
        merge = of.merge_us(members)
        period = of.round_us + merge
        until = min(min(span.high for span in spans), of.end - merge)
        rounds = min(
            (until - of.round_us - now) // period + 1,
            (self._next_join(members, now) - now - 1) // period + 1,
            (self.left - self.steps - 1) // together,
        )
        if rounds < 1:
            return False
        for i, span, n in zip(members, spans, counts, strict=True):
            if n:
                begin = now + of.load[i]
                self.training[i].append(Rounds(begin, n, span.off, rounds, period))
                self.last_step = max(self.last_step, begin + (rounds - 1) * period + n * of.step[i])
        self.steps += rounds * together
        self.now = now + rounds * period
        return True

    def _training_at(self, i: int, us: int) -> bool:
        spans, k = self.spans[i], self.at[i]
        while k < len(spans) and spans[k].high <= us:
            k += 1
        self.at[i] = k
        return k < len(spans) and spans[k].low <= us

    def _next_join(self, active: list[int], after: int) -> int:
        """When a site that is not in the round wants to train next: `after` itself where one does already."""
        found = FOREVER
        for i, spans in self.spans.items():
            if i not in active:
                k = self.at[i]
                while k < len(spans) and spans[k].high <= after:
                    k += 1
                if k < len(spans):
                    found = min(found, max(spans[k].low, after))
        return found

    def _round(self, members: list[int], start: int, since: int) -> bool:
        """One round; False when the walk is over with it."""
        of = self.pace
        merge = of.merge_us(members)
        spans = {i: self.spans[i][self.at[i]] for i in members}
        first = {i: max(start + of.load[i], span.ready + of.first_load[i]) for i, span in spans.items()}
        leave = dict.fromkeys(members, FOREVER)
        cap = max(start, of.end - merge)
        counted = sum(max(0, since - first[i]) // of.step[i] for i in members) if since > start else 0
        left = self.left - self.steps + counted

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
            event = min(spans[i].high for i in active)
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
                if spans[i].high <= event:
                    leave[i] = event
                    active.remove(i)
            if not active:
                steps = counts(FOREVER)
                stop = max(
                    max(first[i] + n * of.step[i], leave[i]) if n else leave[i]
                    for i, n in zip(members, steps, strict=True)
                )
                break
            if len(active) == 1 and of.open_local and self._next_join(active, event) <= event:
                steps, stop = counts(event), event
                break
        done = sum(steps)
        if done >= left:
            steps, stop = self._last_steps(members, first, steps, left)
            done = left
        self._book(spans, first, steps)
        self.steps += done - counted
        self.now = stop + (merge if done else 0)
        if self.steps >= self.left:
            return False
        if at_clock_end:
            self.now = of.end
            return False
        return True

    def _book(self, spans: dict[int, Stretch], first: dict[int, int], steps: list[int]) -> None:
        for (i, span), n in zip(spans.items(), steps, strict=True):
            if n:
                self.training[i].append(Rounds(first[i], n, span.off))
                self.last_step = max(self.last_step, first[i] + n * self.pace.step[i])

    def _last_steps(
        self, members: list[int], first: dict[int, int], counts: list[int], wanted: int
    ) -> tuple[list[int], int]:
        """As `timing.split_last_steps`, on the few numbers of one round."""
        step = self.pace.step
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
