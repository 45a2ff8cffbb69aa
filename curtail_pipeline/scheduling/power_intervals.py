"""The power that sites draw under decisions: training where they train, else start-up, idle or off."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from curtail_pipeline.emissions.grams import PowerInterval
from curtail_pipeline.scheduling.view import SiteDecision, View
from curtail_pipeline.settings.overheads import Overheads
from curtail_pipeline.settings.sites import PowerState, Site, power_kw
from curtail_pipeline.times import duration_us, from_us, to_us


@dataclass(frozen=True)
class Span:
    """A decision in force over `[start, end)`."""

    start: int
    end: int
    sites: Mapping[str, SiteDecision]


def base_power(site: Site, overheads: Overheads, span: Span) -> Iterator[tuple[PowerState, int, int]]:
    """State of a site that is not training over `[first, last)`, from the decision in force."""
    state = span.sites[site.name]
    if state.state == "off":
        if state.ready is not None:
            drained = min(span.end, to_us(state.since) + duration_us(overheads.stop_drain_s))
            yield "idle", span.start, drained
        return
    if state.ready is None:
        yield "idle", span.start, span.end
        return
    provisioned = to_us(state.ready) - duration_us(overheads.connect_s)
    yield "start_up", span.start, min(span.end, provisioned)
    yield "idle", max(span.start, provisioned), span.end


def power_intervals(
    view: View, spans: Sequence[Span], training: Sequence[tuple[str, int, int]]
) -> tuple[PowerInterval, ...]:
    """Power of every site of the view, without overlap, in order of site and start.

    Args:
        spans: decisions in force, one after another.
        training: (site, first microsecond, last) of the stretches in which sites train; they go before the decisions.
    """
    intervals: list[PowerInterval] = []
    for site in view.sites:
        busy = sorted((first, last) for name, first, last in training if name == site.name)
        overheads = view.experiment.overheads_of(site)
        pieces: list[tuple[PowerState, int, int]] = [("training", first, last) for first, last in busy]
        for span in spans:
            for state, start, end in base_power(site, overheads, span):
                for first, last in busy:
                    if first >= end:
                        break
                    if last > start:
                        if first > start:
                            pieces.append((state, start, first))
                        start = last
                if end > start:
                    pieces.append((state, start, end))
        pieces.sort(key=lambda piece: piece[1])
        merged: list[tuple[PowerState, int, int]] = []
        for piece in pieces:
            if merged and merged[-1][0] == piece[0] != "training" and merged[-1][2] == piece[1]:
                merged[-1] = (piece[0], merged[-1][1], piece[2])
            else:
                merged.append(piece)
        intervals += [
            PowerInterval(site.name, state, from_us(start), from_us(end), power_kw(site, state))
            for state, start, end in merged
        ]
    return tuple(intervals)
