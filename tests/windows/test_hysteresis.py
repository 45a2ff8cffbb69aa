"""The picture in `windows.hysteresis` is true."""

import numpy as np

from curtail_pipeline.settings.rule_settings import SignalRule
from curtail_pipeline.times import SECOND
from curtail_pipeline.windows.columns import columns_of
from curtail_pipeline.windows.hysteresis import (
    BY_AGE,
    BY_VALUE,
    IN_BAND,
    OFF,
    ON,
    SignalState,
    _levels,
    _stretches,
    _turns,
    intervals,
    valid_values,
)

MINUTE = 60 * SECOND


def test_the_picture() -> None:
    rule = SignalRule(enter=100, exit=120, exit_delay_s=600)
    times = np.array([0, 5, 10, 15, 20, 25, 30, 60, 65]) * MINUTE
    values = np.array([80, 110, 130, 90, 130, np.nan, 140, 70, 70])
    columns = columns_of(times, values, np.array([0, len(times)]), None, 0, 120 * MINUTE)
    valid, stamps = valid_values(columns, [SignalState()], rule, [300 * SECOND])
    assert (valid.time // MINUTE).tolist() == [0, 5, 10, 15, 20, 30, 60, 65]
    assert _levels(valid, rule).tolist() == [ON, IN_BAND, OFF, ON, OFF, OFF, ON, ON]
    stretches = _stretches(valid)
    assert stretches.first.tolist() == [0, 6] and stretches.last.tolist() == [5, 7]
    assert (stretches.stale_at // MINUTE).tolist() == [40, 75]
    turns = _turns(valid, rule, stretches)
    assert turns.row.tolist() == [0, 2, 3, 4, 6] and turns.on.tolist() == [True, False, True, False, True]
    assert turns.stretch.tolist() == [0, 0, 0, 0, 1]
    found, _ = intervals(valid, rule, 120 * MINUTE, stamps)
    assert (found.start // MINUTE).tolist() == [0, 60] and (found.end // MINUTE).tolist() == [30, 75]
    assert found.why.tolist() == [BY_VALUE, BY_AGE]
