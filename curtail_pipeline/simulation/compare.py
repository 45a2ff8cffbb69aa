"""What if: an experiment on a recorded trace, without training. The command `simulate` and the asset `what_if`."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, TypedDict

import polars as pl

from curtail_pipeline.errors import PolicyError, SettingsError, TraceError
from curtail_pipeline.scheduling.policies import PLANNING_POLICIES, POLICIES, TimelinePolicy, policy_of
from curtail_pipeline.scheduling.predictors import Forecast, make_forecast
from curtail_pipeline.scheduling.timeline import Timeline
from curtail_pipeline.scheduling.view import Job, SiteWindows, View
from curtail_pipeline.settings.experiment import Experiment, with_overheads
from curtail_pipeline.settings.job import PolicySettings
from curtail_pipeline.settings.overheads import OverheadsName
from curtail_pipeline.settings.rule_settings import RuleSettings, SignalRule, rule_of
from curtail_pipeline.signals.held import ACCOUNTING_KINDS, Signal
from curtail_pipeline.simulation.accounts import Account, account, baselines, regret
from curtail_pipeline.simulation.oracle import least_co2, least_co2_with_overheads
from curtail_pipeline.simulation.walk import Walk, walk
from curtail_pipeline.times import HOUR, Cell, from_us, iso, to_us
from curtail_pipeline.windows.rules import derive_windows

if TYPE_CHECKING:
    from curtail_pipeline.emissions.charts import Chart

_log = logging.getLogger(__name__)

FRONTIER_POINTS = 25
LONGEST_H = 876_000
"""Hours that a deadline may lie ahead: a hundred years."""


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
    co2_kg: float
    co2_kg_interpolated: float | None
    curtailed_energy_share: float | None
    idle_h: float
    overhead_share: float | None
    """Of the provisioned site-hours, those that do not train."""
    baselines_co2_kg: dict[str, float | None]
    """Always-on, per region; None where the trace is too short."""
    oracle_co2_kg: float | None
    """No overheads; by the deadline, or in the same runtime when there is none."""
    bound_co2_kg: float | None
    """The same with the experiment's overheads, as far as a relaxation charges them: no schedule emits less."""
    regret: dict[str, float]
    """kg; see `accounts.regret`."""


class _FrontierPoint(TypedDict):
    bound: str
    hours: float
    kg: float


@dataclass(frozen=True)
class Simulated:
    """One simulation, with all that its summary is made from."""

    experiment: Experiment
    view: View
    walk: Walk
    account: Account
    forecast: str | None
    """Name of the forecast that was used; None for policies without."""


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
    view = View.build(run, traces, _table(run, traces, run.policy), maker)
    if chosen == "perfect":
        view.rivals = _rivals(run, traces)
    if begin >= view.end_us:
        raise TraceError(
            f"the trace ends at {iso(view.end)}, before the start {iso(from_us(begin))}; give a longer trace or "
            "an earlier start"
        )
    job = Job(0, run.job.steps, from_us(begin), run.job.deadline)
    found = walk(view, job, begin)
    windows = _curtailed(run, traces)
    totals = account(view, found, windows, interpolate=interpolate)
    return Simulated(run, view, found, totals, view.forecasts.name if view.forecasts else None)


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
        policy: in place of the experiment's; its parameters are kept only when it is the same.
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
    perfect_kg = None
    if done.forecast not in (None, "perfect"):
        ideal = by_forecast(forecast="perfect")
        perfect_kg = ideal.account.co2_kg if ideal.walk.steps == done.walk.steps else None
    return summary(done, perfect_kg, interpolate=interpolate)


def summary(done: Simulated, perfect_kg: float | None = None, *, interpolate: bool = False) -> Summary:
    """What `simulate` returns."""
    view, found, totals, job = done.view, done.walk, done.account, done.experiment.job
    training = sum(totals.training_h.values())
    provisioned = training + totals.idle_h + totals.start_up_h
    oracle = least_co2(view, found.steps, found.start, _horizon(done))
    return {
        "policy": done.experiment.policy.name,
        "finished": found.finished,
        "runtime_h": (found.last_step - found.start) / HOUR,
        "steps": found.steps,
        "rounds": found.rounds,
        "site_hours": totals.training_h,
        "energy_kwh": totals.energy_kwh,
        "unaccounted_kwh": totals.unaccounted_kwh,
        "co2_kg": totals.co2_kg,
        "co2_kg_interpolated": totals.co2_kg_interpolated,
        "curtailed_energy_share": totals.curtailed_kwh / totals.energy_kwh if totals.energy_kwh else None,
        "idle_h": totals.idle_h,
        "overhead_share": 1 - training / provisioned if provisioned else None,
        "baselines_co2_kg": baselines(view, job.baseline_steps or job.steps, found.start, interpolate=interpolate),
        "oracle_co2_kg": oracle.co2_kg if oracle else None,
        "bound_co2_kg": bound_with_overheads(done),
        "regret": regret(
            totals, oracle, window_driven=done.experiment.policy.name not in PLANNING_POLICIES, perfect_kg=perfect_kg
        ),
    }


def bound_with_overheads(done: Simulated) -> float | None:
    """The oracle's relaxation with the experiment's overheads, kg, over the same time."""
    oracle = least_co2_with_overheads(done.view, done.walk.steps, done.walk.start, _horizon(done))
    return oracle.co2_kg if oracle else None


def _horizon(done: Simulated) -> int:
    deadline = done.experiment.job.deadline
    return done.walk.last_step if deadline is None else min(to_us(deadline), done.view.end_us)


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
        run = run.model_copy(update={"policy": PolicySettings(name=policy)})
    stamps = traces.filter(pl.col("region").is_in([site.region for site in run.sites]))["time"]
    if stamps.is_empty():
        raise TraceError(f"the traces have no values of {', '.join(site.region for site in run.sites)}")
    _require_accounting(run, traces)
    first = stamps.min()
    assert isinstance(first, datetime)
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


def _require_accounting(run: Experiment, traces: pl.DataFrame) -> None:
    """A price or a power says when to train and nothing about grams.

    Raises:
        TraceError: a region has values, and no intensity among them.
    """
    known = traces.drop_nulls("value").select("region", "kind").unique()
    for region in run.regions:
        kinds = known.filter(region=region)["kind"].sort().to_list()
        if kinds and not set(kinds) & set(ACCOUNTING_KINDS):
            raise TraceError(
                f"region {region!r} has no intensity, only {', '.join(kinds)}, by which no CO2 can be counted; add a "
                "column of marginal_intensity or average_intensity (traces.columns), or a source of it (traces.sources)"
            )


def _table(run: Experiment, traces: pl.DataFrame, policy: PolicySettings) -> pl.DataFrame:
    first, last = traces["time"].min(), traces["time"].max()
    assert isinstance(first, datetime)
    assert isinstance(last, datetime)
    # One long cadence beyond the last stamp, so that the last value is read.
    table, _ = derive_windows(traces, run.sites, policy, start=first, end=last + timedelta(hours=1), rules=run.rules)
    return table


def _rivals(run: Experiment, traces: pl.DataFrame) -> tuple[tuple[Timeline, ...], ...]:
    """What the policies that follow windows would do."""
    found = []
    for name in POLICIES:
        if name not in PLANNING_POLICIES:
            settings = run.model_copy(update={"policy": PolicySettings(name=name)})
            policy = policy_of(View.build(settings, traces, _table(settings, traces, settings.policy)))
            assert isinstance(policy, TimelinePolicy)
            found.append(policy.timelines)
    return tuple(found)


def _curtailed(run: Experiment, traces: pl.DataFrame) -> dict[str, SiteWindows]:
    """When each site's signal counts as curtailed, by the thresholds of the experiment's rule without its delays."""
    rules = {site.region: _plain(rule_of(run.policy, site.region, run.rules)) for site in run.sites}
    settings = run.model_copy(update={"rules": rules, "policy": PolicySettings(name="threshold")})
    return View.build(settings, traces, _table(settings, traces, settings.policy)).windows


def _plain(rule: RuleSettings) -> RuleSettings:
    def undelayed(signal: SignalRule) -> SignalRule:
        return signal.model_copy(update={"enter": signal.enter_at, "exit_delay_s": 0.0, "exit": None})

    if rule.any_of or rule.all_of:
        lists = {name: [undelayed(part) for part in getattr(rule, name)] for name in ("any_of", "all_of")}
        return rule.model_copy(update={**lists, "min_duration_s": 0.0, "start_up_s": 0.0})
    update = {"enter": rule.enter_at, "exit": None, "exit_delay_s": 0.0, "min_duration_s": 0.0, "start_up_s": 0.0}
    return rule.model_copy(update=update)


def compare(
    experiment: Experiment,
    traces: pl.DataFrame,
    *,
    policies: Sequence[str] | None = None,
    overheads: OverheadsName | None = None,
    forecast: str | None = None,
    start: datetime | None = None,
    deadline_h: float | None = None,
) -> "tuple[pl.DataFrame, Chart]":
    """Every policy on the same trace: a table, and kg against hours as an altair chart.

    Without a deadline, policies that plan get the time of the slowest of the others, so that they compare at equal
    time. A policy that can't run (e.g. an infeasible budget) has its reason in the column `note`.
    """
    names = list(policies or sorted(POLICIES))
    unknown = [name for name in names if name not in POLICIES]
    if unknown:
        raise PolicyError(f"unknown policy {unknown[0]!r}: choose from {', '.join(sorted(POLICIES))}")
    under = partial(simulate_run, experiment, traces, overheads=overheads, start=start)
    rows: dict[str, dict[str, Cell]] = {}
    others = [under(policy=name, deadline_h=deadline_h) for name in names if name not in PLANNING_POLICIES]
    for done in others:
        rows[done.experiment.policy.name] = _row(done, summary(done), "")
    reference = others[0] if others else under(policy="threshold")
    if deadline_h is None and experiment.job.deadline is None:
        deadline_h = max((done.walk.end - done.walk.start) / HOUR for done in [*others, reference])
    for name in [name for name in names if name in PLANNING_POLICIES]:
        by_forecast = partial(under, policy=name, deadline_h=deadline_h)
        try:
            done = by_forecast(forecast=forecast)
            ideal = None if done.forecast == "perfect" else by_forecast(forecast="perfect")
        except PolicyError as error:
            rows[name] = {"policy": name, "finished": False, "note": str(error)}
            continue
        same = ideal is not None and ideal.walk.steps == done.walk.steps
        result = summary(done, ideal.account.co2_kg if ideal and same else None)
        rows[name] = _row(done, result, f"{done.forecast} forecast, by {deadline_h or 0:.2f} h")
    schema = {"policy": pl.String, "finished": pl.Boolean, "runtime_h": pl.Float64, "co2_kg": pl.Float64}
    table = pl.DataFrame([rows[name] for name in names], schema_overrides=schema, infer_schema_length=None)
    return table, pareto_chart(table, _frontier(reference, table))


def _row(done: Simulated, result: Summary, note: str) -> dict[str, Cell]:
    row: dict[str, Cell] = {
        key: value for key, value in result.items() if value is None or isinstance(value, str | float | int)
    }
    row["site_h"] = sum(result["site_hours"].values())
    row.update({f"regret_{key}": value for key, value in result["regret"].items()})
    row["note"] = note
    return row


def _frontier(reference: Simulated, table: pl.DataFrame) -> list[_FrontierPoint]:
    """The least CO2 of the whole job by the hours it is given, from the fastest policy to the trace's end."""
    view, start, steps = reference.view, reference.walk.start, reference.experiment.job.steps
    rows: list[_FrontierPoint] = []
    first = 0.0
    if "runtime_h" in table.columns:
        finished = table.filter(pl.col("finished"))["runtime_h"].min()
        first = 0.97 * finished if isinstance(finished, float) else 0.0
    for number in range(FRONTIER_POINTS):
        hours = first + ((view.end_us - start) / HOUR - first) * number / (FRONTIER_POINTS - 1)
        end = start + round(hours * HOUR)
        for name, bound in (("oracle", least_co2), ("oracle with overheads", least_co2_with_overheads)):
            found = bound(view, steps, start, end) if end > start else None
            if found is not None:
                rows.append({"bound": name, "hours": hours, "kg": found.co2_kg})
    return rows


def pareto_chart(table: pl.DataFrame, frontier: Sequence[_FrontierPoint]) -> "Chart":
    """Kilograms against hours: a point per policy that finished, and the least there could be as lines.

    Policies that come to the same share a point.
    """
    import altair as alt

    points: dict[tuple[float, float], list[str]] = {}
    for row in table.filter(pl.col("finished")).iter_rows(named=True):
        points.setdefault((round(row["runtime_h"], 3), round(row["co2_kg"], 4)), []).append(row["policy"])
    dots = [{"hours": hours, "kg": kg, "policy": ", ".join(names)} for (hours, kg), names in points.items()]
    x = alt.X("hours:Q", title="hours to the last step", scale=alt.Scale(zero=False, padding=24))
    y = alt.Y("kg:Q", title="kg CO2")
    base = alt.Chart(alt.InlineData(dots))
    lines = (
        alt.Chart(alt.InlineData(frontier))
        .mark_line(color="#777777")
        .encode(x=x, y=y, strokeDash=alt.StrokeDash("bound:N", title="least possible"))
    )
    marks = base.mark_point(filled=True, size=90, opacity=1).encode(
        x=x, y=y, color=alt.Color("policy:N", title="policy"), tooltip=["policy:N", "hours:Q", "kg:Q"]
    )
    return alt.layer(lines, marks).properties(width=640, height=360, title="CO2 against time, per policy")
