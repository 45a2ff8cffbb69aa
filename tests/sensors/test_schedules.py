"""What the schedules request."""

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from commands import run_python
from micro import environment

from curtail_pipeline.orchestration.partitions import RANGE_END, RANGE_START
from sensors.schedules import daily_pipeline_schedule, intraday_schedule


def requested(schedule: dg.ScheduleDefinition, at: datetime) -> list[dg.RunRequest]:
    with dg.DagsterInstance.local_temp() as instance:
        found = schedule(dg.build_schedule_context(instance=instance, scheduled_execution_time=at))
    return [found] if isinstance(found, dg.RunRequest) else []


@pytest.mark.parametrize(
    ("day", "first", "last"),
    [(24, "2026-03-21", "2026-03-23"), (22, "2026-03-21", "2026-03-21"), (26, "2026-03-22", "2026-03-23")],
)
def test_the_lookback_of_a_tick_is_one_run_over_the_days_there_are(day: int, first: str, last: str) -> None:
    (request,) = requested(daily_pipeline_schedule, datetime(2026, 3, day, 0, 30, tzinfo=UTC))
    assert (request.tags[RANGE_START], request.tags[RANGE_END]) == (first, last)


def test_outside_the_trace_nothing_is_requested() -> None:
    for schedule in (daily_pipeline_schedule, intraday_schedule):
        assert requested(schedule, datetime(2026, 7, 1, 0, 30, tzinfo=UTC)) == []


def test_today_is_one_partition() -> None:
    (request,) = requested(intraday_schedule, datetime(2026, 3, 22, 10, 5, tzinfo=UTC))
    assert request.partition_key == "2026-03-22"


def test_a_run_that_is_still_at_work_is_not_joined_by_another() -> None:
    at = datetime(2026, 3, 22, 10, 5, tzinfo=UTC)
    with dg.DagsterInstance.local_temp() as instance:

        def asked() -> dg.RunRequest | dg.SkipReason | None:
            found = intraday_schedule(dg.build_schedule_context(instance=instance, scheduled_execution_time=at))
            assert found is None or isinstance(found, dg.RunRequest | dg.SkipReason)
            return found

        run = dg.DagsterRun(job_name="intraday_pipeline", status=dg.DagsterRunStatus.STARTED)
        instance.add_run(run)
        skipped = asked()
        assert isinstance(skipped, dg.SkipReason) and f"run {run.run_id[:8]} of it" in str(skipped.skip_message)
        instance.report_run_failed(run, "the source did not answer")
        assert isinstance(asked(), dg.RunRequest)


CODE = """
from curtail_pipeline.definitions import defs
repository = defs.get_repository_def()
found = [*repository.schedule_defs, *repository.sensor_defs]
print(sorted(each.name for each in found if each.default_status.value == "RUNNING"))
"""


@pytest.mark.parametrize("switch", ["on", "off"])
def test_one_switch_for_schedules_and_sensors(tmp_path: Path, switch: str) -> None:
    chosen = {**environment(tmp_path), "CURTAIL_SENSORS": switch}
    (tmp_path / "asked.py").write_text(CODE)
    found = run_python(str(tmp_path / "asked.py"), env=chosen, timeout=300, torch=False)
    everything = [
        "automation",
        "daily_pipeline_schedule",
        "failure_sensor",
        "intraday_schedule",
        "membership_sensor",
        "provisioning_sensor",
        "reaper_sensor",
    ]
    assert found.stdout.strip() == str(everything if switch == "on" else []), found.stderr
