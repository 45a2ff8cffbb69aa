"""The sensor itself, tick by tick over a recorded day, under every policy."""

import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from checkpoint_cases import fields
from micro import CURTAILED, EXPERIMENT, START, write_experiment

from curtail_pipeline.orchestration.preparation import prepare
from curtail_pipeline.orchestration.resources import PipelineResource
from curtail_pipeline.scheduling.policies import PLANNING_POLICIES, POLICIES
from curtail_pipeline.scheduling.reconcile import MEMBERSHIP_KEY, Desired
from curtail_pipeline.stages.derive_windows import derive_day, save_derived
from curtail_pipeline.stages.ingest import ingest_day, save_ingested
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.clock import ReplayClock
from curtail_pipeline.storage.folder_store import FolderStore
from sensors.membership import membership_sensor

NEVER_MOVES = 1e-9
MINUTES = (5, 20, 40, 60, 80, 110, 130, 170, 190, 205)
"""Enough to see every state: windows are open from 10 to 100, 50 to 160 and 180 to 200."""


def prepared(folder: Path, policy: str, **changes: Any) -> Path:
    """An experiment whose traces, windows and first checkpoint are there; returns its file."""
    job: dict[str, Any] = dict(EXPERIMENT["job"])
    if policy in PLANNING_POLICIES:
        job = {"steps": 30, "deadline": (START + timedelta(hours=3.5)).isoformat()}
    path = write_experiment(folder / "input", policy={"name": policy}, job=job, **changes)
    project = Project.open(path, "replay")
    for region in CURTAILED:
        save_ingested(project, ingest_day(project, region, START.date()))
    save_derived(project, derive_day(project, START.date()))
    made = folder / "model.safetensors"
    made.write_bytes(b"weights")
    project.checkpoints.commit("ckpt-000000", {made.name: made}, fields(start=START, end=START), 0)
    return path


def tick_at(path: Path, store: FolderStore, now: datetime, instance: dg.DagsterInstance) -> dg.SensorResult:
    resource = PipelineResource(experiment=str(path), clock="replay")
    ReplayClock(store, START, NEVER_MOVES).anchor(now, NEVER_MOVES)
    with dg.build_sensor_context(instance=instance, resources={"pipeline": resource}) as context:
        result = membership_sensor(context)
    assert isinstance(result, dg.SensorResult)
    return result


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_starts_local_and_federated_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    monkeypatch.setenv("CURTAIL_HOME", str(tmp_path / "homes"))
    path = prepared(tmp_path, policy)
    store = Project.open(path, "replay").store
    jobs: set[str] = set()
    generations, pauses = [], 0
    with dg.DagsterInstance.ephemeral() as instance:
        for minute in MINUTES:
            result = tick_at(path, store, START + timedelta(minutes=minute), instance)
            generations.append(int(result.cursor or 0))
            desired = store.read_record(MEMBERSHIP_KEY, Desired)
            assert desired.states.keys() == CURTAILED.keys()
            members = ",".join(site for site in CURTAILED if site in desired.members)
            job = "federated_rounds" if len(desired.members) > 1 else "local_training"
            requests = [
                (request.job_name, request.partition_key, request.tags["curtail/members"])
                for request in result.run_requests or []
            ]
            skipped = result.skip_reason.skip_message if result.skip_reason else None
            if desired.members:
                assert requests == [(job, "ckpt-000001", members)] and skipped is None
                jobs.add(job)
            else:
                assert requests == [] and skipped is not None and skipped.startswith("pause: no site trains")
                pauses += 1
    assert jobs == {"local_training", "federated_rounds"} and pauses
    assert generations == sorted(generations) and generations[-1] > 2


def test_an_empty_home_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requested once while it runs, again after a failure and a wait, not by itself after somebody has stopped it."""
    monkeypatch.setenv("CURTAIL_HOME", str(tmp_path / "homes"))
    path = write_experiment(tmp_path / "input")
    store = Project.open(path, "replay").store
    with dg.DagsterInstance.ephemeral() as instance:

        def tick() -> tuple[list[tuple[str | None, str | None]], str]:
            result = tick_at(path, store, START, instance)
            said = result.skip_reason.skip_message if result.skip_reason else ""
            return [(request.job_name, request.run_key) for request in result.run_requests or []], said or ""

        assert tick() == ([("prepare", "prepare-1")], "")
        run = instance.create_run_for_job(prepare)
        assert tick() == ([], "the home is being prepared")
        instance.report_run_failed(run)
        requests, said = tick()
        assert requests == [] and said.startswith("prepare failed; attempt 2 is due at")
        again = instance.create_run_for_job(prepare)
        instance.report_run_canceling(again)
        instance.report_run_canceled(again)
        requests, said = tick()
        assert requests == [] and f"run {again.run_id[:8]} of prepare was terminated" in said


def segment_run(instance: dg.DagsterInstance, key: str, **more: str) -> dg.DagsterRun:
    tags = {"curtail/checkpoint": key, "curtail/members": "NORTH", **more}
    return instance.create_run_for_job(prepare, tags=tags)


def test_terminating_a_segment_pauses_its_key_until_it_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CURTAIL_HOME", str(tmp_path / "homes"))
    path = prepared(tmp_path, "paper")
    store = Project.open(path, "replay").store
    now = START + timedelta(minutes=20)
    with dg.DagsterInstance.ephemeral() as instance:

        def tick() -> tuple[list[str | None], str]:
            result = tick_at(path, store, now, instance)
            said = result.skip_reason.skip_message if result.skip_reason else ""
            return [str(request.run_key)[:13] for request in result.run_requests or []], said or ""

        assert tick()[0] == ["ckpt-000001-1"]
        stopped = segment_run(instance, "ckpt-000001")
        instance.report_run_canceling(stopped)
        assert tick() == ([], tick()[1]) and "runs" in tick()[1]
        instance.report_run_canceled(stopped)
        for _ in range(3):
            requests, said = tick()
            assert requests == []
            assert f"paused: run {stopped.run_id[:8]} of ckpt-000001 was terminated" in said
            assert "re-execute that run, or materialise ckpt-000001" in said
        resumed = segment_run(instance, "ckpt-000001")
        assert "runs" in tick()[1]
        instance.report_run_failed(resumed)
        monkeypatch.setattr("curtail_pipeline.scheduling.reconcile.BACKOFF_S", (0.0,))
        assert tick()[0] == ["ckpt-000001-2"]


def test_a_store_restored_from_an_earlier_copy_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster, whose own copy is newer, has run this very attempt: it launches no run key twice."""
    monkeypatch.setenv("CURTAIL_HOME", str(tmp_path / "homes"))
    path = prepared(tmp_path, "paper")
    store = Project.open(path, "replay").store
    with dg.DagsterInstance.ephemeral() as instance:
        shutil.copytree(store.root, tmp_path / "copy")
        keys = []
        for _ in range(2):
            result = tick_at(path, store, START + timedelta(minutes=20), instance)
            keys += [request.run_key for request in result.run_requests or []]
            run = segment_run(instance, "ckpt-000001")
            instance.report_run_failed(run)
            instance.delete_run(run.run_id)
            shutil.rmtree(store.root)
            shutil.copytree(tmp_path / "copy", store.root)
    assert len(keys) == len({*keys}) == 2 and {str(key)[:13] for key in keys} == {"ckpt-000001-1"}


def test_a_run_that_its_host_took_along_is_no_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURTAIL_HOME", str(tmp_path / "homes"))
    monkeypatch.setattr("curtail_pipeline.scheduling.reconcile.BACKOFF_S", (0.0,))
    path = prepared(tmp_path, "paper")
    store = Project.open(path, "replay").store
    with dg.DagsterInstance.ephemeral() as instance:
        instance.report_run_canceled(segment_run(instance, "ckpt-000001"))
        result = tick_at(path, store, START + timedelta(minutes=20), instance)
        assert [request.partition_key for request in result.run_requests or []] == ["ckpt-000001"]


def test_repeating_an_earlier_run_by_hand_does_not_hold_up_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CURTAIL_HOME", str(tmp_path / "homes"))
    path = prepared(tmp_path, "paper")
    store = Project.open(path, "replay").store
    with dg.DagsterInstance.ephemeral() as instance:
        first = segment_run(instance, "ckpt-000000")
        instance.report_run_failed(first)
        tags = {"curtail/checkpoint": "ckpt-000000", "curtail/members": "NORTH"}
        instance.create_run_for_job(prepare, tags=tags, parent_run_id=first.run_id, root_run_id=first.run_id)
        result = tick_at(path, store, START + timedelta(minutes=20), instance)
        assert [request.partition_key for request in result.run_requests or []] == ["ckpt-000001"]
