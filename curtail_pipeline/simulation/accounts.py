"""What a walk cost: hours, energy and CO2 against step-held traces, baselines, and regret over the oracle."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from curtail_pipeline.emissions.baselines import Baseline, always_on_baselines, by_name
from curtail_pipeline.emissions.battery import supplied
from curtail_pipeline.emissions.grams import count_grams, energy_kwh
from curtail_pipeline.emissions.holes import Bounds, hole_bounds
from curtail_pipeline.emissions.supply import OwnPower, has_own_power, taken
from curtail_pipeline.scheduling.view import SiteWindows, View
from curtail_pipeline.settings.sites import PowerState, Site, power_kw
from curtail_pipeline.signals.held import Signal
from curtail_pipeline.simulation.oracle import Oracle
from curtail_pipeline.simulation.walk import Walk
from curtail_pipeline.times import FOREVER, HOUR, Floats, Micros, from_us, outside

STATES: tuple[PowerState, ...] = ("training", "idle", "start_up")


@dataclass(frozen=True)
class Account:
    """Totals of a walk. CO2 is step-held unless it says otherwise, and that of `energy_kwh - unaccounted_kwh`."""

    training_h: dict[str, float]
    idle_h: float
    start_up_h: float
    energy_kwh: float
    """From the grid and from on-site generation, what batteries lose or still hold included."""
    unaccounted_kwh: float
    """From the grid at times without a known intensity."""
    co2_kg: float
    bounds_kg: tuple[float, float] | None
    """Least and most CO2 with the unaccounted energy at its day's lowest and highest intensity; None where a day has
    none to go by."""
    co2_kg_interpolated: float | None
    curtailed_kwh: float
    """Of the energy, what was taken while the site's signal counted as curtailed, or came from the site itself."""
    window_kwh: float
    """Of the energy, what was taken inside the site's windows, exit delays included, or came from the site itself: a
    run's ledger calls that curtailed."""
    not_training_co2_kg: float
    """Of all power but that of training."""
    outside_co2_kg: float
    """Of training while the signal did not count as curtailed."""
    outside_steps: float

    @property
    def known(self) -> bool:
        """Whether there is CO2 to speak of: some of the energy is accounted, or none was drawn."""
        return self.energy_kwh == 0 or self.energy_kwh > self.unaccounted_kwh


@dataclass(frozen=True)
class _Drawn:
    """Energy that a site drew from the grid: intervals of constant power."""

    spans: tuple[Micros, Micros]
    kw: Floats | float
    training: bool


def account(
    view: View,
    walk: Walk,
    curtailed: dict[str, SiteWindows],
    *,
    accounting: Mapping[str, Signal] | None = None,
    interpolate: bool = False,
    interpolated: bool = True,
) -> Account:
    """Add a walk up.

    Args:
        accounting: gCO2/kWh by region, the view's signals when not given; energy of a region that has none is
            unaccounted.
        curtailed: per site, when its signal counts as curtailed (the plain rule, without delays).
        interpolate: join the trace's values by straight lines everywhere, as the paper's analysis does.
        interpolated: also give the CO2 of interpolated values.
    """
    training_h: dict[str, float] = {}
    bounds: list[Bounds | None] = []
    idle_h = start_up_h = kwh = lost = held = linear = curtailed_kwh = window_kwh = 0.0
    not_training = outside_g = outside_steps = 0.0
    for site in view.sites:
        use, signal = walk.use[site.name], (view.signals if accounting is None else accounting).get(site.region)
        windows = curtailed.get(site.name, SiteWindows.none())
        clear = _stretches(windows)
        training_h[site.name] = use.hours("training")
        idle_h += use.hours("idle")
        start_up_h += use.hours("start_up")
        drawn, own_kwh = _drawn(view, walk, site, clear)
        kwh += own_kwh
        curtailed_kwh += own_kwh
        window_kwh += own_kwh
        for part in drawn:
            counted = count_grams(*part.spans, part.kw, signal, interpolate=interpolate)
            span, beyond_kw = _beyond(part, clear)
            energy, beyond_kwh = float(counted.kwh.sum()), float(energy_kwh(*span, beyond_kw).sum())
            kwh += energy
            if missing := float(counted.unaccounted_kwh.sum()):
                lost += missing
                bounds.append(hole_bounds(*part.spans, part.kw, signal))
            curtailed_kwh += energy - beyond_kwh
            window_kwh += _inside_kwh(part, view.windows.get(site.name, SiteWindows.none()))
            grams = float(np.nansum(counted.co2_g))
            held += grams
            if interpolated and not interpolate:
                linear += float(np.nansum(count_grams(*part.spans, part.kw, signal, interpolate=True).co2_g))
            if not part.training:
                not_training += grams
            else:
                beyond = count_grams(*span, beyond_kw, signal, interpolate=interpolate)
                outside_g += float(np.nansum(beyond.co2_g))
                outside_steps += beyond_kwh / power_kw(site, "training") * 3_600 * site.steps_per_s
    return Account(
        training_h,
        idle_h,
        start_up_h,
        kwh,
        lost,
        held / 1_000,
        _bounded(held, bounds),
        held / 1_000 if interpolate else linear / 1_000 if interpolated else None,
        curtailed_kwh,
        window_kwh,
        not_training / 1_000,
        outside_g / 1_000,
        outside_steps,
    )


def _bounded(held_g: float, holes: list[Bounds | None]) -> tuple[float, float] | None:
    known = [hole for hole in holes if hole is not None]
    if len(known) < len(holes):
        return None
    return (held_g + sum(hole.low_g for hole in known)) / 1_000, (held_g + sum(hole.high_g for hole in known)) / 1_000


def _beyond(part: _Drawn, clear: tuple[Micros, Micros]) -> tuple[tuple[Micros, Micros], Floats | float]:
    """What of it was drawn outside the curtailed stretches; flows of changing power are cut at these already."""
    if isinstance(part.kw, float):
        return outside(part.spans, clear), part.kw
    low, high = part.spans
    at = np.searchsorted(clear[0], low, side="right") - 1
    pick = (at < 0) | (low >= np.append(clear[1], 0)[at])
    return (low[pick], high[pick]), part.kw[pick]


def _inside_kwh(part: _Drawn, windows: SiteWindows) -> float:
    """Energy drawn while a window was open, wherever its power changes."""
    before = np.concatenate([[0], np.cumsum(windows.end - windows.start)])

    def open_until(at: Micros) -> Micros:
        begun = np.searchsorted(windows.start, at, side="right")
        left = np.append(0, windows.end)[begun] - at  # of the last window that has begun
        return before[begun] - np.where(begun > 0, np.maximum(left, 0), 0)

    low, high = part.spans
    return float(((open_until(high) - open_until(low)) / HOUR * part.kw).sum())


def _drawn(view: View, walk: Walk, site: Site, clear: tuple[Micros, Micros]) -> tuple[list[_Drawn], float]:
    """What the site drew from the grid, and the kWh of its own generation that were used."""
    use = walk.use[site.name]
    if not has_own_power(site):
        return [_Drawn(use.of(state), power_kw(site, state), state == "training") for state in STATES], 0.0
    low = np.concatenate([use.of(state)[0] for state in STATES])
    high = np.concatenate([use.of(state)[1] for state in STATES])
    kw = np.concatenate([np.full(len(use.of(state)[0]), power_kw(site, state)) for state in STATES])
    train = np.concatenate([np.full(len(use.of(state)[0]), state == "training") for state in STATES])
    order = np.argsort(low, kind="stable")
    load = low[order], high[order], kw[order]
    flows = supplied(site, load, clear, view.on_site.get(site.name), walk.start, walk.end)
    got = taken(flows)
    starts = np.array([flow.start for flow in flows], dtype=np.int64)
    trained = train[order]
    begins, ends = low[order][trained], high[order][trained]
    at = np.searchsorted(begins, starts, side="right")  # intervals of training that have begun
    trains = at > np.searchsorted(ends, starts, side="right")
    return [
        _Drawn((got.start[pick], got.end[pick]), got.grid_kw[pick], mark)
        for pick, mark in ((trains, True), (~trains, False))
    ], float(energy_kwh(got.start, got.end, got.on_site_kw).sum())


def baselines(
    view: View,
    steps: int,
    start: int,
    accounting: Mapping[str, Signal] | None = None,
    curtailed: Mapping[str, SiteWindows] | None = None,
    *,
    interpolate: bool = False,
) -> dict[str, Baseline]:
    """`always_on_baselines`, by name.

    Args:
        accounting, curtailed: as of `account`.
    """
    signals = view.signals if accounting is None else accounting
    own = {
        site.name: OwnPower(
            _stretches((curtailed or {}).get(site.name, SiteWindows.none())), view.on_site.get(site.name)
        )
        for site in view.sites
        if has_own_power(site)
    }
    regions = view.experiment.baseline_regions
    return by_name(
        always_on_baselines(steps, from_us(start), view.sites, signals, regions, own, interpolate=interpolate)
    )


def _stretches(windows: SiteWindows) -> tuple[Micros, Micros]:
    return windows.start, np.minimum(windows.end, FOREVER)


class Regret(TypedDict):
    """How many kg more than the oracle, and for what. The parts add up to the total; all are None without an oracle."""

    total_kg: float | None
    exit_lag_kg: float | None
    """Training while the signal was not curtailed, over what the oracle would pay for its next steps instead. Only of
    policies that follow windows: others do so on purpose."""
    start_up_and_idle_kg: float | None
    """All power that did not train."""
    forecast_error_kg: float | None
    """More than the same policy with a perfect forecast; None where that trained nothing."""
    waiting_kg: float | None
    """The rest, training that could have waited for cleaner hours. Below 0 where idle power or an early finish bought
    cleaner hours than the oracle's."""


def regret(found: Account, oracle: Oracle | None, *, window_driven: bool, perfect_kg: float | None) -> Regret:
    """What a walk emitted over the oracle of the same steps.

    Args:
        perfect_kg: of the same policy with a perfect forecast, for the same steps; its own where it reads no forecast.
    """
    if oracle is None:
        return {
            "total_kg": None,
            "exit_lag_kg": None,
            "start_up_and_idle_kg": None,
            "forecast_error_kg": None,
            "waiting_kg": None,
        }
    total = found.co2_kg - oracle.co2_kg
    exit_lag = 0.0
    if window_driven:
        exit_lag = max(0.0, found.outside_co2_kg - found.outside_steps * oracle.marginal_g_per_step / 1_000)
    error = None if perfect_kg is None else found.co2_kg - perfect_kg
    rest = total - exit_lag - found.not_training_co2_kg - (error or 0.0)
    return {
        "total_kg": total,
        "exit_lag_kg": exit_lag,
        "start_up_and_idle_kg": found.not_training_co2_kg,
        "forecast_error_kg": error,
        "waiting_kg": rest,
    }
