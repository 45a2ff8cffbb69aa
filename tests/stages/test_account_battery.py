"""A run with a battery and a solar roof, without training: its ledgers come to what `simulate` says."""

from datetime import timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from checkpoint_cases import fields
from micro import EXPERIMENT, START, write_experiment
from simulation_cases import walk

from curtail_pipeline.emissions.grams import CHARGING, totals
from curtail_pipeline.scheduling.timing import SegmentPlan
from curtail_pipeline.scheduling.view import Job
from curtail_pipeline.simulation.compare import simulate
from curtail_pipeline.stages.account import checkpoint_ledger, stored_ledgers
from curtail_pipeline.stages.derive_windows import derive_day, save_derived
from curtail_pipeline.stages.ingest import ingest_day, save_ingested
from curtail_pipeline.stages.project import Project
from curtail_pipeline.stages.run_report import summarise, write_report
from curtail_pipeline.stages.signal_versions import SignalVersions
from curtail_pipeline.storage.manifest import Interval
from curtail_pipeline.storage.tables import ledger_key, write_table

STEPS = 90


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Segments and pauses as the headless run would commit them, over eight hours."""
    folder = tmp_path_factory.mktemp("battery")
    stamps = [START + timedelta(minutes=5 * i) for i in range(96)]
    sun = folder / "sun.csv"
    power = np.maximum(0.0, 3 * np.sin(np.arange(96) / 96 * np.pi * 2 - 1))
    rows = [f"{stamp.isoformat()},{kw}\n" for stamp, kw in zip(stamps, power, strict=True)]
    sun.write_text("time,kw\n" + "".join(rows))
    site = {"training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 0.006, "pue": 1.1}
    battery = {"capacity_kwh": 4, "charge_kw": 4, "discharge_kw": 4}
    path = write_experiment(
        folder / "input",
        sites=[
            {"name": "A", "region": "A", **site, "battery": battery},
            {"name": "B", "region": "B", **site, "on_site": {"path": str(sun)}},
        ],
        job={"steps": STEPS},
        rounds={"round_s": 1200, "max_rounds": 2},
        policy={"name": "paper"},
        training={**EXPERIMENT["training"], "sequence_length": 8},  # as `fields` counts tokens
    )
    low = [60 <= 5 * i < 140 or 260 <= 5 * i < 330 for i in range(96)]
    text = "".join(
        f"{at.isoformat()},{40 if clean else 450 + i},{600 + i}\n"
        for i, (at, clean) in enumerate(zip(stamps, low, strict=True))
    )
    (folder / "input" / "trace.csv").write_text("time,A,B\n" + text)
    project = Project.open(path, "headless", folder / "home")
    for region in ("A", "B"):
        save_ingested(project, ingest_day(project, region, START.date()))
    save_derived(project, derive_day(project, START.date()))
    weights = folder / "model.safetensors"
    weights.write_bytes(b"weights")

    def commit(number: int, begin: int = 0, steps: int = 0, **content: Any) -> None:
        key = f"ckpt-{number:06d}"
        made = fields(f"ckpt-{number - 1:06d}" if number else None, begin, begin, steps, **content)
        project.checkpoints.commit(key, {"model.safetensors": weights}, made, number)
        write_table(project.store, ledger_key(key), checkpoint_ledger(project, key))

    commit(0, start=project.start, end=project.start)
    pending: list[Interval] = []
    done = 0
    for part in walk(project.view(project.start), Job(0, STEPS, project.start), project.start)[:-1]:
        pending += [Interval(**vars(interval)) for interval in part.intervals]  # type: ignore[union-attr]
        if isinstance(part, SegmentPlan):
            number = len(project.checkpoints.keys())
            commit(number, done, part.steps, start=part.start, end=part.end, intervals=pending)
            done, pending = done + part.steps, []
    assert done == STEPS
    return project


def test_run_and_simulation_are_one(project: Project) -> None:
    found, table = summarise(project), stored_ledgers(project)
    expected = simulate(project.experiment, project.traces(project.days))
    assert expected["finished"] and len(found.checkpoints) > 2
    assert found.co2_g == pytest.approx(expected["co2_kg"] * 1_000, rel=1e-6)  # type: ignore[operator]
    assert found.kwh == pytest.approx(expected["energy_kwh"], rel=1e-6)
    assert found.curtailed_share == pytest.approx(expected["window_energy_share"], rel=1e-9)
    assert table is not None and CHARGING in table["state"] and float(table["battery_kwh"].sum()) > 1
    assert float(table["on_site_kwh"].sum()) > 1 and float(table["lost_kwh"].sum()) > 0.1
    load = sum(part.kw * (part.end - part.start).total_seconds() / 3_600 for m in manifests(project) for part in m)
    own = table.filter(pl.col("state") != CHARGING)
    assert float((own["kwh"] + own["battery_kwh"]).sum()) == pytest.approx(load)
    assert {base.region: base.co2_g for base in found.baselines} == pytest.approx(
        {region: base["co2_kg"] * 1_000 for region, base in expected["baselines"].items()}  # type: ignore[operator]
    ), "an always-on cluster has the same battery and roof"


def manifests(project: Project) -> list[list[Interval]]:
    return [list(project.checkpoints.manifest(key).intervals) for key in project.checkpoints.keys()]


def test_the_report_is_written_of_it(project: Project) -> None:
    found = write_report(project, SignalVersions(project))
    assert found == summarise(project)
    assert totals(stored_ledgers(project)).kwh == pytest.approx(found.kwh)  # type: ignore[arg-type]
