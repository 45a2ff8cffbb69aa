"""Values that a source served and that are no measurement: zeros that mean missing, a stuck feed, sentinels.

They become null, with the reason, so that no window opens on them. What a zero means is judged by the region's own
history, because an exact zero is ordinary in one region (South Australia's marginal intensity: 58 % of a day) and
never seen in another (CAISO_NORTH: never below 35 g/kWh in a month of 2023).

The rule for zeros of intensities and prices. An *episode* is a run of exact zeros. It is *soft* when a value beside it
is below half the median of the values that are not zero: the signal went down to zero, or came up from it. It is
*hard* when it jumps from above that to zero and back, or to the end of what there is. Then

- a region with as many soft episodes as hard ones is known for zeros, and keeps them, but for a hard episode of an
  hour and of twice its longest soft one;
- in any other region hard episodes are no measurement, which also holds for zeros that alternate with values;
- hard episodes that begin and end at the same stamps in two regions, from three quarters of the median in each and
  for an hour, are an outage of the source, whatever the regions are known for.

In 12 months of California (SGIP, PGE) 436 of 464 episodes are soft and no hard one is withheld. Zero is the ordinary
value of curtailed power, where it opens no window.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from curtail_pipeline.settings.trace_settings import Kind
from curtail_pipeline.times import Bools, Floats, Micros

Reason = Literal["zero", "stuck", "sentinel"]

SAID: Final[Mapping[Reason, str]] = {
    "zero": "zero withheld: it means a missing value by the region's own history",
    "stuck": "value withheld: the feed is stuck",
    "sentinel": "value withheld: it is a mark for a missing value",
}
"""What the trace's `warnings` say of a value that was withheld."""

HARD_SHARE: Final = 0.5
"""Of the median of a region's values that are not zero: from above this a jump to zero is hard."""
OUTAGE_SHARE: Final = 0.75
"""... and from above this in two regions at once, or where there is little to judge a region by."""
HISTORY_S: Final = 2 * 86_400.0
"""Less than this is little."""
ENOUGH: Final = 12
"""Values that are not zero; with fewer nothing is known of a region."""
OUTAGE_S: Final = 3600.0
FROZEN_S: Final = 6 * 3600.0
"""Longest legal run of one value other than zero. The longest in 28 months of California: 4.8 h, at a cap."""
FROZEN_VALUES: Final = 24
"""... and of at least so many values, so that an hourly feed may repeat itself."""
SENTINELS: Final = (-999.0, -9999.0, -99999.0, 9999.0, 99999.0, 999999.0)
"""Marks for a missing value that are met in the files of grids and of weather services."""
_NEVER: Final[Mapping[Kind, tuple[float, float]]] = {
    "marginal_intensity": (0.0, 2000.0),
    "average_intensity": (0.0, 2000.0),
    "price": (-2000.0, 25_000.0),
    "curtailed_power": (0.0, 90_000.0),
}
"""Outside of this a sentinel cannot be a value of its kind. Inside (a price of -999) it is one only far from all
other values."""
_FAR: Final = 3.0


@dataclass(frozen=True)
class Values:
    """What is known of one signal of a region: ascending stamps [n] in microseconds, values [n] that are not null."""

    region: str
    kind: Kind
    times: Micros
    values: Floats
    cadence_s: float


@dataclass(frozen=True)
class Stretch:
    """Neighbouring values that were withheld for one reason."""

    reason: Reason
    first: int
    """Index of the first."""
    after: int
    """Index behind the last."""


@dataclass(frozen=True)
class _Zeros:
    """Episodes of exact zeros of one signal [k]."""

    first: Micros
    after: Micros
    before: Floats
    """The value before it; NaN where there is none."""
    behind: Floats
    median: float
    lasted_s: Floats
    known_s: float
    """Of the signal, over which the region is judged."""

    def hard(self, share: float) -> Bools:
        """Which jump to zero from above `share` of the median; an end of the data is no evidence against it."""
        level = share * self.median
        jumps = (self.before >= level) | np.isnan(self.before)
        back = (self.behind >= level) | np.isnan(self.behind)
        alone = np.isnan(self.before) & np.isnan(self.behind)
        return jumps & back & ~alone


def withheld(signals: Sequence[Values]) -> list[list[Stretch]]:
    """What of each signal is no measurement, ascending. Give all regions of a source, so that an outage shows."""
    cleaned = [_without_sentinels(signal) for signal in signals]
    episodes = [_episodes(signal, kept) for signal, (kept, _) in zip(signals, cleaned, strict=True)]
    outages = _outages(signals, episodes)
    found = []
    for index, signal in enumerate(signals):
        kept, stretches = cleaned[index]
        zeros = episodes[index]
        if zeros is not None:
            wrong = _by_history(zeros, signal.kind) | outages[index]
            stretches += _stretches("zero", zeros.first[wrong], zeros.after[wrong], kept)
        stretches += _stuck(signal, kept)
        found.append(sorted(stretches, key=lambda stretch: stretch.first))
    return found


def _runs(values: Floats) -> tuple[Micros, Micros]:
    """Where runs of equal values begin, and behind which index they end."""
    if not len(values):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    first = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    return first, np.r_[first[1:], len(values)]


def _stretches(reason: Reason, first: Micros, after: Micros, kept: Micros) -> list[Stretch]:
    """Runs among the kept values, as stretches of all of them."""
    return [Stretch(reason, int(kept[a]), int(kept[b - 1]) + 1) for a, b in zip(first, after, strict=True)]


def _without_sentinels(signal: Values) -> tuple[Micros, list[Stretch]]:
    """Micros of the values that are no sentinel, and the stretches of those that are."""
    values = signal.values
    is_sentinel = np.zeros(len(values), dtype=bool)
    marks = np.isin(values, SENTINELS)
    if marks.any():
        rest = np.abs(values[~marks])
        largest = float(rest.max()) if len(rest) else 0.0
        low, high = _NEVER[signal.kind]
        never = (values < low) | (values > high)
        far = np.abs(values) > _FAR * max(largest, 1.0)
        is_sentinel = marks & (never | far)
    places = np.flatnonzero(is_sentinel)
    parts = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if len(places) else []
    stretches = [Stretch("sentinel", int(part[0]), int(part[-1]) + 1) for part in parts]
    return np.flatnonzero(~is_sentinel), stretches


def _episodes(signal: Values, kept: Micros) -> _Zeros | None:
    """None where there is no zero, too little else to judge it by, or zero is the kind's ordinary value."""
    values = signal.values[kept]
    others = values[values != 0]
    if signal.kind == "curtailed_power" or len(others) < ENOUGH or len(others) == len(values):
        return None
    first, after = _runs(values)
    zero = values[first] == 0
    first, after = first[zero], after[zero]
    before = np.where(first > 0, values[np.maximum(first - 1, 0)], np.nan)
    behind = np.where(after < len(values), values[np.minimum(after, len(values) - 1)], np.nan)
    times = signal.times[kept]
    lasted = (times[after - 1] - times[first]) / 1e6 + signal.cadence_s
    known = len(values) * signal.cadence_s
    return _Zeros(first, after, before, behind, float(np.median(np.abs(others))), lasted, known)


def _by_history(zeros: _Zeros, kind: Kind) -> Bools:
    hard = zeros.hard(HARD_SHARE if zeros.known_s >= HISTORY_S else OUTAGE_SHARE)
    alone = np.isnan(zeros.before) & np.isnan(zeros.behind)
    soft = ~hard & ~alone
    if kind == "price" and zeros.lasted_s[hard].sum() < OUTAGE_S:
        # A market clears at exactly 0 now and then, whatever it cleared at before.
        return np.zeros(len(hard), dtype=bool)
    if soft.sum() >= max(1, hard.sum()):
        longest = zeros.lasted_s[soft].max()
        return hard & (zeros.lasted_s > max(2 * longest, OUTAGE_S))
    return hard


def _outages(signals: Sequence[Values], episodes: Sequence[_Zeros | None]) -> list[Bools]:
    """Per signal, which of its episodes begin and end with one of another region of the same kind."""
    together: dict[tuple[Kind, int, int], list[tuple[int, int]]] = defaultdict(list)
    for index, (signal, zeros) in enumerate(zip(signals, episodes, strict=True)):
        if zeros is None:
            continue
        for which in np.flatnonzero(zeros.hard(OUTAGE_SHARE) & (zeros.lasted_s >= OUTAGE_S)).tolist():
            begin = int(signal.times[zeros.first[which]])
            together[signal.kind, begin, round(zeros.lasted_s[which])].append((index, which))
    found = [np.zeros(0 if zeros is None else len(zeros.first), dtype=bool) for zeros in episodes]
    for members in together.values():
        if len(members) > 1:
            for index, which in members:
                found[index][which] = True
    return found


def _stuck(signal: Values, kept: Micros) -> list[Stretch]:
    """Runs of one value other than zero; the first of a run was measured."""
    values, times = signal.values[kept], signal.times[kept]
    first, after = _runs(values)
    lasted = (times[after - 1] - times[first]) / 1e6 + signal.cadence_s if len(first) else np.zeros(0)
    long = (values[first] != 0) & (after - first >= FROZEN_VALUES) & (lasted > FROZEN_S)
    return _stretches("stuck", first[long] + 1, after[long], kept)
