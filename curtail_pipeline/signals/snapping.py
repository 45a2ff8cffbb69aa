"""Stamps that jitter by seconds (00:00:13, 00:05:10, ...) to the cadence that they mean."""

from datetime import timedelta

import numpy as np
import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.times import Micros, micros_of, times_column

_CADENCES_S = (1, 2, 4, 5, 10, 15, 30, 60, 120, 180, 240, 300, 360, 600, 900, 1200, 1800, 3600, 7200, 10800, 86400)
"""Cadences that sources have."""
TOLERANCE, MOST_MOVED_S = 0.1, 60.0
"""Share of the cadence by which a stamp may be beside it, and the most, unless `traces.snap_s` says otherwise."""
_FIT, _FITTING = 0.15, 0.5
"""So near to a multiple of the cadence are at least so many of the differences."""
_JITTERED = 1.7
"""A step of so many short ones is still one that jitters; twice one is a dropped point."""
MOST_GRID = 1_000_000
"""Grid stamps that a file of few values may come to; 5-minute values of nine years."""
_SPARSE = 10
SECOND_US = 1_000_000


def snapped(times: pl.Series, source: str, cadence_s: int | None, snap_s: float | None) -> tuple[pl.Series, str | None]:
    """Irregular stamps on the cadence that they mean, with a note; regular ones as they are.

    Args:
        times: stamps of one signal in UTC, any order.
        cadence_s: where it is known.
        snap_s: how far a stamp may be moved; a tenth of the cadence, at most a minute, when not given.

    Raises:
        TraceError: a stamp is farther from every multiple of the cadence, or there is no cadence.
    """
    us = micros_of(times)
    if (us % SECOND_US).any():  # what is beside a second is how long the source took to write the stamp
        us = (us + SECOND_US // 2) // SECOND_US * SECOND_US
        times = times_column(us)
    if not (us % (60 * SECOND_US)).any():
        return times, None
    stamps = np.unique(us)
    steps: Micros = stamps[1:] - stamps[:-1]
    if len(steps) == 0:
        return times, None
    values, counts = np.unique(steps, return_counts=True)
    common = int(values[np.argmax(counts)])
    regular = cadence_s * SECOND_US if cadence_s is not None else common
    if not (steps % regular).any() and (cadence_s is not None or counts.max() * 2 >= len(steps)):
        return times, None
    short = steps[steps <= _JITTERED * np.quantile(steps, 0.1)]
    typical = float(np.mean(short)) / SECOND_US
    cadence = cadence_s or min(_CADENCES_S, key=lambda c: abs(c - typical) / c)
    size = cadence * SECOND_US
    beside = np.abs(steps - np.round(steps / size) * size)
    fits = abs(cadence - typical) <= _FIT * cadence and np.mean(beside <= _FIT * size) >= _FITTING
    if cadence_s is None and not fits:
        raise TraceError(
            f"{source}: the stamps have no cadence: neighbours are {values[0] / SECOND_US:g} to "
            f"{values[-1] / SECOND_US:g} s apart; set traces.cadence_s, and traces.snap_s to how far a stamp "
            "may be moved"
        )
    moved = (us + size // 2) // size * size
    tolerance = min(TOLERANCE * cadence, MOST_MOVED_S) if snap_s is None else snap_s
    off = np.abs(us - moved)
    if (off > tolerance * SECOND_US).any():
        worst = int(np.argmax(off))
        at = times_column(us[worst : worst + 1])[0]
        raise TraceError(
            f"{source}: the stamp {at:%Y-%m-%dT%H:%M:%S}Z is {off[worst] / SECOND_US:g} s beside its cadence "
            f"of {cadence} s, "
            f"more than the {tolerance:g} s that a stamp may be moved; give stamps on the cadence, set "
            "traces.cadence_s, "
            "or raise traces.snap_s if so much is right"
        )
    shift = timedelta(microseconds=int(off.max()))
    return times_column(moved), f"stamps were moved by up to {shift.total_seconds():g} s to a cadence of {cadence} s"


def require_small_grid(times: pl.Series, cadence_s: int, source: str) -> None:
    """Refuse a grid that is far larger than the values on it.

    Raises:
        TraceError: it is.
    """
    if times.is_empty():
        return
    us = micros_of(times)
    seconds = int(us.max() - us.min()) // SECOND_US
    stamps = seconds // cadence_s + 1
    if stamps > MOST_GRID and stamps > _SPARSE * len(times):
        raise TraceError(
            f"{source}: {len(times)} values with stamps as little as {cadence_s} s apart over {seconds // 86_400} days "
            f"would make a grid of {stamps} stamps; set traces.cadence_s to the source's cadence, or correct the stray "
            "stamps"
        )
