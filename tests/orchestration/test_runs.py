"""What the instance says of earlier runs at the next key."""

from datetime import UTC, datetime

import dagster as dg
import pytest
from dagster import DagsterRunStatus as Status

from curtail_pipeline.orchestration.runs import CHECKPOINT_TAG, MEMBERS_TAG, SKIPPED_TAG, setback

KEY = "ckpt-000007"


@dg.job
def some_job() -> None:
    """Has no step."""


@pytest.mark.parametrize(
    ("history", "failures", "without_step"),
    [
        ("", None, None),
        ("S", None, None),
        ("F", 1, None),
        ("FCF", 3, None),
        ("FFnF", 1, None),
        ("FFn", 1, ("A", "B")),
        ("FS", None, None),
    ],
)
def test_failures_count_in_a_row_and_a_run_without_a_round_ends_the_row(
    history: str, failures: int | None, without_step: tuple[str, ...] | None
) -> None:
    status = {"F": Status.FAILURE, "C": Status.CANCELED, "S": Status.SUCCESS, "n": Status.SUCCESS}
    before = datetime.now(UTC)
    with dg.DagsterInstance.ephemeral() as instance:
        for each in history:
            tags = {CHECKPOINT_TAG: KEY, MEMBERS_TAG: "A,B"} | ({SKIPPED_TAG: "no site trains"} if each == "n" else {})
            instance.create_run_for_job(some_job, status=status[each], tags=tags)
        instance.create_run_for_job(some_job, status=Status.FAILURE, tags={CHECKPOINT_TAG: "ckpt-000006"})
        found = setback(instance, KEY)
    if failures is None:
        assert found is None
    else:
        assert found is not None and (found.failures, found.without_step) == (failures, without_step)
        assert abs((found.at - before).total_seconds()) < 60
