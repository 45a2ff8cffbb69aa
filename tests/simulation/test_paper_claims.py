"""`curtail reproduce`: the published figures against the simulator, on the run's own trace and on others."""

import json
import math
from pathlib import Path

import polars as pl
import pytest
from micro import curtail_here
from simulation_cases import START, minutes, traces

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.experiment import Experiment, load_experiment
from curtail_pipeline.signals.whole_file import read_all
from curtail_pipeline.simulation.paper_claims import Reproduction, reproduce
from curtail_pipeline.simulation.published import PUBLISHED, REGION_NAMES

KEYS = {"name", "published", "ours", "difference", "how", "holds", "unit", "place"}


@pytest.fixture(scope="module")
def paper() -> Experiment:
    return load_experiment("paper")


@pytest.fixture(scope="module")
def trace(test_data: Path, paper: Experiment) -> pl.DataFrame:
    return read_all(test_data / "paper" / "mci.csv", paper).traces


@pytest.fixture(scope="module")
def reproduced(paper: Experiment, trace: pl.DataFrame) -> Reproduction:
    return reproduce(paper, trace)


def test_the_published_run_is_reproduced(reproduced: Reproduction) -> None:
    assert reproduced.all_hold
    assert [claim.name for claim in reproduced.claims] == [published.name for published in PUBLISHED]
    ours = {claim.name: claim.ours for claim in reproduced.claims}
    assert ours["emissions, curtailment-aware"] == pytest.approx(1.379, rel=0.02), "recomputed from the run's own log"
    assert ours["curtailed energy, curtailment-aware"] == pytest.approx(97.0, abs=0.3)
    assert ours["runtime, two-site FL"] == pytest.approx(11.07, rel=0.01)
    assert ours["energy, two-site FL"] == pytest.approx(35.82, rel=0.01)


def test_what_was_trained_for_days_is_listed_and_does_not_count(reproduced: Reproduction) -> None:
    left_out = [claim for claim in reproduced.claims if claim.holds is None]
    assert {claim.unit for claim in left_out} == {"perplexity"}
    for claim in left_out:
        assert (claim.ours, claim.difference, claim.how) == (None, None, "not reproducible here")
    for claim in set(reproduced.claims) - set(left_out):
        assert claim.how == "simulated"
        assert claim.ours is not None
        assert claim.difference == claim.ours - claim.published
    assert all(claim.place for claim in reproduced.claims)


def test_a_claim_fails_on_a_doctored_trace(paper: Experiment, trace: pl.DataFrame) -> None:
    """Texas a quarter dirtier: its baseline is, and so nothing that does not depend on it changes."""
    dirtier = pl.when(pl.col("region") == "SPP_TX").then(1.25 * pl.col("value")).otherwise("value")
    found = reproduce(paper, trace.with_columns(value=dirtier))
    assert not found.all_hold
    holds = {claim.name: claim.holds for claim in found.claims}
    assert holds["emissions, centralized in Texas"] is False
    assert holds["emissions, centralized in California"] is True


def waves(hours: float) -> pl.DataFrame:
    """A trace of the run's regions in which no region is ever curtailed."""
    return traces({region: [500 + 100 * math.sin(i) for i in range(int(12 * hours))] for region in REGION_NAMES})


def test_a_run_that_does_not_finish_has_no_figures_and_its_claims_do_not_hold(paper: Experiment) -> None:
    found = {claim.name: claim for claim in reproduce(paper, waves(20)).claims}
    ours = found["emissions, curtailment-aware"]
    assert (ours.ours, ours.difference, ours.holds) == (None, None, False)
    assert found["runtime, centralized"].holds is True


def test_a_trace_of_another_time_is_named(paper: Experiment) -> None:
    with pytest.raises(
        TraceError, match=r"ends at 2026-01-12T03:00:00Z, the published run needs it until 2026-01-12T10"
    ):
        reproduce(paper, waves(10))
    late = waves(20).with_columns(pl.col("time") + (minutes(60) - START))
    with pytest.raises(TraceError, match="before the trace, which starts at 2026-01-11T18:00:00Z"):
        reproduce(paper, late)


def test_the_command_ends_with_one_where_a_claim_fails(tmp_path: Path) -> None:
    wide = waves(20).pivot("region", index="time", values="value")
    path = tmp_path / "other.csv"
    wide.write_csv(path)
    done = curtail_here("reproduce", "--traces", str(path), "--json", home=tmp_path)
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"claims", "all_hold"}
    assert found["all_hold"] is False
    assert all(set(claim) == KEYS for claim in found["claims"])
    missing = curtail_here("reproduce", "--traces", str(tmp_path / "none.csv"), home=tmp_path)
    assert missing.returncode == 1
    assert missing.stdout == ""
    assert missing.stderr.startswith("curtail: no trace file") and missing.stderr.count("\n") == 1
