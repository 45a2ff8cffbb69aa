"""Checks of a normalised trace: what is wrong with it, and what to do about it. Pure functions.

A trace that fails a check of severity `error` should not replace what is stored: the stored signal then ages, and
windows close, which is the safe side.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Final, Literal

import numpy as np
import polars as pl

from curtail_pipeline.settings.check_settings import CheckLimits
from curtail_pipeline.settings.trace_settings import Reason
from curtail_pipeline.signals.trace import Report, Withheld
from curtail_pipeline.times import iso

Severity = Literal["error", "warn"]
Metadata = dict[str, str | int | float | bool]

CHECKS: Final[Mapping[str, str]] = {
    "unit": "Intensities are in the range of g/kWh: a file in kg/kWh or lb/MWh that was declared as g/kWh fails. "
    "Prices are not per kWh.",
    "range": "Values are physically possible for their kind.",
    "duplicates": "One value per stamp; where the source gave several, whether they agreed.",
    "gaps": "Not too many stamps without a value.",
    "zeros": "Zeros are measurements by the region's own history; those that stand for a missing value are withheld.",
    "sentinels": "No value is a mark for a missing one, such as -999 or 9999; those are withheld.",
    "frozen_feed": "The feed moves. A long run of exact zeros is legal: it is what curtailment looks like.",
    "staleness": "The newest value is recent.",
}
"""Names of the checks, with what each asserts."""

_SHOWN: Final = 3
"""Stretches that a description names."""
_DAY_S: Final = 86_400
_MOSTLY: Final = 0.9
_LEAST_PRICE: Final = 2.0
"""Currency per MWh. A price per kWh is hardly above 1 in any of the large currencies."""


@dataclass(frozen=True)
class CheckOutcome:
    """What one check found. `description` says what to do where it did not pass."""

    name: str
    passed: bool
    severity: Severity
    description: str
    metadata: Metadata = field(default_factory=dict)

    @property
    def blocking(self) -> bool:
        """Whether a trace that does not pass should be kept out of the store."""
        return self.severity == "error"


def _per_kind(
    trace: pl.DataFrame, name: str, look: Callable[[str, pl.DataFrame], tuple[str | None, Metadata]], fine: str
) -> CheckOutcome:
    """Run a check on each kind of a region's trace; `look` returns the problem, if any, and metadata."""
    problems: list[str] = []
    metadata: Metadata = {}
    kinds = trace["kind"].unique(maintain_order=True).to_list()
    for kind in kinds:
        problem, found = look(kind, trace.filter(pl.col("kind") == kind).sort("time"))
        metadata |= found if len(kinds) == 1 else {f"{kind}/{key}": value for key, value in found.items()}
        if problem:
            problems.append(f"{_region(trace)} {kind}: {problem}")
    return CheckOutcome(name, not problems, "error", "; ".join(problems) or fine, metadata)


def _region(trace: pl.DataFrame) -> str:
    return str(trace["region"][0]) if len(trace) else "trace"


def check_unit(trace: pl.DataFrame, limits: CheckLimits | None = None) -> CheckOutcome:
    """kg/kWh and lb/MWh declared as g/kWh, from the magnitude of intensities; prices per kWh are warned of."""
    limit = limits or CheckLimits()

    def look(kind: str, rows: pl.DataFrame) -> tuple[str | None, Metadata]:
        values = rows["value"].drop_nulls()
        if kind not in ("marginal_intensity", "average_intensity") or values.is_empty():
            return None, {}
        largest, high = float(values.max()), float(values.quantile(0.95, "lower"))  # type: ignore[arg-type]
        metadata: Metadata = {"max": largest, "p95": high, "unit": str(rows["unit"][0])}
        if 0 < largest < limit.intensity_least_g_per_kwh:
            return (
                f"the largest intensity is {largest:g} g/kWh, which looks like kg/kWh; declare unit: kg/kWh (or, if "
                "the region really is that clean all day, lower checks.intensity_least_g_per_kwh)"
            ), metadata
        if high > limit.intensity_p95_g_per_kwh:
            return (
                f"95 % of the intensities reach up to {high:.6g} g/kWh, which looks like lb/MWh; declare unit: lb/MWh "
                "(or, if the region really is that dirty, raise checks.intensity_p95_g_per_kwh)"
            ), metadata
        return None, metadata

    found = _per_kind(trace, "unit", look, "magnitudes fit the unit")
    prices = _per_kind(trace, "unit", _price_per_kwh, found.description)
    return found if prices.passed or not found.passed else replace(prices, severity="warn")


def _price_per_kwh(kind: str, rows: pl.DataFrame) -> tuple[str | None, Metadata]:
    """A market may clear near 0 for hours, and hardly for a day."""
    values = rows["value"].drop_nulls().abs()
    if kind != "price" or len(values) * _cadence_s(rows) < _DAY_S or not (values > 0).mean() > _MOSTLY:  # type: ignore[operator]
        return None, {}
    largest = float(values.max())  # type: ignore[arg-type]
    if largest >= _LEAST_PRICE:
        return None, {}
    return (
        f"no price is above {largest:g} per MWh, which looks like a price per kWh; multiply the values by 1,000 (by 10 "
        "from cents), or leave them if the market really clears so low"
    ), {}


def check_range(trace: pl.DataFrame, limits: CheckLimits | None = None) -> CheckOutcome:
    """Values that cannot be: negative intensities or curtailed power, prices beyond every market's limits."""
    limit = limits or CheckLimits()
    bounds = {
        "marginal_intensity": (0.0, limit.intensity_max_g_per_kwh, "intensity_max_g_per_kwh"),
        "average_intensity": (0.0, limit.intensity_max_g_per_kwh, "intensity_max_g_per_kwh"),
        "price": (limit.price_min, limit.price_max, "price_max"),
        "curtailed_power": (0.0, limit.curtailed_max_mw, "curtailed_max_mw"),
    }

    def look(kind: str, rows: pl.DataFrame) -> tuple[str | None, Metadata]:
        low, high, most = bounds[kind]
        known = rows.drop_nulls("value")
        if known.is_empty():
            return None, {}
        metadata: Metadata = {"min": float(known["value"].min()), "max": float(known["value"].max())}  # type: ignore[arg-type]
        bad = known.filter(~pl.col("value").is_between(low, high))
        if bad.is_empty():
            return None, metadata
        metadata["outside"] = len(bad)
        fix = " (declare kind: price if it is one)" if kind != "price" and bad["value"][0] < 0 else ""
        if kind == "curtailed_power" and 2 * (known["value"] < 0).sum() > (known["value"] != 0).sum():
            fix = " (curtailed power counts from 0 up: turn the sign)"
        if (bad["value"] > high).all():
            fix = f" (raise checks.{most} if they are right)"
        return (
            f"{len(bad)} values outside [{low:g}, {high:g}], the first {bad['value'][0]:g} at {iso(bad['time'][0])}; "
            f"check the source's unit and column{fix}, and leave invalid values empty"
        ), metadata

    return _per_kind(trace, "range", look, "all values are possible")


def check_duplicates(trace: pl.DataFrame, reports: Sequence[Report] = ()) -> CheckOutcome:
    """Two rows for one stamp in the table are an error; disagreeing rows in the source, already resolved, a warning."""
    doubled = trace.group_by("region", "kind", "time").len().filter(pl.col("len") > 1)
    agreeing, conflicts = sum(r.duplicates for r in reports), sum(r.conflicts for r in reports)
    metadata: Metadata = {"agreeing": agreeing, "disagreeing": conflicts, "in_table": len(doubled)}
    if len(doubled):
        first = iso(doubled.sort("time")["time"][0])
        text = f"{_region(trace)}: {len(doubled)} stamps occur twice, the first {first}; materialise the day again"
        return CheckOutcome("duplicates", False, "error", text, metadata)
    if conflicts and not all(r.chosen for r in reports):
        example = next(c for r in reports for c in r.conflict_examples)
        text = (
            f"{_region(trace)}: the source gave different values for {conflicts} stamps, e.g. {example.dropped:g} and "
            f"{example.kept:g} at {iso(example.time)}; the latest revision was kept. Remove the outdated rows or files "
            "if that is not the right one, or choose with traces.where or traces.combine"
        )
        return CheckOutcome("duplicates", False, "warn", text, metadata)
    return CheckOutcome("duplicates", True, "error", "one value per stamp", metadata)


def _is_withheld(rows: pl.DataFrame) -> pl.Series:
    """Which values were taken away because they are no measurement; a check of their own speaks of them."""
    return rows["value"].is_null() & rows["warnings"].str.contains("withheld: ", literal=True).fill_null(False)


def check_gaps(
    trace: pl.DataFrame, expected: tuple[datetime, datetime] | None = None, limits: CheckLimits | None = None
) -> CheckOutcome:
    """The share of stamps without a value; of withheld ones other checks speak. Holes of a recording only warn.

    Args:
        expected: the range that should be covered; what the table lacks of it counts as a gap. The table's own
            range when not given.
    """
    limit = limits or CheckLimits()

    def look(kind: str, rows: pl.DataFrame) -> tuple[str | None, Metadata]:
        step = _cadence_s(rows)
        stamps = len(rows)
        if expected is not None:
            stamps = max(stamps, int((expected[1] - expected[0]).total_seconds() // step))
        withheld = _is_withheld(rows)
        known = len(rows) - rows["value"].null_count() + int(withheld.sum())
        share = 1 - known / stamps if stamps else 0.0
        longest = _longest_run((rows["value"].is_null() & ~withheld).to_numpy().astype(np.int8), 1)[0]
        metadata: Metadata = {
            "share": share,
            "missing": stamps - known,
            "stamps": stamps,
            "longest_gap_s": longest * step,
        }
        if share <= limit.gap_share:
            return None, metadata
        return (
            f"{stamps - known} of {stamps} stamps ({share:.0%}) have no value; fetch the day again, or raise "
            "checks.gap_share if the source is that sparse. Windows stay closed where the signal is missing"
        ), metadata

    if trace.is_empty():
        return CheckOutcome("gaps", False, "error", "the source gave no stamps at all; check region and range", {})
    found = _per_kind(trace, "gaps", look, "coverage is sufficient")
    return found if expected is not None else replace(found, severity="warn")


def check_withheld(
    trace: pl.DataFrame, reports: Sequence[Report], name: str, reason: Reason, fine: str
) -> CheckOutcome:
    """Values that became null because they are no measurement. Windows stay closed there, so that it only warns."""
    parts = [part for report in reports for part in report.withheld if part.reason == reason]
    if not parts:
        return CheckOutcome(name, True, "warn", fine)
    count = sum(part.count for part in parts)
    metadata: Metadata = {"withheld": count, "stretches": len(parts)}
    return CheckOutcome(name, False, "warn", f"{_region(trace)}: {_withheld_text(reason, parts, count)}", metadata)


def _withheld_text(reason: Reason, parts: Sequence[Withheld], count: int) -> str:
    first = parts[0]
    hours = sum((part.until - part.time).total_seconds() for part in parts) / 3600
    many = f" in {len(parts)} stretches" if len(parts) > 1 else ""
    when = f"{hours:.1f} h{many} from {iso(first.time)}"
    longest = sorted(parts, key=lambda part: part.time - part.until)[:_SHOWN]
    stands = ", ".join(
        f"at {part.value:g} for {(part.until - part.time).total_seconds() / 3600:.1f} h from {iso(part.time)}"
        for part in longest
    )
    what: dict[Reason, str] = {
        "zero": f"{count} zeros ({when}) are no measurement by the region's own history: the signal jumps to exact "
        "zero and back",
        "sentinel": f"{count} values such as {first.value:g} ({when}) are marks for a missing value",
        "stuck": f"stands {stands}{many}: the feed is stuck",
    }
    return (
        f"{what[reason]}. They count as missing; fetch again, or, of a file that is right, declare traces.measured: "
        f"[{reason}]"
    )


def check_frozen_feed(
    trace: pl.DataFrame, limits: CheckLimits | None = None, reports: Sequence[Report] = ()
) -> CheckOutcome:
    """A long run of one value other than zero: the feed repeats its last answer.

    Of a signal that was judged by its history, what was withheld is what stands too long.
    """
    limit = limits or CheckLimits()
    stuck = check_withheld(trace, reports, "frozen_feed", "stuck", "the feed moves")
    if not stuck.passed or (reports and all(report.screened for report in reports)):
        return stuck

    def look(kind: str, rows: pl.DataFrame) -> tuple[str | None, Metadata]:
        known = rows.drop_nulls("value")
        values = known["value"].to_numpy()
        length, at = _longest_run(values, None)
        if not length:
            return None, {}
        lasted = length * _cadence_s(rows)
        metadata: Metadata = {"longest_run_s": lasted, "value": float(values[at])}
        if length < limit.frozen_values or lasted <= limit.frozen_s:
            return None, metadata
        return (
            f"stands at {values[at]:g} for {lasted / 3600:.1f} h from {iso(known['time'][at])}; the feed is frozen. "
            "Wait for the source to recover and fetch again, or raise checks.frozen_s if the value is right"
        ), metadata

    return _per_kind(trace, "frozen_feed", look, "the feed moves")


def check_staleness(
    trace: pl.DataFrame, now: datetime, end: datetime | None = None, limits: CheckLimits | None = None
) -> CheckOutcome:
    """The age of the newest value.

    Args:
        now: the time to measure from.
        end: where the trace was asked to end; an old day is measured from there.
    """
    limit = limits or CheckLimits()
    until = min(now, end) if end is not None else now

    def look(kind: str, rows: pl.DataFrame) -> tuple[str | None, Metadata]:
        # Of a recording that ends in withheld values nothing can be fetched again; of a live source it may.
        known = rows.filter(rows["value"].is_not_null() | (_is_withheld(rows) & (end is None)))
        if known.is_empty():
            return "has no value at all; check the source, its credentials and the region's name", {}
        last = known["time"][-1]
        age = (until - last).total_seconds()
        metadata: Metadata = {"age_s": age, "last": iso(last)}
        if age <= limit.stale_s + _cadence_s(rows):
            return None, metadata
        return (
            f"the newest value is of {iso(last)}, {timedelta(seconds=round(age))} before {iso(until)}; check that the "
            "source still publishes, then fetch again. Windows close when a value exceeds the maximum signal age"
        ), metadata

    if trace.is_empty():
        return CheckOutcome("staleness", False, "error", "there is no value; check region, range and source", {})
    found = _per_kind(trace, "staleness", look, "the newest value is recent")
    return found if end is not None else replace(found, severity="warn")


def run_checks(
    trace: pl.DataFrame,
    *,
    now: datetime,
    expected: tuple[datetime, datetime] | None = None,
    reports: Sequence[Report] = (),
    limits: CheckLimits | None = None,
) -> list[CheckOutcome]:
    """All checks of one region's trace, in the order of CHECKS.

    Args:
        expected: the range the trace should cover; stamps after `now` are not expected.
        reports: what normalisation found, one per kind.
    """
    covered = None if expected is None else (expected[0], max(expected[0], min(expected[1], now)))
    return [
        check_unit(trace, limits),
        check_range(trace, limits),
        check_duplicates(trace, reports),
        check_gaps(trace, covered, limits),
        check_withheld(trace, reports, "zeros", "zero", "zeros are what the region has"),
        check_withheld(trace, reports, "sentinels", "sentinel", "no marks for missing values"),
        check_frozen_feed(trace, limits, reports),
        check_staleness(trace, now, covered and covered[1], limits),
    ]


def _cadence_s(rows: pl.DataFrame) -> float:
    """The commonest difference of neighbouring stamps."""
    steps = rows["time"].unique().sort().diff().drop_nulls()
    if steps.is_empty():
        return 300.0
    return float(steps.dt.total_seconds().mode().min())  # type: ignore[arg-type]


def _longest_run(values: np.ndarray, of: float | None) -> tuple[int, int]:
    """Length and begin of the longest run of equal values: of the value `of`, or of any but zero."""
    if not len(values):
        return 0, 0
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    lengths = np.diff(np.r_[starts, len(values)])
    lengths = np.where(values[starts] == of if of is not None else values[starts] != 0, lengths, 0)
    best = int(np.argmax(lengths))
    return int(lengths[best]), int(starts[best])
