"""What a site with a battery or on-site generation drew, as the ledger books it: every kWh once, when it was taken.

The load of a site is met by the grid and on-site generation, or by its battery. What goes into the battery is booked as
`charging` at its own time and intensity, what comes out of it as `battery_kw` of the load, at no further CO2.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl

from curtail_pipeline.emissions.battery import Flow, supplied
from curtail_pipeline.emissions.grams import CHARGING, INTERVAL_SCHEMA
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.signals.held import Signal
from curtail_pipeline.times import Floats, Micros, micros_of


@dataclass(frozen=True)
class OwnPower:
    """What decides how a site's battery and generation meet its load."""

    curtailed: tuple[Micros, Micros]
    """Start and end of the stretches in which its grid is curtailed, microseconds."""
    generation: Signal | None
    """On-site, kW."""


@dataclass(frozen=True)
class Taken:
    """Energy taken over stretches of constant power, load and battery together."""

    start: Micros
    end: Micros
    grid_kw: Floats
    on_site_kw: Floats


def has_own_power(site: Site) -> bool:
    return site.battery is not None or site.on_site is not None


def taken(flows: Sequence[Flow]) -> Taken:
    """The flows as arrays."""
    edges = np.array([(flow.start, flow.end) for flow in flows], dtype=np.int64).reshape(-1, 2)
    power = np.array([(flow.grid_kw, flow.on_site_kw) for flow in flows]).reshape(-1, 2)
    return Taken(edges[:, 0], edges[:, 1], power[:, 0], power[:, 1])


def supplied_intervals(
    site: Site, load: pl.DataFrame, own: OwnPower, start: int, ends: Sequence[tuple[str, int]]
) -> pl.DataFrame:
    """How the site's load was met, for the ledger: INTERVAL_SCHEMA.

    Give the whole history at once: the battery carries its charge from one checkpoint to the next.

    Args:
        load: INTERVAL_SCHEMA of the site's power, disjoint.
        start: where its time begins, microseconds.
        ends: checkpoints and where their time ends, ascending; each gets what was drawn since the one before it.
    """
    load = load.sort("start")
    low, high = micros_of(load["start"]), micros_of(load["end"])
    until = ends[-1][1] if ends else start
    flows = supplied(site, (low, high, load["kw"].to_numpy()), own.curtailed, own.generation, start, until)
    stops = [stop for _, stop in ends]
    rows = []
    for flow in flows:
        at = int(np.searchsorted(low, flow.start, side="right")) - 1
        state = load["state"][at] if at >= 0 and flow.start < high[at] else None
        measured = state is not None and bool(load["measured"][at])
        inside = stops[bisect_right(stops, flow.start) : bisect_left(stops, flow.end)]
        for first, last in pairwise([flow.start, *inside, flow.end]):
            key = ends[bisect_right(stops, first)][0]
            rows += [
                (key, site.name, name, first, last, *kw, measured and name == state)
                for name, kw in _booked(site, flow, state)
            ]
    table = pl.DataFrame(rows, schema={**INTERVAL_SCHEMA, "start": pl.Int64, "end": pl.Int64}, orient="row")
    return _joined(table)


def _booked(site: Site, flow: Flow, state: str | None) -> list[tuple[str, tuple[float, float, float, float]]]:
    """State, and kW drawn, of it on-site, from the battery, and lost. On-site power serves the load first."""
    found = []
    charged = max(0.0, flow.battery_kw)
    to_load = min(flow.load_kw, flow.on_site_kw)
    if state is not None:
        given = max(0.0, -flow.battery_kw)
        lost = given * (1 / site.battery.discharge_efficiency - 1) if site.battery else 0.0
        found.append((state, (flow.load_kw - given, to_load, given, lost)))
    if charged and site.battery:
        lost = charged * (1 - site.battery.charge_efficiency)
        found.append((CHARGING, (charged, flow.on_site_kw - to_load, 0.0, lost)))
    return found


def _joined(table: pl.DataFrame) -> pl.DataFrame:
    """Rows that touch and are alike, as one."""
    alike = [name for name in INTERVAL_SCHEMA if name not in ("start", "end")]
    ordered = table.sort(pl.col("state") == CHARGING, "start")
    begins = pl.any_horizontal(
        *(pl.col(name).ne_missing(pl.col(name).shift()) for name in alike),
        pl.col("start").ne_missing(pl.col("end").shift()),
    )
    joined = ordered.group_by(begins.cum_sum().alias("stretch"), maintain_order=True).agg(
        pl.exclude("end").first(), pl.col("end").last()
    )
    return joined.select(
        pl.col("start", "end").cast(pl.Datetime("us")).dt.replace_time_zone("UTC"), *map(pl.col, alike)
    ).select(list(INTERVAL_SCHEMA))
