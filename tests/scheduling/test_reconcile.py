"""From a decision to an action: no segment twice, none forgotten, failures wait."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curtail_pipeline.errors import MessageError
from curtail_pipeline.scheduling.decide import Decision
from curtail_pipeline.scheduling.reconcile import (
    BACKOFF_S,
    Action,
    Attempts,
    Desired,
    SegmentRequest,
    Setback,
    reconcile,
)
from curtail_pipeline.scheduling.view import SiteDecision

NOW = datetime(2026, 3, 21, 12, tzinfo=UTC)
SITES = ("A", "B", "C")


def decision(states: dict[str, str], finished: bool = False) -> Decision:
    sites = {name: SiteDecision(state, f"{name} is {state}", NOW) for name, state in states.items()}  # type: ignore[arg-type]
    training = sum(state == "train" for state in states.values())
    mode = "pause" if training == 0 else "local" if training == 1 else "federated"
    return Decision(NOW, sites, mode, "because", None, finished)


def desired(generation: int, states: dict[str, str]) -> Desired:
    return Desired(generation=generation, states=states, reasons={}, reason="", at=NOW)  # type: ignore[arg-type]


def act(found: Decision, known: Desired | None = None, **changes: object) -> Action:
    given = {
        "active": None,
        "parent": "ckpt-000004",
        "key": "ckpt-000005",
        "attempts": Attempts(),
        "wall": NOW,
        "previous": {},
        "before_pause": {},
    }
    return reconcile(found, known, **{**given, **changes})  # type: ignore[arg-type]


def test_two_sites_that_should_train_start_a_federated_segment() -> None:
    action = act(decision({"A": "train", "B": "train", "C": "off"}))
    assert action.request is not None
    assert action.request.mode == "federated"
    assert action.request.members == ("A", "B")
    assert (action.request.key, action.request.parent, action.request.attempt) == ("ckpt-000005", "ckpt-000004", 1)
    assert action.changed and action.desired.generation == 1


def test_an_active_segment_is_never_started_again_but_sees_the_new_membership() -> None:
    before = desired(7, {"A": "train", "B": "off", "C": "off"})
    action = act(decision({"A": "train", "B": "train", "C": "off"}), before, active=("A",))
    assert action.request is None
    assert action.changed and action.desired.generation == 8
    assert action.desired.states == {"A": "train", "B": "train", "C": "off"}
    assert "is ending" in action.reason


def test_an_unchanged_membership_keeps_its_generation() -> None:
    before = desired(7, {"A": "train", "B": "off", "C": "off"})
    action = act(decision({"A": "train", "B": "off", "C": "off"}), before, active=("A",))
    assert not action.changed and action.desired.generation == 7


@pytest.mark.parametrize("finished", [False, True])
def test_a_pause_and_a_finished_job_start_nothing(finished: bool) -> None:
    action = act(decision(dict.fromkeys(SITES, "off"), finished))
    assert action.request is None
    assert ("nothing left" in action.reason) == finished


@pytest.mark.parametrize("failures", [1, 2, 5, 6, 40])
def test_failures_wait_longer_and_longer(failures: int) -> None:
    wait = BACKOFF_S[min(failures, len(BACKOFF_S)) - 1]
    attempts = Attempts(failures, Setback(NOW, failures))
    early = act(decision({"A": "train"}), attempts=attempts, wall=NOW + timedelta(seconds=wait - 1))
    due = act(decision({"A": "train"}), attempts=attempts, wall=NOW + timedelta(seconds=wait))
    assert early.request is None and f"attempt {failures}" in early.reason
    assert due.request is not None and due.request.attempt == failures + 1


def test_a_segment_without_a_step_is_no_failure() -> None:
    """The same members wait a little, so that nothing turns round and round; others are asked for at once."""
    attempts = Attempts(7, Setback(NOW, without_step=("A",)))
    same = act(decision({"A": "train"}), attempts=attempts, wall=NOW)
    later = act(decision({"A": "train"}), attempts=attempts, wall=NOW + timedelta(seconds=BACKOFF_S[0]))
    other = act(decision({"A": "train", "B": "train"}), attempts=attempts, wall=NOW)
    assert same.request is None and "trained no step" in same.reason
    assert later.request is not None and other.request is not None and other.request.attempt == 8


states = st.fixed_dictionaries({name: st.sampled_from(["train", "warm", "off"]) for name in SITES})


@given(st.lists(states, min_size=1, max_size=12))
def test_generations_count_changes_of_the_membership(history: list[dict[str, str]]) -> None:
    known, changes, last = None, 0, None
    for wanted in history:
        action = act(decision(wanted), known)
        changes += wanted != last
        known, last = action.desired, wanted
        assert action.desired.generation == changes
        assert dict(action.desired.states) == wanted
        assert (action.request is not None) == ("train" in wanted.values())


@given(states)
def test_what_is_stored_reads_back(wanted: dict[str, str]) -> None:
    held = {"A": SiteDecision("warm", "x", NOW, NOW), "B": SiteDecision("off", "y", NOW, None)}
    action = act(decision(wanted), previous=held, before_pause=held)
    assert Desired.read(action.desired.model_dump_json(), "it") == action.desired
    if action.request:
        again = SegmentRequest.read(action.request.model_dump_json(), "it")
        assert again == action.request and again.before_pause == held


def test_what_is_not_understood_is_refused() -> None:
    content = json.loads(desired(3, {"A": "train"}).model_dump_json())
    for change, text in (
        ({"states": {"A": "run"}}, "states.A"),
        ({"extra": 1}, "extra"),
        ({"schema": 0}, "has schema 0"),
    ):
        with pytest.raises(MessageError, match=text):
            Desired.read(content | change, "membership.json")
