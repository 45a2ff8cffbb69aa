"""The simulator: the loop of the headless run without the training, and its fast form for many sites over years.

`walk` returns when each site trains, idles and starts up. `step_walk` gets there by `advance`, segment by segment; that
works for every policy. `event_walk` does the same for policies whose timelines are known (`TimelinePolicy`): a light
loop over rounds, then arrays per site. Both give the same integers; a test holds them together.
"""

from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import cast

import numpy as np

from curtail_pipeline.scheduling.policies import TimelinePolicy, policy_of
from curtail_pipeline.scheduling.timeline import Timeline
from curtail_pipeline.scheduling.timing import (
    Finished,
    SegmentPlan,
    advance,
    clock_end,
    first_step_us,
    split_last_steps,
    step_counts,
    step_us,
)
from curtail_pipeline.scheduling.view import Job, View
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.settings.sites import PowerState, Site
from curtail_pipeline.times import HOUR, Micros, duration_us, from_us, outside, to_us

_EMPTY: Micros = np.empty(0, dtype=np.int64)
_FIRST_CHUNK = 1_024


@dataclass(frozen=True)
class SiteUse:
    """When one site was in which power state: disjoint ascending intervals, microseconds."""

    training: tuple[Micros, Micros]
    idle: tuple[Micros, Micros]
    start_up: tuple[Micros, Micros]

    def of(self, state: PowerState) -> tuple[Micros, Micros]:
        return {"training": self.training, "idle": self.idle, "start_up": self.start_up}[state]

    def hours(self, state: PowerState) -> float:
        start, end = self.of(state)
        return float((end - start).sum()) / HOUR


@dataclass(frozen=True)
class Walk:
    """What a schedule came to."""

    start: int
    end: int
    """End of the last merge, or of the clock."""
    last_step: int
    """End of the last optimiser step."""
    steps: int
    rounds: int
    """Rounds that trained at least one step."""
    finished: bool
    use: dict[str, SiteUse]
    events: int
    """Changes of some site's state and site-rounds: what the cost is linear in."""


def walk(view: View, job: Job, start: int, end: int | None = None) -> Walk:
    """Simulate from `start` until the job is done, or to `end` (the clock's end when not given).

    Raises:
        TraceError: `start` is not inside the recorded signal.
        PolicyError: what the policy raises.
    """
    if end is not None:
        settings = view.experiment
        clock = settings.clock.model_copy(update={"end": from_us(end)})
        experiment = settings.model_copy(update={"clock": clock})
    else:
        experiment = view.experiment
    if can_walk_events(view):
        return event_walk(view, experiment, job, start)
    return step_walk(view, experiment, job, start)


def step_walk(view: View, experiment: Experiment, job: Job, start: int) -> Walk:
    """By `advance`, exactly as the headless run goes."""
    now, rounds, events, last_step = from_us(start), 0, 0, start
    spans: dict[tuple[str, PowerState], list[tuple[int, int]]] = {}
    while True:
        part = advance(view, experiment, now, job)
        if isinstance(part, Finished):
            break
        for interval in part.intervals:
            spans.setdefault((interval.site, interval.state), []).append((to_us(interval.start), to_us(interval.end)))
        if isinstance(part, SegmentPlan):
            rounds += len(part.rounds)
            events += 1 + sum(len(plan.steps) for plan in part.rounds)
            last_step = to_us(part.last_step)
            job = replace(job, steps_done=job.steps_done + part.steps)
        else:
            events += 1
        now, job = part.end, replace(job, previous=part.sites)
    use = {
        site.name: SiteUse(
            _columns(spans.get((site.name, "training"), [])),
            _columns(spans.get((site.name, "idle"), [])),
            _columns(spans.get((site.name, "start_up"), [])),
        )
        for site in view.sites
    }
    done = job.steps_done >= job.steps_total
    return Walk(start, to_us(part.at), last_step, job.steps_done, rounds, done, use, events)


def _columns(rows: list[tuple[int, int]]) -> tuple[Micros, Micros]:
    table = np.array(rows, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def can_walk_events(view: View) -> bool:
    """Whether `event_walk` applies: known timelines, timed rounds, one merge time, a step in every full round."""
    rounds = view.experiment.rounds
    overheads = [view.experiment.overheads_of(site) for site in view.sites]
    merges = {(of.round_tail_s, of.round_tail_single_s, of.outer_step_s) for of in overheads}
    fits = all(
        duration_us(max(of.round_load_s, of.first_load_s)) + step_us(site) <= duration_us(rounds.length_s)
        for site, of in zip(view.sites, overheads, strict=True)
    )
    known = isinstance(policy_of(view), TimelinePolicy) and rounds.sync == "all"
    return known and not rounds.open_local and len(merges) == 1 and fits


@dataclass(frozen=True)
class _Rounds:
    """Rounds in a row: start, limit of training, and whether all members leave before it."""

    start: Micros
    stop: Micros
    many: list[bool]


class _RoundLoop:
    """Finds the rounds from the training stretches of all sites, in chunks; holds where it is."""

    def __init__(self, view: View, timelines: tuple[Timeline, ...], start: int, end: int) -> None:
        rounds, overheads = view.experiment.rounds, view.experiment.overheads_of(view.sites[0])
        self.round_us = duration_us(rounds.length_s)
        outer = duration_us(overheads.outer_step_s)
        self.merge = (
            duration_us(overheads.round_tail_single_s) + outer,
            duration_us(overheads.round_tail_s) + outer,
        )
        train = np.concatenate([line.train for line in timelines])
        until = np.concatenate([line.until for line in timelines])
        site = np.repeat(np.arange(len(timelines)), [len(line.train) for line in timelines])
        self.ready = np.concatenate([_ready_of(line) for line in timelines])
        order = np.argsort(train, kind="stable")
        self.site, self.ready = site[order], self.ready[order]
        self.train: list[int] = train[order].tolist()
        self.until: list[int] = until[order].tolist()
        self.ends: list[int] = np.sort(until).tolist()
        self.latest: list[int] = list(accumulate(self.until, max))
        self.view, self.now, self.end = view, start, end
        self.begun = self.ended = 0

    def chunk(self, size: int) -> _Rounds | None:
        """The next rounds, at most `size`; None at the end."""
        starts: list[int] = []
        stops: list[int] = []
        many: list[bool] = []
        train, ends, latest, end = self.train, self.ends, self.latest, self.end
        now, begun, ended = self.now, self.begun, self.ended
        one, several = self.merge
        while now < end and len(starts) < size:
            begun = bisect_right(train, now, begun)
            ended = bisect_right(ends, now, ended)
            members = begun - ended
            if not members:
                if begun == len(train):
                    now = end
                    break
                now = train[begun]
                continue
            merge = several if members > 1 else one
            cap = max(now, end - merge)
            limit = min(now + self.round_us, cap)
            starts.append(now)
            many.append(members > 1)
            if latest[begun - 1] >= limit:
                stops.append(limit)
                now = end if limit == cap and cap < starts[-1] + self.round_us else limit + merge
            else:
                stops.append(cap)
                now = self._all_leave(now, begun, cap, merge)
        self.now, self.begun, self.ended = now, begun, ended
        return _Rounds(np.array(starts, dtype=np.int64), np.array(stops, dtype=np.int64), many) if starts else None

    def _all_leave(self, now: int, begun: int, cap: int, merge: int) -> int:
        """When a round ends whose members all leave before its time is up."""
        stop, trained, k = now, False, begun - 1
        while k >= 0 and self.latest[k] > now:
            leave = self.until[k]
            if leave > now:
                site = self.view.sites[int(self.site[k])]
                overheads = self.view.experiment.overheads_of(site)
                first = int(first_step_us(np.int64(now), np.int64(self.ready[k]), overheads))  # type: ignore[arg-type]
                step = step_us(site)
                count = max(0, min((cap - first) // step, -((first - leave) // step)))
                stop = max(stop, leave, first + count * step if count else leave)
                trained = trained or count > 0
            k -= 1
        return stop + (merge if trained else 0)


def _ready_of(line: Timeline) -> Micros:
    """Per training stretch: when its site's start-up was complete."""
    return line.ready[np.searchsorted(line.up, line.train, side="right") - 1]


@dataclass(frozen=True)
class _SiteRounds:
    """One site's part in a chunk of rounds: rows are rounds in which it completes a step."""

    round: Micros
    first: Micros
    steps: Micros


def _site_rounds(site: Site, view: View, line: Timeline, ready: Micros, rounds: _Rounds) -> _SiteRounds:
    low = np.searchsorted(rounds.start, line.train, side="left")
    counts = np.searchsorted(rounds.start, line.until, side="left") - low
    stretch = np.repeat(np.arange(len(low)), counts)
    index = np.arange(len(stretch)) - np.repeat(np.cumsum(counts) - counts, counts) + low[stretch]
    first = first_step_us(rounds.start[index], ready[stretch], view.experiment.overheads_of(site))
    step = np.int64(step_us(site))
    steps = step_counts(first, step, rounds.stop[index], line.until[stretch])  # type: ignore[arg-type]
    some = steps > 0
    return _SiteRounds(index[some], first[some], steps[some])


def event_walk(view: View, experiment: Experiment, job: Job, start: int) -> Walk:
    """The same result from the policy's timelines, without deciding at every event."""
    policy = cast(TimelinePolicy, policy_of(view))
    end = clock_end(view, experiment)
    from_us(start)
    loop = _RoundLoop(view, policy.timelines, start, end)
    ready = [_ready_of(line) for line in policy.timelines]
    parts: list[list[_SiteRounds]] = [[] for _ in view.sites]
    done, rounds, size = job.steps_done, 0, _FIRST_CHUNK
    finished_at: int | None = None
    last_step = start
    while finished_at is None and (chunk := loop.chunk(size)) is not None:
        found = [
            _site_rounds(site, view, line, since, chunk)
            for site, line, since in zip(view.sites, policy.timelines, ready, strict=True)
        ]
        per_round = np.zeros(len(chunk.start), dtype=np.int64)
        for part in found:
            per_round[part.round] += part.steps
        total = np.cumsum(per_round)
        if done + int(total[-1]) >= job.steps_total:
            k = int(np.searchsorted(total, job.steps_total - done))
            left = job.steps_total - done - int(total[k] - per_round[k])
            found, stop = _cut(view, found, k, left)
            finished_at = last_step = stop
            end = stop + loop.merge[chunk.many[k]]
            per_round = per_round[: k + 1]
            done = job.steps_total
        else:
            done += int(total[-1])
        rounds += int((per_round > 0).sum())
        for into, part in zip(parts, found, strict=True):
            into.append(part)
        size *= 2
    use, events = {}, 0
    for site, line, chunks in zip(view.sites, policy.timelines, parts, strict=True):
        first = np.concatenate([part.first for part in chunks]) if chunks else _EMPTY
        steps = np.concatenate([part.steps for part in chunks]) if chunks else _EMPTY
        training = first, first + steps * step_us(site)
        use[site.name] = _site_use(view, site, line, training, start, end)
        events += len(first) + 3 * int((line.up < end).sum())
        if finished_at is None and len(first):
            last_step = max(last_step, int(training[1][-1]))
    return Walk(start, end, last_step, done, rounds, finished_at is not None, use, events)


def _cut(view: View, found: list[_SiteRounds], k: int, left: int) -> tuple[list[_SiteRounds], int]:
    """The job's last round: rounds up to `k`, of which only `left` steps are taken."""
    members, first, counts = [], [], []
    for i, part in enumerate(found):
        at = int(np.searchsorted(part.round, k))
        if at < len(part.round) and part.round[at] == k:
            members.append((i, at))
            first.append(part.first[at])
            counts.append(part.steps[at])
    step = np.array([step_us(view.sites[i]) for i, _ in members], dtype=np.int64)
    taken, stop = split_last_steps(np.array(first), step, np.array(counts), left)
    kept = []
    for part in found:
        before = part.round <= k
        kept.append(_SiteRounds(part.round[before], part.first[before], part.steps[before].copy()))
    for (i, at), count in zip(members, taken, strict=True):
        part, size = kept[i], at + (1 if count else 0)
        if count:
            part.steps[at] = count
        kept[i] = _SiteRounds(part.round[:size], part.first[:size], part.steps[:size])
    return kept, stop


def _site_use(view: View, site: Site, line: Timeline, training: tuple[Micros, Micros], start: int, end: int) -> SiteUse:
    """Start-up and idle time are what the timeline says, less the time in training."""
    overheads = view.experiment.overheads_of(site)
    provisioned = np.minimum(line.ready - duration_us(overheads.connect_s), line.down)
    drained = line.down + duration_us(overheads.stop_drain_s)
    drained[:-1] = np.minimum(drained[:-1], line.up[1:])
    idle = np.maximum(provisioned, line.up), drained
    return SiteUse(
        training,
        outside(_within(idle, start, end), training),
        outside(_within((line.up, provisioned), start, end), training),
    )


def _within(spans: tuple[Micros, Micros], start: int, end: int) -> tuple[Micros, Micros]:
    low, high = np.maximum(spans[0], start), np.minimum(spans[1], end)
    some = low < high
    return low[some], high[some]
