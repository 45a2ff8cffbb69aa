"""What energy at times without a known intensity may have emitted: bounds, as nobody can tell the amount."""

from dataclasses import dataclass

import numpy as np

from curtail_pipeline.signals.held import Signal
from curtail_pipeline.times import DAY, HOUR, Floats, Micros


@dataclass(frozen=True)
class Bounds:
    """Least and most CO2 of energy at times without a known intensity, grams."""

    low_g: float
    high_g: float


def hole_bounds(start: Micros, end: Micros, kw: Floats | float, signal: Signal | None) -> Bounds | None:
    """What the unaccounted energy of `grams.count_grams` may have emitted: at the day's lowest and highest intensity.

    A hole is bounded by the values recorded on its own UTC day, as nothing is known of the hours in it.

    Args:
        start, end: of intervals that ascend and do not overlap.

    Returns:
        The sums; None where a day with such energy has no value at all, so that there is no bound.
    """
    length = end - start
    if not (length > 0).any():
        return Bounds(0.0, 0.0)
    if signal is None:
        return None
    first, last = int(start[0]), int(end[-1])
    midnights = np.arange(first // DAY + 1, -(-last // DAY), dtype=np.int64) * DAY
    inside = signal.edges[(signal.edges > first) & (signal.edges < last)]
    cuts = np.unique(np.concatenate(([first], inside, midnights, [last])))
    low, high = cuts[:-1], cuts[1:]
    hole = np.isnan(signal.held_at(low))
    # Energy up to each instant: straight lines through the intervals' ends.
    drawn = np.cumsum(kw * ((end - start) / HOUR))
    at = np.column_stack((start, end)).ravel()
    until = np.column_stack((np.concatenate(([0.0], drawn[:-1])), drawn)).ravel()
    kwh = np.interp(high[hole], at, until) - np.interp(low[hole], at, until)
    day = low[hole][kwh > 0] // DAY
    kwh = kwh[kwh > 0]
    days, begun = np.unique(signal.times // DAY, return_index=True)
    place = np.searchsorted(days, day)
    if (place >= len(days)).any() or (days[place] != day).any():
        return None
    least, most = np.minimum.reduceat(signal.values, begun), np.maximum.reduceat(signal.values, begun)
    return Bounds(float((kwh * least[place]).sum()), float((kwh * most[place]).sum()))
