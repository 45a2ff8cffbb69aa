"""The checks of recorded signals over all of their time, for commands and before a run."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.check_settings import FROZEN_S, FROZEN_VALUES, CheckLimits
from curtail_pipeline.signals.checks import CheckOutcome, Severity, run_checks
from curtail_pipeline.signals.trace import Ingested
from curtail_pipeline.signals.zeros import ENOUGH

_SHOWN: Final = 3
"""Regions that a line describes; of more it gives the number."""


def check_recording(parts: Sequence[Ingested], limits: CheckLimits | None = None) -> list[CheckOutcome]:
    """All checks of recorded signals over their whole time, one outcome per name over all regions, as CHECKS orders.

    Args:
        parts: one region and kind each.

    Raises:
        TraceError: a check failed that would keep the trace out of the store.
    """
    by_region: dict[str, list[Ingested]] = {}
    for part in parts:
        if len(part.trace):
            by_region.setdefault(str(part.trace["region"][0]), []).append(part)
    found: dict[str, list[CheckOutcome]] = {}
    for region_parts in by_region.values():
        table = pl.concat(part.trace for part in region_parts)
        end = max(part.trace["time"][-1] + timedelta(seconds=part.report.cadence_s) for part in region_parts)
        outcomes = run_checks(table, now=end, reports=[part.report for part in region_parts], limits=limits)
        for outcome in [*outcomes, *(said for part in region_parts if (said := _one_value(part)) is not None)]:
            found.setdefault(outcome.name, []).append(outcome)
    merged = [_merged(outcomes) for outcomes in found.values()]
    blocking = [outcome.description for outcome in merged if outcome.blocking and not outcome.passed]
    if blocking:
        raise TraceError("; ".join(blocking))
    return merged


def _one_value(part: Ingested) -> CheckOutcome | None:
    """A recorded intensity or price that is one value all the time: nothing in it shows that it is measured."""
    known = part.trace.drop_nulls("value")
    kind, cadence = part.trace["kind"][0], part.report.cadence_s
    if kind == "curtailed_power" or len(known) < FROZEN_VALUES or len(known) * cadence <= FROZEN_S:
        return None
    common, count = known["value"].value_counts(sort=True).row(0)
    if len(known) - count >= ENOUGH or (common != 0 and len(known) != count):
        return None
    name = "zeros" if common == 0 else "frozen_feed"
    text = (
        f"{part.trace['region'][0]} {kind}: {count} of {len(known)} values are {common:g}, which "
        "does not show whether the source measures; leave them empty if it does not"
    )
    return CheckOutcome(name, False, "warn", text, {"value": common, "count": count})


def _merged(outcomes: Sequence[CheckOutcome]) -> CheckOutcome:
    failed = [outcome for outcome in outcomes if not outcome.passed]
    if not failed:
        return outcomes[0]
    worst: Severity = "error" if any(outcome.blocking for outcome in failed) else "warn"
    texts = [outcome.description for outcome in sorted(failed, key=lambda outcome: not outcome.blocking)]
    more = [f"and {len(texts) - _SHOWN} more regions alike"] if len(texts) > _SHOWN + 1 else texts[_SHOWN:]
    return CheckOutcome(outcomes[0].name, False, worst, "; ".join([*texts[:_SHOWN], *more]))
