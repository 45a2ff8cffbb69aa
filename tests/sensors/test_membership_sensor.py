"""The sensor itself, tick by tick over a recorded day, under every policy."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from micro import CURTAILED, EXPERIMENT, START, write_experiment
from test_checkpoints import fields

from curtail_pipeline.orchestration.resources import PipelineResource
from curtail_pipeline.scheduling.policies import PLANNING_POLICIES, POLICIES
from curtail_pipeline.scheduling.reconcile import MEMBERSHIP_KEY, Desired
from curtail_pipeline.stages.derive_windows import derive_day, save_derived
from curtail_pipeline.stages.ingest import ingest_day, save_ingested
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.clock import ReplayClock
from curtail_pipeline.storage.store import Store
from sensors.membership import membership_sensor

NEVER_MOVES = 1e-9
MINUTES = (5, 20, 40, 60, 80, 110, 130, 170, 190, 205)
"""Enough to see every state: windows are open from 10 to 100, 50 to 160 and 180 to 200."""


def prepared(folder: Path, policy: str) -> Path:
    """An experiment whose traces, windows and first checkpoint are there; returns its file."""
    job: dict[str, Any] = dict(EXPERIMENT["job"])
    if policy in PLANNING_POLICIES:
        job = {"steps": 30, "deadline": (START + timedelta(hours=3.5)).isoformat()}
    path = write_experiment(folder / "input", policy={"name": policy}, job=job)
    project = Project.open(path, "replay")
    for region in CURTAILED:
        save_ingested(project, ingest_day(project, region, START.date()))
    save_derived(project, derive_day(project, START.date()))
    made = folder / "model.safetensors"
    made.write_bytes(b"weights")
    project.checkpoints.commit("ckpt-000000", {made.name: made}, fields(start=START, end=START), 0)
    return path


def tick_at(path: Path, store: Store, now: datetime, instance: dg.DagsterInstance) -> dg.SensorResult:
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
            job = "federated_rounds" if len(desired.members) > 1 else "local_training"
            requests = [
                (request.job_name, request.partition_key, request.tags["curtail/members"])
                for request in result.run_requests or []
            ]
            skipped = result.skip_reason.skip_message if result.skip_reason else None
            if desired.members:
                assert requests == [(job, "ckpt-000001", ",".join(desired.members))] and skipped is None
                jobs.add(job)
            else:
                assert requests == [] and skipped is not None and skipped.startswith("pause: no site trains")
                pauses += 1
    assert jobs == {"local_training", "federated_rounds"} and pauses
    assert generations == sorted(generations) and generations[-1] > 2


def test_a_home_without_a_model_says_what_to_materialise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURTAIL_HOME", str(tmp_path / "homes"))
    path = write_experiment(tmp_path / "input")
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(Exception, match="ckpt-000000"):
        tick_at(path, Project.open(path, "replay").store, START, instance)
