"""From the values of one signal to the intervals in which it counts as curtailed, for many regions at once.

The rule of one signal is a Schmitt trigger (enter and exit threshold) followed by an off-delay, both cut short where
the signal goes stale. Sequential as that looks, only three things decide: the last value outside the band between the
thresholds, the first stale instant after a value, and the distance from one low stretch to the next. So whole columns
are compared once, and everything after that works on the few places where something changes.

One region, entered below 100, left at 120, exit delay 10 min, a value valid for 10 min (minutes in place of
microseconds; `tests/windows/test_hysteresis.py` holds the picture to the code):

    time            0    5   10   15   20   25   30            60   65     the trace; null at 25
    value          80  110  130   90  130    -  140            70   70
    row             0    1    2    3    4         5             6    7     valid rows (N = 8)
    level          on band  off   on  off       off            on   on     `_levels`
    stretch         0    0    0    0    0         0             1    1     `_stretches`: 140 is too old at 40
    turn            0         1    2    3                       4          `_turns` (T = 5): where on and off change
    delayed        20             30                      (no more)       of the turns that are on: next turn + 10
    runs            0              1                            2          low stretches (R = 3)
    joined         no            yes                           no          run 1 begins at 15, before 20
    interval  [     0 .................. 30 )             [    60 ... 75 ) (I = 2): by value, and by age

`row` indexes valid values, `turn` indexes rows that turn, `run` indexes turns that are on; an interval is a chain of
joined runs, from the `first` to the `final` one.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from curtail_pipeline.settings.rule_settings import SignalRule
from curtail_pipeline.signals.held import CADENCES_PER_AGE, DEFAULT_CADENCE_US
from curtail_pipeline.times import FOREVER, SECOND, Floats, Micros
from curtail_pipeline.windows.columns import Columns

OFF, IN_BAND, ON = np.int8(0), np.int8(1), np.int8(2)
"""Levels of a value; their order is used."""

BY_VALUE: Final = 0
BY_AGE: Final = 1
BY_ESTIMATE: Final = 2


@dataclass(frozen=True)
class SignalState:
    """What later values of one signal need to know of the earlier ones (times in microseconds)."""

    stamp: int | None = None
    """The last stamp, with or without a value."""
    cadence: int | None = None
    """The shortest distance of two stamps so far."""
    estimated_since: int | None = None
    last: tuple[int, float, int, int] | None = None
    """Time, value, expiry and kind of expiry (`BY_AGE`, `BY_ESTIMATE`) of the last value, while it is valid."""
    since: int | None = None
    """Start of the interval that is open."""
    since_value: float | None = None
    off_since: int | None = None
    """When the signal crossed the exit threshold, while the exit delay runs."""
    off_value: float | None = None


@dataclass(frozen=True)
class Valid:
    """The values that count: not null, not estimated for too long.

    `expiry` is when a value is too old; it is None where every value holds for the same `hold`, and that is never
    shorter than the distance to the next value. Rows carried over from a state lie at the front of their region;
    `forced` is -1 for rows judged by their value, else the state (0 off, 1 on) they bring. Those at the front that
    stand for a past change, not for a value, are the first `markers[r]` of the region.
    """

    time: Micros
    value: Floats
    expiry: Micros | None
    why: npt.NDArray[np.int8] | None
    offsets: Micros
    forced: npt.NDArray[np.int8] | None
    markers: Micros
    hold: int = 0

    def expires(self, rows: Micros | slice) -> Micros:
        """When the values of these rows are too old, microseconds."""
        return self.time[rows] + self.hold if self.expiry is None else self.expiry[rows]


@dataclass(frozen=True)
class Intervals:
    """Intervals in order of region and start; `end` is `FOREVER` where the interval goes on past the range."""

    region: Micros
    start: Micros
    end: Micros
    open_value: Floats
    close_value: Floats
    why: npt.NDArray[np.int8]
    age: Micros
    """How long the last value of the interval's fresh stretch was valid."""


def _age(
    columns: Columns, states: list[SignalState], rule: SignalRule, cadence_us: list[int | None]
) -> tuple[int | Micros, list[int | None]]:
    """How long each row's value holds (a scalar, or one per row), and each region's cadence after its last row."""
    n, bounds = columns.regions, columns.offsets
    if rule.max_signal_age_s is not None:
        return round(rule.max_signal_age_s * SECOND), [state.cadence for state in states]
    if n and all(known is not None for known in cadence_us):
        fixed = np.array(cadence_us, dtype=np.int64) * CADENCES_PER_AGE
        return (int(fixed[0]) if (fixed == fixed[0]).all() else np.repeat(fixed, np.diff(bounds))), list(cadence_us)
    learning = n and all(known is None for known in cadence_us) and (bounds[1:] > bounds[:-1]).all()
    if learning and columns.step is not None:
        firsts = [FOREVER if s.stamp is None else int(columns.time[bounds[r]]) - s.stamp for r, s in enumerate(states)]
        usual = {_steady(first, columns.step, state) for first, state in zip(firsts, states, strict=True)}
        if len(usual) == 1 and (cadence := usual.pop()) is not None:
            # One stamp alone teaches nothing: it is judged by the usual cadence, which stays unknown.
            taught = [
                s.cadence is not None or s.stamp is not None or size > 1
                for s, size in zip(states, np.diff(bounds), strict=True)
            ]
            return cadence * CADENCES_PER_AGE, [cadence if known else None for known in taught]
    steps = np.empty(len(columns.time), dtype=np.int64)
    np.subtract(columns.time[1:], columns.time[:-1], out=steps[1:])
    parts = [steps[bounds[r] : bounds[r + 1]] for r in range(n)]
    for r, (part, state) in enumerate(zip(parts, states, strict=True)):
        if len(part):
            part[0] = FOREVER if state.stamp is None else columns.time[bounds[r]] - state.stamp
    learned: list[int | None] = []
    ages = np.empty(len(columns.time), dtype=np.int64)
    for r, (part, state) in enumerate(zip(parts, states, strict=True)):
        own = ages[bounds[r] : bounds[r + 1]]
        known = cadence_us[r]
        if known is not None or not len(part):
            own[:] = (known or 0) * CADENCES_PER_AGE
            learned.append(state.cadence if known is None else known)
            continue
        # Only what was known at a value's stamp may judge it, else a cut trace would give other windows than the whole.
        shortest = np.minimum(np.minimum.accumulate(part), FOREVER if state.cadence is None else state.cadence)
        last = int(shortest[-1])
        learned.append(None if last == FOREVER else last)
        shortest[shortest == FOREVER] = DEFAULT_CADENCE_US
        np.multiply(shortest, CADENCES_PER_AGE, out=own)
    return ages, learned


def _steady(first: int, step: int, state: SignalState) -> int | None:
    """The cadence that every value of a region is judged by, when it is one and the same; the usual case, and cheap.

    `first` is the distance of the region's first stamp to the one before it, `FOREVER` without one.
    """
    if state.cadence is not None:
        return state.cadence if min(first, step) >= state.cadence else None
    return DEFAULT_CADENCE_US if step == DEFAULT_CADENCE_US and first in (step, FOREVER) else None


def _estimates(columns: Columns, states: list[SignalState], rule: SignalRule) -> tuple[Micros | None, list[int | None]]:
    """Per row the instant from which an estimate is no longer believed (`FOREVER` for measured values)."""
    limit = rule.estimates_s
    if limit is None or (columns.estimated is None and all(s.estimated_since is None for s in states)):
        return None, [None] * columns.regions
    estimated = np.zeros(len(columns.time), dtype=np.bool_) if columns.estimated is None else columns.estimated
    until = np.full(len(columns.time), FOREVER, dtype=np.int64)
    after: list[int | None] = []
    values = ~np.isnan(columns.value)
    for r, state in enumerate(states):
        rows = np.arange(columns.offsets[r], columns.offsets[r + 1])[
            values[columns.offsets[r] : columns.offsets[r + 1]]
        ]
        flags, times = estimated[rows], columns.time[rows]
        if not len(rows):
            after.append(state.estimated_since)
            continue
        starts = flags & ~np.concatenate(([state.estimated_since is not None], flags[:-1]))
        origin = np.maximum.accumulate(np.where(starts, np.arange(len(rows)), -1))
        since = np.where(origin >= 0, times[np.maximum(origin, 0)], state.estimated_since or 0)
        until[rows[flags]] = since[flags] + round(limit * SECOND)
        after.append(int(since[-1]) if flags[-1] else None)
    return until, after


def valid_values(
    columns: Columns, states: list[SignalState], rule: SignalRule, cadence_us: list[int | None]
) -> tuple[Valid, list[SignalState]]:
    """Drop what does not count, say how long the rest holds, and put the carried rows in front.

    Returns the values and, per region, the state's part that depends on stamps alone (`stamp`, `cadence`,
    `estimated_since`).
    """
    age, cadences = _age(columns, states, rule, cadence_us)
    until, estimated_since = _estimates(columns, states, rule)
    time, value, bounds = columns.time, columns.value, columns.offsets
    stamps = [
        SignalState(
            stamp=int(time[bounds[r + 1] - 1]) if bounds[r + 1] > bounds[r] else states[r].stamp,
            cadence=cadences[r],
            estimated_since=estimated_since[r],
        )
        for r in range(columns.regions)
    ]
    markers = np.zeros(columns.regions, dtype=np.int64)
    fresh = all(state.last is None for state in states)
    hold = age if isinstance(age, int) and columns.step is not None and columns.step <= age else None
    if hold is not None and until is None and fresh and not np.isnan(value.min(initial=0.0)):  # NaN when one of them is
        return Valid(time, value, None, None, bounds, None, markers, hold), stamps
    expiry = time + age
    why = None
    if until is not None:
        why = np.where(until < expiry, BY_ESTIMATE, BY_AGE).astype(np.int8)
        expiry = np.minimum(expiry, until)
    keep = ~np.isnan(value)
    if until is not None:
        keep &= expiry > time
    if not keep.all():
        counted = np.concatenate(([0], np.cumsum(keep)))
        bounds = counted[bounds]
        time, value, expiry = time[keep], value[keep], expiry[keep]
        why = None if why is None else why[keep]
    valid = Valid(time, value, expiry, why, bounds, None, markers)
    return valid if fresh else _with_carried(valid, states), stamps


def _with_carried(valid: Valid, states: list[SignalState]) -> Valid:
    rows: list[tuple[int, int, float, int, int, int]] = []
    markers = np.zeros(len(states), dtype=np.int64)
    for r, state in enumerate(states):
        if state.last is None:
            continue
        stamp, value, expiry, why = state.last
        on = int(state.since is not None and state.off_since is None)
        if state.since is not None:
            rows.append((r, state.since, state.since_value or 0.0, expiry, why, 1))
            markers[r] += 1
            if state.off_since is not None:
                rows.append((r, state.off_since, state.off_value or 0.0, expiry, why, 0))
                markers[r] += 1
        rows.append((r, stamp, value, expiry, why, on))
    regions, times, values, expiries, whys, forced = (np.array(column) for column in zip(*rows, strict=True))
    counts = np.diff(valid.offsets)
    # Carried rows come first in the concatenation, so that a stable sort by region puts them first in their region.
    order = np.argsort(np.concatenate((regions, np.repeat(np.arange(len(states)), counts))), kind="stable")
    old_why = np.full(len(valid.time), BY_AGE, dtype=np.int8) if valid.why is None else valid.why
    carried = np.bincount(regions, minlength=len(states))
    return Valid(
        np.concatenate((times, valid.time))[order],
        np.concatenate((values, valid.value))[order],
        np.concatenate((expiries, valid.expires(slice(None))))[order],
        np.concatenate((whys.astype(np.int8), old_why))[order],
        np.concatenate(([0], np.cumsum(counts + carried))),
        np.concatenate((forced.astype(np.int8), np.full(len(valid.time), -1, dtype=np.int8)))[order],
        markers,
    )


def _levels(valid: Valid, rule: SignalRule) -> npt.NDArray[np.int8]:
    """`ON` where a value enters, `OFF` where it leaves, `IN_BAND` between, which keeps what was."""
    value, form = valid.value, rule.defaults
    if form.below:
        enters = value < rule.enter_at if form.strict else value <= rule.enter_at
        leaves = value >= rule.exit_at if form.strict else value > rule.exit_at
    else:
        enters, leaves = value >= rule.enter_at, value < rule.exit_at
    levels = enters.view(np.int8) - leaves.view(np.int8)
    levels += 1
    if valid.forced is not None:
        carried = valid.forced >= 0
        levels[carried] = 2 * valid.forced[carried]
    return levels


@dataclass(frozen=True)
class _Stretches:
    """Fresh stretches (S,): runs of valid rows of one region in which no value grows too old before the next."""

    last_rows: Micros
    """Rows (S - 1,) after which the next row begins another stretch."""
    first: Micros
    """The first row of each."""
    last: Micros
    """The last row of each."""
    stale_at: Micros
    """When its last value is too old."""


@dataclass(frozen=True)
class _Turns:
    """Rows (T,) at which the trigger is found on or off anew: the first decided one of a stretch, then each change."""

    row: Micros
    on: npt.NDArray[np.bool_]
    stretch: Micros
    """Which stretch each lies in."""
    followed: npt.NDArray[np.bool_]
    """Whether another turn of the same stretch follows."""
    next_row: Micros
    """That turn's row where there is one."""


def _stretches(valid: Valid) -> _Stretches:
    region_ends = valid.offsets[1:][np.diff(valid.offsets) > 0] - 1
    last_rows = region_ends[:-1]
    if valid.expiry is not None:
        outlived = valid.expiry[:-1] < valid.time[1:]
        outlived[last_rows] = True
        last_rows = np.flatnonzero(outlived)
    first = np.concatenate(([0], last_rows + 1))
    last = np.append(last_rows, len(valid.time) - 1)
    return _Stretches(last_rows, first, last, valid.expires(last))


def _turns(valid: Valid, rule: SignalRule, stretches: _Stretches) -> _Turns:
    levels = _levels(valid, rule)
    differs = levels[1:] != levels[:-1]
    differs[stretches.last_rows] = True
    row = np.concatenate(([0], np.flatnonzero(differs) + 1))
    begins = np.zeros(len(row), dtype=np.bool_)
    begins[np.searchsorted(row, stretches.first)] = True
    level = levels[row]
    level[begins & (level == IN_BAND)] = OFF  # nothing before it says otherwise
    decided = level != IN_BAND  # a value in the band keeps what was
    row, level, begins = row[decided], level[decided], begins[decided]
    turns = begins.copy()
    turns[1:] |= level[1:] != level[:-1]
    row, on, begins = row[turns], level[turns] == ON, begins[turns]
    followed = np.append(~begins[1:], False)
    return _Turns(row, on, np.cumsum(begins) - 1, followed, np.append(row[1:], 0))


def intervals(
    valid: Valid, rule: SignalRule, end: int, stamps: list[SignalState]
) -> tuple[Intervals, list[SignalState]]:
    """The intervals of one signal in every region, and the states from which the next range goes on.

    An interval starts at the value that enters. It ends `delay_s` after the value that leaves unless one entered again
    by then, and at once where no valid value is left. The module's picture shows one region.
    """
    regions = len(valid.offsets) - 1
    if len(valid.time) == 0:
        none = np.empty(0, dtype=np.int64)
        return Intervals(none, none, none, np.empty(0), np.empty(0), np.empty(0, dtype=np.int8), none), stamps
    stretches = _stretches(valid)
    turns = _turns(valid, rule, stretches)
    # Of each turn (T,): when an interval that begins there would end by its value and delay, and at the latest.
    leaves_at = np.where(turns.followed, valid.time[turns.next_row], FOREVER)
    delayed = np.where(turns.followed, leaves_at + round(rule.delay_s * SECOND), FOREVER)
    stale_at = stretches.stale_at[turns.stretch]

    runs = np.flatnonzero(turns.on)  # (R,) turns at which the signal is low
    joined = np.zeros(len(runs), dtype=np.bool_)  # a run that the one before it reaches by its delay
    if len(runs) > 1:
        before, after = runs[:-1], runs[1:]
        joined[1:] = (turns.stretch[before] == turns.stretch[after]) & (valid.time[turns.row[after]] <= delayed[before])
    first, final = runs[~joined], runs[np.append(~joined[1:], True)] if len(runs) else runs  # (I,) each
    opens, last = turns.row[first], stretches.last[turns.stretch[final]]
    stop = np.minimum(delayed, stale_at)[final]
    by_value = turns.followed[final] & (delayed[final] <= stale_at[final])
    expired = np.full(len(final), BY_AGE, dtype=np.int8) if valid.why is None else valid.why[last]
    found = Intervals(
        region=np.searchsorted(valid.offsets, opens, side="right") - 1,
        start=valid.time[opens],
        end=np.where(stop >= end, FOREVER, stop),
        open_value=valid.value[opens],
        close_value=np.where(turns.followed[final], valid.value[turns.next_row[final]], np.nan),
        why=np.where(by_value, BY_VALUE, expired).astype(np.int8),
        age=valid.expires(last) - valid.time[last],
    )
    return found, _states(valid, found, leaves_at[final], end, stamps, regions)


def _states(
    valid: Valid, found: Intervals, off_since: Micros, end: int, stamps: list[SignalState], regions: int
) -> list[SignalState]:
    open_at: dict[int, int] = {int(found.region[k]): int(k) for k in np.flatnonzero(found.end == FOREVER)}
    states = []
    for r in range(regions):
        row = int(valid.offsets[r + 1]) - 1
        stamp = stamps[r]
        expiry = int(valid.expires(slice(row, row + 1))[0]) if row >= valid.offsets[r] else end
        if row < valid.offsets[r] or expiry < end:
            states.append(stamp)
            continue
        why = BY_AGE if valid.why is None else int(valid.why[row])
        last = (int(valid.time[row]), float(valid.value[row]), expiry, why)
        k = open_at.get(r)
        since = since_value = leaving = leaving_value = None
        if k is not None:
            since, since_value = int(found.start[k]), float(found.open_value[k])
            if off_since[k] != FOREVER:
                leaving, leaving_value = int(off_since[k]), float(found.close_value[k])
        states.append(
            SignalState(
                stamp.stamp, stamp.cadence, stamp.estimated_since, last, since, since_value, leaving, leaving_value
            )
        )
    return states
