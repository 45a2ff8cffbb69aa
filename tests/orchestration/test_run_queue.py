"""Runs on demand are told apart before they queue, and limited per site by the instance's own configuration."""

from pathlib import Path

import dagster as dg
import pytest
from micro import write_experiment
from test_checkpoints import fields

from curtail_pipeline.orchestration.headless import open_instance
from curtail_pipeline.orchestration.run_queue import SiteQueue, on_demand_tags
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.folder_store import FolderStore

CHECKPOINT = dg.AssetKey("aggregated_checkpoint")


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    found = Checkpoints(FolderStore(tmp_path / "store"))
    made = tmp_path / "model.safetensors"
    made.write_bytes(b"weights")
    found.commit("ckpt-000000", {made.name: made}, fields(members=["NORTH", "SOUTH"]), 0)
    return found


def run(key: str | None, mode: str | None = None, **more: str) -> dg.DagsterRun:
    tags = {"dagster/partition": key} if key else {}
    config = {"ops": {"aggregated_checkpoint": {"config": {"mode": mode}}}} if mode else {}
    return dg.DagsterRun(
        job_name="__ASSET_JOB", asset_selection=frozenset([CHECKPOINT]), tags=tags | more, run_config=config
    )


def test_a_run_on_demand_is_tagged_with_the_sites_that_it_trains_at(checkpoints: Checkpoints) -> None:
    both = {"curtail.on_demand/NORTH": "ckpt-000000", "curtail.on_demand/SOUTH": "ckpt-000000"}
    assert on_demand_tags(run("ckpt-000000"), checkpoints) == {"curtail/on_demand": "ckpt-000000", **both}
    assert on_demand_tags(run("ckpt-000000", "extend"), checkpoints) == {"curtail/on_demand": "ckpt-000000", **both}
    assert on_demand_tags(run("ckpt-000000", "export"), checkpoints) == {"curtail/on_demand": "ckpt-000000"}


def test_live_segments_and_other_runs_are_not_limited(checkpoints: Checkpoints) -> None:
    sensors_own = {"curtail/checkpoint": "ckpt-000000"}
    assert on_demand_tags(run("ckpt-000000", **sensors_own), checkpoints) == {}
    assert on_demand_tags(run("ckpt-000001"), checkpoints) == {}, "it is not committed: a segment to be trained"
    assert on_demand_tags(run(None), checkpoints) == {}
    other = dg.DagsterRun(job_name="daily_pipeline", tags={"dagster/partition": "2026-05-01"})
    assert on_demand_tags(other, checkpoints) == {}


def test_the_instance_of_a_home_limits_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project.open(write_experiment(tmp_path), "headless", tmp_path / "home")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with open_instance(project) as instance:
        assert isinstance(instance.run_coordinator, SiteQueue)
        queue = instance.get_concurrency_config().run_queue_config
        assert queue is not None
        limits = {limit["key"]: limit["limit"] for limit in queue.tag_concurrency_limits}
        assert limits["curtail/checkpoint"] == 2 and limits["curtail/on_demand"] < queue.max_concurrent_runs - 1
        assert {f"curtail.on_demand/{site.name}": 1 for site in project.experiment.sites}.items() <= limits.items()
