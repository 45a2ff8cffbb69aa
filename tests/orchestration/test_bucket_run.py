"""The pipeline with its store in a bucket, over a line that fails: the weights of a folder, or one clear line.

Dagster's records are in Postgres where that is installed; it and the bucket are restored from copies of other moments.
"""

import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from micro import curtail, curtail_here
from postgres_server import PROGRAMS, Postgres, serving
from whole_runs import Finished, write

from curtail_pipeline.benchmarks.s3_server import KEYS, Front, S3Server
from curtail_pipeline.orchestration.headless import INSTANCE_YAML
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.s3_calls import Place
from curtail_pipeline.storage.s3_store import S3Store

GONE_S = 10.0


class Unsteady:
    """Every 40th request is answered with 500, and the server is gone for 10 s once checkpoints are there.

    Copies are taken while the run goes on: of Postgres before the first segment, of the bucket before the second.
    """

    def __init__(self, run: "Run") -> None:
        self.run, self.requests, self.gone_at = run, 0, 0.0
        self.one_at_a_time = threading.Lock()

    def __call__(self, method: str, path: str) -> str | None:
        with self.one_at_a_time:
            self.requests += 1
            if method == "PUT" and "/scratch/ckpt-000001/" in path and not self.run.dump and self.run.postgres:
                self.run.dump = self.run.postgres.ask("pg_dump", "dagster")
            if not self.gone_at and method == "PUT" and "/scratch/ckpt-000002/" in path:
                self.run.copy("runs/micro/", "copy/")
                self.gone_at = time.monotonic()
        if self.gone_at and time.monotonic() < self.gone_at + GONE_S:
            return "drop"
        return "500" if self.requests % 40 == 0 else None


class Run:
    def __init__(self, s3: S3Server, front: Front, folder: Path, postgres: Postgres | None) -> None:
        self.s3, self.front, self.folder, self.bucket, self.postgres = s3, front, folder, s3.bucket(), postgres
        self.file = write(folder / "experiment")
        self.home = folder / "homes" / "micro"
        self.dump = ""
        """Of Postgres, before the first segment."""
        if postgres is not None:
            (self.home / "dagster").mkdir(parents=True)
            storage = f"storage:\n  postgres:\n    postgres_url: {postgres.url('dagster')}\n"
            (self.home / "dagster" / "dagster.yaml").write_text(INSTANCE_YAML + storage)

    def copy(self, source: str, target: str) -> None:
        """Make what is below one prefix of the bucket what is below another."""
        client = self.s3.connect()
        for name in self._names(target):
            client.delete_object(Bucket=self.bucket, Key=name)
        for name in self._names(source):
            place = {"Bucket": self.bucket, "Key": name}
            client.copy_object(Bucket=self.bucket, CopySource=place, Key=target + name.removeprefix(source))

    def _names(self, prefix: str) -> list[str]:
        pages = self.s3.connect().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", ())]

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return curtail(*self._words(words), home=self.folder / "homes", more=self._variables())

    def refused(self, *words: str, out: str | None = None, **more: str) -> str:
        """The line that says why."""
        done = curtail_here(*self._words(words, out), home=self.folder / "other-homes", more=self._variables() | more)
        lines = done.stderr.strip().splitlines()
        assert done.returncode == 1 and len(lines) == 1 and lines[0].startswith("curtail: "), done.stderr[-2000:]
        return lines[0]

    def _words(self, words: tuple[str, ...], out: str | None = None) -> list[str]:
        return [*words, "--experiment", str(self.file), "--out", out or f"s3://{self.bucket}/runs/micro"]

    def _variables(self) -> dict[str, str]:
        return {**KEYS, "AWS_ENDPOINT_URL": self.front.url, "CURTAIL_CACHE": str(self.folder / "cache")}

    def checkpoints(self) -> Checkpoints:
        return Checkpoints(S3Store(Place(self.bucket, "runs/micro"), self.folder / "look", 1 << 28, self.s3.connect))


@pytest.fixture(scope="module")
def run(s3: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with ExitStack() as stack:
        postgres = stack.enter_context(serving()) if PROGRAMS is not None else None
        front = Front(s3)
        stack.callback(front.close)
        yield Run(s3, front, tmp_path_factory.mktemp("bucket"), postgres)


@pytest.fixture(scope="module")
def summary(run: Run) -> dict[str, object]:
    run.front.fault = faults = Unsteady(run)
    done = run("run", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert faults.gone_at, "the server was never gone"
    run.front.fault = lambda method, path: None
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.long
def test_a_run_over_a_line_that_fails_gives_the_weights_of_a_folder(
    run: Run, summary: dict[str, object], finished: Finished
) -> None:
    home = run.home
    assert summary["home"] == str(home) and str(summary["checkpoint"]).startswith(f"s3://{run.bucket}/runs/micro/")
    assert (home / "dagster" / "dagster.yaml").exists() and not (home / "store").exists()
    assert not list(Path.cwd().glob("s3:*")) and not list(run.folder.rglob("s3:"))
    found = run.checkpoints()
    keys = found.verify_chain()
    assert len(keys) >= 3 and found.store.exists("report/index.html")
    assert {mode for s in found.summaries() for mode in [s.mode]} == {"init", "local", "federated"}
    plain = finished.summary["checkpoints"]
    assert [c["weights_sha256"] for c in plain] == [s.weights_sha256 for s in found.summaries()]


MADE = "from event_logs where dagster_event_type = 'ASSET_MATERIALIZATION'"


def recorded(postgres: Postgres) -> list[str]:
    """Checkpoints that Dagster knows."""
    asked = f"select distinct partition {MADE} and asset_key like '%aggregated_checkpoint%' order by partition"
    return postgres.ask("psql", "-tAc", asked, "dagster").split()


@pytest.mark.long
def test_a_run_goes_on_from_copies_of_different_moments(run: Run, summary: dict[str, object]) -> None:
    """From the last commit that the bucket's copy has, whatever Dagster knew, to the same weights."""
    before = run.checkpoints().summaries()
    keys = [each.key for each in before]
    if run.postgres is not None:
        others = f"select count(*) {MADE} and asset_key not like '%aggregated_checkpoint%'"
        assert int(run.postgres.ask("psql", "-tAc", others, "dagster")) >= 7, "traces, windows, text, report"
        assert not list((run.home / "dagster").rglob("*.db")) and recorded(run.postgres) == keys
    run.copy("copy/", "runs/micro/")
    assert run.checkpoints().keys() == keys[:2], "the copy of the bucket knows less than Postgres"
    done = run("run")
    assert done.returncode == 0, done.stderr[-3000:]
    again = run.checkpoints().summaries()
    assert run.checkpoints().verify_chain() == keys
    assert [each.weights_sha256 for each in again] == [each.weights_sha256 for each in before]
    if run.postgres is None:
        return
    run.postgres.restore(run.dump)
    assert recorded(run.postgres) == keys[:1], "the copy of Postgres knows less than the bucket"
    done = run("run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert run.checkpoints().summaries() == again, "what is committed is not done again"


@pytest.mark.long
def test_a_damaged_object_is_one_line(run: Run, summary: dict[str, object]) -> None:
    key = str(summary["checkpoint"]).rpartition("/")[2]
    store, name = run.checkpoints().store, f"runs/micro/checkpoints/{key}/model.safetensors"
    client = run.s3.connect()
    found = client.get_object(Bucket=run.bucket, Key=name)
    client.put_object(Bucket=run.bucket, Key=name, Body=found["Body"].read()[:-100], Metadata=found["Metadata"])
    said = run.refused("checkpoints", "verify", CURTAIL_HOME=str(run.folder / "homes"))
    assert re.search(rf"checkpoints/{key}/model\.safetensors is corrupt: expected sha256", said)
    assert store.exists(f"checkpoints/{key}/manifest.json")


def test_what_keeps_a_run_from_starting_is_one_line(run: Run) -> None:
    assert "there is no bucket 'no-such-bucket'" in run.refused("run", out="s3://no-such-bucket/x")
    said = run.refused("run", out="gs://bucket/x")
    assert "'gs://bucket/x' is not the address of a store; give a folder, or s3://" in said
    no_keys = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}
    assert "no credentials" in run.refused("run", **no_keys, AWS_SHARED_CREDENTIALS_FILE="/nonexistent")
    assert "CURTAIL_HOME is 's3://bucket/x', which is no folder" in run.refused("run", CURTAIL_HOME="s3://bucket/x")
    site = ("site", "run", "NORTH", "--superlink", "127.0.0.1:1", "--store")
    said = run.refused(*site, f"s3://{run.bucket}/empty")
    assert re.search(r"experiment\.json is not in the store s3://.*/empty", said)
    assert not list(Path.cwd().glob("*s3:*"))
