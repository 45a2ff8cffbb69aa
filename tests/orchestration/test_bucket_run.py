"""The pipeline with its store in a bucket, over a line that fails: the weights of a folder, or one clear line."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from micro import curtail, write_experiment

from curtail_pipeline.benchmarks.s3_server import KEYS, Front, S3Server
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.s3_calls import Place
from curtail_pipeline.storage.s3_store import S3Store

GONE_S = 10.0
SHORT = {"job": {"steps": 60}, "clock": {"end": "2026-05-01T01:40:00Z"}}
"""A segment of one site, and rounds of two."""


class Unsteady:
    """Every 40th request is answered with 500, and the server is gone for 10 s once checkpoints are there."""

    def __init__(self) -> None:
        self.requests, self.gone_at = 0, 0.0

    def __call__(self, method: str, path: str) -> str | None:
        self.requests += 1
        if not self.gone_at and method == "PUT" and "/scratch/ckpt-000002/" in path:
            self.gone_at = time.monotonic()
        if self.gone_at and time.monotonic() < self.gone_at + GONE_S:
            return "drop"
        return "500" if self.requests % 40 == 0 else None


class Run:
    def __init__(self, s3: S3Server, front: Front, folder: Path) -> None:
        self.s3, self.front, self.folder, self.bucket = s3, front, folder, s3.bucket()
        self.file = write_experiment(folder / "experiment", **SHORT)

    def __call__(
        self, *words: str, out: str | None = None, more: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        variables = {**KEYS, "AWS_ENDPOINT_URL": self.front.url, "CURTAIL_CACHE": str(self.folder / "cache")}
        place = out or f"s3://{self.bucket}/runs/micro"
        home = self.folder / ("homes" if out is None else "other-homes")
        words = (*words, "--experiment", str(self.file), "--out", place)
        return curtail(*words, home=home, more={**variables, **(more or {})})

    def checkpoints(self) -> Checkpoints:
        return Checkpoints(S3Store(Place(self.bucket, "runs/micro"), self.folder / "look", 1 << 28, self.s3.connect))


@pytest.fixture(scope="module")
def run(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    front = Front(s3)
    yield Run(s3, front, tmp_path_factory.mktemp("bucket"))
    front.close()


@pytest.fixture(scope="module")
def summary(run: Run) -> dict[str, object]:
    run.front.fault = faults = Unsteady()
    done = run("run", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert faults.gone_at, "the server was never gone"
    run.front.fault = lambda method, path: None
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_a_run_over_a_line_that_fails_gives_the_weights_of_a_folder(run: Run, summary: dict[str, object]) -> None:
    home = run.folder / "homes" / "micro"
    assert summary["home"] == str(home) and str(summary["checkpoint"]).startswith(f"s3://{run.bucket}/runs/micro/")
    assert (home / "dagster" / "dagster.yaml").exists() and not (home / "store").exists()
    assert not list(Path.cwd().glob("s3:*")) and not list(run.folder.rglob("s3:"))
    found = run.checkpoints()
    keys = found.verify_chain()
    assert len(keys) >= 3 and found.store.exists("report/index.html")
    assert {mode for s in found.summaries() for mode in [s.mode]} == {"init", "local", "federated"}
    folder = run("run", "--json", out=str(run.folder / "plain"))
    assert folder.returncode == 0, folder.stderr[-3000:]
    plain = json.loads(folder.stdout.splitlines()[-1])["checkpoints"]
    assert [c["weights_sha256"] for c in plain] == [s.weights_sha256 for s in found.summaries()]


@pytest.mark.slow
def test_a_damaged_object_is_one_line(run: Run, summary: dict[str, object]) -> None:
    key = str(summary["checkpoint"]).rpartition("/")[2]
    store, name = run.checkpoints().store, f"runs/micro/checkpoints/{key}/model.safetensors"
    client = run.s3.connect()
    found = client.get_object(Bucket=run.bucket, Key=name)
    client.put_object(Bucket=run.bucket, Key=name, Body=found["Body"].read()[:-100], Metadata=found["Metadata"])
    one_line(run("checkpoints", "verify"), rf"checkpoints/{key}/model\.safetensors is corrupt: expected sha256")
    assert store.exists(f"checkpoints/{key}/manifest.json")


def test_what_keeps_a_run_from_starting_is_one_line(run: Run) -> None:
    one_line(run("run", out="s3://no-such-bucket/x"), "there is no bucket 'no-such-bucket'")
    one_line(run("run", out="gs://bucket/x"), "'gs://bucket/x' is not the address of a store; give a folder, or s3://")
    no_keys = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}
    one_line(run("run", more={**no_keys, "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent"}), "no credentials")
    one_line(run("run", more={"CURTAIL_HOME": "s3://bucket/x"}), "CURTAIL_HOME is 's3://bucket/x', which is no folder")
    site = ("site", "run", "NORTH", "--superlink", "127.0.0.1:1", "--store")
    one_line(run(*site, f"s3://{run.bucket}/empty"), r"experiment\.json is not in the store s3://.*/empty")
    assert not list(Path.cwd().glob("*s3:*"))


def one_line(done: subprocess.CompletedProcess[str], match: str) -> None:
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 1 and len(lines) == 1 and lines[0].startswith("curtail: "), done.stderr[-2000:]
    assert re.search(match, lines[0]), lines[0]
