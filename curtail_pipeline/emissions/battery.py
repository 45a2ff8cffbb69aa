"""Batteries and on-site generation: energy balances of a site, and the training they allow outside its windows.

On-site power serves the site first, then its battery. The battery also fills from the grid while the site's window is
open, and serves the site while it is not. All power is constant within a step and the instants at which the battery is
full or empty are exact, so that a result does not depend on how time is cut.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.sites import Battery, OnSiteGeneration, Site
from curtail_pipeline.signals.file_content import ROW, FileContent
from curtail_pipeline.signals.file_numbers import parse_numbers
from curtail_pipeline.signals.held import Signal, cadence_of, max_age_us
from curtail_pipeline.signals.stamps import parse_stamps
from curtail_pipeline.signals.utc_beside import require_no_other_utc
from curtail_pipeline.times import FOREVER, HOUR, SECOND, Floats, Micros, from_us, iso, to_us

log = logging.getLogger(__name__)

_STANDBY = 0.01
"""Of the most power: so much an inverter may take at night, which counts as none."""
_MANY_TIMES = 200.0
"""What a site takes: generation above this beside it looks like W for kW."""
_LARGEST_KW = 1e8
"""More than any plant makes, four times the largest."""
_COVERED = 0.95
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
        TraceError: the file is missing, has other columns, no times or numbers in them, two values for a time,
            negative power, or more than any plant makes.
    """
    path = Path(settings.path)
    try:
        content = FileContent(path)
        missing = [name for name in ("time", "kw") if name not in content.names]
        if missing:
            raise TraceError(f"{path} has no column {missing[0]!r}; it has {', '.join(content.names)}")
        table = content.read(["time", "kw"])
        parsed = parse_stamps(table["time"], str(path), None, "UTC", table[ROW])
        stamps = parsed.naive
        if not parsed.utc.all():
            utc = stamps.dt.replace_time_zone("UTC")
            require_no_other_utc(content, "time", utc, table[ROW], ends=False, time_format=None, zone="")
        values = parse_numbers(table["kw"], path, table[ROW])
    except TraceError as error:
        what = re.split("; (?=if |set )", str(error))[0]  # what helps with traces has no setting here
        raise TraceError(
            f"on-site generation: {what}; it needs the columns time (ISO 8601, UTC) and kw, separated by commas"
        ) from error
    rows = pl.DataFrame({"time": stamps.dt.epoch("us"), "kw": values}).filter(pl.col("kw").is_finite()).unique()
    rows = rows.sort("time")
    if rows.is_empty():
        raise TraceError(f"on-site generation {path} has no values")
    least = rows.row(rows["kw"].arg_min() or 0, named=True)
    if least["kw"] < -_STANDBY * float(rows["kw"].max()):  # type: ignore[arg-type]
        raise TraceError(
            f"on-site generation {path} has negative power, {least['kw']:g} kW at {iso(from_us(least['time']))}; "
            "generation counts from 0 up: correct the sign, or leave out what the site takes"
        )
    most = rows.row(rows["kw"].arg_max() or 0, named=True)
    if most["kw"] > _LARGEST_KW / settings.scale:
        raise TraceError(
            f"on-site generation {path} has {most['kw']:g} kW at {iso(from_us(most['time']))}, times "
            f"on_site.scale {settings.scale:g}, and no plant makes more than {_LARGEST_KW:g} kW; correct the value"
        )
    rows = rows.with_columns(pl.col("kw").clip(0.0))
    times = rows["time"].to_numpy()
    twice = times[1:][times[1:] == times[:-1]]
    if len(twice):
        raise TraceError(f"on-site generation {path} has two values at {iso(from_us(int(twice[0])))}; keep one")
    cadence = cadence_of(times, alone=HOUR)
    return Signal(times, rows["kw"].to_numpy() * settings.scale, cadence, max_age_us(cadence))


def require_generation(sites: Sequence[Site], span: tuple[datetime, datetime], gap_share: float) -> None:
    """Refuse generation that has no value in the time of the traces; of holes and power that looks like W it warns.

    Args:
        span: of the traces.
        gap_share: of the time of a record may have no value.

    Raises:
        TraceError: as `read_on_site`, or all of a site's generation is of another time.
    """
    for site in sites:
        if site.on_site is None:
            continue
        signal = read_on_site(site.on_site)
        if signal.valid_until <= to_us(span[0]) or signal.times[0] >= to_us(span[1]):
            first, last = iso(from_us(int(signal.times[0]))), iso(from_us(signal.end))
            raise TraceError(
                f"on-site generation {site.on_site.path} of site {site.name!r} goes from {first} to {last}, and the "
                f"traces from {iso(span[0])} to {iso(span[1])}; give generation of that time"
            )
        begin, end = max(int(signal.times[0]), to_us(span[0])), min(signal.valid_until, to_us(span[1]))
        if end - begin < _COVERED * (to_us(span[1]) - to_us(span[0])):
            log.warning(
                "on-site generation %s of site %s goes from %s to %s only; outside of that there counts none",
                *(site.on_site.path, site.name, iso(from_us(int(signal.times[0]))), iso(from_us(signal.end))),
            )
        _warn_of_holes(site, site.on_site, signal, (begin, end), gap_share)
        most = float(signal.values.max())
        if most > _MANY_TIMES * site.training_kw * site.pue:
            log.warning(
                "on-site generation %s of site %s reaches %g kW, %.0f times what the site takes; if it is in W, set "
                "on_site.scale to 0.001",
                *(site.on_site.path, site.name, most, most / (site.training_kw * site.pue)),
            )


def _warn_of_holes(
    site: Site, settings: OnSiteGeneration, signal: Signal, span: tuple[int, int], gap_share: float
) -> None:
    """As the check `gaps` does of a recorded intensity."""
    begin, end = span
    known = int(signal.integral(np.array([begin]), np.array([end]))[1][0])
    share = 1 - known / (end - begin)
    if share <= gap_share:
        return
    starts = np.clip(signal.times + signal.max_age_us, begin, end)
    lengths = np.clip(np.append(signal.times[1:], end), begin, end) - starts
    longest = int(np.argmax(lengths))
    log.warning(
        "on-site generation %s of site %s has no value for %.1f h (%.0f %%) from %s to %s, the longest hole %.1f h "
        "from %s; a value counts for %g s at most, twice the usual step, and there counts none: write 0 where none was "
        "made and fill in the rest, or raise checks.gap_share",
        *(settings.path, site.name, (end - begin - known) / HOUR, share * 100, iso(from_us(begin)), iso(from_us(end))),
        *(lengths[longest] / HOUR, iso(from_us(int(starts[longest]))), signal.max_age_us / SECOND),
    )


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
