"""What if: an experiment on a recorded trace, without training. The command `simulate` and the asset `what_if`."""

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import polars as pl

from curtail_pipeline.emissions.battery import require_generation
from curtail_pipeline.emissions.grams import accounting_signals
from curtail_pipeline.errors import PolicyError, SettingsError, TraceError
from curtail_pipeline.scheduling.curtailed import curtailed_stretches, windows_of_record
from curtail_pipeline.scheduling.policies import PLANNING_POLICIES, POLICIES, TimelinePolicy, policy_of
from curtail_pipeline.scheduling.predictors import Forecast, make_forecast
from curtail_pipeline.scheduling.timeline import Timeline
from curtail_pipeline.scheduling.view import Job, View, max_signal_ages
from curtail_pipeline.settings.experiment import Experiment, with_overheads
from curtail_pipeline.settings.overheads import OverheadsName
from curtail_pipeline.settings.rule_settings import policy_named
from curtail_pipeline.signals.held import Signal
from curtail_pipeline.simulation.accounts import account
from curtail_pipeline.simulation.policy_table import Row, pareto_chart, refused_row, row_of, table_of
from curtail_pipeline.simulation.summary import Simulated, Summary, summary, twin_kg
from curtail_pipeline.simulation.walk import walk
from curtail_pipeline.times import HOUR, from_us, iso, to_us

if TYPE_CHECKING:
    from curtail_pipeline.emissions.chart_style import Chart

_log = logging.getLogger(__name__)

LONGEST_H = 876_000
"""Hours that a deadline may lie ahead: a hundred years."""


def simulate_run(
    experiment: Experiment,
    traces: pl.DataFrame,
    *,
    policy: str | None = None,
    overheads: OverheadsName | None = None,
    forecast: str | Callable[[Mapping[str, Signal]], Forecast] | None = None,
    start: datetime | None = None,
    deadline_h: float | None = None,
    interpolate: bool = False,
) -> Simulated:
    """Simulate an experiment. See `simulate`; a forecast may also be made from the signals here."""
    run = _configured(experiment, traces, policy, overheads, start, deadline_h)
    begin = to_us(run.clock.start) if run.clock.start else 0
    planning = run.policy.name in PLANNING_POLICIES
    if forecast is not None and not planning:
        raise PolicyError(
            f"policy {run.policy.name!r} reads no forecast; leave the forecast out, or choose one of "
            f"{', '.join(PLANNING_POLICIES)}"
        )
    chosen = None if not planning else "perfect" if forecast is None else forecast
    if planning and forecast is None:
        _log.warning("no forecast given: policy %s plans with a perfect one, which no run can have", run.policy.name)
    maker = partial(make_forecast, chosen) if isinstance(chosen, str) else chosen
    accounting = accounting_signals(traces, max_signal_ages(run))
    if planning and run.policy.parameters.get("spend") != "cost":
        _require_intensity(run, accounting)
    view = View.build(run, traces, windows_of_record(run, traces, run.policy), maker)
    if chosen == "perfect":
        view.rivals = _rivals(run, traces, experiment)
    if begin >= view.end_us:
        raise TraceError(
            f"the trace ends at {iso(view.end)}, before the start {iso(from_us(begin))}; give a longer trace or "
            "an earlier start"
        )
    job = Job(0, run.job.steps, from_us(begin), run.job.deadline)
    found = walk(view, job, begin)
    windows = curtailed_stretches(run, traces)
    totals = account(view, found, windows, accounting=accounting, interpolate=interpolate)
    return Simulated(run, view, found, totals, accounting, windows, view.forecasts.name if view.forecasts else None)


def simulate(
    experiment: Experiment,
    traces: pl.DataFrame,
    *,
    policy: str | None = None,
    overheads: OverheadsName | None = None,
    forecast: str | None = None,
    start: datetime | None = None,
    deadline_h: float | None = None,
    interpolate: bool = False,
) -> Summary:
    """When it would run, how long, with how much energy and CO2, and how far from the best possible.

    The decisions, rounds and powers are those of the real run (`decide`, the policy, the timing of `plan_segment`).

    Args:
        traces: normalised trace rows of all regions of the experiment.
        policy: in place of the experiment's; see `rule_settings.policy_named`.
        overheads: `paper` or `product` in place of the experiment's own.
        forecast: `perfect`, `persistence`, `seasonal` or a file, for policies that plan; `perfect` when not given.
        start: in place of the clock's start (the trace's when it has none).
        deadline_h: hours after the start; in place of the job's deadline. Nothing runs after it.
        interpolate: account with straight lines between the values, to compare with the paper.

    Raises:
        PolicyError: unknown policy or forecast, a policy without its deadline, or an infeasible budget.
        SettingsError: a deadline that is not after the start.
        TraceError: a region without trace, or a start outside it.
    """
    by_forecast = partial(
        simulate_run,
        experiment,
        traces,
        policy=policy,
        overheads=overheads,
        start=start,
        deadline_h=deadline_h,
        interpolate=interpolate,
    )
    done = by_forecast(forecast=forecast)
    ideal = None if done.forecast in (None, "perfect") else by_forecast(forecast="perfect")
    return summary(done, None if ideal is None else twin_kg(done, ideal), interpolate=interpolate)


def _configured(
    experiment: Experiment,
    traces: pl.DataFrame,
    policy: str | None,
    overheads: OverheadsName | None,
    start: datetime | None,
    deadline_h: float | None,
) -> Experiment:
    run = with_overheads(experiment, overheads)
    if policy is not None and policy not in POLICIES:
        raise PolicyError(f"unknown policy {policy!r}: choose one of {', '.join(sorted(POLICIES))}")
    if policy is not None and policy != run.policy.name:
        run = run.model_copy(update={"policy": policy_named(policy, run.policy)})
    stamps = traces.filter(pl.col("region").is_in([site.region for site in run.sites]))["time"]
    if stamps.is_empty():
        raise TraceError(f"the traces have no values of {', '.join(site.region for site in run.sites)}")
    first = stamps.min()
    assert isinstance(first, datetime)
    last = stamps.max()
    assert isinstance(last, datetime)
    require_generation(run.sites, (first, last), run.checks.gap_share)
    begin = start or run.clock.start or first
    if begin < first:
        raise TraceError(f"the start {iso(begin)} is before the trace, which starts at {iso(first)}")
    if deadline_h is not None and not abs(deadline_h) <= LONGEST_H:
        raise SettingsError(
            f"a deadline of {deadline_h:g} hours is none; give hours after the start, up to {LONGEST_H}"
        )
    deadline = run.job.deadline if deadline_h is None else begin + timedelta(hours=deadline_h)
    if deadline is not None and deadline <= begin:
        raise SettingsError(f"the deadline {iso(deadline)} is not after the start {iso(begin)}; give a later one")
    end = run.clock.end
    if deadline is not None:
        end = deadline if end is None else min(end, deadline)
    return run.model_copy(
        update={
            "clock": run.clock.model_copy(update={"start": begin, "end": end}),
            "job": run.job.model_copy(update={"deadline": deadline}),
        }
    )


def _require_intensity(run: Experiment, accounting: Mapping[str, Signal]) -> None:
    """A price or a power says when to train and nothing about grams, which a policy that plans weighs.

    Raises:
        PolicyError: a site's region has no intensity.
    """
    for site in run.sites:
        if site.region not in accounting:
            raise PolicyError(
                f"policy {run.policy.name!r} weighs CO2, and region {site.region!r} has no intensity; add a column of "
                "marginal_intensity or average_intensity (traces.columns) or a source of it (traces.sources), or "
                "choose a policy that follows windows"
            )


def _rivals(run: Experiment, traces: pl.DataFrame, experiment: Experiment) -> tuple[tuple[Timeline, ...], ...]:
    """What the policies that follow windows would do, with their parameters in the experiment."""
    found = []
    for name in POLICIES:
        if name not in PLANNING_POLICIES:
            settings = run.model_copy(update={"policy": policy_named(name, experiment.policy)})
            policy = policy_of(View.build(settings, traces, windows_of_record(settings, traces, settings.policy)))
            assert isinstance(policy, TimelinePolicy)
            found.append(policy.timelines)
    return tuple(found)


def compare(
    experiment: Experiment,
    traces: pl.DataFrame,
    *,
    policies: Sequence[str] | None = None,
    overheads: OverheadsName | None = None,
    forecast: str | None = None,
    start: datetime | None = None,
    deadline_h: float | None = None,
) -> "tuple[pl.DataFrame, Callable[[], Chart]]":
    """Every policy on the same trace: a table (`policy_table.COMPARED`), and what draws kg against hours with altair.

    Policies have the parameters of `rule_settings.policy_named`. Without a deadline, policies that plan get the time of
    the slowest of the others, so that they compare at equal time. A policy that can't run (e.g. an infeasible budget)
    has its reason in the column `note`.
    """
    names = list(policies or sorted(POLICIES))
    unknown = [name for name in names if name not in POLICIES]
    if unknown:
        raise PolicyError(f"unknown policy {unknown[0]!r}: choose from {', '.join(sorted(POLICIES))}")
    under = partial(simulate_run, experiment, traces, overheads=overheads, start=start)
    rows: dict[str, Row] = {}
    others = [under(policy=name, deadline_h=deadline_h) for name in names if name not in PLANNING_POLICIES]
    for done in others:
        rows[done.experiment.policy.name] = row_of(done, summary(done), "")
    reference = others[0] if others else under(policy="threshold")
    if deadline_h is None and experiment.job.deadline is None:
        deadline_h = max((done.walk.end - done.walk.start) / HOUR for done in [*others, reference])
    for name in [name for name in names if name in PLANNING_POLICIES]:
        by_forecast = partial(under, policy=name, deadline_h=deadline_h)
        try:
            done = by_forecast(forecast=forecast)
            ideal = None if done.forecast == "perfect" else by_forecast(forecast="perfect")
        except PolicyError as error:
            rows[name] = refused_row(policy_named(name, experiment.policy), str(error))
            continue
        result = summary(done, None if ideal is None else twin_kg(done, ideal))
        rows[name] = row_of(done, result, f"{done.forecast} forecast{_by(done)}")
    table = table_of([rows[name] for name in names])
    return table, partial(pareto_chart, table, reference)


def _by(done: Simulated) -> str:
    """The deadline that was planned for."""
    deadline = done.experiment.job.deadline
    return "" if deadline is None else f", by {(to_us(deadline) - done.walk.start) / HOUR:.2f} h"
