"""Batteries and on-site generation: energy balances of a site, and the training they allow outside its windows.

On-site power serves the site first, then its battery. The battery also fills from the grid while the site's window is
open, and serves the site while it is not. All power is constant within a step and the instants at which the battery is
full or empty are exact, so that a result does not depend on how time is cut.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.sites import Battery, OnSiteGeneration, Site
from curtail_pipeline.signals.held import Signal, cadence_of, max_age_us
from curtail_pipeline.times import FOREVER, HOUR, TIME, Floats, Micros

_NO_BATTERY = Battery(capacity_kwh=1e-12, charge_kw=1e-12, discharge_kw=1e-12)


@dataclass(frozen=True)
class Flow:
    """Constant power over `[start, end)` microseconds; all at the site's meter, kW."""

    start: int
    end: int
    load_kw: float
    on_site_kw: float
    """On-site power that is used, by the site or its battery."""
    grid_kw: float
    battery_kw: float
    """Above 0 it charges."""
    charge_kwh: float
    """Stored at the end."""


def read_on_site(settings: OnSiteGeneration) -> Signal:
    """The generation of a site, kW.

    Raises:
        TraceError: the file is missing, has other columns, or negative power.
    """
    path = Path(settings.path)
    try:
        rows = pl.read_parquet(path) if path.suffix == ".parquet" else pl.read_csv(path, try_parse_dates=True)
        rows = rows.select(pl.col("time").cast(TIME).dt.epoch("us"), pl.col("kw").cast(pl.Float64)).sort("time")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise TraceError(
            f"on-site generation {path}: {' '.join(str(error).split())[:200]}; it needs the columns time (UTC) and kw"
        ) from error
    rows = rows.drop_nulls()
    if rows.is_empty():
        raise TraceError(f"on-site generation {path} has no values")
    if rows.filter(pl.col("kw") < 0).height:
        raise TraceError(f"on-site generation {path} has negative power; generation counts from 0 up")
    times = rows["time"].to_numpy()
    cadence = cadence_of(times, alone=HOUR)
    return Signal(times, rows["kw"].to_numpy() * settings.scale, cadence, max_age_us(cadence))


def power_at(signal: Signal | None, us: Micros) -> Floats:
    """Generation at each time, kW; 0 outside the record and in its gaps."""
    return np.zeros(len(us)) if signal is None else np.nan_to_num(signal.held_at(us))


def steps_of(signal: Signal | None, start: int, end: int) -> Micros:
    """The instants in `[start, end)` at which the generation may change."""
    if signal is None:
        return np.empty(0, dtype=np.int64)
    return signal.edges[(signal.edges >= start) & (signal.edges < end)]


def balance(
    battery: Battery | None,
    start: int,
    end: int,
    load_kw: float,
    generation_kw: float,
    charge_kwh: float,
    *,
    from_grid: bool,
) -> list[Flow]:
    """The flows of one stretch of constant load and generation, cut where the battery becomes full or empty.

    Args:
        from_grid: the grid is curtailed: the battery fills up from it, and is not discharged.
    """
    store = battery or _NO_BATTERY
    reserve = store.reserve_share * store.capacity_kwh
    flows = []
    while start < end:
        net = load_kw - generation_kw
        stored_per_kwh = store.charge_efficiency
        drawn_per_kwh = 1 / store.discharge_efficiency
        room, above = store.capacity_kwh - charge_kwh, charge_kwh - reserve
        power, hours = 0.0, (end - start) / HOUR
        if (net < 0 or from_grid) and room > 1e-9 and battery is not None:
            power = store.charge_kw if from_grid else min(-net, store.charge_kw)
            hours = min(hours, room / (power * stored_per_kwh))
        elif net > 0 and not from_grid and above > 1e-9 and battery is not None:
            power = -min(net, store.discharge_kw)
            hours = min(hours, above / (-power * drawn_per_kwh))
        until = min(end, start + max(1, round(hours * HOUR)))
        hours = (until - start) / HOUR
        change = power * hours * (stored_per_kwh if power > 0 else drawn_per_kwh)
        charge_kwh = min(max(charge_kwh + change, min(charge_kwh, reserve)), store.capacity_kwh)
        grid = max(0.0, net + power)
        flows.append(Flow(start, until, load_kw, load_kw + power - grid, grid, power, charge_kwh))
        start = until
    return flows


def supplied(
    site: Site,
    load: tuple[Micros, Micros, Floats],
    windows: tuple[Micros, Micros],
    generation: Signal | None,
    start: int,
    end: int,
) -> list[Flow]:
    """How a site's load was met over `[start, end)`: what its ledger accounts for.

    Args:
        load: start, end and kW of stretches of power, disjoint and ascending; none between them.
        windows: start and end of the stretches in which the site's grid is curtailed.
        generation: kW of on-site power, or None.

    Returns:
        Flows in order of time. CO2 is that of `grid_kw` at its time: stored energy was accounted when it was taken.
    """
    low, high, kw = load
    cuts = [np.array([start, end]), low, high, windows[0], windows[1], steps_of(generation, start, end)]
    stamps = np.unique(np.concatenate(cuts))
    stamps = stamps[(stamps >= start) & (stamps <= end)]
    begin = stamps[:-1]
    at = np.searchsorted(low, begin, side="right") - 1
    inside = (at >= 0) & (begin < (high[np.maximum(at, 0)] if len(high) else 0))
    demand = np.where(inside, kw[np.maximum(at, 0)] if len(kw) else 0.0, 0.0)
    open_at = np.searchsorted(windows[0], begin, side="right") - 1
    curtailed = (open_at >= 0) & (begin < (windows[1][np.maximum(open_at, 0)] if len(windows[1]) else 0))
    made = power_at(generation, begin)
    charge = site.battery.capacity_kwh * site.battery.initial_share if site.battery else 0.0
    flows: list[Flow] = []
    for i in range(len(begin)):
        flows += balance(
            site.battery,
            int(stamps[i]),
            int(stamps[i + 1]),
            float(demand[i]),
            float(made[i]),
            charge,
            from_grid=bool(curtailed[i]),
        )
        charge = flows[-1].charge_kwh
    return flows


def supplied_stretches(
    site: Site, training_kw: float, windows: tuple[Micros, Micros], generation: Signal | None, start: int, end: int
) -> list[tuple[int, int, str]]:
    """When the site can train outside its windows on its own energy: start, end and on what.

    It is taken to train whenever it may. On-site power alone must cover its training power, or the battery must add
    what is missing; a stretch ends when the battery is down to its reserve. The battery alone goes on after a window,
    it never begins a stretch: else it would switch the site on for every bit that it was charged.
    """
    open_at = np.minimum(windows[1], FOREVER)
    stamps = np.unique(np.concatenate(([start, end], windows[0], open_at, steps_of(generation, start, end))))
    stamps = stamps[(stamps >= start) & (stamps <= end)]
    made = power_at(generation, stamps[:-1])
    index = np.searchsorted(windows[0], stamps[:-1], side="right") - 1
    curtailed = (index >= 0) & (stamps[:-1] < (open_at[np.maximum(index, 0)] if len(open_at) else 0))
    battery = site.battery
    charge = battery.capacity_kwh * battery.initial_share if battery else 0.0
    reserve = battery.capacity_kwh * battery.reserve_share if battery else 0.0
    found: list[tuple[int, int, str]] = []
    training = False
    for i, (low, high) in enumerate(zip(stamps[:-1].tolist(), stamps[1:].tolist(), strict=True)):
        power = float(made[i])
        if curtailed[i]:
            training = True
            charge = balance(battery, low, high, training_kw, power, charge, from_grid=True)[-1].charge_kwh
            continue
        missing = training_kw - power
        if missing <= 0:
            found.append((low, high, "on-site power covers the site"))
            training = True
            charge = balance(battery, low, high, training_kw, power, charge, from_grid=False)[-1].charge_kwh
            continue
        lasts = (charge - reserve) * battery.discharge_efficiency / missing * HOUR if battery else 0.0
        if training and battery and missing <= battery.discharge_kw and lasts >= 1:
            until = min(high, low + int(lasts))
            found.append((low, until, "on stored energy"))
            charge = balance(battery, low, until, training_kw, power, charge, from_grid=False)[-1].charge_kwh
            low, training = until, until == high
        else:
            training = False
        if low < high:
            charge = balance(battery, low, high, 0.0, power, charge, from_grid=False)[-1].charge_kwh
    return found
