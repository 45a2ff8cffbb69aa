"""From the values of one signal to the intervals in which it counts as curtailed, for many regions at once.

The rule of one signal is a Schmitt trigger (enter and exit threshold) followed by an off-delay, both cut short where
the signal goes stale. Sequential as that looks, only three things decide: the last value outside the band between the
thresholds, the first stale instant after a value, and the distance from one low stretch to the next. So whole columns
are compared once, and everything after that works on the few places where something changes.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from curtail_pipeline.settings.rule_settings import SignalRule
from curtail_pipeline.signals.held import CADENCES_PER_AGE, DEFAULT_CADENCE_US
from curtail_pipeline.times import FOREVER, SECOND, Floats, Micros
from curtail_pipeline.windows.columns import Columns

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

    def expires(self, rows: Any) -> Any:
        """When the values of these rows (an index as NumPy takes it) are too old, microseconds."""
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
) -> tuple[Any, list[int | None]]:
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
    no_gap = columns.step is not None and until is None and isinstance(age, int) and columns.step <= age
    # The least of values is NaN when one of them is.
    if no_gap and fresh and not np.isnan(value.min(initial=0.0)):
        return Valid(time, value, None, None, bounds, None, markers, age), stamps
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
    """2 where a value enters, 0 where it leaves, 1 in the band between, which keeps what was."""
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


def intervals(
    valid: Valid, rule: SignalRule, end: int, stamps: list[SignalState]
) -> tuple[Intervals, list[SignalState]]:
    """The intervals of one signal in every region, and the states from which the next range goes on.

    An interval starts at the value that enters. It ends `delay_s` after the value that leaves unless one entered again
    by then, and at once where no valid value is left.
    """
    n = len(valid.time)
    regions = len(valid.offsets) - 1
    if n == 0:
        none = np.empty(0, dtype=np.int64)
        return Intervals(none, none, none, np.empty(0), np.empty(0), np.empty(0, dtype=np.int8), none), stamps
    last_rows = valid.offsets[1:][np.diff(valid.offsets) > 0] - 1
    stale = last_rows[:-1]
    if valid.expiry is not None:
        outlived = valid.expiry[:-1] < valid.time[1:]
        outlived[stale] = True
        stale = np.flatnonzero(outlived)
    block_first = np.concatenate(([0], stale + 1))
    block_end = valid.expires(np.concatenate((block_first[1:], [n])) - 1)

    levels = _levels(valid, rule)
    changed = levels[1:] != levels[:-1]
    changed[stale] = True
    rows = np.concatenate(([0], np.flatnonzero(changed) + 1))
    is_first = np.zeros(len(rows), dtype=np.bool_)
    is_first[np.searchsorted(rows, block_first)] = True
    level = levels[rows]
    level[is_first & (level == 1)] = 0
    decided = level != 1
    rows, level, is_first = rows[decided], level[decided], is_first[decided]
    turns = is_first.copy()
    turns[1:] |= level[1:] != level[:-1]
    rows, on, is_first = rows[turns], level[turns] == 2, is_first[turns]
    block = np.cumsum(is_first) - 1

    followed = np.concatenate((~is_first[1:], [False]))
    next_row = np.concatenate((rows[1:], [0]))
    stale_at = block_end[block]
    delay = round(rule.delay_s * SECOND)
    delayed = np.where(followed, valid.time[next_row] + delay, FOREVER)
    closes = np.minimum(delayed, stale_at)

    runs = np.flatnonzero(on)
    joined = np.zeros(len(runs), dtype=np.bool_)
    if len(runs) > 1:
        before, after = runs[:-1], runs[1:]
        joined[1:] = (block[before] == block[after]) & (valid.time[rows[after]] <= delayed[before])
    first = runs[~joined]
    final = runs[np.concatenate((~joined[1:], [True]))] if len(runs) else runs
    region = np.searchsorted(valid.offsets, rows[first], side="right") - 1
    stop = closes[final]
    by_value = followed[final] & (delayed[final] <= stale_at[final])
    last_of_block = np.concatenate((block_first[1:], [n]))[block[final]] - 1
    expired = np.full(len(final), BY_AGE, dtype=np.int8) if valid.why is None else valid.why[last_of_block]
    found = Intervals(
        region=region,
        start=valid.time[rows[first]],
        end=np.where(stop >= end, FOREVER, stop),
        open_value=valid.value[rows[first]],
        close_value=np.where(followed[final], valid.value[next_row[final]], np.nan),
        why=np.where(by_value, BY_VALUE, expired).astype(np.int8),
        age=valid.expires(last_of_block) - valid.time[last_of_block],
    )
    off_since = np.where(followed[final], valid.time[next_row[final]], FOREVER)
    return found, _states(valid, found, off_since, end, stamps, regions)


def _states(
    valid: Valid, found: Intervals, off_since: Micros, end: int, stamps: list[SignalState], regions: int
) -> list[SignalState]:
    open_at: dict[int, int] = {int(found.region[k]): int(k) for k in np.flatnonzero(found.end == FOREVER)}
    states = []
    for r in range(regions):
        row = int(valid.offsets[r + 1]) - 1
        stamp = stamps[r]
        if row < valid.offsets[r] or valid.expires(row) < end:
            states.append(stamp)
            continue
        why = BY_AGE if valid.why is None else int(valid.why[row])
        last = (int(valid.time[row]), float(valid.value[row]), int(valid.expires(row)), why)
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
