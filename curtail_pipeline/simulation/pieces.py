"""What a kWh costs at a site over time, at the least: pieces of constant intensity, on-site generation and battery."""

from dataclasses import dataclass

import numpy as np

from curtail_pipeline.emissions.battery import power_at, steps_of
from curtail_pipeline.scheduling.timing import step_us
from curtail_pipeline.scheduling.view import View
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.times import FOREVER, Floats, Micros


@dataclass(frozen=True)
class Pieces:
    """A stretch of time of one site, cut where its signal or generation changes and at block edges."""

    begin: Micros
    length: Micros
    value: Floats
    """gCO2/kWh of the grid; NaN in a hole."""
    made_kw: Floats
    """On-site generation."""
    stored: Floats
    """gCO2/kWh of what its battery gives, at the least; infinite without one."""
    battery_kw: float

    def g_per_kwh(self, kw: float) -> Floats:
        """Of a load of that power, at the least; NaN where nobody can tell."""
        if not self.battery_kw and not self.made_kw.any():
            return self.value
        needed = np.maximum(kw - self.made_kw, 0.0)
        given = np.minimum(needed, self.battery_kw)
        cheapest = np.fmin(self.value, self.stored)
        cost = np.where(needed > given, self.value, 0.0) * (needed - given) + np.where(given > 0, cheapest, 0.0) * given
        return np.where(np.isinf(cost), np.nan, cost / kw)


def pieces_of(view: View, site: Site, start: int, end: int, block: int | None, price: float) -> Pieces:
    """Of `[start, end)`, as far as the site's signal goes.

    The step in progress when a signal ends is finished, and what it draws then is in no figure of CO2: so long into a
    hole a kWh costs nothing.

    Args:
        block: length of blocks from the start, whose edges cut too; microseconds.
        price: at most what a kWh in the battery costs, g.
    """
    signal, generation = view.signals[site.region], view.on_site.get(site.name)
    step = step_us(site)
    end = min(end, signal.valid_until + step)
    inside = signal.edges[(signal.edges > start) & (signal.edges < end)]
    ended = signal.edges[np.isnan(signal.held_at(signal.edges))]
    finished = ended + step
    edges = [np.array([start, end]), inside, finished[(finished > start) & (finished < end)]]
    edges.append(steps_of(generation, start, end))
    if block is not None:
        edges.append(np.arange(start, end, block))
    cuts = np.unique(np.concatenate(edges)) if start < end else np.array([start])
    begin, value, battery = cuts[:-1], signal.held_at(cuts[:-1]), site.battery
    since = np.append(-FOREVER, ended)[np.searchsorted(ended, begin, side="right")]
    value = np.where(np.isnan(value) & (begin - since < step), 0.0, value)
    stored = np.full(len(begin), np.inf)
    if battery is not None:
        lowest = np.fmin.accumulate(np.append(np.inf, value))[1:]
        stored = np.minimum(lowest / (battery.charge_efficiency * battery.discharge_efficiency), price)
    power = 0.0 if battery is None else battery.discharge_kw
    return Pieces(begin, np.diff(cuts), value, power_at(generation, begin), stored, power)
