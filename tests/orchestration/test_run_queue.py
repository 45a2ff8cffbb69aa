"""Runs on demand are told apart before they queue, and limited per site by the instance's own configuration."""

from pathlib import Path

import dagster as dg
import pytest
from checkpoint_cases import fields
from dagster._core.launcher import LaunchRunContext, RunLauncher
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.run_coordinator import SubmitRunContext
from dagster._serdes import ConfigurableClass, ConfigurableClassData
from micro import write_experiment

from curtail_pipeline.orchestration.headless import open_instance, prepare_instance
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


@dg.job
def segment() -> None:
    """Nothing is trained here."""


class Noted(RunLauncher, ConfigurableClass):
    """Says which runs it was given, as the instance's run launcher."""

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        self._inst_data = inst_data
        self.runs: list[str] = []
        super().__init__()

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, object]:
        return {}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: object) -> "Noted":
        return cls(inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        self.runs.append(context.dagster_run.run_id)

    def terminate(self, run_id: str) -> bool:
        return False


def test_a_live_segment_need_not_queue_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project.open(write_experiment(tmp_path), "headless", tmp_path / "home")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("CURTAIL_EXPERIMENT", str(project.home.experiment_file))
    prepare_instance(project)
    file = project.home.dagster / "dagster.yaml"
    launcher = "run_launcher:\n  module: test_run_queue\n  class: Noted\n"
    file.write_text(launcher + "".join(file.read_text().partition("run_coordinator:")[1:]))
    with open_instance(project) as instance:
        launched = instance.run_launcher.runs  # type: ignore[attr-defined]
        location = GrpcServerCodeLocationOrigin(host="localhost", port=1, location_name="code")
        origin = RemoteJobOrigin(RemoteRepositoryOrigin(location, "defs"), "segment")

        def submit(parent: str | None = None, **tags: str) -> dg.DagsterRunStatus:
            made = instance.create_run_for_job(
                segment, tags=tags, parent_run_id=parent, root_run_id=parent, remote_job_origin=origin
            )
            found = instance.run_coordinator.submit_run(SubmitRunContext(made, None))  # type: ignore[arg-type]
            assert (found.run_id in launched) == (found.status == dg.DagsterRunStatus.STARTING)
            return found.status

        ours = {"curtail/checkpoint": "ckpt-000001"}
        assert submit(**ours) == dg.DagsterRunStatus.QUEUED, "elsewhere than in the daemon"
        monkeypatch.setattr(SiteQueue, "starts_segments", True)
        assert submit(**ours) == dg.DagsterRunStatus.STARTING
        first = launched[0]
        assert submit(first, **ours) == submit() == dg.DagsterRunStatus.QUEUED, "asked for again; not a segment's"
        assert submit(**ours) == dg.DagsterRunStatus.STARTING
        assert submit(**ours) == dg.DagsterRunStatus.QUEUED, "of two segments one trains and one evaluates"
        instance.report_run_failed(instance.get_run_by_id(first))  # type: ignore[arg-type]
        assert submit(**ours) == dg.DagsterRunStatus.STARTING
