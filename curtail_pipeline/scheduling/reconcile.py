"""From a decision to an action: the pure rule under the membership sensor.

It reconciles rather than reacting to edges: what it returns depends on the desired membership, on whether a segment
is active and on the failures so far, so a missed tick, a restart or a cancelled run needs no special case.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType

from pydantic import Field

from curtail_pipeline.scheduling.decide import Decision, Mode
from curtail_pipeline.scheduling.provision import Phase
from curtail_pipeline.scheduling.view import SiteDecision, State
from curtail_pipeline.storage.records import Message, Utc
from curtail_pipeline.times import iso

MEMBERSHIP_KEY = "membership.json"
"""The desired membership, which running segments and sites watch."""

BACKOFF_S = (15.0, 30.0, 60.0, 120.0, 300.0, 900.0)
"""Wait after the n-th failed attempt at a segment; the last one repeats."""


class Desired(Message):
    """The membership that running segments and sites watch (`membership.json`)."""

    generation: int
    states: dict[str, State]
    reasons: dict[str, str]
    """Why each site is in its state."""
    reason: str
    at: Utc

    @property
    def members(self) -> tuple[str, ...]:
        """The sites that should train."""
        return tuple(site for site, state in self.states.items() if state == "train")


class SegmentRequest(Message):
    """One attempt at one checkpoint (`segments/<key>.json`)."""

    key: str
    attempt: int = Field(ge=1)
    parent: str
    members: tuple[str, ...]
    mode: Mode
    generation: int
    start: Utc
    reason: str
    previous: dict[str, SiteDecision]
    """The decision in force before this one; with it the decision can be taken again."""
    before_pause: dict[str, SiteDecision]
    """The decision in force at the parent's end: sites that it holds idle draw power in the pause since."""
    away: dict[str, str] = Field(default_factory=dict)
    """Sites that took no part in the decision, and why."""


class InForce(Message):
    """The decision in force, which policies that plan ahead start from (`decision.json`)."""

    sites: dict[str, SiteDecision]
    parent: str
    """The last committed checkpoint."""
    at_parent: dict[str, SiteDecision]
    """What was in force at the end of that checkpoint's segment."""
    ordered: bool = False
    """Whether it is by the wall clock, and thus kept among the orders."""
    phases: dict[str, Phase] = Field(default_factory=dict)
    """`provisioned_time.Ordered.phases`."""


def request_key(key: str) -> str:
    """Where the request for a checkpoint is stored."""
    return f"segments/{key}.json"


@dataclass(frozen=True)
class Setback:
    """What the newest runs at the next key came to, where it was nothing."""

    at: datetime
    """When the last one ended, wall time."""
    failures: int = 1
    """In a row; 1 where the last one was none."""
    without_step: tuple[str, ...] | None = None
    """Members of the last one where it ended before its first step, which is no failure."""

    def due(self) -> datetime:
        """When the next attempt may start."""
        return backoff_due(self.failures, self.at)


@dataclass(frozen=True)
class Attempts:
    """What is known of earlier attempts at the next key."""

    number: int = 0
    setback: Setback | None = None
    paused: str = ""
    """That somebody stopped the key's segment, and how to go on; empty when nobody did."""


def backoff_due(failures: int, last: datetime) -> datetime:
    """When the next attempt may start after so many that failed, the last one at that wall time."""
    return last + timedelta(seconds=BACKOFF_S[min(failures, len(BACKOFF_S)) - 1])


@dataclass(frozen=True)
class Action:
    desired: Desired
    changed: bool
    """Whether `desired` is a new generation that has to be written."""
    request: SegmentRequest | None
    reason: str


def reconcile(
    decision: Decision,
    desired: Desired | None,
    *,
    active: tuple[str, ...] | None,
    parent: str,
    key: str,
    attempts: Attempts,
    wall: datetime,
    previous: Mapping[str, SiteDecision],
    before_pause: Mapping[str, SiteDecision],
    away: Mapping[str, str] = MappingProxyType({}),
) -> Action:
    """What the controller should do now.

    Args:
        decision: what each site should do at the clock's now.
        desired: what was last written, None at first.
        active: members of the segment that runs, None when none does.
        parent: the last committed checkpoint.
        key: the key of the segment to start if one is to be started.
        attempts: earlier attempts at `key`.
        wall: wall-clock now, for the backoff after failures.
        previous: the decision in force until now, handed on with the request.
        before_pause: the one in force at the parent's end, likewise.
        away: sites that were left out of the decision, and why, likewise.
    """
    states = {name: site.state for name, site in decision.sites.items()}
    changed = desired is None or desired.states != states
    generation = (desired.generation if desired else 0) + (1 if changed else 0)
    if changed or desired is None:
        desired = Desired(
            generation=generation,
            states=states,
            reasons={name: site.reason for name, site in decision.sites.items()},
            reason=decision.reason,
            at=decision.at,
        )
    if active is not None:
        same = decision.members == active
        verb = "runs" if same else "is ending, since membership changed:"
        return Action(desired, changed, None, f"segment of {', '.join(active)} {verb} {decision.reason}")
    if decision.finished:
        return Action(desired, changed, None, f"nothing left to do: {decision.reason}")
    if not decision.members:
        then = f"; next at {iso(decision.next_change)}" if decision.next_change else ""
        return Action(desired, changed, None, f"pause: {decision.reason}{then}")
    if attempts.paused:
        return Action(desired, changed, None, attempts.paused)
    if attempts.number and (waits := _waits(attempts, decision.members, key, wall)):
        return Action(desired, changed, None, waits)
    request = SegmentRequest(
        key=key,
        attempt=attempts.number + 1,
        parent=parent,
        members=decision.members,
        mode=decision.mode,
        generation=generation,
        start=decision.at,
        reason=decision.reason,
        previous=dict(previous),
        before_pause=dict(before_pause),
        away=dict(away),
    )
    return Action(desired, changed, request, f"start {key} with {', '.join(request.members)}: {decision.reason}")


def _waits(attempts: Attempts, members: tuple[str, ...], key: str, wall: datetime) -> str | None:
    """Why the next attempt is not due yet. Other members than those that trained no step need not wait."""
    back = attempts.setback
    if back is None or back.without_step not in (None, members):
        return None
    if not back.at <= wall < back.due():  # no wait for a clock that was set back
        return None
    what = f"attempt {attempts.number} at {key} " + ("failed" if back.without_step is None else "trained no step")
    return f"{what}; the next is due at {iso(back.due())}"
