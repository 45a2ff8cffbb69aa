"""A segment that ends before its first step: a run that succeeds and commits nothing, and a sensor that goes on."""

from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from micro import START
from test_membership_sensor import prepared, tick_at

from assets import segments
from curtail_pipeline.federation.orders import Plan, RoundDone, Segment, StoredWeights
from curtail_pipeline.federation.plan import folder_of, journal_key, segment_key
from curtail_pipeline.orchestration.resources import PipelineResource, silent
from curtail_pipeline.stages import train
from curtail_pipeline.stages.project import Project


@pytest.mark.parametrize("rounds", [0, 1], ids=["before a round", "in a round whose sites were told to end at once"])
def test_it_is_skipped_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int) -> None:
    monkeypatch.setenv("CURTAIL_HOME", str(tmp_path / "homes"))
    path = prepared(tmp_path, "paper")
    project = Project.open(path, "replay")

    def changed_at_once(_: object, key: str, *__: object, **___: object) -> Segment:
        plan, folder = project.store.read_record(key, Plan), folder_of(key)
        weights = StoredWeights(key=plan.parent.weights, sha256=plan.parent.sha256)
        done = RoundDone(
            index=0, start=START, end=START + timedelta(minutes=1), members=1, steps={"NORTH": 0}, tokens={"NORTH": 0},
            consumed={"NORTH": ()}, loss={"NORTH": (None, None)}, stops={"NORTH": "membership"}, refused={}, lost={},
            weights=weights,
        )  # fmt: skip
        segment = Segment(
            key=plan.key, attempt=plan.attempt, rounds=(done,) * rounds, sites={}, outer=None, weights=weights,
            stop_reason="SOUTH joins", steps=0, tokens=0, norm_history=(), lost={}, refused={},
        )  # fmt: skip
        project.store.write_bytes(journal_key(folder), b"its rounds" * rounds)
        project.store.write_record(segment_key(folder), segment)
        return segment

    monkeypatch.setattr(train, "connect", lambda *_: nullcontext())
    monkeypatch.setattr(train, "submit_and_follow", changed_at_once)
    monkeypatch.setattr(train, "_plan", planned)
    now = START + timedelta(minutes=20)
    pipeline = PipelineResource(experiment=str(path), clock="replay")
    with dg.DagsterInstance.ephemeral() as instance:
        (request,) = tick_at(path, project.store, now, instance).run_requests or []
        assert request.partition_key == "ckpt-000001"
        instance.add_dynamic_partitions("checkpoints", ["ckpt-000001"])
        done = dg.materialize(
            [segments.aggregated_checkpoint, segments.checkpoint_evaluation],
            partition_key="ckpt-000001",
            instance=instance,
            resources={"pipeline": pipeline, "progress": dg.ResourceDefinition.hardcoded_resource(silent)},
        )
        assert done.success and done.get_asset_materialization_events() == []
        assert [event.step_key for event in done.get_step_skipped_events()] == ["checkpoint_evaluation"]
        run = instance.get_run_by_id(done.run_id)
        assert run is not None
        assert run.tags["curtail/skipped"] == "SOUTH joins" and run.tags["curtail/checkpoint"] == "ckpt-000001"
        assert not project.checkpoints.exists("ckpt-000001")
        left = ["plan.json", "rounds.jsonl"] if rounds else []  # they say what the time went into
        assert project.store.list("scratch/ckpt-000001/1") == left
        monkeypatch.setattr("curtail_pipeline.scheduling.reconcile.BACKOFF_S", (0.0,))
        (again,) = tick_at(path, project.store, now, instance).run_requests or []
        assert str(again.run_key).startswith("ckpt-000001-2-")


def planned(project: Project, prospect: train.Prospect) -> Plan:
    """A plan without looking at shards, which the test has none of."""
    parent = prospect.parent
    weights = f"checkpoints/{parent.key}/model.safetensors"
    content = {
        "schema": 1, "key": prospect.request.key, "attempt": prospect.request.attempt, "mode": "local",
        "parent": {"key": parent.key, "weights": weights, "sha256": "0" * 64, "config": ""},
        "members": list(prospect.request.members), "first_step": 0, "total_steps": 9, "rounds": [],
        "outer": {"lr": 0.7, "momentum": 0.9}, "norm_bound": 5.0,
    }  # fmt: skip
    return Plan.model_validate(content)
