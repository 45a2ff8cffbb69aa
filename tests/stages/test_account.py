"""A checkpoint's energy from the store: what ledger, summary and report say of a hole in the trace."""

from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from checkpoint_cases import fields
from micro import EXPERIMENT, START, write_experiment

from curtail_pipeline.emissions.formats import percent
from curtail_pipeline.emissions.grams import totals
from curtail_pipeline.orchestration.metadata import ledger_metadata
from curtail_pipeline.stages.account import checkpoint_ledger, refresh_ledgers
from curtail_pipeline.stages.card import card_of
from curtail_pipeline.stages.checkpoint_rows import checkpoint_rows
from curtail_pipeline.stages.derive_windows import derive_day, save_derived
from curtail_pipeline.stages.ingest import ingest_day, save_ingested
from curtail_pipeline.stages.project import Project
from curtail_pipeline.stages.run_report import summarise, write_report
from curtail_pipeline.stages.signal_versions import SignalVersions
from curtail_pipeline.storage.tables import ledger_key, write_table

HOLE = range(30, 60)
"""Minutes of the one hour that is recorded in which the trace has no stamp."""


def at(minute: float) -> datetime:
    return START + timedelta(minutes=minute)


def project_with_a_hole(folder: Path, max_signal_age_s: float | None) -> Project:
    """One site at 1 kW and 10 g/kWh, and a first segment that trains from 0 to 60 minutes."""
    path = write_experiment(
        folder / "input",
        sites=[{"name": "SPP_TX", "region": "SPP_TX", "training_kw": 1.0, "idle_kw": 0.5, "steps_per_s": 0.5}],
        policy={"name": "threshold", "parameters": {"max_signal_age_s": max_signal_age_s}},
        training={**EXPERIMENT["training"], "sequence_length": 8},  # as `fields` counts tokens
        corpus={**EXPERIMENT["corpus"], "source": "embedded"},  # whose language is known
    )
    trace = folder / "input" / "trace.csv"
    stamps = [at(minute).isoformat() for minute in range(0, 70, 5) if minute not in HOLE]
    trace.write_text("time,SPP_TX\n" + "".join(f"{stamp},10\n" for stamp in stamps))
    project = Project.open(path, "headless", folder / "home")
    save_ingested(project, ingest_day(project, "SPP_TX", START.date()))
    save_derived(project, derive_day(project, START.date()))
    weights = folder / "model.safetensors"
    weights.write_bytes(b"weights")
    interval = {"site": "SPP_TX", "state": "training", "start": at(0), "end": at(60), "kw": 1.0}
    for key, content in (
        ("ckpt-000000", fields()),
        ("ckpt-000001", fields("ckpt-000000", intervals=[interval], steps=1_800)),
    ):
        content |= {"start": at(0), "end": at(0 if key == "ckpt-000000" else 60)}
        project.checkpoints.commit(key, {"model.safetensors": weights}, content, int(key[-6:]))
        write_table(project.store, ledger_key(key), checkpoint_ledger(project, key))
    return project


@pytest.mark.parametrize(("max_signal_age_s", "known_min"), [(None, 35), (15 * 60, 40), (3_600, 60)])
def test_the_rules_age_is_that_of_the_ledger_and_of_the_baselines(
    tmp_path: Path, max_signal_age_s: float | None, known_min: int
) -> None:
    project = project_with_a_hole(tmp_path, max_signal_age_s)
    lost = 1 - known_min / 60
    booked = totals(checkpoint_ledger(project, "ckpt-000001"))
    assert booked.kwh == pytest.approx(1.0)
    assert booked.co2_g == pytest.approx(10 * known_min / 60)
    assert booked.unaccounted_kwh == pytest.approx(lost, abs=1e-12)
    assert (booked.co2_g_low, booked.co2_g_high) == pytest.approx((10.0, 10.0)), "the day knows of 10 g/kWh alone"
    found = summarise(project)
    assert (found.kwh, found.co2_g, found.unaccounted_kwh) == (booked.kwh, booked.co2_g, booked.unaccounted_kwh)
    (base,) = found.baselines
    assert (base.kwh, base.co2_g, base.unaccounted_kwh) == pytest.approx((1.0, booked.co2_g, lost))
    assert base.ours_of_baseline == (None if lost else pytest.approx(1.0))
    assert [(row.key, row.kwh) for row in found.checkpoints] == [("ckpt-000000", 0.0), ("ckpt-000001", 1.0)]


def test_the_report_says_what_the_summary_says(tmp_path: Path) -> None:
    project = project_with_a_hole(tmp_path, None)
    found = write_report(project, SignalVersions(project))
    assert found == summarise(project)
    page = Path(found.report).read_text()
    assert "0.417 kWh are not in the emissions" in page
    assert "5.83 g CO<sub>2</sub>" in page
    assert "it is 10 g to 10 g." in page and (found.co2_g_low, found.co2_g_high) == pytest.approx((10.0, 10.0))
    assert "0.417 kWh fall into gaps of the trace" in page, "of the baseline"


@pytest.mark.parametrize("source", ["file", "synthetic"])
def test_what_is_synthetic_is_told_by_the_data(tmp_path: Path, source: str) -> None:
    """A file of recorded values that a model made is synthetic, whatever provider read it."""
    project = project_with_a_hole(tmp_path, None)
    key = f"traces/{START.date()}/SPP_TX.parquet"
    write_table(project.store, key, project.traces([START.date()]).with_columns(source=pl.lit(source)))
    made_up = source == "synthetic"
    write_table(project.store, ledger_key("ckpt-000001"), checkpoint_ledger(project, "ckpt-000001"))
    label = "projected (virtual time, modelled power)" + (", synthetic signal" if made_up else "")
    assert summarise(project).basis == label == checkpoint_rows(project)[-1].basis
    assert ledger_metadata(checkpoint_ledger(project, "ckpt-000001"))["energy and CO2 are"] == label
    assert summarise(project).synthetic == made_up
    write_report(project, SignalVersions(project))
    assert label in project.store.path("report/index.html").read_text()
    assert ("Synthetic traces." in project.store.path("report/index.html").read_text()) == made_up
    card = card_of(project, "ckpt-000001")
    assert ("**synthetic**" in card) == made_up and label in card
    assert ("co2_eq_emissions" in card) != made_up and "Between 10 g and 10 g with them." in card
    assert "| SPP_TX | 1.000 |" in card.split("never pauses")[1], "the baseline"
    inside = percent(totals(checkpoint_ledger(project, "ckpt-000001")).curtailed_share)
    assert f"Of its energy, {inside} inside the curtailment windows of its rule and" in card
    assert "% while the grid's signal was below 100 gCO2/kWh." in card and "\nlanguage: en\n" in card


def test_a_revised_trace_leaves_a_ledger_behind_until_it_is_counted_again(tmp_path: Path) -> None:
    project = project_with_a_hole(tmp_path, 3_600)
    key = f"traces/{START.date()}/SPP_TX.parquet"
    before = project.traces([START.date()])
    assert list(refresh_ledgers(project, SignalVersions(project))) == [], "nothing is stale"
    write_table(project.store, key, before.with_columns(retrieved_at=pl.lit(at(999))))
    assert list(refresh_ledgers(project, SignalVersions(project))) == [], "fetched again, and nothing revised"
    (old,) = summarise(project).checkpoints[1:]
    write_table(project.store, key, before.with_columns(value=pl.col("value") * 3))
    write_report(project, SignalVersions(project))
    page = project.store.path("report/index.html")
    assert "revised after ckpt-000001 had been accounted" in page.read_text()
    ((found, table),) = refresh_ledgers(project, SignalVersions(project))
    assert found == "ckpt-000001" and totals(table).co2_g == pytest.approx(30.0)
    assert old.co2_g == pytest.approx(10.0) and summarise(project).co2_g == pytest.approx(30.0)
    write_report(project, SignalVersions(project))
    assert "revised after" not in page.read_text() and table["signal_version"][0] in page.read_text()
    assert list(refresh_ledgers(project, SignalVersions(project))) == []
