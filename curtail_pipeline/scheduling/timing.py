"""One timing model: from a decision to rounds, step counts and power intervals in virtual time.

The headless run executes these plans and the simulator adds them up. A round starts, loads, trains until its time is up
(or a member leaves, or the job is done), then merges. All arithmetic is in integer microseconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np

from curtail_pipeline.emissions.grams import PowerInterval
from curtail_pipeline.errors import PolicyError
from curtail_pipeline.scheduling.decide import Decision, Mode, decide
from curtail_pipeline.scheduling.policies import policy_of
from curtail_pipeline.scheduling.power_intervals import Span, power_intervals
from curtail_pipeline.scheduling.view import Job, SiteDecision, View
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.settings.overheads import Overheads
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.times import FOREVER, SECOND, Micros, duration_us, from_us, to_us


@dataclass(frozen=True)
class RoundPlan:
    """One round that trains at least one step."""

    index: int
    start: datetime
    end: datetime
    """After the merge."""
    steps: dict[str, int]
    """Per member, at least 1; a member that leaves before its first step is not here."""
    stops: dict[str, str]
    """Members that stop before the round's time is up, and why."""


@dataclass(frozen=True)
class SegmentPlan:
    """A stretch of training with constant members."""

    start: datetime
    end: datetime
    members: tuple[str, ...]
    mode: Mode
    rounds: tuple[RoundPlan, ...]
    intervals: tuple[PowerInterval, ...]
    """Power of every site, members or not, clipped to the segment."""
    stop_reason: str
    last_step: datetime
    """When the last optimiser step ends; the rest is merging."""
    sites: Mapping[str, SiteDecision] = field(default_factory=dict)
    """The decision in force at the end: `Job.previous` of what follows."""

    @property
    def steps(self) -> int:
        return sum(sum(part.steps.values()) for part in self.rounds)


@dataclass(frozen=True)
class Pause:
    """No site trains in `[start, end)`."""

    start: datetime
    end: datetime
    reason: str
    intervals: tuple[PowerInterval, ...]
    sites: Mapping[str, SiteDecision] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """Nothing more to do: `job finished` or `clock end`."""

    at: datetime
    reason: str


def step_us(site: Site) -> int:
    """Duration of one step, rounded to a microsecond."""
    return max(1, round(SECOND / site.steps_per_s))


def first_step_us(round_start: Micros, ready: Micros, overheads: Overheads) -> Micros:
    """When a member's training starts: after the round's load, and not before its first load after a start-up."""
    return np.maximum(round_start + duration_us(overheads.round_load_s), ready + duration_us(overheads.first_load_s))


def step_counts(first: Micros, step: Micros, stop: Micros, leave: Micros) -> Micros:
    """Steps completed from `first`: whole ones before `stop`; a member that leaves finishes the step it is in."""
    whole = np.maximum(stop - first, 0) // step
    until_leave = -(-np.maximum(leave - first, 0) // step)
    counts: Micros = np.minimum(whole, until_leave)
    return counts


def split_last_steps(first: Micros, step: Micros, counts: Micros, wanted: int) -> tuple[Micros, int]:
    """The first `wanted` completions of a round whose members could do `counts`; and when the last of them ends.

    Steps that end at the same microsecond go to the member that comes first in the experiment.
    """
    low, high = int(first.min()), int((first + counts * step).max())
    while low < high:
        middle = (low + high) // 2
        if int(np.minimum(counts, np.maximum(middle - first, 0) // step).sum()) >= wanted:
            high = middle
        else:
            low = middle + 1
    done = np.minimum(counts, np.maximum(low - first, 0) // step)
    surplus = int(done.sum()) - wanted
    for i in reversed(range(len(done))):
        if surplus and done[i] and first[i] + done[i] * step[i] == low:
            done[i] -= 1
            surplus -= 1
    return done, low


def clock_end(view: View, experiment: Experiment) -> int:
    """Where headless time ends: the trace's end or the configured one, whichever comes first."""
    end = view.end_us
    if experiment.clock.end is not None:
        end = min(end, to_us(experiment.clock.end))
    return end


def _steps_at(
    view: View, us: int, job: Job, done: int, current: Decision, round_started: int | None = None
) -> Decision:
    known = replace(
        job,
        steps_done=min(done, job.steps_total),
        previous=current.sites,
        round_started=None if round_started is None else from_us(round_started),
    )
    return decide(view, from_us(us), known)


class _Round:
    """One round, walked event by event so that the decision is taken at every one of them."""

    def __init__(self, view: View, job: Job, start: int, end_us: int, current: Decision, members: tuple[str, ...]):
        experiment = view.experiment
        self.view, self.job, self.start, self.current = view, job, start, current
        self.names = members
        sites = [experiment.site(name) for name in members]
        overheads = [experiment.overheads_of(site) for site in sites]
        self.step = np.array([step_us(site) for site in sites], dtype=np.int64)
        self.first = np.array(
            [
                int(first_step_us(np.int64(start), np.int64(_ready_us(current.sites[name], start)), of))  # type: ignore[arg-type]
                for name, of in zip(members, overheads, strict=True)
            ],
            dtype=np.int64,
        )
        self.leave = np.full(len(members), FOREVER, dtype=np.int64)
        self.stops: dict[str, str] = {}
        self.spans: list[Span] = []
        self.at_clock_end = False
        self._merge_us = {
            many: max(duration_us(of.round_tail_s if many else of.round_tail_single_s) for of in overheads)
            + max(duration_us(of.outer_step_s) for of in overheads)
            for many in (False, True)
        }
        self._walk(end_us)

    def _counts(self, stop: int) -> Micros:
        return step_counts(self.first, self.step, np.minimum(stop, self.cap), self.leave)

    def _walk(self, end_us: int) -> None:
        self.cap = max(self.start, end_us - self._merge_us[len(self.names) > 1])
        now = self.start
        while True:
            event = policy_of(self.view).next_event(self.view, now)
            if self._over_before(event):
                break
            self._decide_at(now, event)
            now = event
            if self._over_at(event):
                break
        self.last = self.first + self.steps * self.step
        self.end = self.stop + (self._merge_us[len(self.names) > 1] if self.steps.any() else 0)
        self._finish_spans(now)

    @property
    def _training(self) -> list[str]:
        """The members that have not left."""
        return [name for name, leave in zip(self.names, self.leave, strict=True) if leave == FOREVER]

    def _over_before(self, event: int) -> bool:
        """Whether the job is done or the round's time is up before anything can change."""
        rounds = self.view.experiment.rounds
        alone = len(self._training) == 1 and rounds.open_local
        limit = FOREVER if alone else self.start + duration_us(rounds.length_s)
        stop = min(limit, self.cap, event)
        counts = self._counts(stop)
        if int(counts.sum()) >= self.job.steps_left:
            self.steps, self.stop = split_last_steps(self.first, self.step, counts, self.job.steps_left)
            return True
        if event >= min(limit, self.cap):
            self.steps, self.stop = counts, stop
            self.at_clock_end = stop == self.cap and self.cap < limit
            return True
        return False

    def _decide_at(self, now: int, event: int) -> None:
        """Takes the decision of `event`, which follows the one of `now`; members it names no longer leave."""
        done = self.job.steps_done + int(self._counts(event).sum())
        following = _steps_at(self.view, event, self.job, done, self.current, self.start)
        self.spans.append(Span(now, event, self.current.sites))
        self.current = following
        for i, name in enumerate(self.names):
            if self.leave[i] == FOREVER and following.sites[name].state != "train":
                self.leave[i] = event
                self.stops[name] = following.sites[name].reason

    def _over_at(self, event: int) -> bool:
        """Whether the decision of `event` ends the round: every member has left, or others join an open round."""
        training = self._training
        if not training:
            self.steps = self._counts(FOREVER)
            if int(self.steps.sum()) >= self.job.steps_left:
                self.steps, self.stop = split_last_steps(self.first, self.step, self.steps, self.job.steps_left)
                return True
            last = self.first + self.steps * self.step
            self.stop = int(np.max(np.where(self.steps > 0, np.maximum(last, self.leave), self.leave)))
            return True
        others = set(self.current.members) - set(training)
        if len(training) == 1 and self.view.experiment.rounds.open_local and others:
            self.steps, self.stop = self._counts(event), event
            return True
        return False

    def _finish_spans(self, now: int) -> None:
        """Goes on deciding through the merge, so that the power of joining and leaving sites is right."""
        done = min(self.job.steps_done + int(self.steps.sum()), self.job.steps_total - 1)
        while True:
            event = policy_of(self.view).next_event(self.view, now)
            if event >= min(self.end, self.view.end_us):
                break
            self.spans.append(Span(now, event, self.current.sites))
            self.current, now = _steps_at(self.view, event, self.job, done, self.current, self.start), event
        self.spans.append(Span(now, self.end, self.current.sites))


def _ready_us(site: SiteDecision, start: int) -> int:
    return -FOREVER if site.ready is None else min(to_us(site.ready), start)


def plan_segment(view: View, experiment: Experiment, start: datetime, job: Job, decision: Decision) -> SegmentPlan:
    """What a segment that starts now will do, given that the sites work at their declared speed. Pure.

    Rounds follow each other until the membership changes (a leaving member stops after its step, the others finish the
    round; a joining one waits for the round's end), the length cap, the end of the job, or the end of the clock. Rounds
    in which nobody completes a step are left out; their time and power are kept.

    Raises:
        PolicyError: the decision has no members, or is not of `start`.
    """
    if not decision.members or decision.at != start:
        raise PolicyError(f"a segment at {start} needs a decision of that time with members, not one of {decision.at}")
    end_us, begin = clock_end(view, experiment), to_us(start)
    members, current, now = decision.members, decision, begin
    done = job.steps_done
    rounds: list[RoundPlan] = []
    spans: list[Span] = []
    training: list[tuple[str, int, int]] = []
    last_step, reason = begin, "length cap"
    for _ in range(experiment.rounds.max_rounds):
        part = _Round(view, replace(job, steps_done=done), now, end_us, current, members)
        spans += part.spans
        counts = {name: int(n) for name, n in zip(members, part.steps, strict=True) if n}
        for i, name in enumerate(members):
            if part.steps[i]:
                training.append((name, int(part.first[i]), int(part.last[i])))
                last_step = max(last_step, int(part.last[i]))
        if counts:
            rounds.append(RoundPlan(len(rounds), from_us(now), from_us(part.end), counts, part.stops))
        done += sum(counts.values())
        now, current = part.end, part.current
        if done >= job.steps_total:
            reason = "job finished"
            break
        if part.at_clock_end or now >= end_us:
            now, reason = end_us, "clock end"
            spans.append(Span(part.end, end_us, current.sites))
            break
        current = _steps_at(view, now, job, done, current)
        ended = _membership_change(members, part.stops, current)
        if ended:
            reason = ended
            break
    trained = tuple(name for name in members if any(name in part.steps for part in rounds))
    mode: Mode = "pause" if not trained else "local" if len(trained) == 1 else "federated"
    return SegmentPlan(
        start,
        from_us(now),
        trained,
        mode,
        tuple(rounds),
        power_intervals(view, spans, training),
        reason,
        from_us(last_step),
        current.sites,
    )


def _membership_change(members: tuple[str, ...], stops: dict[str, str], current: Decision) -> str:
    left = dict(stops)
    left.update({name: current.sites[name].reason for name in members if name not in current.members})
    joined = [name for name in current.members if name not in members]
    parts = [f"{name} leaves: {why}" for name, why in left.items()] + [f"{name} joins" for name in joined]
    return "; ".join(parts)


def _idle_walk(
    view: View, start: int, limit: int, job: Job, *, until_members: bool
) -> tuple[int, Decision, list[Span]]:
    current = decide(view, from_us(start), job)
    now, spans = start, []
    while now < limit and not (until_members and current.members):
        event = min(limit, policy_of(view).next_event(view, now))
        spans.append(Span(now, event, current.sites))
        if event < limit:
            current = _steps_at(view, event, job, job.steps_done, current)
        now = event
    return now, current, spans


def idle_intervals(
    view: View, experiment: Experiment, start: datetime, end: datetime, job: Job
) -> tuple[PowerInterval, ...]:
    """Power of provisioned sites over `[start, end)` while no segment runs: start-up, idle, stopping."""
    limit = min(to_us(end), clock_end(view, experiment))
    _, _, spans = _idle_walk(view, to_us(start), limit, job, until_members=False)
    return power_intervals(view, spans, [])


def advance(view: View, experiment: Experiment, now: datetime, job: Job) -> SegmentPlan | Pause | Finished:
    """What happens next: a segment, a pause until some site trains (or the clock ends), or nothing more.

    What it returns covers the time from `now` without a gap: call it again with the returned `end`, the steps added and
    `previous` set to the returned `sites`.
    """
    end_us, begin = clock_end(view, experiment), to_us(now)
    if job.steps_done >= job.steps_total:
        return Finished(now, "job finished")
    if begin >= end_us:
        return Finished(now, "clock end")
    decision = decide(view, now, job)
    if not decision.members:
        until, following, spans = _idle_walk(view, begin, end_us, job, until_members=True)
        return Pause(now, from_us(until), decision.reason, power_intervals(view, spans, []), following.sites)
    plan = plan_segment(view, experiment, now, job, decision)
    if not plan.rounds:
        return Pause(now, plan.end, f"no step completed: {plan.stop_reason}", plan.intervals, plan.sites)
    return plan
