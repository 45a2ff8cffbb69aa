"""How well windows find the power that really was curtailed."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from curtail_pipeline.times import FOREVER, SECOND

CURTAILED_MW: Final = 10.0
"""From here on an interval counts as curtailed; below it operators' series are noise."""


@dataclass(frozen=True)
class Quality:
    """Hours of windows against hours of curtailment, and the energy in both.

    `precision` is None without windows, `recall` and `share_of_mwh` without curtailment.
    """

    window_hours: float
    curtailed_hours: float
    caught_hours: float
    curtailed_mwh: float
    caught_mwh: float

    @property
    def precision(self) -> float | None:
        """Of the windows' hours, the part in which power was curtailed."""
        return self.caught_hours / self.window_hours if self.window_hours else None

    @property
    def recall(self) -> float | None:
        """Of the curtailed hours, the part inside windows."""
        return self.caught_hours / self.curtailed_hours if self.curtailed_hours else None

    @property
    def share_of_mwh(self) -> float | None:
        """Of the curtailed energy, also that below the threshold, the part inside windows."""
        return self.caught_mwh / self.curtailed_mwh if self.curtailed_mwh else None


def judge(
    windows: pl.DataFrame, curtailed: pl.DataFrame, cadence_s: float, threshold_mw: float = CURTAILED_MW
) -> Quality:
    """Windows of one site against the reported curtailment of its region.

    Args:
        windows: of one site, WINDOW_SCHEMA.
        curtailed: time (UTC), value (MW; null where nothing was reported, which is then not judged at all).
        cadence_s: how long each reported value stands for.
    """
    known = curtailed.drop_nulls("value").sort("time")
    begin = known["time"].dt.cast_time_unit("us").to_physical().to_numpy()
    power = known["value"].to_numpy()
    starts = windows.sort("start")["start"].to_physical().to_numpy()
    ends = windows.sort("start")["end"].to_physical().fill_null(FOREVER).to_numpy()
    hours = (_covered(starts, ends, begin + round(cadence_s * SECOND)) - _covered(starts, ends, begin)) / (
        3600 * SECOND
    )
    real = power >= threshold_mw
    span = cadence_s / 3600
    return Quality(
        window_hours=float(hours.sum()),
        curtailed_hours=float(real.sum() * span),
        caught_hours=float(hours[real].sum()),
        curtailed_mwh=float(power.sum() * span),
        caught_mwh=float((power * hours).sum()),
    )


def _covered(starts: np.ndarray, ends: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Microseconds of windows (ordered, not overlapping) before each instant."""
    if not len(starts):
        return np.zeros(len(at))
    before = np.concatenate(([0], np.cumsum(np.minimum(ends, at.max()) - starts)))
    index = np.searchsorted(starts, at, side="right")
    last = np.maximum(index - 1, 0)
    beyond = np.where(index > 0, np.maximum(np.minimum(ends[last], at.max()) - np.maximum(at, starts[last]), 0), 0)
    return before[index] - beyond
