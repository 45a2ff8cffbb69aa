"""What one simulation came to: figures for people and as JSON. A figure that does not exist is None, never 0."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict

from curtail_pipeline.emissions.baselines import Baseline
from curtail_pipeline.scheduling.policies import PLANNING_POLICIES
from curtail_pipeline.scheduling.view import SiteWindows, View
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.signals.held import Signal
from curtail_pipeline.simulation.accounts import Account, Regret, baselines, regret
from curtail_pipeline.simulation.oracle import least_co2, least_co2_with_overheads
from curtail_pipeline.simulation.walk import Walk
from curtail_pipeline.times import HOUR, to_us


class BaselineFigures(TypedDict):
    """Of an always-on cluster in one region."""

    region: str
    site: str
    """Whose power and speed it has."""
    hours: float
    energy_kwh: float
    unaccounted_kwh: float
    co2_kg: float | None
    co2_kg_low: float | None
    co2_kg_high: float | None
    reason: str | None
    """Why there is no CO2, or what it leaves out."""


class Summary(TypedDict):
    """What one simulation came to, for people and as JSON."""

    policy: str
    finished: bool
    runtime_h: float
    """To the last step."""
    steps: int
    rounds: int
    site_hours: dict[str, float]
    """Of training."""
    energy_kwh: float
    unaccounted_kwh: float
    """Of it, drawn while the trace had no value, or no recent one; in no figure of CO2."""
    co2_kg: float | None
    """Of the accounted energy; None where that is nothing."""
    co2_kg_interpolated: float | None
    curtailed_energy_share: float | None
    """Taken while the signal counted as curtailed; the time of an exit delay does not."""
    window_energy_share: float | None
    """Taken inside the sites' windows, exit delays included: what a run calls inside curtailment windows."""
    idle_h: float
    overhead_share: float | None
    """Of the provisioned site-hours, those that do not train."""
    baselines_co2_kg: dict[str, float | None]
    """Always-on, by `baselines.by_name`; None where the trace is too short, or has no intensity."""
    oracle_co2_kg: float | None
    """No overheads; by the deadline, or in the same runtime when there is none. None where a site has no intensity."""
    bound_co2_kg: float | None
    """The same with the experiment's overheads, as far as a relaxation charges them: no schedule emits less."""
    regret: Regret
    job_share: float
    """Of the job's steps, those that were done."""
    co2_kg_low: float | None
    co2_kg_high: float | None
    """With the unaccounted energy at the lowest and the highest intensity of its day; None where a day has none."""
    baselines: dict[str, BaselineFigures]
    """By the same names."""


@dataclass(frozen=True)
class Simulated:
    """One simulation, with all that its summary is made from."""

    experiment: Experiment
    view: View
    walk: Walk
    account: Account
    accounting: Mapping[str, Signal]
    """gCO2/kWh by region; a region without an intensity is not in it."""
    curtailed: Mapping[str, SiteWindows]
    """Per site, when its signal counts as curtailed."""
    forecast: str | None
    """Name of the forecast that was used; None for policies without."""


def summary(done: Simulated, perfect_kg: float | None = None, *, interpolate: bool = False) -> Summary:
    """What `simulate` returns."""
    view, found, totals, job = done.view, done.walk, done.account, done.experiment.job
    training = sum(totals.training_h.values())
    provisioned = training + totals.idle_h + totals.start_up_h
    if done.forecast in (None, "perfect"):
        perfect_kg = totals.co2_kg
    low, high = totals.bounds_kg or (None, None)
    oracle = least_co2(view, found.steps, found.start, horizon(done)) if priced(done) else None
    steps = job.baseline_steps or job.steps
    always = baselines(view, steps, found.start, done.accounting, done.curtailed, interpolate=interpolate)
    return {
        "policy": done.experiment.policy.name,
        "finished": found.finished,
        "runtime_h": (found.last_step - found.start) / HOUR,
        "steps": found.steps,
        "rounds": found.rounds,
        "site_hours": totals.training_h,
        "energy_kwh": totals.energy_kwh,
        "unaccounted_kwh": totals.unaccounted_kwh,
        "co2_kg": totals.co2_kg if totals.known else None,
        "co2_kg_interpolated": totals.co2_kg_interpolated if totals.known else None,
        "curtailed_energy_share": totals.curtailed_kwh / totals.energy_kwh if totals.energy_kwh else None,
        "window_energy_share": totals.window_kwh / totals.energy_kwh if totals.energy_kwh else None,
        "idle_h": totals.idle_h,
        "overhead_share": 1 - training / provisioned if provisioned else None,
        "baselines_co2_kg": {name: _kg(base.co2_g) for name, base in always.items()},
        "oracle_co2_kg": oracle.co2_kg if oracle else None,
        "bound_co2_kg": bound_with_overheads(done),
        "regret": regret(
            totals,
            oracle,
            window_driven=done.experiment.policy.name not in PLANNING_POLICIES,
            perfect_kg=perfect_kg,
        ),
        "job_share": found.steps / job.steps,
        "co2_kg_low": low,
        "co2_kg_high": high,
        "baselines": {name: _figures(base) for name, base in always.items()},
    }


def _kg(grams: float | None) -> float | None:
    return None if grams is None else grams / 1_000


def _figures(base: Baseline) -> BaselineFigures:
    return {
        "region": base.region,
        "site": base.site,
        "hours": base.hours,
        "energy_kwh": base.kwh,
        "unaccounted_kwh": base.unaccounted_kwh,
        "co2_kg": _kg(base.co2_g),
        "co2_kg_low": _kg(base.co2_g_low),
        "co2_kg_high": _kg(base.co2_g_high),
        "reason": base.reason,
    }


def priced(done: Simulated) -> bool:
    """Whether every site's region has an intensity, so that there is a least CO2 to speak of."""
    return all(site.region in done.accounting for site in done.view.sites)


def bound_with_overheads(done: Simulated) -> float | None:
    """The oracle's relaxation with the experiment's overheads, kg, over the same time."""
    if not priced(done):
        return None
    oracle = least_co2_with_overheads(done.view, done.walk.steps, done.walk.start, horizon(done))
    return oracle.co2_kg if oracle else None


def horizon(done: Simulated) -> int:
    """Until when the oracle may train: the deadline, or the walk's own last step where there is none."""
    deadline = done.experiment.job.deadline
    return done.walk.last_step if deadline is None else min(to_us(deadline), done.view.end_us)


def twin_kg(done: Simulated, ideal: Simulated) -> float | None:
    """kg of the same policy with a perfect forecast, for as many steps: per step where it did another number of them.

    None where it did none.
    """
    if not ideal.walk.steps:
        return None
    return ideal.account.co2_kg * (done.walk.steps / ideal.walk.steps)
