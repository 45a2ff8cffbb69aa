"""The published run's claims, one by one, against the simulator on the run's own trace.

A claim holds within the simulator's agreement with the run's event log and the digits that are published: runtimes to
1 %, energy and emissions to 2 %, shares to one percentage point. Emissions and shares are counted as the paper counts
them, by straight lines between the trace's values (`curtail simulate` holds each value instead). What needs four A100s
for half a day is not reproducible here: it is listed, and does not count.
"""

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import polars as pl

from curtail_pipeline.emissions.baselines import Baseline, always_on
from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.settings.rule_settings import RuleSettings, rule_of
from curtail_pipeline.settings.sites import power_kw
from curtail_pipeline.signals.held import Signal
from curtail_pipeline.simulation.accounts import STATES
from curtail_pipeline.simulation.compare import simulate_run
from curtail_pipeline.simulation.published import PUBLISHED, REGION_NAMES, TWO_SITE_STEPS, Published, Unit
from curtail_pipeline.simulation.summary import Simulated, summary
from curtail_pipeline.times import HOUR, Floats, Micros, duration_us, from_us, iso

How = Literal["simulated", "not reproducible here"]

TOLERANCE: Final[dict[Unit, float]] = {"h": 0.01, "kWh": 0.02, "kg CO2": 0.02, "%": 1.0}
"""Relative, but of shares, which are percentage points."""


@dataclass(frozen=True)
class Claim:
    """A published figure beside what this call computed."""

    name: str
    published: float
    ours: float | None
    """None where there is nothing to compare: not reproducible here, or not on this trace."""
    difference: float | None
    """Ours less the published."""
    how: How
    holds: bool | None
    """None where it is not reproducible here; it does not count then."""
    unit: Unit
    place: str
    """In the paper."""


@dataclass(frozen=True)
class Reproduction:
    claims: tuple[Claim, ...]
    all_hold: bool
    """Of those that can be reproduced here."""


def reproduce(experiment: Experiment, traces: pl.DataFrame) -> Reproduction:
    """Compute every claim that can be computed.

    Args:
        experiment: `paper`.
        traces: normalised trace rows of its regions.

    Raises:
        TraceError: the trace does not hold the published run's time.
    """
    done = simulate_run(experiment, traces, interpolate=True)
    threshold = rule_of(experiment.policy, experiment.sites[0].region, experiment.rules).enter_at
    central = _centralized(done)
    grams = {region: base.co2_g for region, base in central.items()}
    one = next(iter(central.values()))
    found = {"runtime, centralized": one.hours, "energy, centralized": one.kwh}
    found |= _curtailment_aware(done, threshold) | _two_sites(experiment, traces)
    start = np.array([done.walk.start])
    for region, base in central.items():
        signal, name = done.view.signals[region], REGION_NAMES[region]
        below = _below_us(signal, start, start + duration_us(3_600 * base.hours), threshold)
        found[f"curtailed energy, centralized in {name}"] = 100 * float(below[0]) / duration_us(3_600 * base.hours)
        if (g := grams[region]) is not None:
            found[f"emissions, centralized in {name}"] = g / 1_000
    ours, known = found.get("emissions, curtailment-aware"), [g for g in grams.values() if g is not None]
    if ours is not None and len(known) == len(grams):
        found["emissions against the dirtiest region's"] = 100_000 * ours / max(known)
        found["emissions against the cleanest region's"] = 100_000 * ours / min(known)
    claims = tuple(_claim(published, found.get(published.name)) for published in PUBLISHED)
    return Reproduction(claims, all(claim.holds is not False for claim in claims))


def _centralized(done: Simulated) -> dict[str, Baseline]:
    """Always on from the run's start, per region.

    Raises:
        TraceError: the trace ends before the longest of the published runs.
    """
    experiment, start = done.experiment, from_us(done.walk.start)
    steps = experiment.job.baseline_steps or experiment.job.steps
    found = {}
    for region in experiment.regions:
        signal = done.view.signals[region]
        base = always_on(steps, start, experiment.sites[0], region, signal, interpolate=True)
        if signal.end < (needed := done.walk.start + duration_us(3_600 * base.hours)):
            raise TraceError(
                f"the trace of {region} ends at {iso(from_us(signal.end))}, the published run needs it until "
                f"{iso(from_us(needed))}; give the run's own trace, evaluation/mci.csv of exalsius/curtail-llm"
            )
        found[region] = base
    return found


def _curtailment_aware(done: Simulated, threshold: float) -> dict[str, float]:
    """Nothing where the trace does not let the run finish."""
    result = summary(done, interpolate=True)
    if not done.walk.finished or result["co2_kg"] is None:
        return {}
    below = 0.0
    for site in done.view.sites:
        for state in STATES:
            spans = done.walk.use[site.name].of(state)
            below += power_kw(site, state) * float(_below_us(done.view.signals[site.region], *spans, threshold).sum())
    return {
        "runtime, curtailment-aware": result["runtime_h"],
        "energy, curtailment-aware": result["energy_kwh"],
        "emissions, curtailment-aware": result["co2_kg"],
        "curtailed energy, curtailment-aware": 100 * below / HOUR / result["energy_kwh"],
    }


def _two_sites(experiment: Experiment, traces: pl.DataFrame) -> dict[str, float]:
    """Two sites that are always on, in the prototype's rounds; nothing where the trace is too short.

    Its energy is that of training, as the authors' evaluation counts it for what is not provisioned.
    """
    sites = experiment.sites[:2]
    overheads = experiment.overheads.model_copy(update={"provisioning_s": 0.0, "connect_s": 0.0})
    run = experiment.model_copy(
        update={
            "sites": sites,
            "rules": {site.region: RuleSettings(enter=float(np.finfo(np.float32).max)) for site in sites},
            "overheads": overheads,
            "job": experiment.job.model_copy(update={"steps": TWO_SITE_STEPS}),
        }
    )
    done = simulate_run(run, traces, policy="threshold")
    if not done.walk.finished:
        return {}
    kwh = sum(power_kw(site, "training") * done.account.training_h[site.name] for site in sites)
    hours = (done.walk.last_step - done.walk.start) / HOUR
    return {"runtime, two-site FL": hours, "energy, two-site FL": kwh}


def _below_us(signal: Signal, start: Micros, end: Micros, threshold: float) -> Floats:
    """Microseconds of each `[start, end)` in which straight lines between the values lie below the threshold."""
    times, values = signal.times.astype(np.float64), signal.values
    times, values = np.append(times, float(signal.end)), np.append(values, values[-1])
    crosses = np.flatnonzero((values[:-1] < threshold) != (values[1:] < threshold))
    share = (threshold - values[crosses]) / (values[crosses + 1] - values[crosses])
    at = times[crosses] + share * (times[crosses + 1] - times[crosses])
    cuts = np.unique(np.concatenate((times, at)))
    middle = np.interp((cuts[:-1] + cuts[1:]) / 2, times, values)
    until = np.concatenate(([0.0], np.cumsum(np.where(middle < threshold, np.diff(cuts), 0.0))))
    found: Floats = np.interp(end, cuts, until) - np.interp(start, cuts, until)
    return found


def _claim(published: Published, ours: float | None) -> Claim:
    name, value, unit, place = published.name, published.value, published.unit, published.place
    if unit == "perplexity":
        return Claim(name, value, None, None, "not reproducible here", None, unit, place)
    difference = None if ours is None else ours - value
    allowed = TOLERANCE[unit] * (1.0 if unit == "%" else value)
    holds = difference is not None and abs(difference) <= allowed
    return Claim(name, value, ours, difference, "simulated", holds, unit, place)
