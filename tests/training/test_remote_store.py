"""A trainer whose store is a bucket, with credentials or with the addresses that orders bring: the same bits."""

import logging
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from s3_signed_front import SECRET, SignedFront, bucket_of, signed_front
from training_case import CONFIG, SITE, WEIGHTS, behind, changed, make_experiment, make_order, next_order, overlapping
from waiting import wait_until

from curtail_pipeline.benchmarks.s3_server import S3Server
from curtail_pipeline.errors import StoreError, TrainingError
from curtail_pipeline.federation.addresses import links_of
from curtail_pipeline.federation.answered import Delivered, Merged
from curtail_pipeline.federation.orders import (
    Heartbeat,
    Order,
    ParentCheckpoint,
    Plan,
    PlannedRound,
    Result,
    Segment,
    SharedState,
    StoredDelta,
    StoredWeights,
    Watch,
    agent_key,
)
from curtail_pipeline.federation.plan import read_journal
from curtail_pipeline.federation.rounds import run_segment
from curtail_pipeline.federation.trainer_api import StopOrder
from curtail_pipeline.federation.update_file import write_weights
from curtail_pipeline.scheduling.reconcile import MEMBERSHIP_KEY, Desired
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.links import Links
from curtail_pipeline.storage.s3_store import S3Store
from curtail_pipeline.storage.store import CorruptObject, NotStored, Store, file_sha256
from curtail_pipeline.times import EPOCH
from curtail_pipeline.training.heartbeat import HeartbeatWriter
from curtail_pipeline.training.linked_trainer import LinkedTrainer
from curtail_pipeline.training.order_watch import OrderWatch
from curtail_pipeline.training.plan_runner import TrainersHere
from curtail_pipeline.training.serve import start_log
from curtail_pipeline.training.trainer import SiteTrainer

EXPERIMENT = make_experiment()


@pytest.fixture(scope="module")
def filled(shared: FolderStore) -> FolderStore:
    return shared


@pytest.fixture
def front(s3: S3Server) -> Iterator[SignedFront]:
    with signed_front(s3.url, SECRET) as found:
        yield found


def plan() -> Plan:
    return Plan.model_validate(
        {
            "key": "ckpt-000001", "parent": {"key": "ckpt-000000", "weights": WEIGHTS, "sha256": "0" * 64,
            "config": CONFIG}, "members": [SITE], "mode": "local", "first_step": 0, "total_steps": 100, "rounds": [],
            "outer": {"lr": 0.7, "momentum": 0.9}, "norm_bound": 5.0,
        }
    )  # fmt: skip


def linked(signing: Store, order: Order) -> Order:
    return order.with_links(links_of(signing, order))


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
    trainer = LinkedTrainer(FolderStore(tmp_path / "site"), SITE, tmp_path / "x")  # that has no experiment either
    with pytest.raises(TrainingError, match=f"site {SITE} .* brings no addresses; name it in federation.linked"):
        trainer.train(wanted[0][0])
    for order, result in wanted:
        got = trainer.train(linked(coordinator, order), partial(trainer.report, order))
        assert got.weights == result.weights and got.inner_state == result.inner_state
        assert trainer.has(got.weights.key), "the same order again is answered with it"
        with coordinator.local(order.out) as path:
            assert file_sha256(path) == result.weights.sha256
    assert (tmp_path / "x.steps.jsonl").read_text().count('"loss"') == 6, "its steps are shown there, too"
    assert not front.refused and {method for method, _ in front.accepted} == {"GET", "PUT"}
    shards = [path for _, path in front.accepted if path.endswith(".bin")]
    assert len(shards) == len(set(shards)) > 0, "a shard is sent to a site once"
    assert [path for method, path in front.accepted if method == "PUT"] == [
        f"/{coordinator.place.bucket}/runs/small/{order.out}" for order, _ in wanted
    ]


def moved_on(store: Store, order: Order, result: Result) -> Order:
    """The order after a merge of a site alone, with what the weights can be made of."""
    key = f"{order.out}.committed"
    with store.local(order.parent.key) as base, store.local(order.out) as delta, store.new_file(key) as made:
        sha256 = write_weights(base, delta, result.codec, made).sha256
    delta_of = StoredDelta(key=order.out, sha256=result.weights.sha256, codec=result.codec, base=order.parent)
    out = "scratch/ckpt-000001/0/round-001/NEM_SA.safetensors"
    return next_order(
        order,
        result,
        parent=StoredWeights(key=key, sha256=sha256),
        delta=delta_of,
        out=out,
        residual=result.residual.end,
    )


def test_who_holds_the_base_fetches_the_delta_alone(s3: S3Server, filled: FolderStore, tmp_path: Path) -> None:
    coordinator = bucket_of(s3, filled, tmp_path / "coordinator")
    site = S3Store(coordinator.place, tmp_path / "site", 1 << 26, s3.connect)
    trainer, first = SiteTrainer(site, SITE, EXPERIMENT), make_order(filled, codec="int4")
    second = moved_on(coordinator, first, trainer.train(first))
    joiner = S3Store(coordinator.place, tmp_path / "joiner", 1 << 26, s3.connect)
    wanted = SiteTrainer(joiner, SITE, EXPERIMENT).train(changed(second, inner_state="fresh"))  # in whole
    name, claimed = f"{coordinator.place.prefix}/{second.parent.key}", {"sha256": second.parent.sha256}
    s3.connect().put_object(Bucket=coordinator.place.bucket, Key=name, Body=b"no weights", Metadata=claimed)
    got = trainer.train(changed(second, inner_state="fresh"))
    assert got.weights == wanted.weights, "made of what is here, whatever lies in the bucket"
    other = S3Store(coordinator.place, tmp_path / "other", 1 << 26, s3.connect)
    with other.local(first.parent.key):
        pass  # holds the base
    for change in ({"codec": "int8"}, {"key": "scratch/gone"}):  # does not fit, or is not there: the whole is fetched
        with pytest.raises(CorruptObject):
            SiteTrainer(other, SITE, EXPERIMENT).train(changed(second, delta=second.delta.model_copy(update=change)))


def test_a_site_without_credentials_makes_weights_of_a_delta(
    s3: S3Server, front: SignedFront, filled: FolderStore, tmp_path: Path
) -> None:
    coordinator = bucket_of(s3, filled, tmp_path / "coordinator", front.url)
    trainer = SiteTrainer(FolderStore(tmp_path / "site"), SITE, EXPERIMENT)
    first = make_order(filled, codec="int2_topk")
    second = moved_on(coordinator, first, trainer.train(linked(coordinator, first)))
    links = links_of(coordinator, second)
    reached = {key: url for key, url in links.get.items() if key != second.parent.key}
    got = trainer.train(second.with_links(links.model_copy(update={"get": reached})))
    alone = SiteTrainer(coordinator, SITE, EXPERIMENT).train(changed(second, inner_state="fresh"))
    assert got.parent_sha256 == alone.parent_sha256 and got.loss_first == alone.loss_first
    holder = SiteTrainer(FolderStore(tmp_path / "other"), SITE, EXPERIMENT)
    holder.train(linked(coordinator, first))
    gone = changed(second, delta=second.delta.model_copy(update={"key": "scratch/gone"}))
    assert holder.train(linked(coordinator, gone)).weights == got.weights, "fetched whole, where there is no delta"


def test_a_merged_inner_state_goes_by_addresses_too(
    s3: S3Server, front: SignedFront, filled: FolderStore, tmp_path: Path
) -> None:
    first = make_order(filled, shared=SharedState(name="fresh"), inner_out="scratch/r0/inner/NEM_SA.safetensors")
    done = SiteTrainer(filled, SITE, EXPERIMENT).train(first)
    shared = SharedState(name=done.inner_state.end, key=first.inner_out)
    second = next_order(first, done, shared=shared, inner_out="scratch/r1/inner/NEM_SA.safetensors")
    wanted = SiteTrainer(filled, SITE, EXPERIMENT).train(second)
    coordinator = bucket_of(s3, filled, tmp_path / "coordinator", front.url)
    coordinator.delete(second.inner_out)
    got = SiteTrainer(FolderStore(tmp_path / "site"), SITE, EXPERIMENT).train(linked(coordinator, second))
    assert (got.weights, got.inner_state) == (wanted.weights, wanted.inner_state)
    assert coordinator.digest(second.inner_out).sha256 == wanted.inner_state.end.removeprefix("sha256:")
    coordinator.delete(first.inner_out)
    fresh = SiteTrainer(FolderStore(tmp_path / "other"), SITE, EXPERIMENT).train(linked(coordinator, second))
    assert fresh.inner_state.begin == "fresh" and fresh.weights != wanted.weights, "lost, so it began fresh"


def test_coded_updates_and_states_go_by_addresses_too(
    s3: S3Server, front: SignedFront, filled: FolderStore, tmp_path: Path
) -> None:
    coded = {"codec": "int4", "inner_codec": "int4"}
    first = make_order(filled, shared=SharedState(name="fresh"), inner_out="scratch/r0/inner/a.safetensors", **coded)
    alone = SiteTrainer(filled, SITE, EXPERIMENT)
    shared = SharedState(name=(done := alone.train(first)).inner_state.end, key=first.inner_out)
    second = changed(moved_on(filled, first, done), shared=shared, inner_out="scratch/r1/inner/a.safetensors")
    wanted = alone.train(second)
    coordinator = bucket_of(s3, filled, tmp_path / "coordinator", front.url)
    for key in (first.out, first.inner_out, second.out, second.inner_out):
        coordinator.delete(key)
    site = LinkedTrainer(FolderStore(tmp_path / "site"), SITE)
    assert site.train(linked(coordinator, first)).weights == done.weights
    got = site.train(linked(coordinator, second))
    assert (got.weights, got.inner_state, got.residual) == (wanted.weights, wanted.inner_state, wanted.residual)
    assert coordinator.digest(second.inner_out).sha256 == wanted.inner_state.end.removeprefix("sha256:")


def test_an_update_on_its_way_goes_by_addresses_too(
    s3: S3Server, front: SignedFront, filled: FolderStore, tmp_path: Path
) -> None:
    """The same bits as in a folder, from the site's own files and, at another machine, from what it has stored."""
    first = overlapping(filled)
    alone = SiteTrainer(filled, SITE, EXPERIMENT)
    second = behind(first, result := alone.train(first))
    wanted = alone.train(second)
    alone.close()
    coordinator = bucket_of(s3, filled, tmp_path / "coordinator", front.url)
    for order in (first, second):
        for key in (order.out, order.inner_out, order.delivered):
            coordinator.delete(key)
    site = LinkedTrainer(FolderStore(tmp_path / "site"), SITE)
    assert site.train(linked(coordinator, first)).weights == result.weights and site.has(first.out)
    got = site.train(linked(coordinator, second))
    site.close()
    assert (got.weights, got.inner_state, got.begun_sha256) == (wanted.weights, wanted.inner_state, wanted.begun_sha256)
    for order, done in ((first, result), (second, wanted)):
        assert coordinator.read_record(order.delivered, Delivered).weights_sha256 == done.weights.sha256
        assert coordinator.digest(order.out).sha256 == done.weights.sha256
        assert f"sha256:{coordinator.digest(order.inner_out).sha256}" == done.inner_state.end
    other = SiteTrainer(FolderStore(tmp_path / "other"), SITE, EXPERIMENT)
    moved = other.train(linked(coordinator, changed(second, attempt=2)))
    other.close()
    assert moved.residual.begin == "fresh", "what codecs leave out stays at a site"
    assert moved.begun_sha256 == wanted.begun_sha256 and moved.inner_state.begin == wanted.inner_state.begin
    assert not front.refused


@pytest.mark.parametrize("by_addresses", [True, False])
def test_weights_are_fetched_while_the_round_before_them_trains(
    s3: S3Server, front: SignedFront, filled: FolderStore, tmp_path: Path, by_addresses: bool
) -> None:
    first = overlapping(filled)
    alone = SiteTrainer(filled, SITE, EXPERIMENT)
    result = alone.train(first)
    alone.close()
    key, moved = "scratch/r0/model.safetensors", filled.path("scratch/r0/delta.safetensors")
    moved.write_bytes(filled.path(first.out).read_bytes())
    written = write_weights(filled.path(WEIGHTS), moved, "int4", filled.path(key))
    weights = StoredWeights(key=key, sha256=written.sha256)
    delta = StoredDelta(key="scratch/r0/delta.safetensors", sha256=file_sha256(moved), codec="int4", base=first.parent)
    filled.write_record("scratch/r0/merged.json", Merged(weights=weights, delta=delta))
    coordinator = bucket_of(s3, filled, tmp_path / "coordinator", front.url)
    second = behind(first, result, coming="scratch/r0/merged.json")
    mine = FolderStore(tmp_path / "site") if by_addresses else bucket_of(s3, filled, tmp_path / "site")
    site = SiteTrainer(mine, SITE, EXPERIMENT)
    sent = linked(coordinator, second) if by_addresses else second
    if isinstance(mine, S3Store):  # the delta alone is fetched, however soon the merge is there
        place, claimed = mine.place, {"sha256": written.sha256}
        s3.connect().put_object(Bucket=place.bucket, Key=f"{place.prefix}/{key}", Body=b"no weights", Metadata=claimed)
    site.train(sent)
    site.close()
    if by_addresses:
        assert file_sha256(site.store.path(key)) == written.sha256
        assert not [path for _, path in front.accepted if path.endswith("r0/model.safetensors")], "the delta alone is"
        site.train(linked(coordinator, changed(second, round=2, attempt=2, coming="")))
        site.close()
        assert not site.store.exists(key), "nobody needed it"
    else:
        with mine.held(written.sha256) as path:
            assert path is not None


def test_addresses_are_good_for_one_object_method_and_time(
    s3: S3Server, front: SignedFront, filled: FolderStore, tmp_path: Path
) -> None:
    signing = bucket_of(s3, filled, tmp_path / "coordinator", front.url)
    good = links_of(signing, make_order(filled, out="out.bin"))
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


def test_a_trainers_log_gives_no_address_away(
    s3: S3Server, front: SignedFront, filled: FolderStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    signing = bucket_of(s3, filled, tmp_path / "coordinator", front.url)
    start_log(SITE)
    with caplog.at_level(logging.INFO):
        links_of(signing, make_order(filled, out="out.bin")).write("out.bin", b"weights")
    assert "X-Amz" not in caplog.text


def test_what_arrives_is_checked(s3: S3Server, front: SignedFront, filled: FolderStore, tmp_path: Path) -> None:
    signing = bucket_of(s3, filled, tmp_path / "coordinator", front.url)
    links = links_of(signing, make_order(filled, out="out.bin"))
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
        assert watch.left.wait(120), "the site was not told to leave"


def test_a_cancelled_segment_reaches_a_site_through_the_store(
    s3: S3Server, front: SignedFront, filled: FolderStore, tmp_path: Path
) -> None:
    coordinator = bucket_of(s3, filled, tmp_path / "coordinator", front.url)
    order = linked(coordinator, changed(make_order(filled), stop="stop.json"))
    for store, mine in ((FolderStore(tmp_path / "site"), order), (coordinator, changed(order, links=None))):
        with OrderWatch(store, SITE, mine) as watch:
            assert not watch.left.wait(0.7)
            coordinator.write_record("stop.json", StopOrder(key=order.key, attempt=order.attempt))
            assert watch.left.wait(120), "the site trains on"
        coordinator.delete("stop.json")


def test_a_folder_gives_no_addresses_away(filled: FolderStore) -> None:
    with pytest.raises(StoreError, match="is a folder, which has no addresses to give away"):
        links_of(filled, make_order(filled, out="out.bin"))
