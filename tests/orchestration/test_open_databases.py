"""Who writes an event does not write the whole log back: the databases of the instance and of the run are open."""

import os
from pathlib import Path

import dagster as dg
import pytest
from waiting import wait_until

from curtail_pipeline.errors import StoreError
from curtail_pipeline.orchestration import watchdog
from curtail_pipeline.orchestration.open_databases import DATABASES, check_databases, databases_open


def test_a_write_leaves_the_log_of_a_database_that_is_open(tmp_path: Path) -> None:
    logs = [tmp_path / f"history/{name}.db-wal" for name in ("runs", "runs/index")]
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:

        def write() -> list[bool]:
            instance.report_runless_asset_event(dg.AssetMaterialization("table"))
            run = dg.DagsterRun(job_name="daily_pipeline")
            instance.add_run(run)
            return [log.exists() for log in logs]

        assert write() == [False, False], "Dagster keeps its databases open by itself: this is not needed"
        with databases_open(instance):
            assert write() == [True, True]
        assert write() == [False, False]


@pytest.mark.parametrize("name", DATABASES)
def test_a_file_that_is_no_database_is_named(tmp_path: Path, name: str) -> None:
    check_databases(tmp_path)
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no database" * 500)
    with pytest.raises(StoreError, match=rf"{name} is damaged \(file is not a database\); move .* away"):
        check_databases(tmp_path)


def test_a_storage_without_such_files_is_left_alone(tmp_path: Path) -> None:
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance, databases_open(instance, "a-run"):
        assert not list(tmp_path.rglob("*.db"))


def test_they_are_open_as_long_as_the_ui_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "EVERY_S", 0.5)  # between two looks of its own nobody else opens them
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:

        def leaves_the_log() -> bool:
            instance.add_run(dg.DagsterRun(job_name="daily_pipeline"))
            return (tmp_path / "history/runs.db-wal").exists()

        assert not leaves_the_log()
        with watchdog.watching(tmp_path, os.getpid(), "http://127.0.0.1:9"):
            wait_until(lambda: all(leaves_the_log() for _ in range(20)), 30, "open databases")
