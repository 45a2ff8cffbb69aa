"""Mean and minimum of a signal over windows, so summed that a split into days changes no bit of the result."""

from dataclasses import dataclass

import numpy as np

from curtail_pipeline.times import FOREVER, SECOND, Floats, Micros
from curtail_pipeline.windows.hysteresis import Valid


@dataclass(frozen=True)
class Sums:
    """What a window has summed so far: value x seconds, seconds, and the least value (None before the first)."""

    total: float = 0.0
    seconds: float = 0.0
    least: float | None = None


@dataclass(frozen=True)
class WindowStats:
    """Per window: time-weighted mean and minimum (NaN where the signal had no value), and the sums to carry on with.

    The carried sums leave out the last row, whose duration is not known before the next one comes.
    """

    mean: Floats
    least: Floats
    carried: list[Sums]


def window_stats(
    valid: Valid, region: Micros, start: Micros, end: Micros, limit: int, before: dict[int, Sums]
) -> WindowStats:
    """Statistics of windows in order of region and start.

    Args:
        region, start, end: the windows; an end of `FOREVER` counts to `limit`.
        before: sums of a region's first window from an earlier range.
    """
    n = len(region)
    low, high = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    final_row = valid.offsets[region + 1] - 1
    until = np.minimum(end, limit)
    edges = np.searchsorted(region, np.arange(len(valid.offsets)))
    for r in np.unique(region).tolist():
        first = int(valid.offsets[r] + valid.markers[r])
        rows = valid.time[first : valid.offsets[r + 1]]
        mine = slice(edges[r], edges[r + 1])
        low[mine] = first + np.maximum(np.searchsorted(rows, start[mine], side="right") - 1, 0)
        high[mine] = first + np.searchsorted(rows, until[mine], side="left")
    counts = np.maximum(high - low, 0)
    heads = np.concatenate(([0], np.cumsum(counts)))
    window = np.repeat(np.arange(n), counts)
    index = np.arange(int(heads[-1])) - heads[window] + low[window]
    following = np.minimum(index + 1, len(valid.time) - 1)
    stops = np.where(index == final_row[window], FOREVER, valid.time[following])
    stops = np.minimum(np.minimum(stops, valid.expires(index)), until[window])
    spans = np.maximum(stops - np.maximum(valid.time[index], start[window]), 0) / SECOND
    values = valid.value[index]
    least = np.where(spans > 0, values, np.inf)

    carried_from = np.flatnonzero(np.concatenate(([True], region[1:] != region[:-1]))) if n else np.empty(0, dtype=int)
    earlier = [(int(k), before[int(region[k])]) for k in carried_from if int(region[k]) in before]
    lead = np.array([k for k, _ in earlier], dtype=np.int64)
    closing = (index == final_row[window]) & (end[window] == FOREVER) & (valid.expires(index) >= limit)
    # bincount adds in order of rows, so the carried sum followed by the rest is the sum that the whole would have had.
    bins = np.concatenate((lead, window))
    products = np.concatenate(([s.total for _, s in earlier], np.where(closing, 0.0, values * spans)))
    lengths = np.concatenate(([s.seconds for _, s in earlier], np.where(closing, 0.0, spans)))
    total = np.bincount(bins, weights=products, minlength=n)
    seconds = np.bincount(bins, weights=lengths, minlength=n)
    smallest = np.full(n, np.inf)
    for k, sums in earlier:
        smallest[k] = np.inf if sums.least is None else sums.least
    held = smallest.copy()
    filled = counts > 0
    if len(index):
        smallest[filled] = np.minimum(smallest[filled], np.minimum.reduceat(least, heads[:-1][filled]))
    carried = []
    last_total = np.bincount(window[closing], weights=(values * spans)[closing], minlength=n)
    last_seconds = np.bincount(window[closing], weights=spans[closing], minlength=n)
    for k in np.flatnonzero(end == FOREVER).tolist():
        own = slice(int(heads[k]), int(heads[k + 1]))
        inner = least[own][~closing[own]]
        minimum = min(float(inner.min(initial=np.inf)), float(held[k]))
        carried.append(Sums(float(total[k]), float(seconds[k]), None if np.isinf(minimum) else minimum))
    total, seconds = total + last_total, seconds + last_seconds
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(seconds > 0, total / seconds, np.nan)
    return WindowStats(mean, np.where(np.isinf(smallest), np.nan, smallest), carried)
