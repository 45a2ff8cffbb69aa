"""Plans: per site the times in which it is provisioned, and the stretches of each in which it should train."""

from collections.abc import Sequence
from typing import NamedTuple

from curtail_pipeline.scheduling.timeline import Timeline

Span = tuple[int, int]


class Stay(NamedTuple):
    """One time that a site is provisioned: told to start at `up`, may train from `ready`, told to stop at `down`.

    All in microseconds; the stretches in which it should train ascend inside `[ready, down]`.
    """

    up: int
    ready: int
    down: int
    train: tuple[Span, ...]


Plan = tuple[tuple[Stay, ...], ...]
"""Per site, in the experiment's order, its stays, ascending."""


def stays_of(line: Timeline) -> tuple[Stay, ...]:
    """A policy's timeline as stays."""
    stretches = list(zip(line.train.tolist(), line.until.tolist(), strict=True))
    found = []
    for up, ready, down in zip(line.up.tolist(), line.ready.tolist(), line.down.tolist(), strict=True):
        inside = tuple((low, high) for low, high in stretches if up <= low < down)
        found.append(Stay(up, ready, down, inside))
    return tuple(found)


def with_joins(plan: Plan) -> Plan:
    """The plan in which a site that begins to train ends the others' round at once: they stop for a microsecond."""
    starts = sorted({low for stays in plan for stay in stays for low, _ in stay.train})
    return tuple(
        tuple(stay._replace(train=tuple(part for span in stay.train for part in _cut(span, starts))) for stay in stays)
        for stays in plan
    )


def _cut(span: Span, at: Sequence[int]) -> list[Span]:
    low, high = span
    parts = []
    for us in at:
        if low < us and us + 1 < high:
            parts.append((low, us))
            low = us + 1
    return [*parts, (low, high)]


def without_cuts(plan: Plan) -> Plan:
    """The plan without the stops of `with_joins`."""
    return tuple(tuple(stay._replace(train=tuple(touching(stay.train, 1))) for stay in stays) for stays in plan)


def touching(spans: Sequence[Span], apart: int = 0) -> list[Span]:
    """Of ascending stretches, those that touch, or are so little apart, as one; empty ones are left out."""
    found: list[Span] = []
    for low, high in spans:
        if found and low <= found[-1][1] + apart:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        elif low < high:
            found.append((low, high))
    return found


def without(span: Span, low: int, high: int) -> list[Span]:
    """What of a stretch is not in `[low, high)`."""
    begin, end = span
    return [part for part in ((begin, min(end, low)), (max(begin, high), end)) if part[0] < part[1]]


def known(spans: Sequence[Span], unknown: Sequence[Span]) -> Sequence[Span]:
    """What of the stretches is in none of the unknown ones."""
    for low, high in unknown:
        spans = [part for span in spans for part in without(span, low, high)]
    return spans
