"""Signals without the values that are no measurement: each becomes null, its row says why, and the report counts it."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Final

import numpy as np
import polars as pl

from curtail_pipeline.settings.trace_settings import Kind, Reason
from curtail_pipeline.signals.judged import Values
from curtail_pipeline.signals.trace import Ingested, Series, Withheld
from curtail_pipeline.signals.withhold import SAID, withheld

ENOUGH_HISTORY_S: Final = 86_400
"""Of values before a live day, which then say what the region is like."""
_BEYOND_ALL: Final = 1e30
"""No source means more, a mark for a missing value included. Differences of larger numbers may not be finite; the check
of the range names them."""


def screen_series(
    signals: Mapping[tuple[str, Kind], Series], measured: Collection[Reason] = ()
) -> dict[tuple[str, Kind], Series]:
    """A recorded source's signals, each judged by all there is of it, and by what the other regions do.

    Args:
        measured: what is to be believed all the same.
    """
    names = list(signals)
    known = [signals[name].points.drop_nulls("value") for name in names]
    found = _judge(names, known, [signals[name].cadence_s for name in names], [signals[name].factor for name in names])
    screened = {}
    for name, judged in zip(names, found, strict=True):
        series, parts = signals[name], [part for part in judged if part.reason not in measured]
        screened[name] = (
            replace(series, points=_nulled(series.points, parts), withheld=tuple(parts)) if parts else series
        )
    return screened


def screen_ingested(found: Ingested, history: pl.DataFrame) -> Ingested:
    """A live source's answer of one region and kind, judged by what is stored of the days before.

    Args:
        history: `time` and `value` of stored traces of the same region and kind, any order.
    """
    if found.trace.is_empty():
        return found
    begin: datetime = found.trace["time"][0]
    new = found.trace.select("time", "value").drop_nulls()
    past = history.select("time", "value").drop_nulls().filter(pl.col("time") < begin).sort("time")
    name = (str(found.trace["region"][0]), _kind(found.trace))
    (parts,) = _judge([name], [pl.concat([past, new])], [found.report.cadence_s], [1.0])
    parts = [part for part in parts if part.until > begin]
    trace = _nulled(found.trace, parts) if parts else found.trace
    said = tuple(dict.fromkeys((*found.report.warnings, *(SAID[part.reason] for part in parts))))
    report = replace(
        found.report,
        withheld=tuple(parts),
        nulls=trace["value"].null_count(),
        warnings=said,
        screened=len(past) * found.report.cadence_s >= ENOUGH_HISTORY_S,
    )
    return Ingested(trace, report)


def _kind(trace: pl.DataFrame) -> Kind:
    kind: Kind = trace["kind"][0]
    return kind


def _judge(
    names: list[tuple[str, Kind]], known: list[pl.DataFrame], cadences: list[int], factors: list[float]
) -> list[list[Withheld]]:
    signals = [
        Values(
            *(region, kind, rows["time"].dt.epoch("us").to_numpy()),
            np.clip(rows["value"].to_numpy(), -_BEYOND_ALL, _BEYOND_ALL),
            *(cadence, factor),
        )
        for (region, kind), rows, cadence, factor in zip(names, known, cadences, factors, strict=True)
    ]
    found = []
    for rows, cadence, factor, stretches in zip(known, cadences, factors, withheld(signals), strict=True):
        step = pl.duration(seconds=cadence)
        ends = rows.select(pl.min_horizontal(pl.col("time") + step, pl.col("time").shift(-1))).to_series()
        found.append(
            [
                Withheld(
                    part.reason,
                    rows["time"][part.first],
                    ends[part.after - 1],
                    round(rows["value"][part.first] / factor, 6),
                    part.after - part.first,
                )
                for part in stretches
            ]
        )
    return found


def _nulled(rows: pl.DataFrame, parts: list[Withheld]) -> pl.DataFrame:
    """The rows with null for every value inside a withheld stretch, and why in `warnings`."""
    marks = pl.DataFrame(
        {
            "time": [part.time for part in parts],
            "withheld_until": [part.until for part in parts],
            "said": [SAID[part.reason] for part in parts],
        },
        schema={"time": rows.schema["time"], "withheld_until": rows.schema["time"], "said": pl.String},
    ).sort("time")
    inside = (pl.col("time") < pl.col("withheld_until")).fill_null(False) & pl.col("value").is_not_null()
    return (
        rows.join_asof(marks, on="time", strategy="backward")
        .with_columns(
            pl.when(~inside).then(pl.col("value")).alias("value"),
            pl.when(inside)
            .then(pl.concat_str("said", "warnings", separator="; ", ignore_nulls=True))
            .otherwise("warnings")
            .alias("warnings"),
        )
        .drop("withheld_until", "said")
    )
