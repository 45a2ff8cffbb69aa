from pathlib import Path

import numpy as np
import polars as pl
import pytest
from simulation_cases import START, experiment, minutes, traces, use_of

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.experiment import load_experiment, with_overheads
from curtail_pipeline.settings.overheads import PAPER, product
from curtail_pipeline.simulation.compare import simulate_run
from curtail_pipeline.simulation.fleet import simulate_files


def test_files_give_what_tables_give(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    count = 3 * 288
    values = {
        name: np.where(np.repeat(rng.random(count // 12) < 0.3, 12), 40 + 60 * rng.random(count), 450).tolist()
        for name in "ABC"
    }
    rows = traces(values)
    files = {}
    for name in "ABC":
        files[name] = tmp_path / f"{name}.parquet"
        rows.filter(pl.col("region") == name).select("time", "value").write_parquet(files[name])
    run = experiment("ABC", policy={"name": "boundary"}, overheads=product(600.0).model_dump(), job={"steps": 20_000})
    walk, totals = simulate_files(run, files, start=START, end=minutes(5 * count))
    done = simulate_run(run, rows)
    assert walk.finished
    assert (walk.steps, walk.rounds, walk.last_step) == (done.walk.steps, done.walk.rounds, done.walk.last_step)
    assert use_of(walk) == use_of(done.walk)
    assert totals.co2_kg == pytest.approx(done.account.co2_kg)
    assert totals.energy_kwh == pytest.approx(done.account.energy_kwh)
    assert totals.co2_kg_interpolated is None


def test_a_region_without_a_file_is_named() -> None:
    with pytest.raises(TraceError, match="no trace file for region 'B'"):
        simulate_files(experiment("AB"), {"A": Path("a.parquet")}, start=START, end=minutes(5))


def test_the_papers_experiment_has_the_papers_overheads() -> None:
    paper = load_experiment("paper")
    assert paper.overheads == PAPER
    assert with_overheads(paper, "paper") == paper
    assert paper.job.steps == 23_613
    assert paper.training.total_batch_tokens * 23_613 == pytest.approx(12.4e9, rel=0.01)


def test_the_products_rounds_are_timed_and_lose_two_percent() -> None:
    run = with_overheads(load_experiment("paper"), "product")
    assert not run.rounds.open_local
    of = run.overheads
    lost = of.round_load_s + of.round_tail_s + of.outer_step_s
    assert lost / (run.rounds.round_s + of.round_tail_s + of.outer_step_s) == pytest.approx(0.02, abs=0.0003)
    assert of.provisioning_s + of.connect_s == 20
