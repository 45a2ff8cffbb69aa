"""The next attempt goes on with the one before, where that is still at work on the same: its caller was killed."""

from pathlib import Path
from typing import Any

import pytest
from test_train import DAYS

from curtail_pipeline.federation.orders import Plan, Segment, StoredWeights
from curtail_pipeline.federation.plan import plan_key, scratch_of, segment_key
from curtail_pipeline.flower.local import Federation
from curtail_pipeline.scheduling.reconcile import SegmentRequest
from curtail_pipeline.stages import train
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.store import Store

KEY = "ckpt-000001"


def asked(attempt: int, **changes: Any) -> SegmentRequest:
    content = {
        "schema": 1, "key": KEY, "attempt": attempt, "parent": "ckpt-000000", "members": ["A"], "mode": "local",
        "generation": 4, "start": DAYS[0], "reason": "", "previous": {}, "before_pause": {},
    }  # fmt: skip
    return SegmentRequest.model_validate(content | changes)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """The first attempt has ended, and nobody has committed what came of it."""
    found = FolderStore(tmp_path)
    content = {
        "schema": 1, "key": KEY, "attempt": 1, "generation": 4, "mode": "local", "members": ["A"], "first_step": 0,
        "parent": {"key": "ckpt-000000", "weights": "old", "sha256": "0" * 64, "config": ""}, "total_steps": 9,
        "rounds": [], "outer": {"lr": 0.7, "momentum": 0.9}, "norm_bound": 5.0,
    }  # fmt: skip
    found.write_record(plan_key(scratch_of(KEY, 1)), Plan.model_validate(content))
    found.write_bytes("new", b"weights")
    outcome = Segment(
        key=KEY, attempt=1, rounds=(), sites={}, outer=None, stop_reason="length cap", steps=0,
        weights=StoredWeights(key="new", sha256="0" * 64), tokens=0, norm_history=(), lost={}, refused={},
    )  # fmt: skip
    found.write_record(segment_key(scratch_of(KEY, 1)), outcome)
    return found


class Unreachable(Federation):
    """No federation has to be asked here."""

    def __init__(self) -> None:
        pass


def taken_up(store: Store, request: SegmentRequest) -> str | None:
    return train._taken_up(store, request, Unreachable())


def test_an_earlier_attempt_s_outcome_is_taken(store: Store) -> None:
    assert taken_up(store, asked(2)) == taken_up(store, asked(3)) == scratch_of(KEY, 1)


def test_not_by_itself_and_not_once_it_has_a_plan_of_its_own(store: Store) -> None:
    assert taken_up(store, asked(1)) is None
    plan = store.read_record(plan_key(scratch_of(KEY, 1)), Plan)
    store.write_record(plan_key(scratch_of(KEY, 2)), plan)
    assert taken_up(store, asked(2)) is None


@pytest.mark.parametrize("changes", [{"generation": 5}, {"members": ["A", "B"]}, {"parent": "ckpt-000009"}])
def test_not_where_something_else_is_asked_for(store: Store, changes: dict[str, Any]) -> None:
    assert taken_up(store, asked(2, **changes)) is None


def test_not_where_its_weights_are_gone(store: Store) -> None:
    store.delete("new")
    assert taken_up(store, asked(2)) is None
