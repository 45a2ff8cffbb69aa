"""What Dagster does with a bucket: its S3 resource opens the store, its log manager keeps the logs of runs there."""

import os
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster_aws.s3 import S3Resource
from micro import ROOT, write_experiment

from curtail_pipeline.benchmarks.s3_server import S3Server
from curtail_pipeline.errors import StoreError
from curtail_pipeline.orchestration.bucket_resource import BucketPipelineResource
from curtail_pipeline.storage.home import HomeRecord
from curtail_pipeline.storage.s3_store import S3Store


def without_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")


# Dagster asks a resource in a resource for its run by a name that it has deprecated itself.
@pytest.mark.filterwarnings("ignore:.*InitResourceContext:DeprecationWarning")
def test_the_resource_gives_the_store_its_credentials(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_aws(monkeypatch)
    monkeypatch.setenv("CURTAIL_HOME", str(tmp_path / "homes"))
    monkeypatch.setenv("CURTAIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CURTAIL_STORE", f"s3://{s3.bucket()}/runs/micro")
    file = str(write_experiment(tmp_path / "experiment"))
    resource = S3Resource(
        endpoint_url=s3.url, aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1"
    )
    found: list[str] = []

    @dg.op
    def reads(pipeline: BucketPipelineResource) -> None:
        store = pipeline.project().store
        assert isinstance(store, S3Store)
        found.append(store.read_record("experiment_identity.json", HomeRecord).name)

    @dg.job
    def reading() -> None:
        reads()

    pipeline = BucketPipelineResource(experiment=file, clock="headless", s3=resource)
    assert reading.execute_in_process(resources={"pipeline": pipeline, "s3": resource}).success
    assert found == ["micro"] and not (tmp_path / "homes" / "micro" / "store").exists()
    bare = BucketPipelineResource(experiment=file, clock="replay", s3=S3Resource(endpoint_url=s3.url, max_attempts=1))
    with pytest.raises(StoreError, match="no credentials"):
        bare.project()


def test_the_code_location_shows_the_resource_where_the_store_is_a_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curtail_pipeline.definitions import build

    monkeypatch.setenv("CURTAIL_HOME", str(tmp_path / "homes"))
    monkeypatch.setenv("CURTAIL_EXPERIMENT", str(write_experiment(tmp_path / "experiment")))
    assert "s3" not in (build().resources or {})
    monkeypatch.setenv("CURTAIL_STORE", "s3://bucket/x")
    assert isinstance((build().resources or {})["s3"], S3Resource)


def test_logs_of_runs_are_kept_in_the_bucket(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = yaml.safe_load((ROOT / "curtail_pipeline" / "deployment" / "templates" / "dagster.yaml").read_text())
    logs = settings["compute_logs"]
    logs["config"]["local_dir"] = str(tmp_path / "logs")
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump({"compute_logs": logs, "telemetry": {"enabled": False}}))
    bucket = s3.bucket()
    for name, value in {**s3.environment, "CURTAIL_LOGS_BUCKET": bucket}.items():
        monkeypatch.setenv(name, value)

    @dg.op
    def says() -> None:
        print("hello from a run")

    @dg.job
    def saying() -> None:
        says()

    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert saying.execute_in_process(instance=instance).success
    client = s3.connect()
    held = {entry["Key"]: entry for entry in client.list_objects_v2(Bucket=bucket)["Contents"]}
    (out,) = [key for key in held if key.endswith(".out")]
    assert out.startswith("dagster/compute_logs/")
    assert b"hello from a run" in client.get_object(Bucket=bucket, Key=out)["Body"].read()
