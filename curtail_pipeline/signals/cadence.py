"""How long each value of a source is valid: the source's cadence, not the distance to the next stamp.

A feed that drops points, or a listing of non-zero intervals only, has long distances between stamps and still measures
at its short cadence. Sources get finer over the years, from hourly to five minutes, and not coarser; so a coarser
stretch after a finer one is a feed that drops points, and only one at the begin, of a day at least, is a source that
was coarser then.
"""

from itertools import pairwise
from typing import Final

import numpy as np

from curtail_pipeline.times import Bools, Floats, Micros

DEFAULT_CADENCE_S: Final = 300
"""Cadence of a range in which a source gave fewer than two stamps: the five minutes of WattTime and most grids."""

_LONGEST_HELD_S: Final = 3600
_ESTABLISHED: Final = 3
_SHORTEST_FOUND_S: Final = 60
_CHANGED_AFTER_S: Final = 86_400
_SAME: Final = 1.5
"""Differences up to this factor are one cadence with a jitter."""
_REGULAR: Final = 0.9
"""Of the differences of a signal that is coarser than its rows are one cadence; a feed that drops points has others."""
_LASTING: Final = 6
"""So many equal differences in a row, longer than a value holds, may be those of a source that became coarser."""
_RARELY: Final = 0.1
"""A difference that divides all others is the cadence when so many of the differences are that short."""


def local_cadence(seconds: Floats) -> tuple[Floats, int]:
    """How long each stamp is valid, and the finest cadence.

    A difference between neighbours that occurs three times in a row is a cadence of the source, unless a finer one
    came before it or comes within a day; of a longer difference only the cadence is valid. Differences of more than an
    hour are holes as well, unless nothing is finer. Where none repeats so often, the cadence is the largest of which
    all differences are multiples, an hour at most.

    Args:
        seconds: sorted unique stamps [n] in seconds since the epoch.

    Returns:
        Validity in seconds [n] and the finest cadence in seconds.
    """
    steps = np.diff(seconds)
    if len(steps) == 0:
        return np.full(len(seconds), float(DEFAULT_CADENCE_S)), DEFAULT_CADENCE_S
    starts = np.flatnonzero(np.r_[True, steps[1:] != steps[:-1]])
    lengths = np.diff(np.r_[starts, len(steps)])
    established = np.repeat(lengths >= _ESTABLISHED, lengths)
    finest = _finest(steps, established)
    established &= (steps <= _LONGEST_HELD_S) | (steps == finest)
    established &= steps <= _SAME * _coarsest(seconds, steps, established, finest)
    index = np.where(established, np.arange(len(steps)), -1)
    left: Micros = np.maximum.accumulate(index)
    first = int(np.argmax(established)) if established.any() else -1
    neighbour = np.where(left >= 0, steps[left], steps[first] if first >= 0 else finest)
    valid = np.minimum(steps, np.where(established, steps, neighbour))
    return np.r_[valid, valid[-1]], finest


def coarser_step(stamps: Floats, known: Floats) -> float | None:
    """The cadence of a signal whose values stand in rows of a finer one, as in a table of 5-minute prices and hourly
    intensities; None where its rows without a value are holes.

    Args:
        stamps: sorted unique stamps of all rows, seconds.
        known: of those that have a value.
    """
    rows, steps = np.diff(stamps), np.diff(known)
    if len(steps) < _ESTABLISHED:
        return None
    values, counts = np.unique(steps, return_counts=True)
    common = float(values[np.argmax(counts)])
    finer = float(np.median(rows))
    regular = counts.max() >= _REGULAR * len(steps) and not (steps % common).any()
    return common if regular and common > finer and not common % finer and common <= _CHANGED_AFTER_S else None


def cut_stretch(seconds: Floats, valid: Floats) -> tuple[int, int] | None:
    """The longest stretch of values at equal distances of which each holds for a part only, by the indexes of its first
    and last; None where there is none. A feed that drops points looks like that, and so does a source that became
    coarser.

    Args:
        seconds: sorted unique stamps [n] of values.
        valid: how long each holds [n].
    """
    steps = np.diff(seconds)
    cut = (steps > valid[:-1]) & (steps <= _CHANGED_AFTER_S)
    if not cut.any():
        return None
    starts = np.flatnonzero(np.r_[True, (steps[1:] != steps[:-1]) | (cut[1:] != cut[:-1])])
    lengths = np.where(cut[starts], np.diff(np.r_[starts, len(steps)]), 0)
    lasted = np.where(lengths >= _LASTING, lengths * steps[starts], 0)
    longest = int(np.argmax(lasted))
    first = int(starts[longest])
    return (first, first + int(lengths[longest])) if lasted[longest] else None


def _finest(steps: Floats, established: Bools) -> int:
    """The finest cadence: the shortest established difference, or a shorter one of which all are multiples."""
    whole = np.round(steps).astype(np.int64)
    common = int(np.gcd.reduce(whole))
    if not established.any():
        found = common if common >= _SHORTEST_FOUND_S else max(1, round(float(np.median(steps))))
        return min(found, _LONGEST_HELD_S)
    shortest = max(1, round(float(steps[established].min())))
    if _SHORTEST_FOUND_S <= common < shortest and np.mean(whole == common) >= _RARELY:
        return common
    return shortest


def _coarsest(seconds: Floats, steps: Floats, established: Bools, finest: int) -> Floats:
    """The longest difference [n - 1] that can be the source's cadence: the shortest established one so far, or the
    next shorter one where that comes within a day."""
    if not (established & (steps == finest)).any():
        return np.full(len(steps), float(finest))
    coarsest: Floats = np.minimum.accumulate(np.where(established, steps, np.inf))
    bounds = [0, *(np.flatnonzero(coarsest[1:] != coarsest[:-1]) + 1).tolist()]
    for begin, change in reversed(list(pairwise(bounds))):
        if seconds[change] - seconds[begin] < _CHANGED_AFTER_S:
            coarsest[begin:change] = coarsest[change]
    return coarsest
