"""Which exact zeros of an intensity or a price are no measurement.

What a zero means is judged by the region's own history, because an exact zero is ordinary in one region (South
Australia's marginal intensity: 58 % of a day) and never seen in another (CAISO_NORTH: never below 35 g/kWh in a month
of 2023).

An *episode* is a run of exact zeros; runs within a quarter of an hour are one. It is *hard* when the signal jumps to
zero from its ordinary values and back to them, or to an end of what there is, and *soft* when one of the values of the
quarter of an hour before or after it is lower. Ordinary is what is above half the median of the values that are not
zero, and hardly below nine tenths of those. Then

- a region with half as many soft episodes as hard ones is known for zeros, and keeps them, but for a hard episode of
  an hour and of twice its longest soft one;
- a region with four episodes of an hour, on at least half of its days, is known for zeros, too, but for one of twice
  the longest other, and unless most of them last equally long, as no weather does;
- in any other region hard episodes are no measurement, which also holds for zeros that alternate with values;
- hard episodes that begin and end at the same stamps in two regions, from three quarters of the median in each and
  for an hour, are an outage of the source, whatever the regions are known for; and so are zeros that begin or end with
  a jump when another region's outage does.

In 12 months of California (SGIP, PGE) no zero is withheld, and on no single day of them. Zero is the ordinary value of
curtailed power, where it opens no window, and an ordinary one of a region whose other intensities are below 100 g/kWh.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from curtail_pipeline.settings.trace_settings import Kind
from curtail_pipeline.signals.judged import Values, runs
from curtail_pipeline.times import Bools, Floats, Micros

HARD_SHARE: Final = 0.5
"""Of the median of a region's values that are not zero: from above this a jump to zero is hard."""
LOW_QUANTILE, LOW_SHARE = 0.1, 0.9
"""... and from above this share of the value that so many of them are below. 24 of 464 episodes in 12 months of
California begin and end above half the median, 3 above this as well."""
OUTAGE_SHARE: Final = 0.75
"""... and from above this share of the median in two regions at once, or where there is little to judge a region by."""
HISTORY_S: Final = 2 * 86_400.0
"""Less than this is little."""
CLEAN_G_PER_KWH: Final = 100.0
"""The default threshold of the rules. Below it a zero opens no window that would not be open anyway."""
NOTHING_G_PER_KWH: Final = 0.01
"""An intensity below this is a zero: of 125,000 real values that are not exactly 0 the least is 0.17."""
ENOUGH: Final = 12
"""Values that are not zero; with fewer nothing is known of a region."""
OUTAGE_S: Final = 3600.0
OFTEN: Final = 4
"""So many episodes of an hour, on at least half of all days, make a region known for zeros whatever they begin with."""
SAME_SHARE: Final = 2 / 3
"""... unless so many of them last equally long."""
DAY_US: Final = 86_400_000_000
TOGETHER_US: Final = 900_000_000
"""A quarter of an hour: zeros within it are one episode, jumps of two regions within it one event."""


@dataclass(frozen=True)
class _Zeros:
    """Episodes of exact zeros of one signal [k]."""

    first: Micros
    after: Micros
    before: Floats
    """The least of the values just before it; NaN where there is none."""
    behind: Floats
    median: float
    lasted_s: Floats
    begin: Micros
    end: Micros
    """Behind the last zero, microseconds."""
    days: int
    """That the signal covers."""
    is_zero: Bools
    """Of all values of the signal, not only of episodes."""
    ordinary: float
    """From above this a jump to zero is hard."""

    def edges(self, level: float) -> tuple[Bools, Bools]:
        """Which episodes jump to zero from above a level, and which back; an end of the data is no evidence against
        it."""
        return (self.before >= level) | np.isnan(self.before), (self.behind >= level) | np.isnan(self.behind)

    def hard(self, level: float) -> Bools:
        begins, ends = self.edges(level)
        return begins & ends & ~self.alone

    @property
    def alone(self) -> Bools:
        return np.isnan(self.before) & np.isnan(self.behind)

    @property
    def whole(self) -> Bools:
        """Which of them begin and end within the data."""
        return ~np.isnan(self.before) & ~np.isnan(self.behind)


def wrong_zeros(signals: Sequence[Values]) -> list[tuple[Micros, Micros]]:
    """Of each signal, the indexes of zeros that are no measurement: where their runs begin, and behind which they end.

    Give all regions of a source, so that an outage shows.
    """
    episodes = [_episodes(signal) for signal in signals]
    outages = _outages(signals, episodes)
    wrong = [
        np.zeros(0, dtype=bool) if zeros is None else _by_history(zeros, signal.kind) | outage
        for signal, zeros, outage in zip(signals, episodes, outages, strict=True)
    ]
    none = np.zeros(0, dtype=np.int64)
    return [
        (none, none) if zeros is None else _with_the_others(index, signals, episodes, wrong)
        for index, zeros in enumerate(episodes)
    ]


def _episodes(signal: Values) -> _Zeros | None:
    """None where there is no zero, too little else to judge it by, or zero is an ordinary value of the signal."""
    values, times = signal.values, signal.times
    if signal.kind != "price":
        values = np.where(np.abs(values) < NOTHING_G_PER_KWH, 0.0, values)
    others = np.abs(values[values != 0])
    if signal.kind == "curtailed_power" or len(others) < ENOUGH or len(others) == len(values):
        return None
    median = float(np.median(others))
    if signal.kind != "price" and median < CLEAN_G_PER_KWH:
        return None
    first, after = _joined(values, times)
    begin, end = times[first], times[after - 1] + round(signal.cadence_s * 1e6)
    near = max(1, round(TOGETHER_US / 1e6 / signal.cadence_s))
    return _Zeros(
        first=first,
        after=after,
        before=np.array([_least(values[max(0, at - near) : at]) for at in first]),
        behind=np.array([_least(values[at : at + near]) for at in after]),
        median=median,
        lasted_s=(end - begin) / 1e6,
        begin=begin,
        end=end,
        days=len(np.unique(times // DAY_US)),
        ordinary=max(
            (HARD_SHARE if len(values) * signal.cadence_s >= HISTORY_S else OUTAGE_SHARE) * median,
            LOW_SHARE * float(np.quantile(others, LOW_QUANTILE)),
        ),
        is_zero=values == 0,
    )


def _joined(values: Floats, times: Micros) -> tuple[Micros, Micros]:
    """Where episodes begin, and behind which index they end."""
    first, after = runs(values)
    zero = values[first] == 0
    first, after = first[zero], after[zero]
    apart = times[first[1:]] - times[after[:-1] - 1] > TOGETHER_US
    return first[np.r_[True, apart]], after[np.r_[apart, True]]


def _least(values: Floats) -> float:
    """The least of a few values that is not zero, which may be a negative price; NaN without any."""
    others = values[values != 0]
    return float(others.min()) if len(others) else float("nan")


def _by_history(zeros: _Zeros, kind: Kind) -> Bools:
    hard = zeros.hard(zeros.ordinary)
    soft = ~hard & ~zeros.alone
    if kind == "price" and zeros.lasted_s[hard].sum() < OUTAGE_S:
        # A market clears at exactly 0 now and then, whatever it cleared at before.
        return np.zeros(len(hard), dtype=bool)
    if soft.any() and 2 * soft.sum() >= hard.sum():
        longest = zeros.lasted_s[soft].max()
        return hard & zeros.whole & (zeros.lasted_s > max(2 * longest, OUTAGE_S))
    long = zeros.lasted_s >= OUTAGE_S
    days = len(np.unique(zeros.begin[long] // DAY_US))
    if long.sum() >= OFTEN and days >= zeros.days / 2 and not _same_length(zeros.lasted_s[long]):
        return hard & (zeros.lasted_s > 2 * np.sort(zeros.lasted_s[long])[-2])
    return hard


def _same_length(lasted_s: Floats) -> bool:
    """Whether most of them last equally long, as no weather does."""
    return int(np.unique(lasted_s, return_counts=True)[1].max()) >= SAME_SHARE * len(lasted_s)


def _outages(signals: Sequence[Values], episodes: Sequence[_Zeros | None]) -> list[Bools]:
    """Per signal, which of its episodes begin and end with one of another region of the same kind."""
    together: dict[tuple[Kind, int, int], list[tuple[int, int]]] = defaultdict(list)
    for index, (signal, zeros) in enumerate(zip(signals, episodes, strict=True)):
        if zeros is None:
            continue
        hard = zeros.hard(OUTAGE_SHARE * zeros.median)
        for which in np.flatnonzero(hard & (zeros.lasted_s >= OUTAGE_S)).tolist():
            together[signal.kind, int(zeros.begin[which]), int(zeros.end[which])].append((index, which))
    found = [np.zeros(0 if zeros is None else len(zeros.first), dtype=bool) for zeros in episodes]
    for members in together.values():
        if len(members) > 1:
            for index, which in members:
                found[index][which] = True
    return found


def _with_the_others(
    index: int, signals: Sequence[Values], episodes: Sequence[_Zeros | None], wrong: Sequence[Bools]
) -> tuple[Micros, Micros]:
    """The zeros of a signal that are no measurement, from and to: its own wrong episodes, and those parts of the other
    ones that lie in another region's outage and jump when it begins or ends."""
    zeros = episodes[index]
    assert zeros is not None
    lost = np.zeros(len(zeros.is_zero), dtype=bool)
    for begin, end in zip(zeros.first[wrong[index]], zeros.after[wrong[index]], strict=True):
        lost[begin:end] = True
    begins, ends = (edge & ~wrong[index] for edge in zeros.edges(OUTAGE_SHARE * zeros.median))
    for other, theirs in enumerate(episodes):
        if other == index or theirs is None or signals[other].kind != signals[index].kind:
            continue
        for which in np.flatnonzero(wrong[other] & (theirs.lasted_s >= OUTAGE_S)):
            start, stop = theirs.begin[which], theirs.end[which]
            jumps = begins & (np.abs(zeros.begin - start) <= TOGETHER_US)
            jumps |= ends & (np.abs(zeros.end - stop) <= TOGETHER_US)
            for own in np.flatnonzero(jumps):
                inside = signals[index].times[zeros.first[own] : zeros.after[own]]
                lost[zeros.first[own] : zeros.after[own]] |= (inside >= start) & (inside < stop)
    lost &= zeros.is_zero
    first, after = runs(lost.astype(float))
    return first[lost[first]], after[lost[first]]
