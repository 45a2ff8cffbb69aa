"""Where a branch is kept: a store of its own kind under the experiment's, in a folder and in a bucket alike."""

from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from checkpoint_cases import START, fields

from curtail_pipeline.benchmarks.s3_server import S3Server
from curtail_pipeline.federation.orders import OuterState, Plan, Segment, StoredWeights
from curtail_pipeline.federation.plan import plan_key, segment_key
from curtail_pipeline.stages import branch
from curtail_pipeline.stages.aside import aside
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.s3_calls import Place
from curtail_pipeline.storage.s3_store import S3Store
from curtail_pipeline.storage.store import Store

FILES = ("config.json", "model.safetensors", "tokenizer.json", "outer.safetensors")
LEASE = (1, 0, 5)


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return FolderStore(tmp_path / "store")
    s3: S3Server = request.getfixturevalue("s3")
    return S3Store(Place(s3.bucket(), "p"), tmp_path / "machine", 1 << 24, s3.connect)


def planned(parent: str) -> Plan:
    return Plan.model_validate(
        {
            "key": "ckpt-000001", "parent": {"key": "ckpt-000000", "weights": f"checkpoints/{parent}/model.safetensors",
            "sha256": "0" * 64, "config": f"checkpoints/{parent}/config.json"}, "members": ["SPP_TX"], "mode": "local",
            "first_step": 0, "total_steps": 100, "outer": {"lr": 0.7, "momentum": 0.9}, "norm_bound": 5.0,
            "rounds": [{"index": 0, "steps": {"SPP_TX": 5}, "lease": {"SPP_TX": [LEASE]}}],
        }
    )  # fmt: skip


def test_branches_are_stores_of_their_own(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FILES:
        (tmp_path / name).write_bytes(name.encode() * 9)
    checkpoints = Checkpoints(store)
    checkpoints.commit("ckpt-000000", {name: tmp_path / name for name in FILES}, fields(), 0)
    home = SimpleNamespace(record=lambda: SimpleNamespace(sha256="e" * 64))
    experiment = SimpleNamespace(training=SimpleNamespace(sequence_length=8))
    project = cast(Project, SimpleNamespace(store=store, checkpoints=checkpoints, home=home, experiment=experiment))
    monkeypatch.setattr(branch, "wall_time", lambda *_: (START, START + timedelta(minutes=1), []))
    plan, names = planned("ckpt-000000"), []
    for _ in range(2):
        with aside(store) as place:
            weights, outer = (
                f"{place.folder}/round-0000/model.safetensors",
                f"{place.folder}/round-0000/outer.safetensors",
            )
            for key in (weights, outer):
                store.write_bytes(key, key.encode())
            store.write_record(plan_key(place.folder), plan)
            store.write_bytes(f"{place.folder}/rounds.jsonl", b"")
            done = fields("ckpt-000000")["sites"]
            segment = Segment.model_validate(
                {
                    "key": plan.key, "attempt": 1, "rounds": (), "sites": done, "steps": 5, "tokens": 40, "lost": {},
                    "weights": StoredWeights(key=weights, sha256="1" * 64), "outer": OuterState(key=outer),
                    "stop_reason": "branch", "norm_history": (), "refused": {},
                }
            )  # fmt: skip
            store.write_record(segment_key(place.folder), segment)
            monkeypatch.setattr(branch, "run_aside", lambda *_, segment=segment: segment)
            made = branch._train(project, place, "ckpt-000001-seed-9", plan, lambda _: None)
            names.append(made.name)
            assert made.address == f"{store.uri}/branches/{made.name}/checkpoints/ckpt-000001"
            assert (
                store.read_bytes(f"branches/{made.name}/checkpoints/ckpt-000001/model.safetensors") == weights.encode()
            )
    assert names == ["ckpt-000001-seed-9", "ckpt-000001-seed-9-2"]
    for name in names:
        own = Checkpoints(store.under(f"branches/{name}"))
        assert own.verify_chain() == ["ckpt-000000", "ckpt-000001"] and own.store.list("scratch") == []
        assert set(own.manifest("ckpt-000001").files) == {*FILES, "plan.json", "segment.json", "rounds.jsonl"}
    assert checkpoints.keys() == ["ckpt-000000"] and store.list("scratch/replays") == []


def test_more_rounds_are_like_the_last_one_with_steps() -> None:
    """Where weights are exchanged in fragments a round without steps may be behind it."""
    rounds = [SimpleNamespace(steps=steps) for steps in ({"A": 3, "B": 2}, {"A": 1}, {}, {"A": 0, "B": 0})]
    realised = cast(Segment, SimpleNamespace(rounds=rounds))
    assert branch._last_steps(realised) == {"A": 1}
