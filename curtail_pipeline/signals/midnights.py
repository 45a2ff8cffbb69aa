"""Stamps of interval ends in other writings: the last one of a day as 00:00 of that day, where 24:00 is meant, or all
as the last second of their interval (23:59:59)."""

from datetime import timedelta

import polars as pl

from curtail_pipeline.errors import TraceError

_DAY = timedelta(days=1)


def require_midnights_in_order(naive: pl.Series, groups: pl.Series | None, source: str) -> None:
    """Refuse a file that goes on from 23:00 to 00:00 of the same day: that value would be read a day too early.

    Args:
        naive: local stamps, as the file orders them.
        groups: what each stamp belongs to.

    Raises:
        TraceError: it does.
    """
    own = pl.Series([0] * len(naive)) if groups is None else groups
    table = pl.DataFrame({"at": naive, "group": own}).drop_nulls("at")
    before, after = (
        pl.col("at") - pl.col("at").shift(1).over("group"),
        pl.col("at").shift(-1).over("group") - pl.col("at"),
    )
    steps = table.select(before.abs().alias("step")).filter(pl.col("step") > timedelta(0))["step"]
    if steps.is_empty():
        return
    step = steps.mode().min()
    assert isinstance(step, timedelta)
    if step > timedelta(hours=1):
        return
    back, on = step - _DAY, _DAY + step
    rising = (before == back) & ((after == on) | after.is_null())
    falling = (after == -back) & ((before == -on) | before.is_null())
    midnight = pl.col("at").dt.time() == pl.time(0, 0)
    found = table.with_columns(wrong=midnight & (rising | falling)).filter(midnight)
    wrong = found.filter("wrong")
    if len(wrong) and 2 * len(wrong) >= len(found):
        first = wrong["at"][0]
        raise TraceError(
            f"{source}: {first} stands beside {first + _DAY - step} as if it were the end of that day; write "
            f"{first + _DAY} or {first:%Y-%m-%d} 24:00"
        )


def last_seconds(naive: pl.Series) -> pl.Series | None:
    """The ends that stamps of last seconds (00:59:59, 01:59:59, ...) mean; None where they are no such stamps."""
    later = naive + timedelta(seconds=1)
    step = later.unique().sort().diff().drop_nulls().mode().min() if len(naive) > 1 else None
    if not isinstance(step, timedelta) or not timedelta(minutes=1) < step <= timedelta(hours=1):
        return None
    return later.alias(naive.name) if (later == later.dt.truncate(step)).all() else None
