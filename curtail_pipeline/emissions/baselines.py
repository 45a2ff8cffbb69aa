"""Always-on baselines: the same steps on one cluster in one region, without a pause from the job's start."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import TypeVar

import numpy as np

from curtail_pipeline.emissions.battery import supplied
from curtail_pipeline.emissions.grams import Totals, count_grams, energy_kwh
from curtail_pipeline.emissions.holes import Bounds, hole_bounds
from curtail_pipeline.emissions.supply import OwnPower, Taken, taken
from curtail_pipeline.settings.sites import Site, power_kw
from curtail_pipeline.signals.held import Signal
from curtail_pipeline.times import HOUR, from_us, iso, seconds, to_us


@dataclass(frozen=True)
class Baseline:
    """What one cluster that never pauses would have used in this region."""

    region: str
    site: str
    """The site whose power and speed is assumed."""
    steps: int
    hours: float
    kwh: float
    co2_g: float | None
    """None when the trace does not cover the time."""
    unaccounted_kwh: float
    reason: str | None
    """Why there is no CO2, or what it leaves out."""
    co2_g_low: float | None = field(default=None, kw_only=True)
    co2_g_high: float | None = field(default=None, kw_only=True)
    """With the unaccounted energy at its day's lowest and highest intensity; None where there is no CO2, or a day
    without any value."""


@dataclass(frozen=True)
class Compared(Baseline):
    """A baseline beside what was used in its place."""

    ours_of_baseline: float | None
    """Our CO2 over the baseline's; None where one of them is unknown."""


def always_on(
    steps: int,
    started: datetime,
    site: Site,
    region: str,
    signal: Signal | None,
    own: OwnPower | None = None,
    *,
    interpolate: bool = False,
) -> Baseline:
    """`steps` at the site's `steps_per_s` and training power, PUE included, from `started` on, in that region.

    Nothing is extrapolated: where the trace does not cover the whole time, energy is reported without CO2.

    Args:
        own: the cluster has the site's battery and generation; without it the grid alone supplies it.
    """
    end = started + seconds(steps / site.steps_per_s)
    first, last = to_us(started), to_us(end)
    load = np.array([first]), np.array([last]), np.array([power_kw(site, "training")])
    if own is None:
        used_from = Taken(*load, np.zeros(1))
    else:
        used_from = taken(supplied(site, load, own.curtailed, own.generation, first, last))
    span, kw = (used_from.start, used_from.end), used_from.grid_kw
    used = count_grams(*span, kw, signal, interpolate=interpolate)
    kwh = float(used.kwh.sum() + energy_kwh(*span, used_from.on_site_kw).sum())
    lost = float(used.unaccounted_kwh.sum())
    missing = _not_covered(region, signal, first, last)
    if missing is not None:
        return Baseline(region, site.name, steps, (last - first) / HOUR, kwh, None, kwh, missing)
    grams = float(np.nansum(used.co2_g)) if lost < kwh or not kwh else None
    gaps = f"{lost:.3g} kWh fall into gaps of the trace and are not in the CO2" if lost else None
    hole = hole_bounds(*span, kw, signal) if lost else Bounds(0.0, 0.0)
    known = grams or 0.0
    low, high = (None, None) if hole is None else (known + hole.low_g, known + hole.high_g)
    hours = (last - first) / HOUR
    return Baseline(region, site.name, steps, hours, kwh, grams, lost, gaps, co2_g_low=low, co2_g_high=high)


def _not_covered(region: str, signal: Signal | None, start: int, end: int) -> str | None:
    """What the trace lacks of the whole time; None when it covers it."""
    if signal is None:
        return f"no gCO2/kWh trace for {region}"
    first, last = int(signal.times[0]), signal.end
    if first > start:
        return f"the trace starts at {iso(from_us(first))}, after the job at {iso(from_us(start))}"
    if end > last:
        return f"the trace ends at {iso(from_us(last))}, the baseline at {iso(from_us(end))}"
    return None


def always_on_baselines(
    steps: int,
    started: datetime,
    sites: Sequence[Site],
    signals: Mapping[str, Signal],
    extra_regions: Sequence[str] = (),
    own: Mapping[str, OwnPower] | None = None,
    *,
    interpolate: bool = False,
) -> list[Baseline]:
    """One baseline per site, in its own region, and one per extra region with the first site's cluster. Of sites of one
    region that are alike, only the first: the others' would be the same.

    Args:
        own: of the sites that have a battery or generation, which a cluster in another region has not.
    """
    at_home, unlike = own or {}, dict[object, Site]()
    for site in sites:
        like = site.name if site.name in at_home else (power_kw(site, "training"), site.steps_per_s)
        unlike.setdefault((site.region, like), site)
    elsewhere = [region for region in dict.fromkeys(extra_regions) if region not in {site.region for site in sites}]
    clusters = [(site, site.region, at_home.get(site.name)) for site in unlike.values()]
    return [
        always_on(steps, started, site, region, signals.get(region), battery, interpolate=interpolate)
        for site, region, battery in [*clusters, *((sites[0], region, None) for region in elsewhere)]
    ]


Kind = TypeVar("Kind", bound=Baseline)


def by_name(baselines: Sequence[Kind]) -> dict[str, Kind]:
    """Baselines of one job by what tables and figures call them: the region, and the site whose cluster it is where
    that is not the region's only one, or where an extra region has been given one of several."""
    rows, known = Counter(row.region for row in baselines), set[str]()
    differ = len({(row.kwh, row.hours) for row in baselines}) > 1
    found = {}
    for row in baselines:
        told = rows[row.region] > 1 or (row.site in known and differ)
        found[f"{row.region} ({row.site})" if told else row.region] = row
        known.add(row.site)
    return found


def compare_baselines(baselines: Sequence[Baseline], ours: Totals) -> list[Compared]:
    """Our CO2 over each baseline's; without unaccounted energy only, which would flatter it on our side."""
    mine = ours.co2_g if not ours.unaccounted_kwh else None
    return [
        Compared(**asdict(b), ours_of_baseline=mine / b.co2_g if mine is not None and b.co2_g else None)
        for b in baselines
    ]
