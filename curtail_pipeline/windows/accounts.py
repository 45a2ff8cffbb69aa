"""What a walk cost: hours, energy and CO2 against step-held traces, baselines, and regret over the oracle."""

from dataclasses import dataclass

import numpy as np

from curtail_pipeline.windows.config import Site
from curtail_pipeline.windows.membership import SiteWindows, View
from curtail_pipeline.windows.oracle import Oracle
from curtail_pipeline.windows.segments import PowerState, power_kw
from curtail_pipeline.windows.simulator import Walk, outside
from curtail_pipeline.windows.timeline import FOREVER, HOUR

STATES: tuple[PowerState, ...] = ("training", "idle", "start_up")


@dataclass(frozen=True)
class Account:
    """Totals of a walk. CO2 is step-held unless it says otherwise."""

    training_h: dict[str, float]
    idle_h: float
    start_up_h: float
    energy_kwh: float
    co2_kg: float
    co2_kg_interpolated: float
    curtailed_kwh: float
    """Energy drawn while the site's signal counted as curtailed."""
    not_training_co2_kg: float
    """Of start-up and idle power."""
    outside_co2_kg: float
    """Of training while the signal did not count as curtailed."""
    outside_steps: float


def account(view: View, walk: Walk, curtailed: dict[str, SiteWindows], *, interpolate: bool = False) -> Account:
    """Add a walk up.

    Args:
        curtailed: per site, when its signal counts as curtailed (the plain rule, without delays).
        interpolate: join the trace's values by straight lines everywhere, as the paper's analysis does.
    """
    training_h: dict[str, float] = {}
    hours = dict.fromkeys(STATES, 0.0)
    kwh = held = linear = curtailed_kwh = not_training = outside_g = outside_steps = 0.0
    for site in view.sites:
        use, signal = walk.use[site.name], view.signals[site.region]
        windows = curtailed.get(site.name, SiteWindows.none())
        clear = windows.start, np.minimum(windows.end, FOREVER)
        training_h[site.name] = use.hours("training")
        for state in STATES:
            spans, kw = use.of(state), power_kw(site, state)
            spent, beyond = use.hours(state), outside(spans, clear)
            beyond_h = float((beyond[1] - beyond[0]).sum()) / HOUR
            hours[state] += spent
            kwh += kw * spent
            curtailed_kwh += kw * (spent - beyond_h)
            grams = kw * float(signal.integral(*spans, interpolate=interpolate).sum())
            held += grams
            linear += grams if interpolate else kw * float(signal.integral(*spans, interpolate=True).sum())
            if state != "training":
                not_training += grams
            else:
                outside_g += kw * float(signal.integral(*beyond, interpolate=interpolate).sum())
                outside_steps += beyond_h * 3_600 * site.steps_per_s
    return Account(
        training_h,
        hours["idle"],
        hours["start_up"],
        kwh,
        held / 1_000,
        linear / 1_000,
        curtailed_kwh,
        not_training / 1_000,
        outside_g / 1_000,
        outside_steps,
    )


def always_on_kg(view: View, site: Site, region: str, steps: int, start: int, *, interpolate: bool) -> float | None:
    """CO2 of the same steps on one site in that region that never stops; None when the trace does not cover it."""
    signal = view.signals.get(region)
    end = start + round(steps / site.steps_per_s * HOUR / 3_600)
    if signal is None or start < signal.times[0] or end > signal.end:
        return None
    span = np.array([start]), np.array([end])
    return power_kw(site, "training") * float(signal.integral(*span, interpolate=interpolate)[0]) / 1_000


def baselines(view: View, steps: int, start: int, *, interpolate: bool = False) -> dict[str, float | None]:
    """`always_on_kg` per region: of each site, and of the extra regions with the first site's cluster."""
    owner = {site.region: site for site in reversed(view.sites)}
    return {
        region: always_on_kg(view, owner.get(region, view.sites[0]), region, steps, start, interpolate=interpolate)
        for region in view.experiment.regions
    }


def regret(found: Account, oracle: Oracle | None, *, window_driven: bool, perfect_kg: float | None) -> dict[str, float]:
    """How many kg more than the oracle, and for what. The parts add up to the total.

    - `exit_lag_kg`: training while the signal was not curtailed, over what the oracle would pay for its next steps
      instead. Only of policies that follow windows: others do so on purpose.
    - `start_up_and_idle_kg`: all power that did not train.
    - `forecast_error_kg`: more than the same policy with a perfect forecast.
    - `waiting_kg`: the rest, training that could have waited for cleaner hours. Below 0 where idle power or an early
      finish bought cleaner hours than the oracle's.
    """
    if oracle is None:
        return {}
    total = found.co2_kg - oracle.co2_kg
    exit_lag = 0.0
    if window_driven:
        exit_lag = max(0.0, found.outside_co2_kg - found.outside_steps * oracle.marginal_g_per_step / 1_000)
    error = found.co2_kg - perfect_kg if perfect_kg is not None else 0.0
    rest = total - exit_lag - found.not_training_co2_kg - error
    return {
        "total_kg": total,
        "exit_lag_kg": exit_lag,
        "start_up_and_idle_kg": found.not_training_co2_kg,
        "forecast_error_kg": error,
        "waiting_kg": rest,
    }
