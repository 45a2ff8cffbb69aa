"""`deploy/s3/site-policy.json` on a server that enforces it: a site does its work with it, and nothing else."""

import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from curtail_pipeline.benchmarks.s3_server import S3Server, serving
from curtail_pipeline.errors import StoreError
from curtail_pipeline.storage.s3_calls import Place
from curtail_pipeline.storage.s3_store import S3Store

ROOT = Path(__file__).resolve().parents[2]
POLICY = ROOT / "deploy" / "s3" / "site-policy.json"


class Guarded:
    """A bucket with a run of two sites, behind the policy."""

    def __init__(self, server: S3Server, folder: Path) -> None:
        self.server, self.folder, self.bucket = server, folder, server.bucket()
        self.keys: dict[str, tuple[str, str]] = {}
        self.owner = self.store("test", "test")
        for key in ("membership.json", "shards/TX/manifest.json", "inner_state/CA/x.safetensors", "agents/CA.json"):
            self.owner.write_bytes(key, b"owner's")

    def store(self, key: str, secret: str, prefix: str = "runs/one") -> S3Store:
        connect = lambda: self.server.connect(key=key, secret=secret)  # noqa: E731
        return S3Store(Place(self.bucket, prefix), self.folder / key, 1 << 20, connect, patience_s=5)

    def add_site(self, name: str) -> None:
        iam = boto3.session.Session().client(
            "iam", endpoint_url=self.server.url, region_name="us-east-1",
            aws_access_key_id="test", aws_secret_access_key="test",
        )  # fmt: skip
        iam.create_user(UserName=name)
        text = POLICY.read_text().replace("BUCKET", self.bucket).replace("PREFIX", "runs/one").replace("SITE", name)
        iam.put_user_policy(UserName=name, PolicyName="site", PolicyDocument=text)
        made = iam.create_access_key(UserName=name)["AccessKey"]
        self.keys[name] = made["AccessKeyId"], made["SecretAccessKey"]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with serving() as server:
        found = Guarded(server, tmp_path_factory.mktemp("machines"))
        found.add_site("TX")
        server.enforce_policies()
        yield found


def test_a_site_does_its_work_and_nothing_else(guarded: Guarded, tmp_path: Path) -> None:
    site = guarded.store(*guarded.keys["TX"])
    made = tmp_path / "made.bin"
    made.write_bytes(bytes(100))
    assert site.read_bytes("membership.json") == b"owner's" and not site.exists("agents/TX.json")
    assert site.list("shards/TX") == ["manifest.json"]
    folder = "scratch/ckpt-000001/1/round-0000"
    for key in (f"{folder}/TX.safetensors", f"{folder}/inner/TX.safetensors", "inner_state/TX/abc.safetensors"):
        site.put_file(made, key)
        with site.local(key) as path:
            assert path.read_bytes() == bytes(100)
    site.write_bytes(f"{folder}/delivered/TX.json", b"stored")
    site.write_bytes("agents/TX.json", b"alive")
    site.delete("agents/TX.json")
    site.delete("inner_state/TX/abc.safetensors")
    assert not site.exists("agents/TX.json") and site.list("inner_state/TX") == []

    for key in (
        "agents/CA.json",
        "membership.json",
        "inner_state/CA/x.safetensors",
        "merged_state/x.safetensors",
        "checkpoints/ckpt-000001/model.safetensors",
        "claims/ckpt-000001/00000000.json",
        "scratch/ckpt-000001/1/round-0000/CA.safetensors",
        "scratch/ckpt-000001/1/round-0000/delivered/CA.json",
        "scratch/ckpt-000001/1/segment.json",
        "shards/TX/manifest.json",
    ):
        for call in (site.write_bytes, site.create_bytes):
            with pytest.raises(StoreError, match=r"refused with 403 .*give credentials that may do this") as error:
                call(key, b"mine")
            assert "\n" not in str(error.value)
    elsewhere = guarded.store(*guarded.keys["TX"], prefix="runs/two")
    for read in (elsewhere.read_bytes, elsewhere.exists):
        with pytest.raises(StoreError, match="refused with 403"):
            read("membership.json")


@pytest.mark.parametrize(("key", "code"), [("AKIANOBODY0000000000", "InvalidAccessKeyId"), ("", "SignatureDoesNot")])
def test_wrong_credentials_are_one_line(guarded: Guarded, key: str, code: str) -> None:
    store = guarded.store(key or guarded.keys["TX"][0], "not its secret")
    with pytest.raises(StoreError, match=rf"x in s3://.*: http://.* refused with 403 {code}") as error:
        store.read_bytes("x")
    assert "\n" not in str(error.value)


def test_the_policy_names_no_write_without_the_site() -> None:
    statements = json.loads(POLICY.read_text())["Statement"]
    writing = [s for s in statements if any(a not in ("s3:GetObject", "s3:ListBucket") for a in _listed(s["Action"]))]
    assert writing and all("SITE" in resource for s in writing for resource in _listed(s["Resource"]))


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
