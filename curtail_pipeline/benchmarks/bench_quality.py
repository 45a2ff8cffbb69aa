"""What federation costs in held-out loss: centralised training and others, on the same text, tokens and schedule.

    curtail bench quality [--quick] [--grid]

Arms and their settings are in `quality_arms`, what one does in `quality_run`: the product's own trainers, rounds and
merge. Membership over time is what the product decides on the laptop experiment's traces and on the published run's.
`synchronousN` is centralised training with N times the batch, what N sites in one data centre would do.
"""

import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

import altair as alt
import polars as pl

from curtail_pipeline.benchmarks.quality_arms import CENTRAL, STEPS, Arm, Curve, Task, arms, plan_of
from curtail_pipeline.emissions.chart_style import as_file, to_svg
from curtail_pipeline.errors import SettingsError
from curtail_pipeline.storage.atomic import write_whole

QUICK = (CENTRAL, "laptop", "mci", "sites3")
TRACED = ("laptop", "mci")


class ArmLoss(TypedDict):
    loss: list[float]
    """At the end, nats per token, by seed."""
    perplexity: float
    """Of the mean loss."""


class Quality(TypedDict):
    model: str
    steps: int
    seeds: int
    arms: dict[str, ArmLoss]
    gap_nats: dict[str, float]
    """Mean loss above the centralised arm's."""
    gap_perplexity: dict[str, float]
    worst_rise: float
    """Of held-out loss, from one checkpoint to the next one that is federated."""
    worst_rise_alone: float
    """To one that a site made alone, in arms with several: what averaging had smoothed comes back."""


def run(
    quick: bool = False,
    grid: bool = False,
    steps: int = STEPS,
    seeds: int = 3,
    preset: str = "tiny",
    device: str = "cpu",
    source: str | None = None,
    only: str | Sequence[str] | None = None,
    mci: str | None = None,
    out: str | None = None,
    workers: int = 2,
) -> Quality:
    """Measure; some 70 s of processor time per arm and seed.

    Args:
        quick: one seed, and the arms that the claim is about.
        grid: settings around the defaults too.
        steps: of all sites together; with more than 384 the sites are faster (`quality_arms.STEPS`).
        device: that trains and evaluates.
        source: of text, as in `corpus.source`; what Python's standard library says of itself when not given.
        only: the name of an arm, or several as '["central","laptop"]'.
        mci: the published run's trace; the test data's when not given.
        out: folder for every curve (CSV) and the plot (SVG).
        workers: processes.

    Raises:
        SettingsError: no such arm, or one whose trace has too few windows.
    """
    trace = Path(mci or Path(os.environ.get("CURTAIL_TEST_DATA", "../shared/data")) / "paper" / "mci.csv")
    names = [only] if isinstance(only, str) else only
    chosen = _chosen(arms(grid), names or (QUICK if quick else None))
    count = 1 if quick else seeds
    tasks = [
        task_of(arm, seed, steps, preset, trace).model_copy(update={"device": device, "source": source})
        for seed in range(1, count + 1)
        for arm in chosen
    ]
    with ThreadPoolExecutor(workers) as pool:
        curves = list(pool.map(trained_apart, tasks))
    table = _table(chosen, curves)
    with pl.Config(tbl_rows=-1, tbl_hide_dataframe_shape=True, tbl_formatting="MARKDOWN", float_precision=3):
        print(table, file=sys.stderr)
    if out is not None:
        _write(Path(out), curves)
    return _summary(chosen, curves, preset, steps, count)


def _chosen(known: Sequence[Arm], only: Sequence[str] | None) -> list[Arm]:
    names = [arm.name for arm in known]
    for name in only or ():
        if name not in names:
            raise SettingsError(f"no arm {name!r}; there are {'; '.join(names)}")
    return [arm for arm in known if only is None or arm.name in only]


def task_of(arm: Arm, seed: int, steps: int, preset: str, mci: Path) -> Task:
    """What a process of its own trains; errors as of `plan_of`."""
    stretches, shares = plan_of(arm, steps, mci)
    return Task(arm=arm, seed=seed, steps=steps, preset=preset, stretches=stretches, shares=shares)


def trained_apart(task: Task) -> Curve:
    """Train an arm in a process of its own."""
    command = [sys.executable, "-m", "curtail_pipeline.benchmarks.quality_run", task.model_dump_json()]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | threads)
    return Curve.read(done.stdout, "the child's answer")


def _losses(curves: Sequence[Curve], name: str) -> list[float]:
    return [round(curve.losses[-1], 4) for curve in curves if curve.arm == name]


def _table(chosen: Sequence[Arm], curves: Sequence[Curve]) -> pl.DataFrame:
    rows = []
    for arm in chosen:
        losses = _losses(curves, arm.name)
        mean = statistics.fmean(losses)
        rows.append(
            {
                "arm": arm.name,
                "held-out loss": mean,
                "spread": max(losses) - min(losses),
                "perplexity": math.exp(mean),
                "worst rise": max(curve.rise(True) for curve in curves if curve.arm == arm.name),
                "by a site alone": max(curve.rise(False) for curve in curves if curve.arm == arm.name),
            }
        )
    return pl.DataFrame(rows)


def _summary(chosen: Sequence[Arm], curves: Sequence[Curve], preset: str, steps: int, seeds: int) -> Quality:
    losses = {arm.name: _losses(curves, arm.name) for arm in chosen}
    means = {name: statistics.fmean(values) for name, values in losses.items()}
    traced = [name for name in TRACED if name in means and CENTRAL in means]
    centralised = {arm.name for arm in chosen if arm.membership == CENTRAL}
    federated = [curve for curve in curves if curve.arm not in centralised]
    return {
        "model": f"{preset}, {curves[0].parameters} parameters",
        "steps": steps,
        "seeds": seeds,
        "arms": {n: {"loss": losses[n], "perplexity": round(math.exp(mean), 2)} for n, mean in means.items()},
        "gap_nats": {n: round(means[n] - means[CENTRAL], 4) for n in traced},
        "gap_perplexity": {n: round(math.exp(means[n]) - math.exp(means[CENTRAL]), 2) for n in traced},
        "worst_rise": round(max((c.rise(True) for c in federated), default=0.0), 4),
        "worst_rise_alone": round(max((c.rise(False) for c in federated), default=0.0), 4),
    }


def _write(folder: Path, curves: Sequence[Curve]) -> None:
    rows = pl.DataFrame(
        [
            {"arm": curve.arm, "seed": curve.seed, "step": step, "loss": loss}
            for curve in curves
            for step, loss in zip(curve.steps, curve.losses, strict=True)
        ]
    )
    folder.mkdir(parents=True, exist_ok=True)
    rows.write_csv(folder / "curves.csv")
    low = min(min(curve.losses) for curve in curves)
    lines = alt.Chart(alt.InlineData(rows.filter(pl.col("loss") < low + 2).to_dicts())).mark_line(strokeWidth=1.4)
    chart = lines.encode(
        x=alt.X("step:Q", title="steps of all sites together"),
        y=alt.Y("loss:Q", title="held-out loss, nats per token", scale=alt.Scale(zero=False)),
        color=alt.Color("arm:N", sort=list(dict.fromkeys(c.arm for c in curves)), legend=alt.Legend(title=None)),
        detail="seed:N",
    )
    write_whole(folder / "quality.svg", as_file(to_svg(chart.properties(width=640, height=360), "quality")).encode())
