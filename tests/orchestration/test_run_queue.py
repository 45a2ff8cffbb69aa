"""Runs on demand wait for the pools of their sites, in Dagster's own queue on a home's own instance."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from checkpoint_cases import fields
from dagster._core.launcher import LaunchRunContext, RunLauncher
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.run_coordinator import SubmitRunContext
from dagster._core.storage.tags import POOL_TAG_PREFIX
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._daemon.run_coordinator import QueuedRunCoordinatorDaemon
from dagster._serdes import ConfigurableClass, ConfigurableClassData
from micro import write_experiment

from curtail_pipeline.orchestration.headless import open_instance, prepare_instance
from curtail_pipeline.orchestration.on_demand import OnDemand
from curtail_pipeline.orchestration.run_queue import SiteQueue, pools_of
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.store import StoreUnavailable

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


def test_a_run_on_demand_needs_the_pools_of_the_sites_that_it_trains_at(checkpoints: Checkpoints) -> None:
    both = {"on_demand", "site/NORTH", "site/SOUTH"}
    assert pools_of(run("ckpt-000000"), checkpoints) == pools_of(run("ckpt-000000", "extend"), checkpoints) == both
    assert pools_of(run("ckpt-000000", "export"), checkpoints) == {"on_demand"}


def test_live_segments_and_other_runs_need_none(checkpoints: Checkpoints) -> None:
    sensors_own = {"curtail/checkpoint": "ckpt-000000"}
    assert not pools_of(run("ckpt-000000", **sensors_own), checkpoints)
    assert not pools_of(run("ckpt-000001"), checkpoints), "it is not committed: a segment to be trained"
    assert not pools_of(run(None), checkpoints)
    other = dg.DagsterRun(job_name="daily_pipeline", tags={"dagster/partition": "2026-05-01"})
    assert not pools_of(other, checkpoints)


@dg.op
def aggregated_checkpoint(config: OnDemand) -> None:
    """Nothing is trained here."""


@dg.job
def local_training() -> None:
    aggregated_checkpoint()


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


class Queue:
    """A home's instance, whose runs are launched by nothing but the queue's own daemon."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        location = GrpcServerCodeLocationOrigin(host="localhost", port=1, location_name="code")
        self.origin = RemoteJobOrigin(RemoteRepositoryOrigin(location, "defs"), "local_training")
        self.daemon = QueuedRunCoordinatorDaemon(interval_seconds=1)

    @property
    def launched(self) -> list[str]:
        return self.instance.run_launcher.runs  # type: ignore[attr-defined,no-any-return]

    def submit(self, parent: str | None = None, config: dict[str, object] | None = None, **tags: str) -> dg.DagsterRun:
        made = self.instance.create_run_for_job(
            local_training,
            tags=tags,
            run_config=config,
            parent_run_id=parent,
            root_run_id=parent,
            remote_job_origin=self.origin,
        )
        return self.instance.run_coordinator.submit_run(SubmitRunContext(made, None))  # type: ignore[arg-type]

    def on_demand(self, key: str, mode: str = "replay") -> str:
        config: dict[str, object] = {"ops": {"aggregated_checkpoint": {"config": {"mode": mode}}}}
        found = self.submit(config=config, **{"dagster/partition": key})
        assert found.status == dg.DagsterRunStatus.QUEUED
        return found.run_id

    def turn(self) -> list[str]:
        """What the queue's daemon launches when it looks."""
        before = len(self.launched)
        with WorkspaceProcessContext(self.instance, None) as workspace:
            assert list(self.daemon.run_iteration(workspace)) == [None] * (len(self.launched) - before)
        return self.launched[before:]

    def log(self, run_id: str) -> list[str]:
        events = [entry.dagster_event for entry in self.instance.all_logs(run_id)]
        return [event.message or "" for event in events if event is not None]

    def end(self, run_id: str) -> None:
        """As the watchdog does with a run whose worker was killed."""
        ended = self.instance.get_run_by_id(run_id)
        assert ended is not None
        self.instance.report_run_failed(ended)


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    project = Project.open(write_experiment(tmp_path), "headless", tmp_path / "home")
    made = tmp_path / "model.safetensors"
    made.write_bytes(b"weights")
    for number, members in enumerate((["NORTH", "SOUTH"], ["NORTH"], ["SOUTH"])):
        key = f"ckpt-{number:06d}"
        project.checkpoints.commit(key, {made.name: made}, fields(key=key, members=members), 0)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("CURTAIL_EXPERIMENT", str(project.home.experiment_file))
    prepare_instance(project)
    file = project.home.dagster / "dagster.yaml"
    launcher = "run_launcher:\n  module: test_run_queue\n  class: Noted\n"
    file.write_text(launcher + "".join(file.read_text().partition("run_coordinator:")[1:]))
    with open_instance(project) as instance:
        assert isinstance(instance.run_coordinator, SiteQueue)
        yield Queue(instance)


def test_a_run_on_demand_waits_for_a_slot_of_every_site_that_it_trains_at(queue: Queue) -> None:
    both = queue.on_demand("ckpt-000000")
    north, south = queue.on_demand("ckpt-000001"), queue.on_demand("ckpt-000002")
    assert queue.turn() == [both] and queue.turn() == []
    evaluation = queue.on_demand("ckpt-000001", "evaluate")
    assert queue.turn() == [evaluation], "those that wait are in nobody's way"
    queue.end(both)
    assert queue.turn() == [north], "of three that run on demand two at once, as half of the queue's"
    queue.end(evaluation)
    assert queue.turn() == [south]
    again = queue.on_demand("ckpt-000000")
    for ended in (north, south):
        assert queue.turn() == [], "a slot of one of its sites is not held while it waits for the other"
        queue.end(ended)
    assert queue.turn() == [again]


def test_its_pools_are_where_an_operator_finds_and_changes_them(queue: Queue) -> None:
    events = queue.instance.event_log_storage
    limits = {"on_demand": 2, "site/NORTH": 1, "site/SOUTH": 1, "site/EAST": 1}
    assert {pool.name: pool.limit for pool in events.get_pool_limits()} == limits, "before anything is asked for"
    events.delete_concurrency_limit("site/EAST")  # as on an instance that only Dagster's own commands have opened
    first, second = queue.on_demand("ckpt-000001"), queue.on_demand("ckpt-000001")
    assert {pool.name: pool.limit for pool in events.get_pool_limits()} == limits
    assert queue.turn() == [first]
    events.set_concurrency_slots("site/NORTH", 2)  # as the page does
    assert queue.turn() == [second]
    queue.on_demand("ckpt-000001")
    assert events.get_concurrency_info("site/NORTH").limit == 2
    of_the_pool = dg.RunsFilter(tags={f"{POOL_TAG_PREFIX}site/NORTH": "true"})
    assert queue.instance.get_runs_count(of_the_pool) == 3
    said = "Needs a slot of each of the pools on_demand, site/NORTH (Deployment > Concurrency)"
    again = queue.instance.get_run_by_id(second)
    queue.instance.run_coordinator.submit_run(SubmitRunContext(again, None))  # type: ignore[arg-type]
    assert queue.log(second).count(said) == 1, "a run that is queued, or at work, is left as it is"


def test_a_queue_without_a_limit_limits_runs_on_demand_by_their_sites_alone(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"pools": {"granularity": "run"}, "runs": {"max_concurrent_runs": -1}}
    monkeypatch.setitem(queue.instance._settings, "concurrency", settings)
    queue.instance.event_log_storage.delete_concurrency_limit("on_demand")
    runs = [queue.on_demand("ckpt-000001", "evaluate"), queue.on_demand("ckpt-000001"), queue.on_demand("ckpt-000002")]
    assert queue.turn() == runs
    monkeypatch.setattr(SiteQueue, "starts_segments", True)
    live = queue.submit(**{"curtail/checkpoint": "ckpt-000003", "dagster/partition": "ckpt-000003"})
    assert live.status == dg.DagsterRunStatus.STARTING


def test_a_run_whose_sites_cannot_be_told_is_not_queued_without_their_limits(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: FolderStore, key: str) -> bytes:
        raise StoreUnavailable(f"{key}: the server does not answer")

    monkeypatch.setattr(FolderStore, "read_bytes", away)
    with pytest.raises(StoreUnavailable, match=r"000001/manifest\.json: the server does not answer"):
        queue.on_demand("ckpt-000001")
    assert queue.turn() == []


def test_a_run_says_where_pools_do_not_limit_it(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    by_op = {"pools": {"granularity": "op"}}
    monkeypatch.setitem(queue.instance._settings, "concurrency", by_op)  # as an operator's own dagster.yaml has it
    (said,) = [each for each in queue.log(queue.on_demand("ckpt-000001")) if "Needs a slot" in each]
    assert said.endswith("only with `concurrency: {pools: {granularity: run}}` in dagster.yaml")


def test_a_live_segment_waits_for_no_pool(queue: Queue) -> None:
    for pool in ("on_demand", "site/NORTH"):
        queue.instance.event_log_storage.set_concurrency_slots(pool, 0)
    replay = queue.on_demand("ckpt-000001")
    queued = queue.submit(**{"curtail/checkpoint": "ckpt-000003", "dagster/partition": "ckpt-000003"})
    assert queue.turn() == [queued.run_id]
    assert queue.instance.get_run_by_id(replay).status == dg.DagsterRunStatus.QUEUED  # type: ignore[union-attr]


def test_a_live_segment_need_not_queue_where_there_is_room(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    def submit(parent: str | None = None, **tags: str) -> dg.DagsterRunStatus:
        found = queue.submit(parent, **tags)
        assert (found.run_id in queue.launched) == (found.status == dg.DagsterRunStatus.STARTING)
        return found.status

    ours = {"curtail/checkpoint": "ckpt-000003"}
    assert submit(**ours) == dg.DagsterRunStatus.QUEUED, "elsewhere than in the daemon"
    monkeypatch.setattr(SiteQueue, "starts_segments", True)
    assert submit(**ours) == dg.DagsterRunStatus.STARTING
    first = queue.launched[0]
    assert submit(first, **ours) == submit() == dg.DagsterRunStatus.QUEUED, "asked for again; not a segment's"
    assert submit(**ours) == dg.DagsterRunStatus.STARTING
    assert submit(**ours) == dg.DagsterRunStatus.QUEUED, "of two segments one trains and one evaluates"
    queue.end(first)
    assert submit(**ours) == dg.DagsterRunStatus.STARTING


@pytest.mark.parametrize("kept", ["concurrency:\n  runs: {max_concurrent_runs: 4}\n", "", "storage: {}\n"])
def test_a_configuration_that_does_not_limit_sites_is_said_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kept: str
) -> None:
    project = Project.open(write_experiment(tmp_path), "headless", tmp_path / "home")
    prepare_instance(project)
    prepare_instance(project)
    assert capsys.readouterr().err == ""
    file = project.home.dagster / "dagster.yaml"
    file.write_text(kept)
    prepare_instance(project)
    assert file.read_text() == kept
    assert f"warning: {file} has no `concurrency: {{pools: {{granularity: run}}}}`" in capsys.readouterr().err
