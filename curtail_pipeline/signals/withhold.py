"""Values that a source served and that are no measurement: zeros that mean missing, a stuck feed, sentinels.

They become null, with the reason, so that no window opens on them. `signals/zeros.py` has the rule for zeros. A run of
one other value for more than six hours (of a price: twelve) is a stuck feed, but where the region often repeats itself
and stood as long before, where the value is a cap or a floor, or where the region never leaves a narrow band, so that
what it stands at is right whether it stands or not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from curtail_pipeline.settings.check_settings import FROZEN_S, FROZEN_VALUES
from curtail_pipeline.settings.trace_settings import Kind, Reason
from curtail_pipeline.signals.judged import Stretch, Values, runs, stretches
from curtail_pipeline.signals.zeros import wrong_zeros
from curtail_pipeline.times import Floats, Micros

SAID: Final[Mapping[Reason, str]] = {
    "zero": "zero withheld: it means a missing value by the region's own history",
    "stuck": "value withheld: the feed is stuck",
    "sentinel": "value withheld: it is a mark for a missing value",
}
"""What the trace's `warnings` say of a value that was withheld."""

COARSE_S, COARSE_VALUES = 86_400.0, 6
"""Of a feed that is too coarse for FROZEN_VALUES in a day: so long and so many values."""
FROZEN_PRICE_S: Final = 12 * 3600.0
"""Longest legal run of a price: a market may clear at one bid, often that of curtailed plants, for all hours of sun."""
REPEATED_SHARE: Final = 0.5
"""A signal with so many values that are equal to the one before them often repeats itself."""
BOUND_RUNS, BOUND_S = 2, 3600.0
"""A value at which the signal stood for so long in so many other runs is a cap or a floor, such as the 300 AUD/MWh of
administered prices in Australia."""
BAND_SHARE, BAND_G_PER_KWH = 0.1, 5.0
"""Of the median, and of an intensity at least so many g/kWh: a signal that never left so narrow a band is flat."""
SENTINELS: Final = (
    *(-1.0, -99.0, -999.0, -9999.0, -99999.0, 9999.0, 99999.0, 999999.0, 1e6, 1e20),
    *(32767.0, -32768.0, 65535.0, 2147483647.0, -2147483648.0),
)
"""Marks for a missing value that are met in the files of grids and of weather services: nines, and the ends of integer
types."""
_NEVER: Final[Mapping[Kind, tuple[float, float]]] = {
    "marginal_intensity": (0.0, 2000.0),
    "average_intensity": (0.0, 2000.0),
    "price": (-2000.0, 25_000.0),
    "curtailed_power": (0.0, 90_000.0),
}
"""Outside of this a sentinel cannot be a value of its kind. Inside (a price of -999) it is one only far from all
other values of its sign: a market of which spikes of 500 are known has no less a floor."""
_FAR, _LEAST_FAR = 3.0, 100.0
_DIGITS: Final = 6
"""Behind the point; what differs by less is one value, in a file that was computed or converted."""


def withheld(signals: Sequence[Values]) -> list[list[Stretch]]:
    """What of each signal is no measurement, ascending. Give all regions of a source, so that an outage shows."""
    cleaned = [_without_sentinels(signal) for signal in signals]
    rest = [
        replace(signal, times=signal.times[kept], values=signal.values[kept])
        for signal, (kept, _) in zip(signals, cleaned, strict=True)
    ]
    found = []
    for signal, (kept, sentinels), zeros in zip(rest, cleaned, wrong_zeros(rest), strict=True):
        parts = [
            *sentinels,
            *stretches("zero", *zeros, kept),
            *stretches("stuck", *_stuck(signal), kept),
        ]
        found.append(sorted(parts, key=lambda part: part.first))
    return found


def _without_sentinels(signal: Values) -> tuple[Micros, list[Stretch]]:
    """Micros of the values that are no sentinel, and the stretches of those that are."""
    values = signal.values
    is_sentinel = np.zeros(len(values), dtype=bool)
    marks = np.isin(np.round(values / signal.factor, _DIGITS), SENTINELS)
    if marks.any():
        rest = values[~marks]
        lowest, largest = (float(rest.min()), float(rest.max())) if len(rest) else (0.0, 0.0)
        low, high = _NEVER[signal.kind]
        never = (values < low) | (values > high)
        far = (values > _FAR * max(largest, _LEAST_FAR)) | (values < -_FAR * max(-lowest, _LEAST_FAR))
        is_sentinel = marks & (never | far)
    places = np.flatnonzero(is_sentinel)
    parts = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1) if len(places) else []
    found = [Stretch("sentinel", int(part[0]), int(part[-1]) + 1) for part in parts]
    return np.flatnonzero(~is_sentinel), found


def _stuck(signal: Values) -> tuple[Micros, Micros]:
    """Runs of one value other than zero that are too long for the signal; the first of a run was measured."""
    values, times = signal.values, signal.times
    first, after = runs(np.round(values, _DIGITS))
    none = first[:0]
    if not len(values):
        return none, none
    lasted = (times[after - 1] - times[first]) / 1e6 + signal.cadence_s
    long = lasted > (FROZEN_PRICE_S if signal.kind == "price" else FROZEN_S)
    count = after - first
    many = (count >= FROZEN_VALUES) | ((count >= COARSE_VALUES) & (lasted >= COARSE_S))
    suspect = np.flatnonzero((values[first] != 0) & many & long)
    if not len(suspect) or _is_flat(values, signal.kind):
        return none, none
    repeats = (after - first - 1).sum()
    longest = np.sort(lasted)[-2:]
    stuck = []
    for run in suspect:
        length = after[run] - first[run]
        repeated = repeats - (length - 1) >= REPEATED_SHARE * max(len(values) - length, 1)
        other = longest[0] if lasted[run] == longest[-1] else longest[-1]
        stood = (values[first] == values[first[run]]) & (lasted >= BOUND_S)
        if stood.sum() <= BOUND_RUNS and (not repeated or lasted[run] > 2 * other):
            stuck.append(run)
    chosen = np.array(stuck, dtype=np.int64)
    return first[chosen] + 1, after[chosen]


def _is_flat(values: Floats, kind: Kind) -> bool:
    """Whether a signal never leaves a narrow band; a single value is one."""
    least = BAND_G_PER_KWH if kind in ("marginal_intensity", "average_intensity") else 0.0
    return float(np.ptp(values)) <= max(BAND_SHARE * abs(float(np.median(values))), least)
