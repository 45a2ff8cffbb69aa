"""What a segment's log says, from its typed events."""

import logging

import pytest

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation.progress import (
    RoundMerged,
    SegmentEnded,
    SegmentPlanned,
    SiteLost,
    SiteRefused,
    StepDone,
    Submitted,
)
from curtail_pipeline.orchestration.story import HEARTBEAT_S, Story, plain_failure
from curtail_pipeline.stages.run_events import Event

LOG = logging.getLogger("story")


def told(events: list[tuple[float, Event]], caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines for events at these seconds."""
    now = 0.0
    seen: list[Event] = []
    caplog.set_level(logging.INFO, "story")
    story = Story(LOG, seen.append, lambda: now)
    for stamp, event in events:
        now = stamp
        story(event)
    assert seen == [event for _, event in events]
    return [f"{record.levelname} {record.getMessage()}" for record in caplog.records]


def test_what_was_left_of_fragments_is_no_round_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    last = RoundMerged(round=8, steps={"NORTH": 0, "SOUTH": 0}, tokens=0, loss=None, bytes=900, moving_s=1.0)
    (line,) = told([(0, last)], caplog)
    assert line.startswith("INFO round 8: what was left of the fragments (NORTH, SOUTH), 900B moved, 0 s training + 1")


def test_a_segment_from_its_members_to_why_it_ended(caplog: pytest.LogCaptureFixture) -> None:
    merged = RoundMerged(
        round=0,
        steps={"NORTH": 120, "SOUTH": 90},
        tokens=107_520,
        loss=4.14859,
        tokens_per_s=13_549.4,
        bytes=8_400_000,
        training_s=41.27,
        moving_s=1.52,
        merging_s=0.31,
    )
    planned = SegmentPlanned(
        "ckpt-000004", 2, "federated", "ckpt-000003", {"NORTH": "20 < 100 gCO2/kWh", "SOUTH": ""}, "SOUTH joins", None
    )
    assert told(
        [
            (0, planned),
            (1, Submitted(77)),
            (42, merged),
            (50, SiteRefused("SOUTH", 1, "not finite")),
            (51, SiteLost("SOUTH", 1, "no heartbeat for 10 s")),
            (60, SegmentEnded("ckpt-000004", "NORTH leaves: 500 >= 100", 2, 210, 107_520)),
        ],
        caplog,
    ) == [
        "INFO ckpt-000004 from ckpt-000003: federated training, until the membership changes, attempt 2; SOUTH joins",
        "INFO NORTH trains: 20 < 100 gCO2/kWh",
        "INFO SOUTH trains",
        "INFO submitted as Flower run 77",
        "INFO round 0: 210 steps (NORTH 120, SOUTH 90), 13.5 k tokens/s, loss 4.15 nat/token, 8.4 MB moved, "
        "41 s training + 1.5 s moving + 0.31 s merging",
        "WARNING round 1: the update of SOUTH does not count: not finite",
        "WARNING round 1: SOUTH is lost: no heartbeat for 10 s",
        "INFO ckpt-000004 is committed: 2 rounds, 210 steps, 108 k tokens; it ended because: NORTH leaves: 500 >= 100",
    ]


def test_a_long_round_gives_signs_of_life_and_a_short_one_none(caplog: pytest.LogCaptureFixture) -> None:
    steps = [(2.0 * n, StepDone("NORTH", 3, 100 + n, 4.2, 1_500.0)) for n in range(1, int(2 * HEARTBEAT_S / 2) + 1)]
    lines = told([(0, Submitted(1)), *steps], caplog)
    assert lines[1:] == [
        "INFO round 3: NORTH, at step 115, loss 4.2, 1.5 k tokens/s",
        "INFO round 3: NORTH, at step 130, loss 4.2, 1.5 k tokens/s",
    ]


def test_a_failure_begins_with_its_reason_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(FederationError), plain_failure(LOG, "ckpt-000004"):
        raise FederationError("Flower run 7 failed: no node is online; its log ends:\nline\nline")
    assert [record.getMessage() for record in caplog.records] == [
        "ckpt-000004 failed: Flower run 7 failed: no node is online; its log ends:"
    ]
