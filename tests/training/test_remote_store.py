"""A trainer whose store is a bucket, with credentials or with the addresses that orders bring: the same bits."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_signed_front import SignedFront, signed_front
from training_case import CONFIG, SITE, WEIGHTS, changed, fill_store, make_experiment, make_order, next_order
from waiting import wait_until

from curtail_pipeline.benchmarks.s3_server import S3Server
from curtail_pipeline.errors import StoreError
from curtail_pipeline.federation.addresses import links_of
from curtail_pipeline.federation.orders import (
    Heartbeat,
    Order,
    ParentCheckpoint,
    Plan,
    PlannedRound,
    Result,
    Segment,
    Watch,
    agent_key,
)
from curtail_pipeline.federation.plan import read_journal
from curtail_pipeline.federation.rounds import run_segment
from curtail_pipeline.federation.trainer_api import StopOrder
from curtail_pipeline.scheduling.reconcile import MEMBERSHIP_KEY, Desired
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.links import Links
from curtail_pipeline.storage.s3_calls import Place
from curtail_pipeline.storage.s3_store import S3Store
from curtail_pipeline.storage.store import CorruptObject, Method, NotStored, Store, file_sha256
from curtail_pipeline.times import EPOCH
from curtail_pipeline.training.heartbeat import HeartbeatWriter
from curtail_pipeline.training.order_watch import OrderWatch
from curtail_pipeline.training.plan_runner import TrainersHere
from curtail_pipeline.training.trainer import SiteTrainer

EXPERIMENT = make_experiment()
SECRET = "a secret of the coordinator"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> FolderStore:
    return fill_store(tmp_path_factory.mktemp("filled"), EXPERIMENT)


@pytest.fixture
def front(s3: S3Server) -> Iterator[SignedFront]:
    with signed_front(s3.url, SECRET) as found:
        yield found


class SigningFor(S3Store):
    """Signs for a front, as if the server stood there."""

    front: S3Store

    def sign(self, method: Method, key: str, seconds: int) -> str:
        return self.front.sign(method, key, seconds)


def bucket_of(s3: S3Server, filled: FolderStore, folder: Path, url: str | None = None) -> SigningFor:
    """A bucket with what the folder holds."""
    place = Place(s3.bucket(), "runs/small")
    store = SigningFor(place, folder, 1 << 26, s3.connect)
    store.front = S3Store(place, folder, 1 << 26, lambda: s3.connect(url, secret=SECRET))
    for path in sorted(filled.root.rglob("*")):
        if path.is_file() and path.suffix != ".lock":
            store.put_file(path, path.relative_to(filled.root).as_posix())
    return store


def plan() -> Plan:
    return Plan.model_validate(
        {
            "key": "ckpt-000001", "parent": {"key": "ckpt-000000", "weights": WEIGHTS, "sha256": "0" * 64,
            "config": CONFIG}, "members": [SITE], "mode": "local", "first_step": 0, "total_steps": 100, "rounds": [],
            "outer": {"lr": 0.7, "momentum": 0.9}, "norm_bound": 5.0,
        }
    )  # fmt: skip


def linked(signing: Store, order: Order) -> Order:
    links = links_of(signing, plan(), SITE, order.parent.key, order.lease, order.out, "stop.json")
    return changed(order, links=links)


def rounds(store: FolderStore, n: int) -> list[tuple[Order, Result]]:
    trainer, order, done = SiteTrainer(store, SITE, EXPERIMENT), make_order(store), []
    for _ in range(n):
        done.append((order, trainer.train(order)))
        order = next_order(*done[-1])
    return done


def test_a_bucket_gives_the_bits_of_a_folder(s3: S3Server, filled: FolderStore, tmp_path: Path) -> None:
    store = bucket_of(s3, filled, tmp_path / "site")
    wanted = rounds(filled, 2)
    for order, result in wanted:
        got = SiteTrainer(store, SITE, EXPERIMENT).train(order)
        assert got.weights == result.weights and got.inner_state == result.inner_state
        assert store.stat(order.out) == (result.weights.sha256, result.weights.bytes)


def test_a_segment_in_a_bucket_gives_the_weights_of_one_in_a_folder(
    s3: S3Server, filled: FolderStore, tmp_path: Path
) -> None:
    """Orders, weights, merges, momentum, journal and outcome, with everything by store keys."""
    sha256 = file_sha256(filled.path(WEIGHTS))
    wanted = plan().model_copy(
        update={
            "parent": ParentCheckpoint(key="ckpt-000000", weights=WEIGHTS, sha256=sha256, config=CONFIG),
            "mode": "federated",
            "rounds": tuple(
                PlannedRound(index=n, steps={SITE: 2}, lease={SITE: ((1, 8 * n, 8 * n + 8),)}) for n in range(2)
            ),
        }
    )

    def run(store: Store) -> Segment:
        transport = TrainersHere(lambda site: SiteTrainer(store, site, EXPERIMENT), threading.Event())
        return run_segment(transport, wanted, store, wait=lambda _: None, log=lambda _: None)

    bucket = bucket_of(s3, filled, tmp_path / "machine")
    there, here = run(bucket), run(filled)
    assert there.model_copy(update={"rounds": here.rounds}) == here, "but for the rounds' wall times"
    assert there.steps == 4 and there.outer is not None
    for key, sha in ((there.weights.key, there.weights.sha256), (there.outer.key, there.outer.sha256)):
        assert bucket.digest(key).sha256 == sha
    folder = "scratch/ckpt-000001/1"
    assert (
        bucket.list(folder) == ["round-0001", "rounds.jsonl", "segment.json"] and len(read_journal(bucket, folder)) == 2
    )
    assert bucket.list(f"{folder}/round-0001") == ["model.safetensors", "outer.safetensors"]


def test_a_site_without_credentials_gives_the_same_bits(
    s3: S3Server, front: SignedFront, filled: FolderStore, tmp_path: Path
) -> None:
    wanted = rounds(filled, 2)
    coordinator = bucket_of(s3, filled, tmp_path / "coordinator", front.url)
    trainer = SiteTrainer(FolderStore(tmp_path / "site"), SITE, EXPERIMENT)
    for order, result in wanted:
        got = trainer.train(linked(coordinator, order))
        assert got.weights == result.weights and got.inner_state == result.inner_state
        with coordinator.local(order.out) as path:
            assert file_sha256(path) == result.weights.sha256
    assert not front.refused and {method for method, _ in front.accepted} == {"GET", "PUT"}
    shards = [path for _, path in front.accepted if path.endswith(".bin")]
    assert len(shards) == len(set(shards)) > 0, "a shard is sent to a site once"
    assert [path for method, path in front.accepted if method == "PUT"] == [
        f"/{coordinator.place.bucket}/runs/small/{order.out}" for order, _ in wanted
    ]


def test_addresses_are_good_for_one_object_method_and_time(
    s3: S3Server, front: SignedFront, filled: FolderStore, tmp_path: Path
) -> None:
    signing = bucket_of(s3, filled, tmp_path / "coordinator", front.url)
    good = links_of(signing, plan(), SITE, WEIGHTS, [(1, 0, 4)], "out.bin", "stop.json")
    good.write(agent_key(SITE), b"alive")
    with pytest.raises(NotStored, match=r"membership\.json is not in the store"):
        good.read("membership.json")
    other = good.get[CONFIG].replace("config.json", "model.safetensors")
    read = good.get["experiment.json"]
    short = signing.sign("GET", CONFIG, 1)
    wrong = Links(get={"a": other, "c": short, "d": read.partition("?")[0]}, put={"b": read})
    time.sleep(1.1)  # nothing tells a server that the time is up
    for call in (lambda: wrong.read("a"), lambda: wrong.write("b", b""), lambda: wrong.read("c")):
        with pytest.raises(StoreError, match="pre-signed address was refused with 403: it has expired") as error:
            call()
        assert "X-Amz" not in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(StoreError, match="refused with 403"):
        wrong.fetch("d", tmp_path / "d")
    assert front.refused == ["SignatureDoesNotMatch", "SignatureDoesNotMatch", "expired", "not signed"]
    with pytest.raises(NotStored, match="brought no address for z"):
        wrong.read("z")
    assert not (tmp_path / "d").exists()


def test_what_arrives_is_checked(s3: S3Server, front: SignedFront, filled: FolderStore, tmp_path: Path) -> None:
    signing = bucket_of(s3, filled, tmp_path / "coordinator", front.url)
    links = links_of(signing, plan(), SITE, WEIGHTS, [(1, 0, 4)], "out.bin", "stop.json")
    direct = s3.connect()
    name = f"runs/small/{WEIGHTS}"
    found = direct.get_object(Bucket=signing.place.bucket, Key=name)
    data = found["Body"].read()
    direct.put_object(Bucket=signing.place.bucket, Key=name, Body=data[:-9], Metadata=found["Metadata"])
    with pytest.raises(CorruptObject, match=r"model\.safetensors is corrupt: expected sha256"):
        links.fetch(WEIGHTS, tmp_path / "w")
    assert not (tmp_path / "w").exists()


class Idle:
    """A worker that has had one order."""

    site, activity = SITE, None

    def __init__(self, links: Links) -> None:
        self.links = links


def test_signs_of_life_and_the_membership_go_by_addresses(
    s3: S3Server, front: SignedFront, filled: FolderStore, tmp_path: Path
) -> None:
    coordinator = bucket_of(s3, filled, tmp_path / "coordinator", front.url)
    order = linked(coordinator, changed(make_order(filled), watch=Watch(key=MEMBERSHIP_KEY, generation=1)))
    assert order.links is not None
    beats = HeartbeatWriter(FolderStore(tmp_path / "site"), Idle(order.links))
    beats.start()
    wait_until(lambda: coordinator.exists(agent_key(SITE)), what="a sign of life in the bucket")
    assert coordinator.read_record(agent_key(SITE), Heartbeat).site == SITE
    beats.close()

    with OrderWatch(FolderStore(tmp_path / "site"), SITE, order) as watch:
        desired = Desired(generation=2, states={SITE: "off"}, reasons={}, reason="", at=EPOCH)
        coordinator.write_record(MEMBERSHIP_KEY, desired)
        assert watch.left.wait(30), "the site was not told to leave"


def test_a_cancelled_segment_reaches_a_site_through_the_store(
    s3: S3Server, front: SignedFront, filled: FolderStore, tmp_path: Path
) -> None:
    coordinator = bucket_of(s3, filled, tmp_path / "coordinator", front.url)
    order = linked(coordinator, changed(make_order(filled), stop="stop.json"))
    for store, mine in ((FolderStore(tmp_path / "site"), order), (coordinator, changed(order, links=None))):
        with OrderWatch(store, SITE, mine) as watch:
            assert not watch.left.wait(0.7)
            coordinator.write_record("stop.json", StopOrder(key=order.key, attempt=order.attempt))
            assert watch.left.wait(30), "the site trains on"
        coordinator.delete("stop.json")


def test_a_folder_gives_no_addresses_away(filled: FolderStore) -> None:
    with pytest.raises(StoreError, match="is a folder, which has no addresses to give away"):
        links_of(filled, plan(), SITE, WEIGHTS, [(1, 0, 4)], "out.bin", "stop.json")
