"""Whose orders bring addresses where a committed segment is trained again or gone on with."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from curtail_pipeline.federation.orders import OuterState, Plan, Segment, StoredWeights
from curtail_pipeline.stages import aside
from curtail_pipeline.storage.folder_store import FolderStore


@pytest.mark.parametrize(
    ("replay", "now", "wanted"),
    [("spare", ["A", "B"], ("A", "B")), ("spare", ["B", "C"], ("B",)), ("spare", [], ()), ("own", ["A", "B"], ())],
)
def test_addresses_go_to_members_that_have_no_account_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replay: str, now: list[str], wanted: tuple[str, ...]
) -> None:
    store = FolderStore(tmp_path)
    plan = Plan.model_validate(
        {
            "key": "ckpt-000002", "members": ["A", "B"], "mode": "federated", "first_step": 0, "total_steps": 9,
            "parent": {"key": "ckpt-000001", "weights": "w", "sha256": "0" * 64, "config": "c"}, "rounds": [],
            "outer": {"lr": 1, "momentum": 0}, "norm_bound": 5, "linked": ["A"],
        }
    )  # fmt: skip
    asked: list[Plan] = []

    def run(place: aside.Aside, key: str) -> Segment:
        asked.append(store.read_record(key, Plan))
        weights = StoredWeights(key=f"{place.folder}/w", sha256="1" * 64)
        return Segment(
            key=plan.key, attempt=1, rounds=(), sites={}, weights=weights, outer=OuterState(key="o"), steps=0, tokens=0,
            stop_reason="", norm_history=(), lost={}, refused={},
        )  # fmt: skip

    monkeypatch.setattr(aside, "connect", lambda *_: nullcontext())
    monkeypatch.setattr(aside, "_own_process", lambda place, key, _: run(place, key))
    settings = SimpleNamespace(replay=replay, linked=now)
    project: Any = SimpleNamespace(experiment=SimpleNamespace(federation=settings), home=None)
    with aside.aside(store) as place:
        monkeypatch.setattr(aside, "submit_and_follow", lambda _, key, *__, **___: run(place, key))
        aside.run_aside(project, place, plan, lambda _: None)
    assert [each.linked for each in asked] == [wanted]
