"""From a decision to an action: the pure rule under the membership sensor.

It reconciles rather than reacting to edges: what it returns depends on the desired membership, on whether a segment
is active and on the failures so far, so a missed tick, a restart or a cancelled run needs no special case.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from curtail_pipeline.scheduling.decide import Decision, Mode
from curtail_pipeline.scheduling.view import SiteDecision
from curtail_pipeline.times import iso, parse_utc

MEMBERSHIP_KEY = "membership.json"
"""The desired membership, which running segments and sites watch."""

BACKOFF_S = (15.0, 30.0, 60.0, 120.0, 300.0, 900.0)
"""Wait after the n-th failed attempt at a segment; the last one repeats."""


def site_to_json(site: SiteDecision) -> dict[str, Any]:
    """A site's decision as stored."""
    ready = iso(site.ready) if site.ready else None
    return {"state": site.state, "reason": site.reason, "since": iso(site.since), "ready": ready}


def site_from_json(content: Mapping[str, Any]) -> SiteDecision:
    ready = parse_utc(content["ready"]) if content["ready"] else None
    return SiteDecision(content["state"], content["reason"], parse_utc(content["since"]), ready)


@dataclass(frozen=True)
class Desired:
    """The membership that running segments watch (`membership.json`)."""

    generation: int
    states: Mapping[str, str]
    reason: str
    at: datetime

    def to_json(self) -> dict[str, Any]:
        return {
            "generation": self.generation,
            "states": dict(self.states),
            "reason": self.reason,
            "at": iso(self.at),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Desired":
        return cls(content["generation"], content["states"], content["reason"], parse_utc(content["at"]))


@dataclass(frozen=True)
class SegmentRequest:
    """One attempt at one checkpoint (`segments/<key>.json`)."""

    key: str
    attempt: int
    parent: str
    members: tuple[str, ...]
    mode: Mode
    generation: int
    start: datetime
    reason: str
    previous: Mapping[str, SiteDecision]
    """The decision in force before this one; with it the decision can be taken again."""

    def to_json(self) -> dict[str, Any]:
        return {
            **self.__dict__,
            "members": list(self.members),
            "start": iso(self.start),
            "previous": {name: site_to_json(site) for name, site in self.previous.items()},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "SegmentRequest":
        previous = {name: site_from_json(site) for name, site in content["previous"].items()}
        typed = {
            "members": tuple(content["members"]),
            "start": parse_utc(content["start"]),
            "previous": previous,
        }
        return cls(**{**content, **typed})


def request_key(key: str) -> str:
    """Where the request for a checkpoint is stored."""
    return f"segments/{key}.json"


@dataclass(frozen=True)
class Attempts:
    """What is known of earlier attempts at the next key."""

    number: int = 0
    last_failure: datetime | None = None
    """Wall time."""


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
    """
    states = {name: site.state for name, site in decision.sites.items()}
    changed = desired is None or dict(desired.states) != states
    generation = (desired.generation if desired else 0) + (1 if changed else 0)
    if changed or desired is None:
        desired = Desired(generation, states, decision.reason, decision.at)
    if active is not None:
        same = tuple(decision.members) == tuple(active)
        verb = "runs" if same else "is ending, since membership changed:"
        return Action(desired, changed, None, f"segment of {', '.join(active)} {verb} {decision.reason}")
    if decision.finished:
        return Action(desired, changed, None, f"nothing left to do: {decision.reason}")
    if not decision.members:
        return Action(desired, changed, None, f"pause: {decision.reason}")
    if attempts.number and attempts.last_failure is not None:
        wait = BACKOFF_S[min(attempts.number, len(BACKOFF_S)) - 1]
        due = attempts.last_failure + timedelta(seconds=wait)
        if wall < due:
            return Action(
                desired, changed, None, f"attempt {attempts.number} at {key} failed; the next is due at {iso(due)}"
            )
    request = SegmentRequest(
        key,
        attempts.number + 1,
        parent,
        tuple(decision.members),
        decision.mode,
        generation,
        decision.at,
        decision.reason,
        previous,
    )
    return Action(desired, changed, request, f"start {key} with {', '.join(request.members)}: {decision.reason}")
