"""Every policy on the same trace: one row each, and kg against hours as a chart.

A row that is not the whole job is a different thing than one that is: it has no rank, whatever it emitted.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, TypedDict

import polars as pl

from curtail_pipeline.settings.job import PolicySettings
from curtail_pipeline.simulation.oracle import least_co2, least_co2_with_overheads
from curtail_pipeline.simulation.summary import Simulated, Summary, priced
from curtail_pipeline.storage.records import Json
from curtail_pipeline.times import HOUR, Cell

if TYPE_CHECKING:
    from curtail_pipeline.emissions.chart_style import Chart

FRONTIER_POINTS = 25

Row = Mapping[str, Cell]
"""Of the table, by column; what is left out is null."""

COMPARED: Final[Mapping[str, pl.DataType]] = {
    "policy": pl.String(),
    "parameters": pl.String(),
    "rank": pl.Int64(),
    "finished": pl.Boolean(),
    "steps": pl.Int64(),
    "job_share": pl.Float64(),
    "rounds": pl.Int64(),
    "runtime_h": pl.Float64(),
    "site_h": pl.Float64(),
    "idle_h": pl.Float64(),
    "overhead_share": pl.Float64(),
    "energy_kwh": pl.Float64(),
    "unaccounted_kwh": pl.Float64(),
    "curtailed_energy_share": pl.Float64(),
    "co2_kg": pl.Float64(),
    "co2_kg_low": pl.Float64(),
    "co2_kg_high": pl.Float64(),
    "co2_kg_interpolated": pl.Float64(),
    "oracle_co2_kg": pl.Float64(),
    "bound_co2_kg": pl.Float64(),
    "regret_total_kg": pl.Float64(),
    "regret_exit_lag_kg": pl.Float64(),
    "regret_start_up_and_idle_kg": pl.Float64(),
    "regret_forecast_error_kg": pl.Float64(),
    "regret_waiting_kg": pl.Float64(),
    "regret_g_per_step": pl.Float64(),
    "note": pl.String(),
}
"""Columns of the table; null is a figure that does not exist. Most are those of `summary.Summary`, and besides:

- `parameters`: of the policy, as a JSON object; its own defaults where that is empty.
- `rank`: 1 emits least. Of policies that finished the job only, by `co2_kg_high`, so that a hole in the trace is no
  advantage; null where that is unknown.
- `site_h`: of training, all sites together.
- `bound_co2_kg`: the oracle's relaxation with the experiment's overheads.
- `regret_g_per_step`: of the total; what to compare where policies did not do the same steps.
- `note`: the forecast and deadline of a policy that plans, or why it cannot run.
"""


def as_json(table: pl.DataFrame) -> list[dict[str, Json]]:
    """The rows as JSON objects, parameters as an object in them."""
    return [{**row, "parameters": json.loads(row["parameters"])} for row in table.to_dicts()]


class _FrontierPoint(TypedDict):
    bound: str
    hours: float
    kg: float


def row_of(done: Simulated, result: Summary, note: str) -> Row:
    """The row of a policy that ran."""
    total = result["regret"]["total_kg"]
    figures: dict[str, Cell] = {
        key: value for key, value in result.items() if value is None or isinstance(value, str | float | int)
    }
    parts: dict[str, Cell] = {
        f"regret_{key}": value for key, value in result["regret"].items() if isinstance(value, float)
    }
    return {
        **figures,
        **parts,
        "parameters": _parameters(done.experiment.policy),
        "site_h": sum(result["site_hours"].values()),
        "regret_g_per_step": None if total is None or not result["steps"] else 1_000 * total / result["steps"],
        "note": note,
    }


def refused_row(policy: PolicySettings, reason: str) -> Row:
    """The row of a policy that cannot run: it has no figures."""
    return {"policy": policy.name, "parameters": _parameters(policy), "finished": False, "note": reason}


def _parameters(policy: PolicySettings) -> str:
    return json.dumps(policy.parameters, sort_keys=True, default=str)


def by_rank(table: pl.DataFrame) -> pl.DataFrame:
    """As people read it: policies that finished the job by what they emit, then those that did not."""
    return table.sort("finished", "rank", descending=[True, False], nulls_last=True, maintain_order=True)


def table_of(rows: Sequence[Row]) -> pl.DataFrame:
    """`COMPARED`, a row each, in this order."""
    table = pl.DataFrame([{key: row.get(key) for key in COMPARED} for row in rows], schema=dict(COMPARED))
    ranked = pl.when("finished").then("co2_kg_high").rank("min").cast(pl.Int64)
    return table.with_columns(rank=ranked)


def _frontier(reference: Simulated, table: pl.DataFrame) -> list[_FrontierPoint]:
    """The least CO2 of the whole job by the hours it is given, from the fastest policy to the trace's end."""
    view, start, steps = reference.view, reference.walk.start, reference.experiment.job.steps
    rows: list[_FrontierPoint] = []
    if not priced(reference):
        return rows
    finished = table.filter("finished")["runtime_h"].min()
    first = 0.97 * finished if isinstance(finished, float) else 0.0
    near: float | None = None
    for number in range(FRONTIER_POINTS):
        hours = first + ((view.end_us - start) / HOUR - first) * number / (FRONTIER_POINTS - 1)
        end = start + round(hours * HOUR)
        if end <= start:
            continue
        free, paid = least_co2(view, steps, start, end), least_co2_with_overheads(view, steps, start, end, near)
        near = None if paid is None else paid.marginal_g_per_step
        for name, found in (("oracle", free), ("oracle with overheads", paid)):
            if found is not None:
                rows.append({"bound": name, "hours": hours, "kg": found.co2_kg})
    return rows


def pareto_chart(table: pl.DataFrame, reference: Simulated) -> "Chart":
    """Kilograms against hours: a point per policy that finished, and the least there could be as lines.

    Policies that come to the same share a point.

    Args:
        reference: any of the simulations; the least there could be is the same in all.
    """
    import altair as alt

    frontier = _frontier(reference, table)
    points: dict[tuple[float, float], list[str]] = {}
    for row in table.filter(pl.col("finished") & pl.col("co2_kg").is_not_null()).iter_rows(named=True):
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
