"""What the instance says of earlier runs at the next key."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from dagster import DagsterRunStatus as Status
from postgres_server import PROGRAMS, serving

from curtail_pipeline.orchestration.headless import INSTANCE_YAML
from curtail_pipeline.orchestration.runs import (
    CHECKPOINT_TAG,
    MEMBERS_TAG,
    SKIPPED_TAG,
    active_segment,
    member_tags,
    members_of,
    setback,
)

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


def long_names(sites: int) -> tuple[str, ...]:
    """As long as a site's name may be, and nothing that compresses."""
    return tuple(hashlib.sha256(str(site).encode()).hexdigest() for site in range(sites))


@pytest.mark.parametrize("sites", [1, 3, 30, 31, 60, 61, 1_000])
def test_tags_say_who_trains_however_many_they_are(sites: int) -> None:
    names = long_names(sites)
    tags = member_tags(names)
    assert members_of(tags) == names and max(map(len, tags.values())) <= 2_000
    assert (tags == {MEMBERS_TAG: ",".join(names)}) == (sites <= 30)
    assert members_of(member_tags(long_names(1_000)) | tags) == names, "of a run that was marked anew"
    assert tags != member_tags(names[::-1]) or sites == 1


@pytest.mark.slow
@pytest.mark.skipif(PROGRAMS is None, reason="Postgres is not installed; Debian's package is postgresql")
def test_postgres_takes_the_tags_of_a_thousand_sites(tmp_path: Path) -> None:
    names = long_names(1_000)
    with serving() as postgres:
        storage = f"storage:\n  postgres:\n    postgres_url: {postgres.url('dagster')}\n"
        (tmp_path / "dagster.yaml").write_text(INSTANCE_YAML + storage)
        with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
            instance.create_run_for_job(
                some_job, status=Status.STARTED, tags={CHECKPOINT_TAG: KEY} | member_tags(names)
            )
            assert active_segment(instance, KEY) == names
            with pytest.raises(Exception, match="index row"):
                instance.create_run_for_job(some_job, tags={MEMBERS_TAG: ",".join(names)})
