"""Every second that a site was provisioned by the wall clock, each in exactly one state.

What the controller ordered says when a site is up, what the attempts at checkpoints did says what it was up for. Where
two of them speak of the same time, the one that explains more of the power goes first: training, training that came to
nothing, moving weights, and else what was ordered.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Final, NamedTuple

from pydantic import Field

from curtail_pipeline.emissions.grams import PowerInterval
from curtail_pipeline.scheduling.power_intervals import Span, base_power
from curtail_pipeline.scheduling.provision import Phase
from curtail_pipeline.scheduling.view import SiteDecision
from curtail_pipeline.settings.overheads import Overheads
from curtail_pipeline.settings.sites import MOST_KW_PER_DEVICE, PowerState, Site, power_kw
from curtail_pipeline.storage.records import Message, Utc
from curtail_pipeline.storage.store import Store
from curtail_pipeline.times import from_us, parse_utc, to_us

ORDERS = "orders"

FIRST: Final[tuple[PowerState, ...]] = ("training", "failed", "transfer", "idle")
"""States of work, in the order in which they are believed."""


class Ordered(Message):
    """What the sites were told at a time of the experiment's clock, in force until the next (`orders/<time>.json`)."""

    at: Utc
    sites: dict[str, SiteDecision]
    phases: dict[str, Phase] = Field(default_factory=dict)
    """What the sites with a provisioner were brought to by then: they are up as it says, whatever they were told."""


class Piece(NamedTuple):
    """A state over `[first, last)` microseconds."""

    state: PowerState
    first: int
    last: int
    kw: float | None = None
    """IT power where it was measured."""


@dataclass(frozen=True)
class Work:
    """A stretch in which a site took part in an attempt at a checkpoint: it was up, whatever was ordered meanwhile."""

    site: str
    state: PowerState
    start: datetime
    end: datetime
    kw: float | None = None
    """IT power, on average, where it was measured."""


def _key(at: datetime) -> str:
    return f"{ORDERS}/{at:%Y-%m-%dT%H%M%S.%f}Z.json"


def differs(sites: Mapping[str, SiteDecision], before: Mapping[str, SiteDecision]) -> bool:
    """Whether a site is told something else, or is up at another time."""
    return {n: (s.state, s.ready) for n, s in sites.items()} != {n: (s.state, s.ready) for n, s in before.items()}


def write_ordered(store: Store, ordered: Ordered) -> None:
    store.write_record(_key(ordered.at), ordered)


def read_ordered(store: Store, start: datetime, end: datetime) -> list[Ordered]:
    """What was in force in `[start, end)`, in order of time."""
    names = store.list(ORDERS)
    stamps = [parse_utc(name.removesuffix(".json")) for name in names]
    earlier = [name for name, at in zip(names, stamps, strict=True) if at <= start][-1:]
    later = [name for name, at in zip(names, stamps, strict=True) if start < at < end]
    return [store.read_record(f"{ORDERS}/{name}", Ordered) for name in earlier + later]


def provisioned_power(
    sites: Sequence[tuple[Site, Overheads]],
    ordered: Sequence[Ordered],
    work: Iterable[Work],
    start: datetime,
    end: datetime,
) -> tuple[PowerInterval, ...]:
    """What the sites drew over `[start, end)`, without overlap, by site and time. Pure.

    A site is provisioned from the order that starts it until it has stopped, and while it takes part in an attempt.

    Args:
        sites: with what each loses: how long starting and stopping take.
        ordered: in order of time; a site is off before it is first told anything.
        work: of all attempts; they may overlap.
    """
    begin, until = to_us(start), to_us(end)
    stamps = [*(to_us(order.at) for order in ordered), until]
    spans = [
        (Span(max(first, begin), min(last, until), order.sites), order.phases)
        for order, (first, last) in zip(ordered, pairwise(stamps), strict=True)
        if max(first, begin) < min(last, until)
    ]
    done = [(part.site, Piece(part.state, to_us(part.start), to_us(part.end), part.kw)) for part in work]
    intervals: list[PowerInterval] = []
    for site, overheads in sites:
        pieces: list[Piece] = []
        for state in FIRST:
            own = [piece for name, piece in done if (name, piece.state) == (site.name, state)]
            pieces = _beside(pieces, own, begin, until)
        told = [part for span, phases in spans for part in _told(site, overheads, span, phases.get(site.name))]
        pieces = _beside(pieces, told, begin, until)
        intervals += [_interval(site, piece) for piece in _joined(pieces)]
    return tuple(intervals)


def _told(site: Site, overheads: Overheads, span: Span, phase: Phase | None) -> list[Piece]:
    """What a site is up for while it takes no part in an attempt."""
    if phase is not None:
        return [] if phase == "off" else [Piece("start_up" if phase == "starting" else "idle", span.start, span.end)]
    return [Piece(*part) for part in base_power(site, overheads, span)] if site.name in span.sites else []


def _interval(site: Site, piece: Piece) -> PowerInterval:
    start, end = from_us(piece.first), from_us(piece.last)
    if piece.kw is None or piece.kw > MOST_KW_PER_DEVICE * site.devices:  # no counter of such a device says that
        return PowerInterval(site.name, piece.state, start, end, power_kw(site, piece.state))
    return PowerInterval(site.name, piece.state, start, end, piece.kw * site.pue, measured=True)


def _beside(known: Sequence[Piece], more: Iterable[Piece], begin: int, until: int) -> list[Piece]:
    """`known`, and of `more` what lies in `[begin, until)` and beside all that is known; ascending."""
    pieces = list(known)
    for part in more:
        cursor, stop = max(part.first, begin), min(part.last, until)
        for other in sorted(pieces, key=lambda piece: piece.first):
            if other.first >= stop:
                break
            if other.last > cursor:
                if other.first > cursor:
                    pieces.append(part._replace(first=cursor, last=other.first))
                cursor = other.last
        if cursor < stop:
            pieces.append(part._replace(first=cursor, last=stop))
    return sorted(pieces, key=lambda piece: piece.first)


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Pieces that touch and are alike, as one; rounds of training stay apart."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if (
            last
            and last.last == piece.first
            and piece.state != "training"
            and (last.state, last.kw) == (piece.state, piece.kw)
        ):
            joined[-1] = last._replace(last=piece.last)
        else:
            joined.append(piece)
    return joined
