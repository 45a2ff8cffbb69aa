"""Dagster's records in Postgres and the store in a bucket: all but the rounds, which need neither."""

from pathlib import Path

import pytest
from micro import curtail, write_experiment
from postgres_server import PROGRAMS, Postgres, serving

from curtail_pipeline.benchmarks.s3_server import KEYS, S3Server
from curtail_pipeline.orchestration.headless import INSTANCE_YAML

BEFORE_ANY_WINDOW = {"clock": {"end": "2026-05-01T00:05:00Z"}}


def recorded(postgres: Postgres) -> int:
    """Materialisations that Dagster knows."""
    asked = "select count(*) from event_logs where dagster_event_type = 'ASSET_MATERIALIZATION'"
    return int(postgres.ask("psql", "-tAc", asked, "dagster"))


@pytest.mark.slow
@pytest.mark.skipif(PROGRAMS is None, reason="Postgres is not installed; Debian's package is postgresql")
def test_a_run_keeps_its_records_in_postgres_and_its_store_in_a_bucket(s3: S3Server, tmp_path: Path) -> None:
    bucket, dagster = s3.bucket(), tmp_path / "homes" / "micro" / "dagster"
    experiment = write_experiment(tmp_path / "experiment", **BEFORE_ANY_WINDOW)
    words = ("run", "--experiment", str(experiment), "--out", f"s3://{bucket}/runs/micro")
    # no site is needed, so that no federation is started
    more = {
        **KEYS,
        "AWS_ENDPOINT_URL": s3.url,
        "CURTAIL_CACHE": str(tmp_path / "c"),
        "CURTAIL_SUPERLINK": "127.0.0.1:1",
    }
    with serving() as postgres:
        dagster.mkdir(parents=True)
        storage = f"storage:\n  postgres:\n    postgres_url: {postgres.url('dagster')}\n"
        (dagster / "dagster.yaml").write_text(INSTANCE_YAML + storage)
        done = curtail(*words, home=tmp_path / "homes", more=more, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        made = recorded(postgres)
        assert made >= 8 and not list(dagster.rglob("*.db")), "traces, windows, text, model, report"
