"""From the intervals of a rule's signals to candidate windows, and which of those are worth opening.

A candidate is a stretch in which the rule as a whole holds. With a minimum duration a candidate opens late or not at
all: when the forecast, or the region's own history, says that too little of it is left.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from curtail_pipeline.settings.rule_settings import RuleSettings, SignalRule
from curtail_pipeline.times import FOREVER, SECOND, Floats, Micros
from curtail_pipeline.windows.hysteresis import BY_AGE, BY_VALUE, Intervals

HISTORY = 20
"""Past candidates of a region that speak for its next one."""
MIN_HISTORY = 5
"""With fewer, history says nothing and a candidate opens at once."""


def _shown(value: str, threshold: float) -> pl.Expr:
    """One decimal, or all of them where rounding would make the value look equal to the threshold."""
    column = pl.col(value)
    short = column.round(1)
    return pl.when((short == threshold) & (column != threshold)).then(column).otherwise(short).cast(pl.String)


def described(found: Intervals, rule: SignalRule) -> pl.DataFrame:
    """Intervals as a table (region, start, end, opened_by, closed_by) with reasons an operator can read."""
    form, unit = rule.defaults, rule.unit
    enters, leaves = ("<" if form.strict else "<=", ">=" if form.strict else ">") if form.below else (">=", "<")
    delay = f" ({rule.delay_s:g} s exit delay)" if rule.delay_s else ""
    estimates = "" if rule.estimates_s is None else f"{rule.estimates_s:g}"
    table = pl.DataFrame(
        {
            "region": found.region,
            "start": found.start,
            "end": found.end,
            "open_value": found.open_value,
            "close_value": found.close_value,
            "why": found.why,
            "age": found.age,
        }
    )
    opened = pl.format(f"{rule.kind} {{}} {enters} {rule.enter_at:g} {unit}", _shown("open_value", rule.enter_at))
    by_value = pl.format(
        f"{rule.kind} {{}} {leaves} {rule.exit_at:g} {unit}{delay}", _shown("close_value", rule.exit_at)
    )
    by_age = pl.format(f"{rule.kind} signal older than {{}} s", pl.col("age") // SECOND)
    closed = (
        pl.when(pl.col("end") == FOREVER)
        .then(None)
        .when(pl.col("why") == BY_VALUE)
        .then(by_value)
        .when(pl.col("why") == BY_AGE)
        .then(by_age)
        .otherwise(pl.lit(f"{rule.kind} signal estimated for more than {estimates} s"))
    )
    return table.select("region", "start", "end", opened.alias("opened_by"), closed.alias("closed_by"))


def combined(parts: Sequence[pl.DataFrame], needs_all: bool) -> pl.DataFrame:
    """Union (`any_of`) or intersection (`all_of`) of the signals' intervals, with the reasons of those that decided."""
    if len(parts) == 1:
        return parts[0]
    frame = pl.concat(parts)
    region = np.tile(frame["region"].to_numpy(), 2)
    time = np.concatenate((frame["start"].to_numpy(), frame["end"].to_numpy()))
    delta = np.repeat(np.array([1, -1]), frame.height)
    order = np.lexsort((time, region))
    region, time, level = region[order], time[order], np.cumsum(delta[order])
    # Events of one instant count together, so that an interval that begins where another ends leaves no seam.
    final = np.concatenate(((np.diff(region) != 0) | (np.diff(time) != 0), [True]))[: len(time)]
    region, time, level = region[final], time[final], level[final]
    on = level >= (len(parts) if needs_all else 1)
    change = np.diff(on.astype(np.int8), prepend=0)
    edges = np.flatnonzero(change > 0), np.flatnonzero(change < 0)
    joined = pl.DataFrame({"region": region[edges[0]], "start": time[edges[0]], "end": time[edges[1]]})
    opened, closed = [], []
    for index, part in enumerate(parts):
        known = part.rename({"start": "own_start", "end": "own_end", "opened_by": "o", "closed_by": "c"}).sort(
            "own_start"
        )
        begun = (
            joined.sort("start")
            .join_asof(known, left_on="start", right_on="own_start", by="region", check_sortedness=False)
            .sort("region", "start")
        )
        counts = pl.col("own_end") > pl.col("start") if needs_all else pl.col("own_start") == pl.col("start")
        opened.append(begun.select(pl.when(counts).then("o").alias(f"o{index}")))
        ended = (
            joined.sort("end")
            .join_asof(
                known,
                left_on="end",
                right_on="own_start",
                by="region",
                allow_exact_matches=False,
                check_sortedness=False,
            )
            .sort("region", "start")
        )
        closed.append(ended.select(pl.when(pl.col("own_end") == pl.col("end")).then("c").alias(f"c{index}")))
    wide = pl.concat([joined, *opened, *closed], how="horizontal")
    said_open = pl.concat_str([f"o{i}" for i in range(len(parts))], separator=" and ", ignore_nulls=True)
    said_closed = pl.concat_str([f"c{i}" for i in range(len(parts))], separator=" and ", ignore_nulls=True)
    return wide.select(
        "region",
        "start",
        "end",
        said_open.alias("opened_by"),
        pl.when(pl.col("end") == FOREVER).then(None).otherwise(said_closed).alias("closed_by"),
    )


def history_waits(
    durations: Micros, offsets: Micros, past: Sequence[Sequence[int]], required: int
) -> tuple[Micros, list[list[int]]]:
    """How long each candidate must have lasted before its history no longer calls it too short.

    Of the last `HISTORY` candidates of the region, take those that lasted longer than this one has so far: when at
    least half of them lasted `required` longer still, this one opens. Also when none lasted as long: nothing speaks
    against it.

    Args:
        durations: of candidates in order of region and start, microseconds; `FOREVER` for one that has not ended.
        offsets: region `r` has candidates `offsets[r]:offsets[r + 1]`.
        past: durations of earlier candidates per region, oldest first.

    Returns:
        The wait of each candidate in microseconds, and what `past` has become per region.
    """
    lead = [np.concatenate((np.full(HISTORY, np.nan), np.array(known[-HISTORY:], dtype=float))) for known in past]
    pieces: list[Floats] = []
    own = np.empty(len(durations), dtype=np.int64)
    after: list[list[int]] = []
    position = 0
    for r, before in enumerate(lead):
        part = durations[offsets[r] : offsets[r + 1]]
        own[offsets[r] : offsets[r + 1]] = position + len(before) + np.arange(len(part))
        pieces += [before, part.astype(float)]
        position += len(before) + len(part)
        closed = [int(x) for x in part[part != FOREVER][-HISTORY:]]
        after.append([*past[r], *closed][-HISTORY:])
    if not len(durations):
        return np.empty(0, dtype=np.int64), after
    flat = np.concatenate(pieces)
    known = np.sort(flat[own[:, None] + np.arange(-HISTORY, 0)], axis=1)
    count = HISTORY - np.isnan(known).sum(axis=1)
    wait = np.zeros(len(durations), dtype=np.int64)
    open_rows = np.flatnonzero(count >= MIN_HISTORY)
    for lasted in range(HISTORY + 1):
        total = count[open_rows]
        elapsed = known[open_rows, lasted - 1] if lasted else np.zeros(len(open_rows))
        left = total - lasted
        # The middle one of the longer candidates, rounded so that "at least half" holds for odd counts too.
        middle = known[open_rows, np.minimum(total - (left + 1) // 2, HISTORY - 1)]
        settled = (left <= 0) | (middle >= elapsed + required)
        wait[open_rows[settled]] = elapsed[settled].astype(np.int64)
        open_rows = open_rows[~settled]
    return wait, after


def forecast_openings(
    candidates: pl.DataFrame, forecasts: pl.DataFrame, rule: RuleSettings, since: int
) -> pl.DataFrame:
    """When a forecast first says that a candidate has the required duration before it.

    Judged at the candidate's start by the latest forecast issued by then, and at each later issue. A signal that the
    forecast leaves curtailed up to its horizon is long enough. `all_of` ends with its first signal, `any_of` with its
    last.

    Args:
        candidates: id, region, start, end (microseconds).
        forecasts: region, kind, issued, target (microseconds), value.
        since: issues and starts before this instant were judged earlier.

    Returns:
        id, `judged` (a forecast covered the start), `opens` (microseconds, null for never), for the candidates that had
        one.
    """
    issues = forecasts.group_by("region", "kind", "issued").agg(pl.col("target").max().alias("horizon")).sort("issued")
    starts = candidates.filter(pl.col("start") >= since).select("id", "region", moment="start", at_start=True)
    later = (
        issues.filter(pl.col("issued") >= since)
        .select("region", moment="issued")
        .unique()
        .sort("moment")
        .join_asof(candidates.sort("start"), left_on="moment", right_on="start", by="region", check_sortedness=False)
        .filter((pl.col("moment") > pl.col("start")) & (pl.col("moment") < pl.col("end")))
        .select("id", "region", "moment", at_start=False)
    )
    moments = pl.concat([starts, later]).sort("moment")
    ends = []
    for signal in rule.signals:
        own = forecasts.filter(pl.col("kind") == signal.kind)
        value, form = pl.col("value"), signal.defaults
        if form.below:
            leaves = value >= signal.exit_at if form.strict else value > signal.exit_at
        else:
            leaves = value < signal.exit_at
        covered = moments.join_asof(
            issues.filter(pl.col("kind") == signal.kind),
            left_on="moment",
            right_on="issued",
            by="region",
            check_sortedness=False,
        ).filter(pl.col("horizon") > pl.col("moment"))
        first = (
            covered.join(own.filter(leaves).select("region", "issued", "target"), on=["region", "issued"])
            .filter(pl.col("target") > pl.col("moment"))
            .group_by("id", "moment")
            .agg(pl.col("target").min() + round(signal.delay_s * SECOND))
        )
        ends.append(
            covered.select("id", "moment", "at_start")
            .join(first, on=["id", "moment"], how="left")
            .with_columns(pl.col("target").fill_null(FOREVER))
        )
    merged = (
        pl.concat(ends)
        .group_by("id", "moment", "at_start")
        .agg(pl.col("target").min().alias("first"), pl.col("target").max().alias("last"), pl.len().alias("signals"))
    )
    if rule.needs_all or len(rule.signals) == 1:
        until = pl.col("first")
    else:
        until = pl.when(pl.col("signals") == len(rule.signals)).then("last").otherwise(FOREVER)
    enough = (until == FOREVER) | (until - pl.col("moment") >= round(rule.required_s * SECOND))
    return merged.group_by("id").agg(
        pl.col("at_start").any().alias("judged"), pl.col("moment").filter(enough).min().alias("opens")
    )
